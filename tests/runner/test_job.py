"""Whole runs on the embedded default."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from huggingface_hub import ModelCard
from transformers import AutoModelForSequenceClassification

from lorsa.runner.batches import EncodedRows
from lorsa.runner.compose import compose
from lorsa.runner.job import run
from lorsa.runner.result import schema
from lorsa.runner.signature import model_folder, signature
from lorsa.runner.stop import StopRequested
from lorsa.runner.training import GlueTrainer

CONF = Path(__file__).resolve().parents[2] / "conf"
TASKS = sorted(path.stem for path in (CONF / "task").glob("*.yaml"))
METHODS = sorted(path.stem for path in (CONF / "method").glob("*.yaml") if path.stem != "peft")


@pytest.mark.parametrize("task", TASKS)
def test_every_task_runs_with_lorsa(job, task):
    result = job("debug=smoke", f"task={task}", "data.train_rows=40")
    assert result["task"] == task
    assert result["is_demo"]
    assert result["primary_metric"]["test"] is not None or task == "stsb"


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs(job, method):
    result = job("debug=smoke", f"method={method}", "data.train_rows=40")
    assert result["method"] == method
    assert result["trainable_params"] == result["adapter_params"] + result["head_params"]
    if method == "full":
        assert result["trainable_percent"] == 100
    elif method == "head":
        assert result["adapter_params"] == 0
    else:
        assert 0 < result["adapter_params"] < result["total_params"]


def test_any_method_of_peft_can_be_named(job):
    result = job("debug=smoke", "method=peft", "method.config._target_=peft.LoHaConfig", "+method.config.r=4")
    assert result["config"]["method"]["config"]["r"] == 4
    assert result["adapter_params"] > 0


def test_a_result_follows_the_schema_and_the_directory_has_what_it_promises(job, tmp_path):
    result = job("debug=smoke")
    jsonschema.validate(result, schema())
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name == result["signature"]
    present = {path.name for path in folder.iterdir()}
    assert {"config.yaml", "result.json", "metrics.jsonl", "predictions", "adapter", "status.json"} <= present
    assert "checkpoints" not in present
    assert json.loads((folder / "status.json").read_text())["state"] == "done"
    adapter_card = ModelCard.load(folder / "adapter" / "README.md")
    assert "**Demo data, not GLUE.**" in adapter_card.text and result["signature"] in adapter_card.text
    scored = {each.dataset_split: each.metric_value for each in adapter_card.data.eval_results}
    assert scored["validation"] == result["metrics"]["test"]["validation"]["accuracy"]
    for split in ("dev", "validation", "test"):
        lines = [json.loads(line) for line in (folder / "predictions" / f"{split}.jsonl").read_text().splitlines()]
        assert len(lines) == result["rows"][split]
        assert [line["idx"] for line in lines] == sorted(line["idx"] for line in lines)
        assert all(line["prediction"] == max(range(2), key=lambda i: line["logits"][i]) for line in lines)


def test_the_predictions_give_the_recorded_metric(job, tmp_path):
    from lorsa.runner.demo.data import demo_rows

    result = job("debug=smoke")
    (file,) = (tmp_path / "runs").glob("*/predictions/validation.jsonl")
    labels = {row["idx"]: row["label"] for row in demo_rows("sst2")["validation"]}
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    accuracy = sum(line["prediction"] == labels[line["idx"]] for line in lines) / len(lines)
    assert result["metrics"]["test"]["validation"]["accuracy"] == pytest.approx(accuracy)


def test_a_run_that_is_done_is_not_trained_again_unless_forced(job, monkeypatch, capsys):
    first = job("debug=smoke")
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr("lorsa.runner.job.load", lambda cfg: pytest.fail("loaded again"))
        assert job("debug=smoke") == first
    assert "already done" in capsys.readouterr().out
    forced = job("debug=smoke", "force=true")
    assert forced["metrics"] == first["metrics"]
    assert forced["timings"] != first["timings"]


def test_under_best_epoch_the_validation_set_chooses_and_all_rows_train(job):
    result = job("protocol=best_epoch", "train.epochs=2", "data.train_rows=2000")
    assert result["protocol"] == "best_epoch"
    assert result["rows"]["train"] == 2000
    assert "dev" not in result["rows"]
    assert result["metrics"]["dev"] == result["metrics"]["test"]


def test_mnli_is_scored_on_both_validation_sets_and_counts_as_one(job):
    result = job("debug=smoke", "task=mnli", "data.train_rows=40")
    test = result["metrics"]["test"]
    assert set(test) == {"validation_matched", "validation_mismatched"}
    mean = sum(split["accuracy"] for split in test.values()) / 2
    assert result["primary_metric"]["test"] == pytest.approx(mean)


def test_the_same_seed_gives_the_same_run_and_another_seed_another(tmp_path):
    def score(folder, seed):
        cfg = compose(f"runs_dir={tmp_path / folder}", "debug=smoke", f"seed={seed}")
        run(cfg)
        path = tmp_path / folder / signature(cfg) / "predictions" / "validation.jsonl"
        return path.read_text()

    assert score("a", 0) == score("b", 0) != score("a", 1)


def test_the_recorded_adapter_gives_the_recorded_predictions(job, tmp_path):
    import torch
    from peft import PeftModel
    from transformers import AutoTokenizer

    from lorsa.runner.demo.data import demo_rows

    job("debug=smoke", "train.lr=0.05")
    (folder,) = (tmp_path / "runs").iterdir()
    source = model_folder(compose().model.path)
    base = AutoModelForSequenceClassification.from_pretrained(source, num_labels=2)
    model = PeftModel.from_pretrained(base, folder / "adapter").eval()
    tokenizer = AutoTokenizer.from_pretrained(source)
    recorded = {}
    for line in (folder / "predictions" / "validation.jsonl").read_text().splitlines():
        record = json.loads(line)
        recorded[record["idx"]] = record["logits"]
    for row in demo_rows("sst2")["validation"][:20]:
        with torch.no_grad():
            logits = model(**tokenizer(row["sentence"], return_tensors="pt")).logits[0]
        assert logits.tolist() == pytest.approx(recorded[row["idx"]], abs=1e-5)


def test_an_evaluation_that_is_stopped_goes_on_and_predicts_the_same(job, tmp_path, monkeypatch):
    overrides = ("debug=smoke", "train.eval_batch_size=8")
    whole = job(*overrides)
    folder = tmp_path / "runs" / whole["signature"]
    predictions = {path.name: path.read_bytes() for path in (folder / "predictions").iterdir()}
    monkeypatch.setattr("lorsa.runner.evaluation.BATCHES_PER_PIECE", 1)
    scored: list[int] = []
    logits = GlueTrainer.logits

    def stopped(self: GlueTrainer, rows: EncodedRows) -> Any:
        if len(scored) in stops:
            stops.remove(len(scored))
            raise StopRequested("SIGUSR2")
        if rows is not self.selection_rows["dev"]:
            scored.append(len(rows))
        return logits(self, rows)

    monkeypatch.setattr(GlueTrainer, "logits", stopped)
    stops = {3, 5}
    for force in ("true", "false"):
        with pytest.raises(StopRequested):
            job(*overrides, f"force={force}")
    kept = next((folder / "checkpoints").glob("logits-*/*-0-8.npy"))
    kept.with_name(kept.name.replace("-8.npy", "-99.npy")).write_bytes(b"a piece that was cut otherwise")
    result = job(*overrides)
    assert result["metrics"] == whole["metrics"] and result["attempts"] == 4
    assert {path.name: path.read_bytes() for path in (folder / "predictions").iterdir()} == predictions
    parts = sum(rows for part, rows in whole["rows"].items() if part != "train")
    assert sum(scored) == parts and len(scored) > 5, "a piece was computed twice, or all in one"


def test_the_adapter_is_on_the_disk_before_the_result_and_that_before_the_checkpoints_go(job, tmp_path, monkeypatch):
    flushed: list[tuple[str, bool, bool]] = []

    def flush(path: Path) -> None:
        run = next(iter((tmp_path / "runs").iterdir()))
        state = (run / "result.json").exists(), any((run / "checkpoints").glob("*/complete"))
        flushed.append((path.relative_to(run).as_posix(), *state))

    monkeypatch.setattr("lorsa.runner.rundir.flush_to_disk", flush)
    job("debug=smoke")
    written = {name for name, has_result, _ in flushed if not has_result}
    assert {"adapter", "adapter/adapter_model.safetensors", "adapter/adapter_config.json"} <= written
    assert flushed[-1] == (".", True, True)


def test_each_run_of_a_process_has_a_peak_of_its_own(job):
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("only Linux lets a process forget its peak")
    ballast = bytearray(b"x" * (3 << 30))  # written to, so that it is resident
    large = job("debug=smoke", "data.train_rows=40")["memory"]["peak_bytes"]
    del ballast
    small = job("debug=smoke", "data.train_rows=41")["memory"]["peak_bytes"]
    assert small < large - (2 << 30)


def test_speed_memory_and_time_are_recorded(job):
    result = job("debug=smoke", "train.batch_size=20", "train.max_steps=-1", "train.epochs=1")
    speed = result["throughput"]
    # 32 rows in batches of 20: not 40.
    assert speed["examples_per_s"] == pytest.approx(32 / result["timings"]["train"], rel=1e-6)
    assert speed["tokens_per_s"] > speed["examples_per_s"]
    assert result["memory"]["adapter_bytes"] > 0
    assert result["timings"]["total"] >= result["timings"]["train"]


@pytest.mark.parametrize("method", ["lora", "head"])
def test_a_probed_head_starts_where_a_random_one_would_have_to_get(job, tmp_path, method):
    # At this rate nothing moves: what is scored is the start.
    still = [f"method={method}", "debug=smoke", "data.train_rows=300", "train.lr=1e-12", "train.head_lr=1e-12"]
    random = job(*still)
    probed = job(*still, "train.probe_rows=300")
    assert probed["timings"]["probe"] > 0
    assert "probe" not in random["timings"]
    assert probed["primary_metric"]["dev"] > random["primary_metric"]["dev"]
    again = job(*still, "train.probe_rows=300", "force=true")
    assert again["metrics"] == probed["metrics"]


@pytest.mark.parametrize(("method", "kernels"), [("lorsa", "reference (PyTorch)"), ("lora", None)])
def test_a_result_says_what_computed_its_operators(command, tmp_path, method, kernels, monkeypatch):
    monkeypatch.setenv("LORSA_KERNELS", "reference")
    done = command("debug=smoke", f"method={method}", "data.train_rows=40")
    assert done.returncode == 0, done.stderr
    (result,) = (json.loads(path.read_text()) for path in (tmp_path / "runs").glob("*/result.json"))
    assert result["versions"].get("kernels") == kernels
    assert ("LoRSA's operators: reference (PyTorch)." in done.stdout) == (kernels is not None)


def test_kernels_that_were_asked_for_and_are_not_built_end_the_run_with_a_sentence(command, tmp_path, monkeypatch):
    monkeypatch.setenv("LORSA_KERNELS", "built")
    monkeypatch.setenv("LORSA_CACHE", str(tmp_path / "empty"))
    done = command("debug=smoke", "method=lorsa", "data.train_rows=40")
    assert done.returncode == 2
    assert "python -m lorsa.kernels.build" in done.stderr


def test_debug_overfit_learns_its_rows(job):
    assert job("debug=overfit", "method=full", "train.lr=1e-3")["primary_metric"]["dev"] == 1.0


@pytest.mark.parametrize("method", ["lorsa", "lorsa_subspace", "lora", "head"])
def test_on_a_bfloat16_model_what_trains_is_float32(job, tmp_path, method):
    from safetensors.torch import load_file

    job("debug=smoke", "model.dtype=bfloat16", f"method={method}")
    (weights,) = (tmp_path / "runs").glob("*/adapter/*.safetensors")
    fixed = ("lorsa_U", "lorsa_V")
    for name, tensor in load_file(weights).items():
        assert str(tensor.dtype) == ("torch.bfloat16" if name.endswith(fixed) else "torch.float32"), name
