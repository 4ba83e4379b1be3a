"""Every engine gives what one process gives: the curve, the checkpoint, the adapter; and no process is left behind."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorsa.runner.batches import LengthBucketSampler, ProcessBatches
from lorsa.runner.compose import compose
from lorsa.runner.distributed import VARIABLES
from lorsa.runner.errors import UserError
from lorsa.runner.signature import signature
from lorsa.runner.validate import check

ENGINES = ("ddp", "zero1", "zero2", "zero3")
WORKER = Path(__file__).with_name("one_of_several.py")
# 129 rows to train on: the last update of an epoch has one, and the second process none. The small learning rates and
# the large eps keep Adam from blowing up the rounding of gradients that are zero at step 0.
RUN = (
    "data.train_rows=129",
    "train.epochs=6",
    "train.max_steps=50",
    "train.lr=1e-3",
    "train.head_lr=1e-3",
    "optim.eps=1e-5",
    "train.checkpoint_every=20",
    "engine.threads=1",
    "engine.device=cpu",
    "task.predict_splits=[]",
)
SHORT = "train.max_steps=10"
MATRICES = 16  # q, k, v and o of the four layers

Outcome = dict[str, Any]


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def run_together(folder: Path, jobs: list[dict[str, Any]], own_cache: bool = False) -> tuple[list[int], list[Any]]:
    """Run jobs in two processes; returns their exit codes and outcomes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder.mkdir(exist_ok=True)
    (folder / "jobs.json").write_text(json.dumps(jobs))
    processes = []
    for rank in range(2):
        environment = os.environ | {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        if own_cache:
            cache = folder / f"cache-{rank}"
            cache.mkdir()
            (cache / "kernels").symlink_to(Path(os.environ["LORSA_CACHE"]) / "kernels")
            environment["LORSA_CACHE"] = str(cache)
        command = [sys.executable, str(WORKER), str(folder / "jobs.json"), str(folder / f"outcome-{rank}.json")]
        log = (folder / f"log-{rank}.txt").open("w")
        processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=folder))
    codes = []
    try:
        for process in processes:
            codes.append(process.wait(timeout=600))
    finally:
        for process in processes:
            process.kill()
    outcomes = [folder / f"outcome-{rank}.json" for rank in range(2)]
    return codes, [json.loads(path.read_text()) if path.exists() else [] for path in outcomes]


def result_of(runs: Path, *overrides: str) -> tuple[Path, Outcome]:
    cfg = compose(*overrides)
    if cfg.engine.name != "single":  # then two processes made it
        cfg.resources.tasks_per_node = 2
    folder = runs / signature(cfg)
    return folder, json.loads((folder / "result.json").read_text())


