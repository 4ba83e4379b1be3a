"""The training loop: Hugging Face's Trainer, with buckets by length, two learning rates and small checkpoints."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    DataCollatorWithPadding,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from lorsa.methods.adalora import load_training_state, training_state
from lorsa.methods.targets import in_head
from lorsa.runner.batches import EncodedRows, LengthBucketSampler
from lorsa.runner.callbacks import MethodHook, QuietProgress, Recorder, profiler_callback
from lorsa.runner.errors import DivergedError, UserError
from lorsa.runner.rundir import RunDirectory, flush_to_disk, writing
from lorsa.runner.schema import JobConfig
from lorsa.runner.stop import deferred

WEIGHTS_FILE = "trainable.safetensors"
METHOD_STATE_FILE = "method_state.pt"
# Written last into a checkpoint: without it the checkpoint is not one.
COMPLETE_FILE = "complete"

Scorer = Callable[[Mapping[str, np.ndarray]], dict[str, float]]


class GlueTrainer(Trainer):
    """The Trainer of one run.

    Args:
        cfg: the run's config.
        model: the adapted model.
        tokenizer: its tokenizer.
        head: names of the head's modules, which have a learning rate of their own.
        train_rows: what to train on.
        selection_rows: the splits whose score chooses the checkpoint.
        score: from the logits of these splits to metrics, `primary` among them.
        directory: where the run writes.
    """

    model: nn.Module

    def __init__(
        self,
        cfg: JobConfig,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        head: list[str],
        train_rows: EncodedRows,
        selection_rows: Mapping[str, EncodedRows],
        score: Scorer,
        directory: RunDirectory,
    ) -> None:
        self.cfg = cfg
        self.head = head
        self.rows = train_rows
        self.selection_rows = selection_rows
        self.score = score
        self.directory = directory
        self._tokens_before = 0
        self.examples_trained = 0  # rows, in this attempt
        callbacks: list[TrainerCallback] = [Recorder(directory, cfg.train.checkpoint_every), MethodHook()]
        if cfg.train.profile:
            callbacks.append(profiler_callback(directory.logs))
        super().__init__(
            model=model,
            args=training_arguments(cfg, directory),
            train_dataset=train_rows.dataset,
            eval_dataset=train_rows.dataset,  # the Trainer wants one; `evaluate` below uses the selection splits
            data_collator=DataCollatorWithPadding(tokenizer),
            callbacks=callbacks,
        )
        self.remove_callback(PrinterCallback)
        if not self.args.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.add_callback(QuietProgress())
        # Asks the Trainer for the number of rows in an update, by which `compute_loss` weighs.
        self.model_accepts_loss_kwargs = True

    def fit(self) -> int:
        """Train, or go on from the last complete checkpoint, and end with the best checkpoint's weights.

        Returns:
            The update from which training went on, 0 for a fresh start.

        Raises:
            DivergedError: the loss or the outputs are not finite.
        """
        checkpoint = last_checkpoint(self.directory.checkpoints)
        started_at = 0
        if checkpoint is not None:
            state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
            started_at = state.global_step
            self._tokens_before = int(state.num_input_tokens_seen)
        self.directory.keep_metrics_until(started_at)
        self.directory.progress |= {"step": started_at, "started_at": started_at}
        if checkpoint is not None and started_at >= total_updates(self.cfg, len(self.rows)):
            self.state = state
            self._load_from_checkpoint(str(checkpoint))
        else:
            with deferred():
                self.train(resume_from_checkpoint=str(checkpoint) if checkpoint is not None else None)
        if self.state.best_global_step:
            self._load_from_checkpoint(str(self.directory.checkpoints / f"checkpoint-{self.state.best_global_step}"))
        return started_at

    @property
    def tokens_trained(self) -> int:
        """Tokens trained on in this attempt, padding left out."""
        return int(self.state.num_input_tokens_seen) - self._tokens_before

    def logits(self, rows: EncodedRows) -> np.ndarray:
        """Return the model's logits for every row, (rows, labels) float32, in the order of `rows`."""
        # Without the labels: a test set has none that a loss could be made of.
        loader = self.get_test_dataloader(rows.dataset.remove_columns("labels"))
        output = self.evaluation_loop(loader, description="evaluate", prediction_loss_only=False)
        logits = np.asarray(output.predictions, dtype=np.float32)
        if not np.isfinite(logits).all():
            raise DivergedError(
                f"The model's outputs are not finite after update {self.state.global_step}: training diverged. Lower "
                f"train.lr ({self.cfg.train.lr:g})."
            )
        return logits

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Score the selection splits; called by the Trainer after each epoch."""
        metrics = self.score({split: self.logits(rows) for split, rows in self.selection_rows.items()})
        prefixed = {f"eval_{name}": value for name, value in metrics.items()}
        self.log(dict(prefixed))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, prefixed)
        return prefixed

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Return the loss of one forward pass, weighed so that an update is the mean over its rows.

        Gradient accumulation then gives what one large batch would, also where the last pass has fewer rows, and for
        regression, which transformers' own loss does not divide.
        """
        outputs = model(**inputs)
        loss = outputs["loss"]
        self.examples_trained += len(inputs["labels"])
        if num_items_in_batch is not None:
            loss = loss * (len(inputs["labels"]) / num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Count nothing: the estimate walks over all parameters at each update, and nothing reads it."""
        return 0

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Make the optimizer, with the head in groups of its own."""
        if self.optimizer is None:
            decayed = set(self.get_decay_parameter_names(self.model))
            groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
            for name, parameter in self.model.named_parameters():
                if parameter.requires_grad:
                    groups.setdefault((in_head(name, self.head), name in decayed), []).append(parameter)
            optimizer, options = self.get_optimizer_cls_and_kwargs(self.args)
            self.optimizer = optimizer(
                [
                    {
                        "params": parameters,
                        "lr": self.cfg.train.head_lr if of_head else self.cfg.train.lr,
                        "weight_decay": self.args.weight_decay if decays else 0.0,
                    }
                    for (of_head, decays), parameters in groups.items()
                ],
                **options,
            )
        return self.optimizer

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthBucketSampler:
        rows_per_update = self.cfg.train.batch_size * self.cfg.train.gradient_accumulation * self.args.world_size
        return LengthBucketSampler(self.rows.lengths, rows_per_update, self.cfg.seed)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = self.directory.checkpoints / f"checkpoint-{self.state.global_step}"
        with writing(folder):
            (folder / COMPLETE_FILE).unlink(missing_ok=True)
            super()._save_checkpoint(model, trial)
            torch.save(training_state(self.model), folder / METHOD_STATE_FILE)
            for file in folder.iterdir():
                flush_to_disk(file)
            (folder / COMPLETE_FILE).touch()
            flush_to_disk(folder)
        self._drop_old_checkpoints()

    def _save(self, output_dir: str | None = None, state_dict: Mapping[str, torch.Tensor] | None = None) -> None:
        assert output_dir is not None
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        trainable = {
            name: parameter.detach().contiguous()
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad
        }
        save_file(trainable, Path(output_dir) / WEIGHTS_FILE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        saved = load_file(folder / WEIGHTS_FILE)
        self.model.load_state_dict(saved, strict=False)
        state = torch.load(folder / METHOD_STATE_FILE, weights_only=True, map_location=self.args.device)
        load_training_state(self.model, state)

    def _drop_old_checkpoints(self) -> None:
        kept = {self.state.global_step, self.state.best_global_step}
        for folder in complete_checkpoints(self.directory.checkpoints):
            if step_of(folder) not in kept:
                (folder / COMPLETE_FILE).unlink()
                shutil.rmtree(folder, ignore_errors=True)


def training_arguments(cfg: JobConfig, directory: RunDirectory) -> TrainingArguments:
    """Return the Trainer's arguments for a run."""
    arguments = TrainingArguments(
        output_dir=str(directory.checkpoints),
        num_train_epochs=cfg.train.epochs,
        max_steps=cfg.train.max_steps,
        per_device_train_batch_size=cfg.train.batch_size,
        per_device_eval_batch_size=cfg.train.eval_batch_size,
        gradient_accumulation_steps=cfg.train.gradient_accumulation,
        activation_checkpointing=cfg.train.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False},
        learning_rate=cfg.train.lr,
        optim=cfg.optim.name,
        adam_beta1=cfg.optim.betas[0],
        adam_beta2=cfg.optim.betas[1],
        adam_epsilon=cfg.optim.eps,
        weight_decay=cfg.optim.weight_decay,
        max_grad_norm=cfg.optim.max_grad_norm,
        lr_scheduler_type=cfg.optim.schedule,
        warmup_steps=cfg.optim.warmup,
        seed=cfg.seed,
        data_seed=cfg.seed,
        use_cpu=cfg.engine.device == "cpu" or not torch.cuda.is_available(),
        bf16=cfg.engine.precision == "bf16",
        fp16=cfg.engine.precision == "fp16",
        eval_strategy="epoch",
        save_strategy="epoch",
        metric_for_best_model="primary",
        greater_is_better=True,
        logging_strategy="steps",
        logging_steps=10,
        logging_nan_inf_filter=False,  # a loss that is not finite must be seen
        include_num_input_tokens_seen="non_padding",
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available() and cfg.engine.device != "cpu",
        report_to="none",
        disable_tqdm=not sys.stderr.isatty(),
    )
    # engine=single is one device: with several GPUs in sight the Trainer would split each batch over all of them.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def check_training_arguments(cfg: JobConfig) -> None:
    """Have transformers check what it knows by name: the optimizer, the schedule, the precision.

    Raises:
        UserError: one of them is unknown to it.
    """
    try:
        training_arguments(cfg, RunDirectory(cfg.runs_dir, "unused"))
    except (ValueError, ImportError) as error:
        raise UserError(f"optim={cfg.optim.name} with schedule={cfg.optim.schedule}: {error}") from error


def total_updates(cfg: JobConfig, rows: int) -> int:
    """Return the number of optimizer updates that a run on so many rows takes."""
    if cfg.train.max_steps > 0:
        return int(cfg.train.max_steps)
    passes = math.ceil(rows / cfg.train.batch_size)
    return math.ceil(cfg.train.epochs * math.ceil(passes / cfg.train.gradient_accumulation))


def step_of(checkpoint: Path) -> int:
    """Return the update after which a checkpoint was written."""
    return int(checkpoint.name.rpartition("-")[2])


def complete_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints that were written to the end, oldest first."""
    return sorted((marker.parent for marker in folder.glob(f"checkpoint-*/{COMPLETE_FILE}")), key=step_of)


def last_checkpoint(folder: Path) -> Path | None:
    """Return the checkpoint to resume from, or None."""
    checkpoints = complete_checkpoints(folder)
    return checkpoints[-1] if checkpoints else None
