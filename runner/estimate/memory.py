"""The most memory that one process of a run has in use, and what for.

A run is played through, phase after phase, with the sizes of what it holds (run_model.py) and the allocations of a real
forward and backward pass (trace.py), on a model of the allocator (pool.py). What each engine holds is in the comments;
the order of things is that of job.py, GlueTrainer and, for ZeRO, DeepSpeed 0.19's stage_1_and_2.py and stage3.py.
"""

from __future__ import annotations

import os
import pickle
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from lorsa.runner.estimate.lengths import Shape, drawn_shapes, evaluation_shapes, largest
from lorsa.runner.estimate.parameters import needs_calibration
from lorsa.runner.estimate.pool import Pool, main_memory
from lorsa.runner.estimate.run_model import RunModel
from lorsa.runner.estimate.trace import Trace
from lorsa.runner.heap import return_large_blocks
from lorsa.runner.schema import EngineConfig
from lorsa.runner.zero import is_zero, is_zero3

WEIGHTS, BASES, GRADIENTS, OPTIMIZER = "weights", "bases", "gradients", "optimizer"
ACTIVATIONS, COMMUNICATION, FRAMEWORK, FILES = "activations", "communication", "framework", "checkpoint read"
PARTS = (WEIGHTS, BASES, GRADIENTS, OPTIMIZER, ACTIVATIONS, COMMUNICATION, FILES, FRAMEWORK)

# cuBLAS' workspace, which PyTorch's allocator counts: 32 MiB on Hopper, 8 MiB before (CUDABlas.cpp).
_CUBLAS = 32 * 2**20
# Updates that are played, before the one with the most tokens.
_FIRST = 3


@dataclass(frozen=True)
class Memory:
    """An estimate for one process.

    Attributes:
        peak: bytes, as result.json's memory.peak_bytes counts them.
        parts: of the peak, {what for: bytes}.
        phase: in which it is reached.
    """

    peak: int
    parts: dict[str, int]
    phase: str


def estimate_memory(
    run: RunModel, engine: EngineConfig, processes: int, shapes: Sequence[Shape], framework: int
) -> Memory:
    """Return the estimate of a run under an engine.

    Args:
        run: the run's model; `run.gpu` says whose memory is meant.
        engine: the engine.
        processes: how many.
        shapes: of the batches that a process trains on.
        framework: bytes that the process has in use without a model.
    """
    most = largest(shapes)
    # In main memory some others than the largest are played too, for the holes that they leave.
    played = [most, most] if run.gpu else [*shapes[:_FIRST], most, shapes[0], most]

    def play() -> Memory:
        return _Play(run, engine, processes, played, framework).result()

    return play() if run.gpu else in_a_child(play)


def looked_at(engine: EngineConfig) -> str:
    """Return the precision in which the model runs before the training; see runner.device.autocast."""
    return "bf16" if engine.precision == "bf16" else "fp32"


