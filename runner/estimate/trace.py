"""What a model allocates in a forward and a backward pass, found by running it on tensors without values.

PyTorch's fake tensors have shapes, dtypes and a device, and no memory; everything that runs on real ones runs on them:
transformers' code, a method's layers, autocast, the choice of an attention kernel, autograd. So what is counted is what
that model with that method saves for the backward pass, not what a formula for some architecture says.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from lorsa.methods import LorsaConfig
from lorsa.runner.estimate.pool import Pool

ACTIVATIONS, GRADIENTS = "activations", "gradients"


@dataclass
class Trace:
    """Allocations in order.

    Attributes:
        events: (key, bytes): memory that is taken, and later, with 0 bytes, given back. What is never given back is
            still there at the end.
        gradients: keys of what is in the end a parameter's gradient.
    """

    events: list[tuple[int, int]] = field(default_factory=list)
    gradients: set[int] = field(default_factory=set)


class _Recorder(TorchDispatchMode):
    """Notes each new storage, and when it is gone.

    Args:
        pool: where to take the same memory, too.
    """

    def __init__(self, pool: Pool | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.trace = Trace()
        self.keys: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        self._pool = pool
        self._next = 0

    def know(self, tensors: Iterable[Tensor]) -> None:
        """Leave out what was there before."""
        for tensor in tensors:
            self.keys[tensor.untyped_storage()] = -1

    def is_gradient(self, tensor: Tensor) -> None:
        """Note that a tensor is a parameter's gradient."""
        key = self.keys[tensor.untyped_storage()]
        if key > 0:
            self.trace.gradients.add(key)
            if self._pool is not None:
                self._pool.rename(key, GRADIENTS)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return 1  # whether all is finite, and the like: there are no values
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage()) not in self.keys:
                self._new(storage)
        return out

    def _new(self, storage: Any) -> None:
        size = storage.nbytes()
        if not size:
            self.keys[storage] = -1
        elif self._pool is not None:
            self.keys[storage] = self._pool.take(size, ACTIVATIONS)
            weakref.finalize(storage, self._pool.give, self.keys[storage])
        else:
            self._next += 1
            self.keys[storage] = self._next
            self.trace.events.append((self._next, size))
            weakref.finalize(storage, self.trace.events.append, (self._next, 0))


