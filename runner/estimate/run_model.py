"""What a run's memory follows from, whatever its engine: sizes of what it holds, and its passes on fake tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from lorsa.methods import LorsaConfig, Report
from lorsa.methods.lorsa.budget import resolve_budget
from lorsa.runner.estimate.lengths import Lengths, Shape
from lorsa.runner.estimate.parameters import adapted, basis_bytes, basis_shapes, empty_model
from lorsa.runner.estimate.pool import Pool
from lorsa.runner.estimate.trace import FakeModel, Trace
from lorsa.runner.method import build_method
from lorsa.runner.schema import EngineConfig, JobConfig
from lorsa.runner.zero import is_zero3

# Numbers of Adam's size that an optimizer keeps for each number that it trains.
_STATES = {"adamw_torch": 2, "adamw_torch_fused": 2, "sgd": 0, "adagrad": 1, "rmsprop": 1, "adafactor": 0}


@dataclass
class Footprint:
    """What the memory of a run follows from, whatever its engine. Sizes in bytes.

    Attributes:
        report: what trains.
        trained: of each trained parameter.
        frozen: of all others together.
        stored: of those weights that are in the checkpoint in the dtype they are used in.
        large: of the largest parameter, in float32.
        bases: of LoRSA's singular vectors in the adapted model.
        files: of the bases on disk.
        modules: for each module with parameters of its own, their numbers and bytes: what ZeRO-3 gathers at once.
        parameters: of each, its number, its bytes, and whether it trains.
    """

    report: Report
    trained: list[int]
    frozen: int
    stored: int
    large: int
    bases: int
    files: int
    modules: list[tuple[int, int]]
    parameters: list[tuple[int, int, bool]]

    @property
    def trained_bytes(self) -> int:
        """All trained parameters together."""
        return sum(self.trained)


class RunModel:
    """The model of one run, on which its passes can be traced.

    Args:
        cfg: the run.
        lengths: of its rows.
        gpu: whether it is a GPU's memory, or else main memory of a run on the CPU.
        updates: of the optimizer.
    """

    def __init__(self, cfg: JobConfig, lengths: Lengths, gpu: bool, updates: int) -> None:
        self.cfg, self.lengths, self.gpu = cfg, lengths, gpu
        model, report, _ = adapted(cfg, updates)
        if cfg.train.gradient_checkpointing:
            # Found on the base model: PEFT's wrapper passes it on.
            model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
        self.footprint = _footprint(cfg, model, report)
        self.vocabulary = int(model.config.vocab_size)  # type: ignore[union-attr, arg-type]
        self.width = int(model.config.hidden_size)  # type: ignore[union-attr, arg-type]
        self.states = _STATES.get(cfg.optim.name, 2)
        self.labels = torch.long if cfg.task.labels else torch.float32
        self._adapted = FakeModel(model, fused_attention=gpu)
        self._traces: dict[tuple[str, Shape], Trace] = {}

    def passed(
        self, kind: str, shape: Shape, engine: EngineConfig, precision: str, pool: Pool | None, drop: bool = False
    ) -> Trace:
        """Return the allocations of one pass, training or evaluation; a pool has taken them, if one is given."""
        partitioned = is_zero3(engine)
        key = (f"{kind} {precision} {partitioned}", shape)
        if pool is None and key in self._traces:
            return self._traces[key]
        trace = (
            self._adapted.training_pass(*shape, self.labels, precision, partitioned, pool, drop)
            if kind == "training"
            else self._adapted.evaluation_pass(*shape, precision, pool)
        )
        if pool is None:
            self._traces[key] = trace
        return trace

    def modules(self) -> list[nn.Module]:
        """Return the modules of the adapted model."""
        return list(self._adapted.model.modules())

    def zero_grad(self) -> None:
        """Let the gradients go that a pool has taken."""
        self._adapted.model.zero_grad(set_to_none=True)

    def calibration(self, shapes: list[Shape], precision: str, pool: Pool | None) -> Trace:
        """Return the allocations of looking at gradients before the training."""
        key = (f"calibration {precision}", (len(shapes), 0))
        if pool is None and key in self._traces:
            return self._traces[key]
        base = empty_model(self.cfg)
        method = build_method(self.cfg.method)
        assert isinstance(method, LorsaConfig)
        method.modules_to_save = base.head
        resolve_budget(base.model, method)
        fake = FakeModel(base.model, fused_attention=self.gpu)
        fitted = self.cfg.train.probe_rows is not None
        trace = fake.calibration_passes(shapes, self.labels, method, self.gpu, fitted, precision, pool)
        if pool is None:
            self._traces[key] = trace
        return trace


def _footprint(cfg: JobConfig, model: torch.nn.Module, report: Report) -> Footprint:
    trained, frozen, base = [], 0, 0
    parameters = []
    stored_dtype = empty_model(cfg).stored_dtype
    for name, parameter in model.named_parameters():
        parameters.append((parameter.numel(), parameter.nbytes, parameter.requires_grad))
        if parameter.requires_grad:
            trained.append(parameter.nbytes)
        else:
            frozen += parameter.nbytes
        if parameter.dtype == stored_dtype and not any(part in name for part in ("lora", "modules_to_save")):
            base += parameter.nbytes
    bases = sum(buffer.nbytes for name, buffer in model.named_buffers() if "lorsa_" in name)
    frozen += sum(buffer.nbytes for name, buffer in model.named_buffers() if "lorsa_" not in name)
    dtype = getattr(torch, cfg.model.dtype)
    return Footprint(
        report=report,
        trained=trained,
        frozen=frozen,
        stored=0 if cfg.model.gguf_file is not None else base,
        large=4 * max(number for number, _, _ in parameters),
        bases=bases,
        files=sum(basis_bytes(shape, dtype) for shape in basis_shapes(cfg)),
        modules=[
            (sum(p.numel() for p in own), sum(p.nbytes for p in own))
            for own in (list(module.parameters(recurse=False)) for module in model.modules())
            if own
        ],
        parameters=parameters,
    )
