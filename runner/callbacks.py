"""What happens beside the training loop: the log, the heartbeat, the progress bar, a profile."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ProgressCallback

from lorsa.methods.adalora import after_update
from lorsa.runner.distributed import any_rank
from lorsa.runner.errors import DivergedError
from lorsa.runner.rundir import RunDirectory
from lorsa.runner.stop import StopRequested, requested

LOGGED = ("loss", "grad_norm", "learning_rate", "num_input_tokens_seen")
PROFILE_FIRST, PROFILE_UPDATES = 3, 20


class Recorder(TrainerCallback):
    """Writes metrics.jsonl and the heartbeat, and stops a run whose loss is not finite.

    Args:
        directory: the run's directory.
        checkpoint_every: updates between checkpoints, besides the one after each epoch.
    """

    def __init__(self, directory: RunDirectory, checkpoint_every: int | None) -> None:
        self.directory = directory
        self.checkpoint_every = checkpoint_every
        self.stopping: str | None = None  # the signal that asked for it

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Ask for the extra checkpoints, and for a log line with each, so that a resumed log has no half averages."""
        # Not where an epoch ends: its own checkpoint comes after the scoring, which a resumed run must not miss.
        epoch_ends = float(state.epoch or 0).is_integer() or state.global_step >= state.max_steps
        self.stopping = self._asked_to_stop()
        due = self.checkpoint_every and state.global_step % self.checkpoint_every == 0
        if (due or self.stopping) and not epoch_ends:
            control.should_save = True
            control.should_log = True
        return control

    def _asked_to_stop(self) -> str | None:
        """Return the signal that one of the run's processes was sent; all of them get the same answer."""
        own = requested()
        return own or "a signal to another process" if any_rank(own is not None) else None

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Ask for a log line with the checkpoint of the epoch."""
        control.should_log = True
        return control

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write one line, unless it is the Trainer's summary at the end."""
        logs = logs or {}
        loss = logs.get("loss", logs.get("train_loss", 0.0))
        if not math.isfinite(loss):
            raise DivergedError(
                f"The loss is {loss} at update {state.global_step}: training diverged. Lower train.lr "
                f"({args.learning_rate}), lengthen optim.warmup, or use engine.precision=fp32."
            )
        record: dict[str, Any] = {name: logs[name] for name in LOGGED if name in logs}
        record |= {name.removeprefix("eval_"): value for name, value in logs.items() if name.startswith("eval_")}
        if "loss" in record or "primary" in record:
            finite = {name: value if math.isfinite(value) else None for name, value in record.items()}
            self.directory.log({"step": state.global_step, "epoch": state.epoch, **finite})
            self.directory.progress |= {"step": state.global_step, "max_steps": state.max_steps}
            if "primary" in finite:
                self.directory.progress["score"] = finite["primary"]
            self.directory.report("running")

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stop, where that was asked for: the checkpoint is on disk now."""
        if self.stopping:
            self.directory.progress["step"] = state.global_step
            raise StopRequested(self.stopping, agreed=True)


class MethodHook(TrainerCallback):
    """Lets a method act between the optimizer's step and the zeroing of the gradients (AdaLoRA prunes there)."""

    def on_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        """Pass on the number of updates, this one included."""
        assert model is not None
        after_update(model, state.global_step + 1)


class QuietProgress(ProgressCallback):
    """The Trainer's progress bar without the dictionaries that it prints between."""

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        """Print nothing; metrics.jsonl has it."""


def profiler_callback(logs: Path) -> TrainerCallback:
    """Return a callback that profiles twenty updates into `logs`: profile.txt, a table, and trace.json."""
    import torch
    from torch.profiler import ProfilerActivity, profile, schedule

    class Profiler(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
            self.profile = profile(
                activities=activities,
                schedule=schedule(wait=PROFILE_FIRST - 1, warmup=1, active=PROFILE_UPDATES),
                on_trace_ready=self.write,
                record_shapes=True,
            )
            self.profile.start()

        def write(self, result: Any) -> None:
            logs.mkdir(parents=True, exist_ok=True)
            key = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
            (logs / "profile.txt").write_text(result.key_averages().table(sort_by=key, row_limit=40))
            result.export_chrome_trace(str(logs / "trace.json"))

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            self.profile.step()

        def on_train_end(self, *args: Any, **kwargs: Any) -> None:
            self.profile.stop()

    return Profiler()
