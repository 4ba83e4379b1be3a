"""The loop: what an update is, what a checkpoint holds, and that a killed run ends as an undisturbed one."""

import json
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from lorsa.runner.compose import compose
from lorsa.runner.errors import DivergedError
from lorsa.runner.job import Clock, adapt, load, make_trainer, prepare, run
from lorsa.runner.rundir import RunDirectory
from lorsa.runner.signature import signature
from lorsa.runner.training import WEIGHTS_FILE, last_checkpoint, total_updates
from lorsa.runner.validate import SCHEDULES


class StopAt(TrainerCallback):
    """Ends the training as a crash would: an exception in the middle of it."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise RuntimeError("power cut")


class KeepGradients(TrainerCallback):
    """Keeps the gradients of the first update."""

    def __init__(self):
        self.gradients = {}

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if not self.gradients:
            self.gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def trainer_for(runs_dir, *overrides):
    cfg = compose(f"runs_dir={runs_dir}", "train.overfit_rows=24", "train.batch_size=8", *overrides)
    device, method = prepare(cfg)
    _, base, rows = load(cfg)
    model, _ = adapt(cfg, method, base, rows["train"], device, Clock())
    directory = RunDirectory(str(runs_dir), "run")
    directory.path.mkdir(parents=True, exist_ok=True)
    return make_trainer(cfg, base, model, rows, directory)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_warms_up_where_it_does_and_is_made_from_the_number_of_updates_alone(tmp_path, schedule):
    trainer = trainer_for(tmp_path, "method=head", f"optim.schedule={schedule}", "optim.warmup=0.2")
    trainer.create_optimizer()
    scheduler = trainer.create_scheduler(num_training_steps=10, optimizer=trainer.optimizer)
    rates = []
    for _ in range(10):
        rates.append(trainer.optimizer.param_groups[0]["lr"] / trainer.cfg.train.head_lr)
        trainer.optimizer.step()
        scheduler.step()
    assert rates[0] == (1 if schedule == "constant" else 0)
    assert max(rates[:3]) == pytest.approx(1) and min(rates[3:]) > 0


@pytest.mark.parametrize("task", ["sst2", "stsb"])
def test_accumulated_passes_give_the_gradient_of_one_large_batch(tmp_path, task):
    found = []
    # 24 rows in one pass, and in passes of 16 and 8: the last one smaller.
    for split in (["train.batch_size=24"], ["train.batch_size=16", "train.gradient_accumulation=2"]):
        trainer = trainer_for(tmp_path, f"task={task}", "method=full", "train.max_steps=1", *split)
        keep = KeepGradients()
        # Before clipping could hide a factor.
        trainer.args.max_grad_norm = 0
        trainer.add_callback(keep)
        trainer.train()
        found.append(keep.gradients)
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-3, atol=1e-6)


def test_the_head_has_its_own_learning_rate_and_nothing_frozen_is_optimised(tmp_path):
    trainer = trainer_for(tmp_path, "train.lr=1e-3", "train.head_lr=7e-3")
    optimizer = trainer.create_optimizer()
    rate_of = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in trainer.model.named_parameters():
        if parameter.requires_grad:
            assert rate_of.pop(id(parameter)) == (7e-3 if "score" in name else 1e-3)
    assert not rate_of


def test_a_checkpoint_holds_what_trains_and_nothing_of_the_backbone(tmp_path):
    trainer = trainer_for(tmp_path, "train.max_steps=2")
    trainer.fit()
    checkpoint = last_checkpoint(trainer.directory.checkpoints)
    saved = load_file(checkpoint / WEIGHTS_FILE)
    trained = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    assert saved.keys() == trained
    backbone = sum(parameter.numel() for parameter in trainer.model.parameters()) * 4
    total = sum(path.stat().st_size for path in checkpoint.iterdir())
    assert total < backbone / 4


def test_a_checkpoint_without_its_last_file_is_not_one(tmp_path):
    for step in (10, 9):
        (tmp_path / f"checkpoint-{step}").mkdir()
    assert last_checkpoint(tmp_path) is None
    (tmp_path / "checkpoint-9" / "complete").touch()
    assert last_checkpoint(tmp_path).name == "checkpoint-9"


def test_the_number_of_updates_is_what_the_trainer_takes(tmp_path):
    for overrides in (["train.epochs=2"], ["train.epochs=1.5"], ["train.epochs=3", "train.gradient_accumulation=2"]):
        trainer = trainer_for(tmp_path / f"{len(overrides)}-{overrides[0][-1]}", *overrides)
        expected = total_updates(trainer.cfg, 24)
        trainer.fit()
        assert trainer.state.global_step == expected


@pytest.mark.parametrize("method", ["lorsa", "adalora", "full"])
def test_a_run_that_is_cut_off_goes_on_to_the_same_bits(tmp_path, method):
    options = [f"method={method}", "train.epochs=3", "train.checkpoint_every=2"]
    whole = trainer_for(tmp_path / "whole", *options)
    assert whole.fit() == 0
    # Nine updates: cut off inside the first epoch, between a checkpoint and the next, and inside the last.
    for step in (1, 5, 8):
        cut = trainer_for(tmp_path / "cut", *options)
        cut.add_callback(StopAt(step))
        with pytest.raises(RuntimeError, match="power cut"):
            cut.fit()
    resumed = trainer_for(tmp_path / "cut", *options)
    assert resumed.fit() == 6
    for (name, one), two in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, two), name
    assert whole.directory.metrics.read_text() == resumed.directory.metrics.read_text()
    assert whole.state.best_global_step == resumed.state.best_global_step


def test_a_run_killed_while_it_scores_an_epoch_scores_it_when_it_goes_on(tmp_path):
    # Three updates an epoch and a checkpoint every three: the two must not meet, or the scoring would be skipped.
    options = ["train.epochs=3", "train.checkpoint_every=3"]
    whole = trainer_for(tmp_path / "whole", *options)
    whole.fit()
    cut = trainer_for(tmp_path / "cut", *options)
    score, calls = cut.score, []

    def cut_off(logits):
        calls.append(None)
        if len(calls) == 2:
            raise RuntimeError("power cut")
        return score(logits)

    cut.score = cut_off
    with pytest.raises(RuntimeError, match="power cut"):
        cut.fit()
    resumed = trainer_for(tmp_path / "cut", *options)
    assert resumed.fit() == 3
    assert whole.directory.metrics.read_text() == resumed.directory.metrics.read_text()
    assert whole.state.best_global_step == resumed.state.best_global_step


def test_outputs_that_are_not_finite_are_no_result(tmp_path):
    trainer = trainer_for(tmp_path, "train.max_steps=1", "method=full")
    with torch.no_grad():
        trainer.model.score.weight.fill_(torch.nan)
    with pytest.raises(DivergedError, match="outputs are not finite"):
        trainer.logits(trainer.rows)


def test_the_best_epoch_is_what_is_kept(tmp_path):
    trainer = trainer_for(tmp_path, "train.epochs=4", "train.lr=1e-2")
    scores = iter([0.2, 0.9, 0.5, 0.4])
    weights = {}

    def score(logits):
        return {"primary": next(scores)}

    class KeepWeights(TrainerCallback):
        def on_evaluate(self, args, state, control, model=None, **kwargs):
            weights[state.global_step] = {n: p.clone() for n, p in model.named_parameters() if p.requires_grad}

    trainer.score = score
    trainer.add_callback(KeepWeights())
    trainer.fit()
    assert trainer.state.best_global_step == 6
    for name, parameter in trainer.model.named_parameters():
        if parameter.requires_grad:
            assert torch.equal(parameter, weights[6][name])


@pytest.mark.slow
def test_a_run_killed_at_any_moment_records_the_same_result(tmp_path):
    options = ["train.epochs=2", "data.train_rows=200", "train.checkpoint_every=3", "method=lorsa", "task=rte"]

    def command(folder):
        return [sys.executable, "-m", "lorsa.runner.cli", f"runs_dir={tmp_path / folder}", *options]

    subprocess.run(command("whole"), check=True, capture_output=True)
    name = signature(compose(*options))
    metrics = tmp_path / "killed" / name / "metrics.jsonl"
    for lines in (0, 1, 3):
        process = subprocess.Popen(command("killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not (metrics.exists() and len(metrics.read_text().splitlines()) > lines):
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command("killed"), check=True, capture_output=True)

    whole, killed = (
        json.loads((tmp_path / folder / name / "result.json").read_text()) for folder in ("whole", "killed")
    )
    for key in ("metrics", "primary_metric", "best_step", "components", "adapter_params"):
        assert whole[key] == killed[key]
    assert killed["attempts"] > 1
    for file in ("metrics.jsonl", "predictions/dev.jsonl", "predictions/validation.jsonl", "predictions/test.jsonl"):
        assert (tmp_path / "whole" / name / file).read_bytes() == (tmp_path / "killed" / name / file).read_bytes()
    one, two = (
        load_file(tmp_path / folder / name / "adapter" / "adapter_model.safetensors") for folder in ("whole", "killed")
    )
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_checkpointing_of_activations_does_not_change_the_training(tmp_path):
    losses = []
    for flag in ("false", "true"):
        trainer = trainer_for(tmp_path / flag, "train.epochs=2", f"train.gradient_checkpointing={flag}")
        passes = []
        layer = trainer.model.base_model.model.model.layers[1]
        layer.self_attn.register_forward_pre_hook(lambda *args, passes=passes: passes.append(torch.is_grad_enabled()))
        trainer.fit()
        recomputed = sum(passes) / trainer.state.global_step
        assert recomputed == (2 if flag == "true" else 1)
        losses.append(trainer.directory.metrics.read_text())
    assert losses[0] == losses[1]


def test_a_profile_is_written(tmp_path):
    run(compose(f"runs_dir={tmp_path}", "debug=profiler", "data.train_rows=60", "train.batch_size=2"))
    (logs,) = tmp_path.glob("*/logs")
    assert "aten::" in (logs / "profile.txt").read_text()
    assert json.loads((logs / "trace.json").read_text())["traceEvents"]
