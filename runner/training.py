"""The training loop: Hugging Face's Trainer, with buckets by length, two learning rates and small checkpoints."""

from __future__ import annotations

import math
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import DataLoader
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
from lorsa.methods.partitioned import whole
from lorsa.methods.targets import in_head
from lorsa.runner.batches import NO_ROW, EncodedRows, LengthBucketSampler, ProcessBatches, RowsAndFillers
from lorsa.runner.callbacks import MethodHook, QuietProgress, Recorder, profiler_callback
from lorsa.runner.checkpoints import COMPLETE_FILE, complete_checkpoints, last_checkpoint, step_of
from lorsa.runner.distributed import barrier, from_main, gathered, is_main, world_size
from lorsa.runner.errors import DivergedError, UserError
from lorsa.runner.heap import return_free_memory
from lorsa.runner.rundir import RunDirectory, flush_folder, flush_to_disk, writing
from lorsa.runner.schema import JobConfig
from lorsa.runner.stop import deferred
from lorsa.runner.zero import deepspeed_config, finish_fetching, is_zero, is_zero3

WEIGHTS_FILE = "trainable.safetensors"
METHOD_STATE_FILE = "method_state.pt"

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
        self._examples: torch.Tensor | int = 0
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
            UserError: the checkpoint is of another number of processes.
        """
        checkpoint = from_main(lambda: self._checkpoint_to_resume())
        started_at = 0
        if checkpoint is not None:
            state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
            started_at = state.global_step
            self._tokens_before = int(state.num_input_tokens_seen)
        self.directory.keep_metrics_until(started_at)
        self.directory.progress["step"] = started_at
        if checkpoint is not None and started_at >= total_updates(self.cfg, len(self.rows)):
            self.state = state
            if is_zero(self.cfg.engine):
                # Nothing is left to train, but the model has to be DeepSpeed's to be scored.
                self._prepare_for_training(state.max_steps, self.get_train_dataloader(), None)
            self._load_from_checkpoint(str(checkpoint))
        else:
            return_free_memory()
            with deferred():
                self.train(resume_from_checkpoint=str(checkpoint) if checkpoint is not None else None)
        if self.state.best_global_step:
            self._load_from_checkpoint(str(self.directory.checkpoints / f"checkpoint-{self.state.best_global_step}"))
        return started_at

    def _checkpoint_to_resume(self) -> Path | None:
        checkpoint = last_checkpoint(self.directory.checkpoints)
        if checkpoint is not None:
            processes = int((checkpoint / COMPLETE_FILE).read_text() or 1)
            if processes != self.args.world_size:
                raise UserError(
                    f"{checkpoint} was written by {processes} processes, and this is {self.args.world_size}: the same "
                    "batches need the same number; start as many, or use force=true."
                )
        return checkpoint

    @property
    def tokens_trained(self) -> int:
        """Tokens trained on in this attempt by all processes, padding left out."""
        return int(self.state.num_input_tokens_seen) - self._tokens_before

    def examples_trained(self) -> int:
        """Return the rows trained on in this attempt, by all processes, which have to ask together."""
        return sum(gathered(int(self._examples)))

    @contextmanager
    def whole_model(self) -> Iterator[None]:
        """Within, everything that trains is there as a whole in every process."""
        with whole([parameter for parameter in self.model.parameters() if parameter.requires_grad]):
            yield

    def logits(self, rows: EncodedRows) -> np.ndarray:
        """Return the model's logits for every row, (rows, labels) float32, in the order of `rows`."""
        return_free_memory()
        # Without the labels: a test set has none that a loss could be made of.
        loader = self.get_test_dataloader(rows.dataset.remove_columns("labels"))
        output = self.evaluation_loop(loader, description="evaluate", prediction_loss_only=False)
        if is_zero3(self.cfg.engine):
            finish_fetching(self.deepspeed)
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
        rows: torch.Tensor | int = len(inputs["labels"])
        processes = self.args.world_size
        if processes > 1:
            real = inputs["labels"] != NO_ROW
            rows = real.sum()
            inputs = inputs | {"labels": inputs["labels"] * real}  # a filler's loss has to be a number
        outputs = model(**inputs)
        loss = outputs["loss"]
        self._examples = self._examples + rows
        if num_items_in_batch is not None:
            # The processes' gradients are averaged, and their losses too, for the log.
            loss = loss * (rows * processes / num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def _track_num_input_tokens(self, inputs: dict[str, Any]) -> None:
        if self.args.world_size > 1:
            real = inputs["labels"] != NO_ROW
            inputs = inputs | {"attention_mask": inputs["attention_mask"] * real[:, None]}
        super()._track_num_input_tokens(inputs)  # type: ignore[no-untyped-call]

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

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return the batches of this process."""
        if self.args.world_size == 1:
            return super().get_train_dataloader()
        from accelerate.data_loader import prepare_data_loader

        batches = ProcessBatches(
            self._get_train_sampler(),
            self.cfg.train.batch_size,
            self.cfg.train.gradient_accumulation,
            self.args.process_index,
            self.args.world_size,
        )
        loader: DataLoader[Any] = DataLoader(
            RowsAndFillers(self.rows.dataset),  # type: ignore[arg-type]  # by its methods it is a Dataset
            batch_sampler=batches,
            collate_fn=self.data_collator,
            pin_memory=self.args.dataloader_pin_memory,
        )
        # As for one process: accelerate's own way to share batches repeats rows where they do not divide.
        return prepare_data_loader(loader, self.args.device, num_processes=1, process_index=0, put_on_device=True)

    def autocast_smart_context_manager(self, cache_enabled: bool | None = True) -> AbstractContextManager[Any]:
        """Return autocast under DeepSpeed, where accelerate leaves it to DeepSpeed, which evaluation goes past."""
        if is_zero(self.cfg.engine) and self.cfg.engine.precision == "bf16":
            return torch.autocast(self.args.device.type, torch.bfloat16, cache_enabled=cache_enabled)
        return super().autocast_smart_context_manager(cache_enabled)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = self.directory.checkpoints / f"checkpoint-{self.state.global_step}"
        with writing(folder):
            if is_main():
                (folder / COMPLETE_FILE).unlink(missing_ok=True)
            barrier()
            super()._save_checkpoint(model, trial)
            if is_main():
                torch.save(training_state(self.model), folder / METHOD_STATE_FILE)
            flush_folder(folder)
            barrier()  # every process' files are on the disk now
            if is_main():
                (folder / COMPLETE_FILE).write_text(str(self.args.world_size))
                flush_to_disk(folder / COMPLETE_FILE)
                flush_to_disk(folder)
            barrier()
        if is_main():
            self._drop_old_checkpoints()

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write what trains to a checkpoint, and nothing else, under every engine."""
        assert output_dir is not None
        folder = Path(output_dir)
        with self.whole_model():
            if is_main():
                folder.mkdir(parents=True, exist_ok=True)
                trainable = {
                    name: parameter.detach().contiguous()
                    for name, parameter in self.model.named_parameters()
                    if parameter.requires_grad
                }
                save_file(trainable, folder / WEIGHTS_FILE)

    def _prepare_for_training(self, max_steps: int, loader: Any, checkpoint: str | None) -> tuple[Any, Any]:
        if not is_zero(self.cfg.engine):
            prepared: tuple[Any, Any] = super()._prepare_for_training(max_steps, loader, checkpoint)  # type: ignore[no-untyped-call]
            return prepared
        engine, loader = super()._prepare_for_training(max_steps, loader, None)  # type: ignore[no-untyped-call]
        # The weights are `save_model`'s: DeepSpeed would add what is fixed, the singular vectors among it.
        engine.module_state_dict = lambda **options: {}
        engine.load_module_state_dict = lambda **options: None
        if checkpoint is not None:
            engine.load_checkpoint(checkpoint)
            self._load_optimizer_and_scheduler(checkpoint)
            self._load_from_checkpoint(checkpoint)
        return engine, loader

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        with whole([parameter for parameter in self.model.parameters() if parameter.requires_grad], change=True):
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
    zero = is_zero(cfg.engine)
    if not zero:
        # Accelerate leaves it behind, and an earlier run of a sweep may have had DeepSpeed.
        os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)
    arguments = TrainingArguments(
        output_dir=str(directory.checkpoints),
        num_train_epochs=cfg.train.epochs,
        max_steps=cfg.train.max_steps,
        per_device_train_batch_size=cfg.train.batch_size,
        per_device_eval_batch_size=cfg.train.eval_batch_size,
        gradient_accumulation_steps=cfg.train.gradient_accumulation,
        activation_checkpointing=cfg.train.gradient_checkpointing,
        # Of a part that runs again ZeRO-3 has let the weights go, which the other way takes for a change.
        activation_checkpointing_kwargs={"use_reentrant": is_zero3(cfg.engine)},
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
        # A method of PEFT uses all that it adds; of the model's own parameters some may not be used.
        ddp_find_unused_parameters=str(cfg.method.config["_target_"]).startswith("lorsa.methods.SelectedConfig"),
        use_cpu=cfg.engine.device == "cpu" or not torch.cuda.is_available(),
        deepspeed=deepspeed_config(cfg, world_size()) if zero else None,
        bf16=cfg.engine.precision == "bf16" and not zero,  # there it would convert the weights
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
    """Have transformers make what it knows by name: the optimizer, for a parameter that is thrown away.

    Raises:
        UserError: it is unknown, needs what is not installed, or cannot be made.
    """
    try:
        arguments = training_arguments(cfg, RunDirectory(cfg.runs_dir, "unused"))
        optimizer, options = Trainer.get_optimizer_cls_and_kwargs(arguments)
        optimizer([nn.Parameter(torch.zeros(2, 2, device=arguments.device))], **options)
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"optim.name={cfg.optim.name}: {reason}") from error


def total_updates(cfg: JobConfig, rows: int) -> int:
    """Return the number of optimizer updates that a run on so many rows takes."""
    if cfg.train.max_steps > 0:
        return int(cfg.train.max_steps)
    passes = math.ceil(rows / (cfg.train.batch_size * world_size()))
    return math.ceil(cfg.train.epochs * math.ceil(passes / cfg.train.gradient_accumulation))