def curve(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


class Runs:
    """The same run under every engine, each stopped after 30 updates and gone on with from update 27."""

    def __init__(self, folder: Path) -> None:
        from lorsa.runner.job import run

        self.folder = folder
        # As many rows per update, and as many per calibration batch, in one process.
        self.alone = self.overrides("single", "train.gradient_accumulation=2")
        run(compose(*self.alone))
        run(compose(*self.alone, SHORT))
        jobs = []
        for engine in ENGINES:
            jobs.append({"overrides": self.overrides(engine), "stop_at": 30})
            jobs.append({"overrides": self.overrides(engine)})
        checkpointed = self.overrides("zero3", "train.gradient_checkpointing=true", SHORT)
        jobs.append({"overrides": checkpointed})
        jobs.append({"overrides": self.overrides("ddp", "data.train_rows=1")})
        self.codes, self.outcomes = run_together(folder / "pair", jobs, own_cache=True)
        self.checkpointed = checkpointed

    def overrides(self, engine: str, *more: str) -> list[str]:
        return [f"runs_dir={self.folder}", f"engine={engine}", "train.batch_size=8", *RUN, *more]

    def of(self, engine: str) -> tuple[Path, Outcome]:
        return result_of(self.folder, *self.overrides(engine))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    for name in VARIABLES:
        assert name not in os.environ
    return Runs(tmp_path_factory.mktemp("engines"))


def differences(mine: list[dict[str, Any]], theirs: list[dict[str, Any]], key: str) -> list[float]:
    pairs = [(a[key], b[key]) for a, b in zip(mine, theirs, strict=True) if key in a]
    return [abs(a - b) / abs(b) for a, b in pairs]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_engine_has_the_curve_of_one_process_also_across_a_stop(runs: Runs, engine: str) -> None:
    expected, alone = result_of(runs.folder, *runs.alone)
    folder, result = runs.of(engine)
    assert result["resumed_from_step"] == 27
    assert result["components"] == alone["components"]
    mine, theirs = curve(folder), curve(expected)
    assert [line["step"] for line in mine] == [line["step"] for line in theirs]
    assert mine[-1]["step"] == 50
    assert max(differences(mine, theirs, "loss")) < 1e-5
    assert max(differences(mine, theirs, "learning_rate")) < 1e-9
    assert [line["num_input_tokens_seen"] for line in mine] == [line["num_input_tokens_seen"] for line in theirs]
    assert result["metrics"] == alone["metrics"]
    for split in ("dev", "validation"):
        a, b = (
            [json.loads(line) for line in (where / "predictions" / f"{split}.jsonl").read_text().splitlines()]
            for where in (folder, expected)
        )
        assert [row["idx"] for row in a] == [row["idx"] for row in b]
        assert np.allclose([row["logits"] for row in a], [row["logits"] for row in b], atol=1e-4)


@pytest.mark.slow
def test_every_basis_is_taken_once_and_sent_where_no_disk_is_shared(runs: Runs) -> None:
    counts = [[outcome["computed"] for outcome in outcomes] for outcomes in runs.outcomes]
    assert [mine[0] for mine in counts] == [MATRICES // 2, MATRICES // 2]
    assert all(count == 0 for mine in counts for count in mine[1:])


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_checkpoint_holds_what_trains_and_not_the_model(runs: Runs, engine: str) -> None:
    _, result = runs.of(engine)
    stopped = runs.outcomes[0][2 * ENGINES.index(engine)]
    assert "stopped for the test" in stopped["error"]
    # Parameters, and AdamW's two averages and a copy of the parameters; files have headers.
    assert 12 * result["trainable_params"] < stopped["checkpoint_bytes"] < 24 * result["trainable_params"] + 150_000
    assert stopped["checkpoint_bytes"] < 4 * result["total_params"] / 5


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "zero3"])
def test_adapter_loads_in_one_process(runs: Runs, engine: str) -> None:
    import torch
    from peft import PeftModel

    from lorsa.runner.job import load

    cfg = compose(*runs.alone)
    _, base, rows = load(cfg)
    folder, _ = runs.of(engine)
    model = PeftModel.from_pretrained(base.model, str(folder / "adapter")).eval()
    predicted = [json.loads(line) for line in (folder / "predictions" / "dev.jsonl").read_text().splitlines()]
    expected = {row["idx"]: row["logits"] for row in predicted}
    with torch.no_grad():
        for idx, row in zip(rows["dev"].ids, rows["dev"].dataset, strict=True):
            logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0]
            assert torch.allclose(logits, torch.tensor(expected[idx]), atol=1e-4)


@pytest.mark.slow
def test_all_processes_count_in_the_record(runs: Runs) -> None:
    _, result = runs.of("zero2")
    assert result["hardware"]["processes"] == 2
    # Updates 28 to 50: nine to an epoch, the last of which has one row.
    rows = 2 * 129 + 5 * 16
    trained = result["throughput"]["examples_per_s"] * result["timings"]["train"]
    assert trained == pytest.approx(rows, abs=0.5)
    # As a single process counts them, of which 27 updates, three epochs, were before the stop.
    assert result["throughput"]["tokens_per_s"] * result["timings"]["train"] == pytest.approx(
        curve(runs.of("ddp")[0])[-1]["num_input_tokens_seen"] - curve(runs.of("ddp")[0])[7]["num_input_tokens_seen"],
        abs=0.5,
    )


@pytest.mark.slow
def test_gradient_checkpointing_under_zero3_changes_nothing(runs: Runs) -> None:
    folder, _ = result_of(runs.folder, *runs.checkpointed)
    expected, _ = result_of(runs.folder, *runs.alone, SHORT)
    assert max(differences(curve(folder), curve(expected), "loss")) < 1e-4
    assert max(differences(curve(folder), curve(expected), "grad_norm")) < 1e-3


@pytest.mark.slow
def test_more_processes_than_rows_are_refused_by_all(runs: Runs) -> None:
    assert runs.codes == [0, 0]
    for outcomes in runs.outcomes:
        assert "2 processes, but only 1 rows to train on" in outcomes[-1]["error"]


