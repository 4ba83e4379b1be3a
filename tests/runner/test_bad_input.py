"""Bad input gets one clear sentence and a non-zero exit code, and leaves nothing behind.

What can be wrong with a data set is in glue/test_glue_checks.py.
"""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from lorsa.runner import cli
from lorsa.runner.compose import compose
from lorsa.runner.errors import AlreadyRunningError, UserError
from lorsa.runner.job import run
from lorsa.runner.rundir import RunDirectory
from lorsa.runner.signature import signature


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """Run a command line that must be refused; returns the sentence."""

    def run_refused(*overrides: str) -> str:
        runs = tmp_path / "runs"
        monkeypatch.setattr(sys, "argv", ["lorsa-run", f"runs_dir={runs}", *overrides])
        monkeypatch.chdir(tmp_path)
        with pytest.raises(SystemExit) as exit_info:
            cli.main()
        assert exit_info.value.code == cli.EXIT_BAD_INPUT
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("lorsa-run: ")
        assert "Traceback" not in error
        assert not runs.exists() or not list(runs.iterdir()), "something half-written is left"
        return error

    return run_refused


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("task=sst3", ["no task named 'sst3'", "did you mean 'sst2'", "cola"]),
        ("method=lors", ["no method named 'lors'", "did you mean 'lorsa'", "bitfit"]),
        ("experiment=llama2_7b_gleu", ["no experiment named 'llama2_7b_gleu'", "did you mean 'llama2_7b_glue'"]),
        ("debug=foo", ["no debug named 'foo'", "smoke"]),
        ("hydra/launcher=slurm", ["add -m"]),
        ("resources.extra.nice=3", ["no key 'resources.extra.nice'.", "added by +resources.extra.nice=…"]),
        ("tusk=sst2", ["no key 'tusk'", "did you mean 'task'"]),
        ("train.batchsize=3", ["no key 'train.batchsize'", "did you mean 'batch_size'"]),
        ("+train.foo=3", ["no key 'train.foo'", "batch_size"]),
        ("+foo=3", ["no key 'foo'", "seed"]),
        ("train.batch_size=many", ["train.batch_size", "'many'", "Integer"]),
        ("seed=1.5", ["seed", "1.5", "Integer"]),
        ("seed=-1", ["seed=-1", "from 0"]),
        ("method.lr=-1e-3", ["lr=-0.001", "above 0"]),
        ("train.batch_size=0", ["train.batch_size=0", "above 0"]),
        ("optim.warmup=2", ["optim.warmup=2", "from 0 to below 1"]),
        ("optim.name=adamm", ["adamm"]),
        ("optim.name=galore_adamw", ["optim.name=galore_adamw", "galore"]),
        ("optim.schedule=linearr", ["optim.schedule=linearr", "did you mean 'linear'"]),
        ("optim.schedule=reduce_lr_on_plateau", ["optim.schedule=reduce_lr_on_plateau", "constant_with_warmup"]),
        ("optim.betas=[2,3]", ["optim.betas", "two numbers"]),
        ("engine.name=zero3", ["engine.name=zero3", "engine=zero3"]),
        ("tracker.name=mlflow", ["tracker.name=mlflow", "none, tensorboard, wandb"]),
        ("task.columns=[]", ["task.columns", "one or two"]),
        ("method.config.target_modules='[a'", ["no regular expression"]),
        ("protocol=best", ["protocol=best", "did you mean 'best_epoch'"]),
        ("model.dtype=float23", ["model.dtype=float23", "did you mean 'float32'"]),
        ("data.dev_fraction=0.9", ["data.dev_fraction=0.9", "at most 0.5"]),
        ("data=local", ["data=local needs data.path"]),
        ("model=hf", ["model.path", "has no value"]),
        ("model.path=./nowhere", ["./nowhere", "no such folder"]),
        ("model.path=embedded:other", ["embedded:other", "tiny_llama"]),
        ("method.config._target_=os.system", ["os.system", "may not be instantiated"]),
        ("method.config._target_=peft.LoraConfg", ["LoraConfg", "did you mean 'LoraConfig'"]),
        ("method.config.kk=4", ["no key 'method.config.kk'", "did you mean 'k'"]),
        ("+method.config.ranks=4", ["method.config.ranks", "not a field of LorsaConfig", "rotate"]),
        ("method.config.k=0", ["k=0", "at least 1"]),
        ("method.config.space=somewhere", ["space='somewhere'", "subspace, ambient"]),
        ("data.version=99", ["data.version=99", "version 1"]),
        ("data.train_rows=5000", ["data.train_rows=5000", "1800"]),
    ],
)
def test_a_wrong_value_is_named_with_what_would_be_valid(refused, override, words):
    sentence = refused(override)
    for word in words:
        assert word in sentence