class FakeModel:
    """A model on fake tensors.

    Args:
        model: on the meta device; its parameters and buffers are replaced.
        fused_attention: whether attention runs in one kernel that keeps no matrix of tokens by tokens, as on a GPU;
            else the CPU's own choice is taken, which with dropout is not.
    """

    def __init__(self, model: nn.Module, fused_attention: bool) -> None:
        # Some methods keep plain tensors of indices beside their buffers.
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.model = model
        self.fused_attention = fused_attention
        copies: dict[int, Tensor] = {}
        for module in model.modules():
            for tensors in (module._parameters, module._buffers):
                for name, tensor in tensors.items():
                    if tensor is not None:
                        if id(tensor) not in copies:
                            copies[id(tensor)] = self._fake(tensor)
                        tensors[name] = copies[id(tensor)]  # type: ignore[assignment]
        self.originals = copies  # their ids stay taken as long as the tensors live, which PEFT's lists may

    def _fake(self, tensor: Tensor) -> Tensor:
        with self.mode:
            fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
        if isinstance(tensor, nn.Parameter):
            return nn.Parameter(fake, requires_grad=tensor.requires_grad)
        return fake

    def batch(self, rows: int, tokens: int, labels: torch.dtype | None) -> dict[str, Tensor]:
        """Return a batch of this shape, inside `recording`.

        Args:
            rows: in the batch.
            tokens: of each row.
            labels: dtype of the labels, None for a batch without.
        """
        with self.mode:
            ids = torch.ones(rows, tokens, dtype=torch.long)
            batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            if labels is not None:
                batch["labels"] = torch.ones(rows, dtype=labels)
        return batch

    @contextmanager
    def recording(self, pool: Pool | None) -> Iterator[_Recorder]:
        """Within, what is allocated is noted, or taken from a pool."""
        recorder = _Recorder(pool)
        recorder.know([*self.model.parameters(), *self.model.buffers()])
        with self.mode, recorder, self._attention():
            yield recorder

    def calibration_passes(
        self,
        shapes: Sequence[tuple[int, int]],
        labels: torch.dtype,
        method: LorsaConfig,
        copied: bool,
        fitted: bool,
        precision: str,
        pool: Pool | None,
    ) -> Trace:
        """Return what looking at gradients allocates, before there is an adapter.

        Args:
            shapes: (rows, tokens) of each batch.
            labels: their dtype.
            method: says what is looked at.
            copied: whether a module's basis is copied to the device when it is wanted; else the file is read in place.
            fitted: whether the head is fitted already; else the features of all batches are kept while it is.
            precision: of the model's arithmetic.
            pool: takes the same memory, too.
        """
        from lorsa.methods.frozen import frozen_evaluation
        from lorsa.methods.lorsa.basis import Basis
        from lorsa.methods.lorsa.selection import own_gains, pair_gains, target_layers
        from lorsa.methods.lorsa.sensitivity import components_of, mean_gradients, squared_gradients

        layers = target_layers(self.model, method)

        def factors(name: str) -> Basis:
            count, layer = components_of(layers[name]), layers[name]
            shapes = ((layer.out_features, count), (count,), (layer.in_features, count))
            return Basis(*(torch.empty(shape, dtype=torch.float32) for shape in shapes))

        with self.mode:
            stored = {} if copied else {name: factors(name) for name in layers}

        def basis(name: str, device: torch.device) -> Basis:
            return factors(name) if copied else stored[name]

        diagonal = method.rotate == "all" or method.r == 0
        gains = pair_gains if method.space == "subspace" else own_gains

        def reduce(name: str, M: Tensor) -> Tensor:
            return M.square() if diagonal else gains(M, torch.empty(len(M)))

        with self.recording(pool) as recorder, frozen_evaluation(self.model), _autocast(precision):
            recorder.know(part for each in stored.values() for part in (each.U, each.s, each.V))
            most = max(shapes, key=lambda shape: shape[0] * shape[1])
            batches = [self.batch(*most, labels)]
            if not fitted:
                self._features(batches[0], shapes)
            if method.selection == "fisher":
                squared_gradients(self.model, layers, basis, batches)
            else:
                mean_gradients(self.model, layers, basis, batches, diagonal, reduce)
            batches.clear()
        return recorder.trace

    @torch.no_grad()
    def _features(self, batch: dict[str, Tensor], shapes: Sequence[tuple[int, int]]) -> None:
        """Allocate what fitting the head does: the backbone's outputs on all batches are there at a time."""
        features: list[Any] = []
        backbone = getattr(self.model, str(self.model.base_model_prefix))
        hook = backbone.register_forward_hook(lambda module, inputs, output: features.append(output))
        self.model(**batch)
        hook.remove()
        width = features[0][0].shape[-1]
        features += [torch.empty(rows, tokens, width, dtype=features[0][0].dtype) for rows, tokens in shapes[1:]]

    @contextmanager
    def _attention(self) -> Iterator[None]:
        if not self.fused_attention:
            yield
            return
        original = functional.scaled_dot_product_attention
        functional.scaled_dot_product_attention = _fused
        try:
            yield
        finally:
            functional.scaled_dot_product_attention = original

    def training_pass(
        self,
        rows: int,
        tokens: int,
        labels: torch.dtype,
        precision: str,
        partitioned: bool = False,
        pool: Pool | None = None,
        drop: bool = False,
    ) -> Trace:
        """Return what the forward and backward pass of a training batch allocate.

        Args:
            rows: in the batch.
            tokens: of each row.
            labels: their dtype.
            precision: of the arithmetic.
            partitioned: whether ZeRO-3 has partitioned the weights.
            pool: takes the same memory, too; the gradients' until `zero_grad`.
            drop: let each gradient go once it is there.
        """
        self.model.train()
        with self.recording(pool) as recorder, _linear_of_zero3() if partitioned else nullcontext():

            def seen(parameter: Tensor) -> None:
                assert parameter.grad is not None
                recorder.is_gradient(parameter.grad)
                if drop:
                    parameter.grad = None

            trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
            hooks = [parameter.register_post_accumulate_grad_hook(seen) for parameter in trained]
            batch = self.batch(rows, tokens, labels)
            with _autocast(precision):
                loss = self.model(**batch).loss
            loss.float().backward()
            del loss, batch
            for hook in hooks:
                hook.remove()
        trace = Trace(list(recorder.trace.events), recorder.trace.gradients)
        if pool is None:
            self.model.zero_grad(set_to_none=True)
        return trace

    def evaluation_pass(self, rows: int, tokens: int, precision: str, pool: Pool | None = None) -> Trace:
        """Return what the forward pass of an evaluation batch allocates."""
        self.model.eval()
        with self.recording(pool) as recorder, torch.no_grad():
            batch = self.batch(rows, tokens, None)
            with _autocast(precision):
                logits = self.model(**batch).logits
            del logits, batch
        return recorder.trace


def _autocast(precision: str) -> AbstractContextManager[Any]:
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    return nullcontext() if dtype is None else torch.autocast("cpu", dtype)


def _partitioned_linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    output: Tensor = _PartitionedLinear.apply(input, weight, bias)  # type: ignore[no-untyped-call]
    return output


@contextmanager
def _linear_of_zero3() -> Iterator[None]:
    """Within, linear layers are DeepSpeed's, as it puts them in place when it partitions weights."""
    linear = functional.linear
    functional.linear = _partitioned_linear
    try:
        yield
    finally:
        functional.linear = linear


class _PartitionedLinear(torch.autograd.Function):
    """Keeps the input for the gradient of the weight, even where that is frozen and PyTorch's own would not."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(input, weight, bias)
        output = input.matmul(weight.t())
        if bias is not None:
            output += bias
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        input, weight, bias = ctx.saved_tensors
        flat = grad.reshape(-1, grad.shape[-1])
        wanted = ctx.needs_input_grad
        return (
            grad.matmul(weight) if wanted[0] else None,
            flat.t().matmul(input.reshape(-1, input.shape[-1])) if wanted[1] else None,
            flat.sum(0) if bias is not None and wanted[2] else None,
        )


class _FusedAttention(torch.autograd.Function):
    """Keeps what flash and memory-efficient attention keep: inputs, output, and one number per row and head."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        log_sum = torch.empty(query.shape[:-1], dtype=torch.float32, device=query.device)
        ctx.save_for_backward(query, key, value, out, log_sum, mask)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        query, key, value, *_ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None


def _fused(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *args: Any, **kwargs: Any
) -> Tensor:
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    out: Tensor = _FusedAttention.apply(query, key, value, attn_mask)  # type: ignore[no-untyped-call]
    return out