@pytest.mark.slow
def test_an_error_in_one_process_ends_all(tmp_path: Path) -> None:
    overrides = [f"runs_dir={tmp_path / 'runs'}", "engine=ddp", "method=head", *RUN]
    codes, outcomes = run_together(tmp_path / "pair", [{"overrides": overrides, "crash": [1, 3]}])
    assert codes[1] == 1
    assert "process 1 on" in outcomes[0][0]["error"]
    assert "crashed for the test" in outcomes[0][0]["error"]
    (status,) = (tmp_path / "runs").glob("*/status.json")
    assert json.loads(status.read_text())["state"] == "failed"


@pytest.mark.slow
def test_zero3_checkpoints_what_an_evaluation_fetched_ahead(tmp_path: Path) -> None:
    # Fetched in steps so small that some weights are still on their way when a forward pass alone ends; the checkpoint
    # then gathers them.
    ahead = ("engine.zero.stage3_param_persistence_threshold=0", "engine.zero.stage3_prefetch_bucket_size=5000")
    overrides = [f"runs_dir={tmp_path / 'runs'}", "engine=zero3", "method=full", "train.batch_size=8", *RUN, *ahead]
    codes, _ = run_together(tmp_path / "pair", [{"overrides": [*overrides, SHORT]}])
    assert codes == [0, 0], (tmp_path / "pair" / "log-0.txt").read_text()[-2000:]


@pytest.mark.slow
def test_zero_works_as_one_process(command: Callable[..., Any], tmp_path: Path) -> None:
    done = command("engine=zero2", "method=head", "train.max_steps=2", "runs_dir=runs", "engine.device=cpu")
    assert done.returncode == 0, done.stderr
    (result,) = (tmp_path / "runs").glob("*/result.json")
    assert json.loads(result.read_text())["hardware"]["processes"] == 1


def test_ddp_works_as_one_process(job: Callable[..., Outcome]) -> None:
    assert job("engine=ddp", "method=head", "train.max_steps=2")["hardware"]["processes"] == 1


@pytest.mark.parametrize("rows", [1, 7, 16, 33, 64, 65])
@pytest.mark.parametrize("processes", [2, 3])
def test_batches_of_all_processes_are_the_rows_of_each_update(rows: int, processes: int) -> None:
    order = LengthBucketSampler(list(range(1, rows + 1)), 4 * 2 * processes, seed=0)
    expected = list(order)
    shares = [list(ProcessBatches(order, 4, 2, rank, processes)) for rank in range(processes)]
    passes = {len(share) for share in shares}
    assert passes == {len(ProcessBatches(order, 4, 2, 0, processes))}
    for update in range(0, max(passes), 2):
        taken = [row for share in shares for batch in share[update : update + 2] for row in batch]
        first = update * 4 * processes
        assert sorted(row for row in taken if row >= 0) == sorted(expected[first : first + 8 * processes])
    assert all(batch and len(batch) <= 4 for share in shares for batch in share)


def refusal(*overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        check(compose(*overrides))
    return str(caught.value)


def test_single_refuses_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "engine=single is one process" in refusal("engine=single")
    assert "RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT not set" in refusal("engine=ddp")
    monkeypatch.setenv("WORLD_SIZE", "two")
    assert "WORLD_SIZE=two is not a whole number" in refusal("engine=ddp")


@pytest.mark.parametrize("engine", ["zero1", "zero2", "zero3", "zero2_offload", "zero3_offload"])
def test_zero_refuses_what_it_cannot_shard(engine: str) -> None:
    assert "AdaLoRA prunes by whole gradients" in refusal(f"engine={engine}", "method=adalora")
    assert "flat pieces of the parameters" in refusal(f"engine={engine}", "optim=adafactor")
    assert "precision=fp16" in refusal(f"engine={engine}", "engine.precision=fp16")


@pytest.mark.parametrize("method", ["pissa", "olora", "psoft"])
def test_zero3_refuses_methods_that_change_weights_at_the_start(method: str) -> None:
    assert "a decomposition of weights" in refusal("engine=zero3", f"method={method}")
    check(compose("engine=zero2", f"method={method}"))


def test_zero_without_deepspeed_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from lorsa.runner import distributed, zero

    monkeypatch.setattr(zero, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'lorsa\[deepspeed\]'"):
        distributed.start(compose("engine=zero2"))