def in_a_child(play: Callable[[], Memory]) -> Memory:
    """Return what a function gives in a child process, whose heap is its own."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            with os.fdopen(writer, "wb") as file:
                pickle.dump(play(), file)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        written = file.read()
    _, status = os.waitpid(child, 0)
    if status or not written:
        raise RuntimeError("the process that plays the run through has failed; its error is above")
    result: Memory = pickle.loads(written)
    return result


class _Play:
    """One run under one engine, played through on a pool."""

    def __init__(
        self, run: RunModel, engine: EngineConfig, processes: int, shapes: list[Shape], framework: int
    ) -> None:
        self.run, self.cfg, self.has = run, run.cfg, run.footprint
        self.engine, self.processes, self.shapes = engine, processes, shapes
        self.zero = is_zero(engine)
        self.zero3 = is_zero3(engine)
        self.stage = int(engine.zero["stage"]) if engine.zero else 0
        offload = engine.zero or {}
        # On a GPU what is offloaded lies elsewhere; on the CPU it lies where everything does.
        self.optimizer_away = run.gpu and "offload_optimizer" in offload
        self.weights_away = run.gpu and "offload_param" in offload
        if self.zero3 and not run.gpu:
            return_large_blocks()  # as the run does
        self.pool: Pool = Pool() if run.gpu else main_memory()
        self.pool.take(framework, FRAMEWORK, mapped=True)
        if run.gpu:
            self.pool.take(_CUBLAS, FRAMEWORK)
        self.states = run.states

    def result(self) -> Memory:
        """Play it, and return the peak."""
        self.load()
        self.calibrate()
        self.adapt()
        self.train()
        self.evaluate()
        return Memory(self.pool.peak, self.pool.parts, self.pool.peak_phase)

    # --- the phases ---

    def load(self) -> None:
        """Take the weights."""
        pool, has = self.pool, self.has
        pool.phase = "load"
        weights = has.frozen + (has.trained_bytes if self.full else 0)
        self.original: list[int] = []
        if self.zero3:
            # The whole file is read, one tensor is whole at a time, and each process keeps its part.
            if not self.run.gpu:
                pool.briefly(has.stored or 2 * has.large, FILES, mapped=True)
            if not self.weights_away:
                self.original = [pool.take(self.part(weights), WEIGHTS)]
            pool.briefly(has.large, COMMUNICATION)
        elif self.run.gpu or not has.stored:
            if self.cfg.model.gguf_file is not None and not self.run.gpu:
                pool.briefly(2 * has.large, FILES)
            self.original = self.taken(weights)
        else:
            # The file's pages are the weights; where training changes them, a copy takes the place of each.
            self.original = [pool.take(has.stored, WEIGHTS, mapped=True), pool.take(weights - has.stored, WEIGHTS)]

    @property
    def full(self) -> bool:
        """Whether the model's own parameters train."""
        return str(self.cfg.method.config["_target_"]).endswith("SelectedConfig")

    def taken(self, weights: int) -> list[int]:
        """Take weights parameter by parameter, as far as they are parameters."""
        keys = [self.pool.take(size, WEIGHTS) for _, size, trains in self.has.parameters if self.full or not trains]
        rest = weights - sum(size for _, size, trains in self.has.parameters if self.full or not trains)
        return [*keys, self.pool.take(rest, WEIGHTS)]

    def part(self, size: float) -> float:
        """Return one process' part."""
        return size / self.processes

    def calibrate(self) -> None:
        """Look at gradients, where the method does, with all bases at hand."""
        if self.cfg.train.probe_rows is not None:
            self.pool.phase = "probe"
            shapes = drawn_shapes(self.cfg, self.run.lengths, self.cfg.train.probe_rows)
            self.evaluated(largest(shapes), looked_at(self.engine))
            # The backbone's outputs on all rows are there while the head is fitted.
            features = sum(rows * tokens for rows, tokens in shapes) * self.run.width * 4
            self.pool.give(self.pool.take(features, ACTIVATIONS))
        if not needs_calibration(self.cfg):
            return
        self.pool.phase = "select"
        gathered = self.gather() if self.zero3 else []
        shapes = drawn_shapes(self.cfg, self.run.lengths, self.cfg.method.calibration_rows)
        files = self.pool.take(0 if self.run.gpu else self.has.files, BASES, mapped=True)
        if self.run.gpu:
            self.replay(self.run.calibration(shapes, looked_at(self.engine), None))
        else:
            self.run.calibration(shapes, looked_at(self.engine), self.pool)
        self.pool.give(files, *gathered)

    def adapt(self) -> None:
        """Take what the method adds."""
        self.pool.phase = "adapt"
        self.pool.take(self.has.bases, BASES)
        self.added = []
        if not self.full:
            self.added = [self.pool.take(size, WEIGHTS) for size in self.has.trained]

    def train(self) -> None:
        """Updates of every shape that is played: the optimizer's state comes with the first."""
        self.pool.phase = "training step"
        pool, trained = self.pool, self.has.trained_bytes
        pool.trim()
        self.prepare()
        for update, shape in enumerate(self.shapes):
            gathered = self.gather() if self.zero3 else []
            bucket = self.bucket() if self.zero else []
            gradients: list[int] = []
            for number in range(min(2, self.cfg.train.gradient_accumulation)):
                # A second pass adds its gradients to those of the first, one after the other.
                found = self.trained(shape, drop=self.zero3 or self.stage == 2 or number > 0)
                gradients = gradients or found
            pool.give(*gathered)
            self.step(gradients, first=update == 0)
            pool.give(*bucket)
        if self.zero3:
            pool.phase = "checkpoint"
            # All that trains is gathered, in one buffer and then each parameter on its own.
            pool.briefly(2 * trained, COMMUNICATION)
        if not self.run.gpu:
            # The best checkpoint is read at the end.
            pool.phase = "checkpoint"
            pool.briefly(trained + (trained if self.zero3 else 0), FILES, mapped=True)

    def prepare(self) -> None:
        """Take what the engine holds from the start."""
        pool, trained = self.pool, self.has.trained_bytes
        if self.engine.name == "ddp" and self.processes > 1:
            pool.take(trained, COMMUNICATION)  # buckets, beside the gradients
        if not self.zero or (self.optimizer_away and not self.run.gpu):
            return
        if self.zero3:
            if self.added and not self.weights_away:
                pool.give(*self.added)
                pool.take(self.part(trained), WEIGHTS)
            for number, size, _ in self.has.parameters:
                if number <= self.setting("stage3_param_persistence_threshold"):
                    pool.take(size, WEIGHTS)
            if not self.optimizer_away:
                pool.take(self.part(trained), OPTIMIZER)  # a float32 copy, also of what is float32 already
                pool.take(self.part(trained), GRADIENTS)
                self.optimizer()
                pool.briefly(trained, OPTIMIZER)  # gradients of zero, for a first step that makes the state
            return
        # Stage 1 and 2: what trains moves to one flat buffer, of which this process' part is copied.
        pool.take(trained, WEIGHTS)
        pool.give(*self.added)
        if self.full:
            pool.give(*self.original)
            if self.has.frozen:
                pool.take(self.has.frozen, WEIGHTS)
        if not self.optimizer_away:
            pool.take(self.part(trained), OPTIMIZER)
            pool.briefly(self.part(trained), OPTIMIZER)
        if self.stage == 2 and not self.optimizer_away:
            pool.take(self.part(trained), GRADIENTS)

    def setting(self, name: str) -> int:
        """Return a number of DeepSpeed's config."""
        return int((self.engine.zero or {}).get(name, 0))

    def bucket(self) -> list[int]:
        """Take the buffer in which gradients are sent; on a CPU only what is written to counts."""
        size = 4 * self.setting("reduce_bucket_size")
        return [self.pool.take(size if self.run.gpu else min(size, self.has.trained_bytes), COMMUNICATION)]

    def gather(self) -> list[int]:
        """Take the weights that are whole at a time under ZeRO-3: the largest module's and those fetched ahead."""
        if not self.run.gpu and self.processes > 1 and self.pool.phase != "select":
            return []  # `fetched` does it, module by module
        _, size = max(self.has.modules)
        total_number = sum(each for each, _, _ in self.has.parameters)
        total = sum(each for _, each, _ in self.has.parameters)
        ahead = self.setting("stage3_prefetch_bucket_size") * total / max(1, total_number)
        live = min(total, size + ahead)
        keys = [self.pool.take(live, COMMUNICATION)]
        if not self.run.gpu and self.processes > 1:
            self.pool.briefly(size, COMMUNICATION)  # gloo gathers into a buffer of its own
        return keys

    def optimizer(self) -> None:
        """Take the optimizer's state."""
        if not self.optimizer_away:
            for _ in range(self.states):
                self.pool.take(self.part(self.has.trained_bytes), OPTIMIZER)

    def step(self, gradients: list[int], first: bool) -> None:
        """Take what the optimizer's step does, and give the gradients back."""
        pool, trained = self.pool, self.has.trained_bytes
        if self.zero:
            part = self.part(trained)
            if self.optimizer_away:
                self.drop(gradients)
                return
            flat = [pool.take(part, GRADIENTS)]
            self.drop(gradients)
            if first and not self.zero3:
                self.optimizer()
            self.arithmetic([part])
            pool.give(*flat)
            if not self.run.gpu and self.processes > 1 and not self.zero3:
                pool.briefly(trained, COMMUNICATION)  # gloo gathers into a buffer of its own
            return
        if first:
            for size in self.has.trained:
                for _ in range(self.states):
                    pool.take(size, OPTIMIZER)
        self.arithmetic(self.has.trained)
        self.drop(gradients)

    def arithmetic(self, sizes: Sequence[float]) -> None:
        """Take what Adam's step computes with: on a GPU a root of all second moments at once, else two of each."""
        if self.run.gpu:
            self.pool.briefly(sum(sizes), OPTIMIZER)
            return
        for size in sizes:
            self.pool.give(self.pool.take(size, OPTIMIZER), self.pool.take(size, OPTIMIZER))

    def evaluate(self) -> None:
        """Score the longest rows."""
        pool = self.pool
        pool.phase = "evaluation"
        pool.trim()
        parts = [self.run.lengths.dev, *self.run.lengths.splits.values()]
        shapes = [evaluation_shapes(self.cfg, rows)[0] for rows in parts if rows]
        if shapes:
            gathered = self.gather() if self.zero3 else []
            self.evaluated(largest(shapes), self.engine.precision)
            pool.give(*gathered)

    def evaluated(self, shape: Shape, precision: str) -> None:
        """Run a batch forward."""
        if self.run.gpu:
            self.replay(self.run.passed("evaluation", shape, self.engine, precision, None))
        else:
            with self.fetched():
                self.run.passed("evaluation", shape, self.engine, precision, self.pool)

    def trained(self, shape: Shape, drop: bool) -> list[int]:
        """Run a batch forward and backward; returns keys of the gradients, on the CPU they are the model's."""
        if self.run.gpu:
            return self.replay(self.run.passed("training", shape, self.engine, self.engine.precision, None), drop)
        with self.fetched():
            self.run.passed("training", shape, self.engine, self.engine.precision, self.pool, drop)
        return []

    @contextmanager
    def fetched(self) -> Iterator[None]:
        """Within, under ZeRO-3, each module's weights are taken when it runs, which the heap remembers."""
        if not self.zero3 or self.processes == 1:
            yield
            return
        keys: dict[int, int] = {}
        hooks = []
        # What is fetched ahead comes in one buffer, of which each weight is copied, and gloo has one of its own before.
        total = sum(size for _, size in self.has.modules)
        ahead = self.pool.take(2 * min(total, 4 * self.setting("stage3_prefetch_bucket_size")), COMMUNICATION)
        for module in self.run.modules():
            size = sum(parameter.nbytes for parameter in module.parameters(recurse=False))
            if size < 4 * self.setting("stage3_param_persistence_threshold"):
                continue

            def fetch(module: nn.Module, *_: Any, size: int = size) -> None:
                self.release(keys, module)
                keys[id(module)] = self.pool.take(size, COMMUNICATION)
                self.pool.briefly(size, COMMUNICATION)  # gloo gathers into a buffer of its own

            def let_go(module: nn.Module, *_: Any) -> None:
                self.release(keys, module)

            hooks += [module.register_forward_pre_hook(fetch), module.register_forward_hook(let_go)]
            hooks += [module.register_full_backward_pre_hook(fetch), module.register_full_backward_hook(let_go)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            self.pool.give(ahead, *keys.values())

    def release(self, keys: dict[int, int], module: nn.Module) -> None:
        """Give a module's weights back, if they are there."""
        if id(module) in keys:
            self.pool.give(keys.pop(id(module)))

    def drop(self, gradients: list[int]) -> None:
        """Let the gradients go."""
        self.pool.give(*gradients)
        self.run.zero_grad()

    def replay(self, trace: Trace, drop: bool = False) -> list[int]:
        """Take and give as a pass does.

        Args:
            trace: the pass.
            drop: give each gradient back when the next one comes.

        Returns:
            Keys of the gradients, unless they are dropped.
        """
        live: dict[int, int] = {}
        gradients: list[int] = []
        for key, size in trace.events:
            if not size:
                if key in live:
                    self.pool.give(live.pop(key))
                continue
            if key in trace.gradients:
                if drop and gradients:
                    self.pool.give(gradients.pop())
                gradients.append(self.pool.take(size, GRADIENTS))
            else:
                live[key] = self.pool.take(size, ACTIVATIONS)
        self.pool.give(*live.values())
        if drop:
            self.pool.give(*gradients)
            return []
        return gradients