def test_a_rotation_larger_than_half_the_subspace_is_refused(refused):
    assert "r=40 is more than half of k=64" in refused("method=lorsa_subspace", "method.config.r=40")


def test_more_components_than_the_smallest_module_has_names_the_largest_k(refused):
    assert "k=5000 is more than the" in refused("method.config.k=5000")


def test_a_target_that_matches_nothing_lists_the_modules_that_exist(refused):
    sentence = refused("method.config.target_modules=[query]")
    assert "matches no module" in sentence
    assert "q_proj" in sentence
    sentence = refused("method=lora", "method.config.target_modules=[query]")
    assert "matches no module" in sentence
    assert "q_proj" in sentence


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["method=oft", "method.config.oft_block_size=7"], "oft_block_size=7 does not divide the width 128"),
        (["method=vera", "method.config.r=-1"], "method=vera"),
        (["method=adalora", "method.config.tinit=10000"], "AdaLoRA prunes between tinit=10000"),
        (["method=full", "model.dtype=bfloat16"], "most updates round to nothing"),
        (["method=full", "method.config.parameters=['*weights']"], "'*weights' matches no parameter"),
        (["method=peft", "method.config._target_=peft.LoHaConfig", "method.config.target_modules=[]"], "matches no"),
    ],
)
def test_what_a_method_cannot_do_on_this_model_is_refused(refused, overrides, words):
    assert words in refused(*overrides)


def test_one_bad_run_does_not_end_a_sweep(command, tmp_path):
    done = command("-m", "debug=smoke", "data.train_rows=40", "method.config.k=8,9999,16")
    assert done.returncode == cli.EXIT_BAD_INPUT
    assert "k=9999 is more than the" in done.stderr
    assert len(list((tmp_path / "runs").glob("*/result.json"))) == 2


def test_a_copied_yaml_needs_a_name_of_its_own(command, tmp_path):
    folder = tmp_path / "mine" / "method"
    folder.mkdir(parents=True)
    original = (Path(cli.CONFIG_DIR) / "method" / "lora.yaml").read_text()
    (folder / "mylora.yaml").write_text(original)
    done = command("--config-dir", "mine", "method=mylora", "debug=smoke")
    assert done.returncode == cli.EXIT_BAD_INPUT
    assert "give it its own, name: mylora" in done.stderr
    (folder / "mylora.yaml").write_text(original.replace("name: lora", "name: mylora"))
    assert command("--config-dir", "mine", "method=mylora", "debug=smoke", "data.train_rows=40").returncode == 0
    assert "mylora" in command("--config-dir", "mine", "--help").stdout


def test_a_forced_run_that_is_refused_leaves_the_result_it_found(tmp_path, monkeypatch):
    def overrides(*more):
        return compose(f"runs_dir={tmp_path}", "debug=smoke", "data.train_rows=40", *more)

    run(overrides())
    (result,) = tmp_path.glob("*/result.json")
    before = {path: path.read_bytes() for path in result.parent.rglob("*") if path.is_file() and path.name != ".lock"}

    def fail(cfg):
        raise UserError("no such data")

    with monkeypatch.context() as patch:
        patch.setattr("lorsa.runner.job.load", fail)
        with pytest.raises(UserError, match="no such data"):
            run(overrides("force=true"))
    assert before == {path: path.read_bytes() for path in before}


def test_a_result_of_another_schema_or_without_its_adapter_is_not_shown_as_done(tmp_path):
    cfg = compose(f"runs_dir={tmp_path}")
    folder = tmp_path / signature(cfg)
    folder.mkdir()
    (folder / "result.json").write_text("{}")
    with pytest.raises(UserError, match=r"schema version 1; run again with force=true"):
        run(cfg)
    (folder / "result.json").write_text('{"schema_version": 1}')
    with pytest.raises(UserError, match="no adapter"):
        run(compose(f"runs_dir={tmp_path}"))


