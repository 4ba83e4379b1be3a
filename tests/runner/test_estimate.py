"""`lorsa estimate`: what it counts, against what runs measure."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lorsa.runner.compose import compose
from lorsa.runner.errors import UserError
from lorsa.runner.estimate.cards import card_bytes
from lorsa.runner.estimate.document import estimate
from lorsa.runner.estimate.lengths import largest, task_lengths, training_shapes
from lorsa.runner.estimate.memory import ACTIVATIONS, OPTIMIZER, WEIGHTS
from lorsa.runner.estimate.parameters import adapted, model_config
from lorsa.runner.estimate.pool import Pool
from lorsa.runner.signature import model_folder


def lorsa(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lorsa.runner.app", "estimate", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_llama_2_13b_is_estimated_without_weights_in_little_memory():
    code = (
        "import resource, sys; from lorsa.runner.app import app; app(sys.argv[1:], standalone_mode=False);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)"
    )
    arguments = ("model=llama2_13b", "method=lora", "task=sst2,sst2", "data=glue", "resources=gpu8", "engine=zero3")
    arguments += ("model.dtype=bfloat16", "engine.precision=bf16")
    done = subprocess.run(
        [sys.executable, "-c", code, "estimate", *arguments, "--card", "80", "--json"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stderr.strip().splitlines()[-1]) * 1024 < 2 * 2**30
    (run,) = json.loads(done.stdout)["runs"]
    assert run["runs"] == 2 and run["parameters"]["adapter"] == 40 * 4 * 8 * 2 * 5120
    memory = run["memory"]["zero3"]
    assert memory["fits"] and memory["processes"] == 8
    # An eighth of 12.85 billion numbers of two bytes, and LoRA's; the norms are whole.
    assert memory["parts"][WEIGHTS] == pytest.approx(12.85e9 * 2 / 8, rel=0.02)


def test_parameters_are_those_of_a_run(job):
    overrides = ("debug=smoke", "method=lorsa_subspace", "task=cola")
    result = job(*overrides)
    report = adapted(compose(*overrides), 1)[1]
    assert (report.adapter_params, report.head_params) == (result["adapter_params"], result["head_params"])
    assert report.total_params == result["total_params"]


@pytest.mark.parametrize("method", ["full", "lora"])
def test_engines_share_out_what_they_promise_to(method: str):
    cfg = compose("model=roberta_base", f"method={method}", "data=glue", "resources=gpu4", "engine=zero3")
    memory = estimate([cfg], card_bytes("a100-40gb"), True, lambda run: None)["runs"][0]["memory"]
    parts = {engine: each["parts"] for engine, each in memory.items()}
    assert parts["zero1"][OPTIMIZER] < parts["ddp"][OPTIMIZER]
    assert parts["zero3"][WEIGHTS] < 0.3 * parts["ddp"][WEIGHTS]
    if method == "full":  # an adapter's gradients are smaller than the buffer they are sent in
        peaks = [memory[engine]["peak_bytes"] for engine in ("zero2_offload", "zero2", "ddp")]
        assert peaks == sorted(peaks)


def test_checkpointing_and_half_precision_keep_less():
    def activations(*overrides: str) -> int:
        cfg = compose("model=roberta_base", "method=lora", "data=glue", "resources=gpu", *overrides)
        return estimate([cfg], 2**40, False, lambda run: None)["runs"][0]["memory"]["single"]["parts"][ACTIVATIONS]

    plain = activations()
    assert activations("train.gradient_checkpointing=true") < 0.6 * plain
    assert activations("engine.precision=bf16") < 0.9 * plain


def test_what_the_package_lacks_is_one_sentence():
    with pytest.raises(UserError, match=r"^model nobody/nothing: its config.json is neither .*lorsa prefetch"):
        model_config(compose("model=hf", "model.path=nobody/nothing").model)
    with pytest.raises(UserError, match=r"--card a1000: no such card is known; did you mean"):
        card_bytes("a1000")


def test_a_sweep_with_one_bad_run_is_refused_as_a_whole():
    done = lorsa("method=lora,lorsa", "train.batch_size=8,0")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.strip() == "lorsa: run 2 of 4: train.batch_size=0 must be above 0."


def test_batches_are_those_of_the_rows(job):
    cfg = compose("task=mrpc", "train.batch_size=4")
    lengths = task_lengths(cfg)
    shapes = training_shapes(cfg, lengths, 1)
    assert lengths.exact and sum(rows for rows, _ in shapes) == len(lengths.train)
    assert largest(shapes)[1] == max(lengths.train)


def test_a_pool_remembers_its_peak():
    pool = Pool()
    pool.phase = "one"
    keys = [pool.take(5, "a"), pool.take(7, "b")]
    pool.give(*keys)
    pool.phase = "two"
    pool.briefly(11, "a")
    assert (pool.peak, pool.peak_phase, pool.parts) == (12, "one", {"a": 5, "b": 7})


def test_time_is_unknown_until_something_like_it_has_run(job, tmp_path: Path):
    overrides = ("method=lora", "train.max_steps=3", "task.predict_splits=[]", f"runs_dir={tmp_path / 'runs'}")
    cfg = compose("engine.device=cpu", "resources=gpu", *overrides)

    def time_of() -> object:
        from lorsa.runner.estimate.time import find_speed

        return find_speed(cfg, 1, gpu=False)

    assert time_of() is None
    result = job("engine.device=cpu", *overrides)
    assert time_of() is not None

    file = tmp_path / "runs" / result["signature"] / "result.json"
    other = tmp_path / "other"  # another model that goes by the same name, as all of model=hf do
    shutil.copytree(model_folder(cfg.model.path), other)
    (other / "generation_config.json").write_text("{}")
    cfg.model.path = str(other)
    assert time_of() is None
    cfg.model.path = result["config"]["model"]["path"]
    for damage in ({"config": {}}, {"hardware": {"device": "cpu"}}, {"timings": None}):
        file.write_text(json.dumps(result | damage))
        assert time_of() is None
    file.write_text("[]")
    assert time_of() is None


def test_a_calibration_is_possible_under_either_protocol(monkeypatch: pytest.MonkeyPatch):
    from lorsa.runner.estimate import time
    from lorsa.runner.validate import check

    commands: list[list[str]] = []

    def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(time.subprocess, "run", run)
    time.calibrate(["protocol=best_epoch", "task=sst2"])
    check(compose(*commands[0][3:]))


def test_what_is_said_meanwhile_is_not_in_the_document(tmp_path: Path, monkeypatch, capsys):
    from lorsa.runner.estimate import framework

    monkeypatch.setenv("LORSA_CACHE", str(tmp_path))
    monkeypatch.setattr(framework, "_measured", lambda kind: 1000)
    assert framework.framework_bytes("single") == 1000
    printed = capsys.readouterr()
    assert printed.out == "" and "Measuring what the libraries take" in printed.err


@pytest.mark.slow
def test_a_run_on_the_cpu_peaks_where_it_was_said(shared: Path, tmp_path: Path):
    overrides = ("method=full", "engine.device=cpu", "task=mrpc", "data=local", f"data.path={shared / 'data' / 'glue'}")
    overrides += ("data.train_rows=64", "data.dev_max_rows=16", "train.max_steps=3", "train.batch_size=4")
    overrides += ("task.eval_splits=[]", "task.predict_splits=[]", f"runs_dir={tmp_path}")
    done = lorsa(*overrides, "seed=0,1", "--json")  # a sweep is estimated under its own engine alone
    assert done.returncode == 0, done.stderr
    memory = json.loads(done.stdout)["runs"][0]["memory"]["single"]
    run = [sys.executable, "-m", "lorsa.runner.cli", *overrides]
    subprocess.run(run, check=True, capture_output=True, timeout=300)
    (result,) = tmp_path.glob("*/result.json")
    assert memory["peak_bytes"] == pytest.approx(json.loads(result.read_text())["memory"]["peak_bytes"], rel=0.15)