def test_a_polite_kill_is_recorded_and_the_lock_given_back(tmp_path):
    arguments = [sys.executable, "-m", "lorsa.runner.cli", f"runs_dir={tmp_path}"]
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    metrics = tmp_path / signature(compose()) / "metrics.jsonl"
    while process.poll() is None and not metrics.exists():
        time.sleep(0.05)
    process.terminate()
    assert process.wait() == 128 + signal.SIGTERM
    assert json.loads((metrics.parent / "status.json").read_text())["state"] == "interrupted"


def test_a_launcher_of_several_processes_is_refused(refused, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "WORLD_SIZE=2" in refused()


def test_best_epoch_needs_a_validation_set(refused):
    assert "task=ax has none" in refused("task=ax", "protocol=best_epoch")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_not_replaced_by_the_cpu(refused):
    assert "engine.device=cuda, but" in refused("engine.device=cuda")
    assert "needs a GPU" in refused("engine.precision=fp16", "engine.device=cpu")


def test_bf16_without_bf16_arithmetic_is_refused(refused, monkeypatch):
    monkeypatch.setattr("lorsa.runner.device.has_bf16", lambda device: False)
    assert "no bfloat16 arithmetic" in refused("engine.precision=bf16")


def test_a_model_folder_without_weights_says_what_is_missing(refused, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    source = Path(compose().model.path.replace("embedded:", str(Path(cli.__file__).parent / "demo") + "/"))
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((source / name).read_bytes())
    assert "has no weights" in refused(f"model.path={folder}")
    weights = (source / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    assert "model.safetensors is damaged" in refused(f"model.path={folder}")


def test_a_hub_model_without_network_says_how_to_use_a_folder(refused):
    sentence = refused("model=roberta_base")
    assert "model.path=/path/to/folder" in sentence


def test_hub_data_without_network_says_how_to_use_a_folder(refused):
    assert "data=local data.path=" in refused("data=glue")


def test_a_runs_dir_that_cannot_be_written_is_named(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(sys, "argv", ["lorsa-run", f"runs_dir={tmp_path / 'file' / 'runs'}"])
    with pytest.raises(SystemExit) as exit_info:
        cli.main()
    assert exit_info.value.code == cli.EXIT_BAD_INPUT
    assert "Choose another place with runs_dir=" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full, which refuses every byte for lack of space")
def test_a_full_disk_is_a_sentence_and_the_run_can_go_on_after(tmp_path):
    cfg = compose(f"runs_dir={tmp_path}", "debug=smoke")
    folder = tmp_path / signature(cfg)
    folder.mkdir()
    (folder / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"No space left on the disk while writing .*metrics\.jsonl"):
        run(cfg)
    assert json.loads((folder / "status.json").read_text())["state"] == "failed"
    assert not (folder / "result.json").exists()
    (folder / "metrics.jsonl").unlink()
    run(compose(f"runs_dir={tmp_path}", "debug=smoke"))
    assert (folder / "result.json").exists()


def test_a_loss_that_is_not_finite_stops_the_run_with_its_reason(tmp_path):
    cfg = compose(f"runs_dir={tmp_path}", "method=full", "train.lr=1e30", "optim.max_grad_norm=0", "train.max_steps=20")
    with pytest.raises(UserError, match=r"training diverged\. Lower train\.lr"):
        run(cfg)
    status = json.loads((tmp_path / signature(cfg) / "status.json").read_text())
    assert status["state"] == "failed"
    assert "DivergedError" in status["error"]


def test_the_second_of_two_processes_with_one_run_says_who_has_it(tmp_path):
    cfg = compose(f"runs_dir={tmp_path}")
    holder = (
        "import sys; from lorsa.runner.rundir import RunDirectory\n"
        "with RunDirectory(sys.argv[1], sys.argv[2]).held():\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", holder, str(tmp_path), signature(cfg)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    try:
        with pytest.raises(AlreadyRunningError, match=f"already, by process {process.pid} on"):
            run(cfg)
    finally:
        process.communicate(input="")
    assert RunDirectory(str(tmp_path), signature(cfg)).status()["state"] == "done"
