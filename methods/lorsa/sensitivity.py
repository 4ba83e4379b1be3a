"""The gradient of the loss with respect to each weight, seen in the weight's singular basis.

With G = dL/dW and M = U^T G V, the gradient of everything that a component would bring to an adapter is known before
there is an adapter: M_ii for d_i, and for a rotation that mixes components i and j, s_j M_ij - s_i M_ji on the U side
and s_i M_ij - s_j M_ji on the V side. M comes from the projections U^T dL/dy and V^T x of the tokens that pass through
the layer, so G is never formed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lorsa.kernels import component_sensitivity
from lorsa.methods.errors import MethodError
from lorsa.methods.lorsa.basis import Basis

Batch = Mapping[str, Tensor]
# M of so many bytes is accumulated at a time; more modules take a further pass over the rows.
BYTES_PER_PASS = 4 * 2**30


def mean_gradients(
    model: nn.Module,
    layers: Mapping[str, nn.Linear],
    basis: Callable[[str, torch.device], Basis],
    batches: Sequence[Batch],
    diagonal: bool,
    reduce: Callable[[str, Tensor], Tensor],
) -> dict[str, Tensor]:
    """Return what `reduce` makes of each module's M, of the mean loss over all rows.

    Args:
        model: in evaluation mode, nothing requiring a gradient.
        layers: the modules, by name.
        basis: gives the full basis of a module on a device, whenever it is asked.
        batches: keyword arguments of `model.forward` with labels, on the model's device. Under `torch.autocast` the
            model runs in lower precision, the projections do not.
        diagonal: accumulate the diagonal alone.
        reduce: called once per module with its name and its M, (K, K) or for `diagonal` (K,), in the basis' dtype. Of
            the modules' M no more than BYTES_PER_PASS are there at a time.

    Raises:
        MethodError: a gradient is not finite.
    """
    rows = sum(map(_rows, batches))
    result: dict[str, Tensor] = {}
    for group in _groups(layers, diagonal):
        sums: dict[str, Tensor] = {}

        def add(name: str, left: Tensor, right: Tensor, sums: dict[str, Tensor] = sums) -> None:
            left, right = left.flatten(0, -2), right.flatten(0, -2)
            M = (left * right).sum(0) if diagonal else left.mT @ right
            sums[name] = sums[name] + M if name in sums else M

        with _projected({name: layers[name] for name in group}, basis, add):
            for batch in batches:
                (model(**batch).loss * (_rows(batch) / rows)).backward()
        check_finite(sums)
        for name in group:
            rank = components_of(layers[name])
            # A module that the loss does not depend on has no gradient.
            M = sums.pop(name, None)
            result[name] = reduce(name, torch.zeros((rank,) if diagonal else (rank, rank)) if M is None else M)
    return result


def squared_gradients(
    model: nn.Module,
    layers: Mapping[str, nn.Linear],
    basis: Callable[[str, torch.device], Basis],
    batches: Sequence[Batch],
) -> dict[str, Tensor]:
    """Return the mean over rows of M_ii^2, the diagonal of the empirical Fisher information, {module name: (K,)}.

    Arguments as for `mean_gradients`; the loss of a batch is the mean over its rows. A batch passes through the model
    as one, unless a module in it serves all rows at once, as DeBERTa's query projection does for the positions: then
    each row passes on its own.

    Raises:
        MethodError: a gradient is not finite.
    """
    result: dict[str, Tensor] = {}
    # A module that runs several times for one row has the sum over its calls for a gradient.
    calls: dict[str, int] = {}
    pending: dict[str, list[tuple[Tensor, Tensor]]] = {}
    shared: list[str] = []

    def add(name: str, left: Tensor, right: Tensor) -> None:
        parts = pending.setdefault(name, [])
        # (rows, tokens, K): what a single row brings is its own, whatever the shape.
        rows = 1 if shared else len(left)
        parts.append((left.reshape(rows, -1, left.shape[-1]), right.reshape(rows, -1, right.shape[-1])))
        if len(parts) == calls[name]:
            score(name)

    def score(name: str) -> None:
        left, right = (torch.cat(side, dim=1) for side in zip(*pending.pop(name), strict=True))
        tokens = [left.shape[1]] * len(left)
        left, right = left.flatten(0, 1), right.flatten(0, 1)
        scores = component_sensitivity(left, right, left.new_ones(left.shape[1]), tokens, "value")
        result[name] = result[name] + scores if name in result else scores

    def count(name: str, rows: int) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            calls[name] = calls.get(name, 0) + 1
            if len(output) != rows:
                shared.append(name)

        return hook

    def passed(batch: Batch) -> bool:
        calls.clear()
        pending.clear()
        shared.clear()
        hooks = [layer.register_forward_hook(count(name, _rows(batch))) for name, layer in layers.items()]
        try:
            loss = model(**batch).loss
        finally:
            for hook in hooks:
                hook.remove()
        if shared and _rows(batch) > 1:
            return False
        (loss * _rows(batch)).backward()
        for name in list(pending):  # a call that the loss does not depend on has no gradient to wait for
            score(name)
        return True

    with _projected(layers, basis, add):
        for batch in batches:
            if not passed(batch):
                for row in range(_rows(batch)):
                    passed({key: value[row : row + 1] for key, value in batch.items()})
    check_finite(result)
    rows = sum(map(_rows, batches))
    return {
        name: result[name] / rows if name in result else torch.zeros(components_of(layer))
        for name, layer in layers.items()
    }


@contextmanager
def _projected(
    layers: Mapping[str, nn.Linear],
    basis: Callable[[str, torch.device], Basis],
    add: Callable[[str, Tensor, Tensor], None],
) -> Iterator[None]:
    """Call `add(name, U^T dL/dy, V^T x)`, both (..., K), for every call of every layer that the loss depends on."""

    def watch(name: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
        def forward_hook(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
            x = inputs[0].detach()

            def backward_hook(gradient: Tensor) -> None:
                # Read again for every call, not kept: one module's factors are in memory at a time.
                factors = basis(name, gradient.device)
                with torch.autocast(gradient.device.type, enabled=False):
                    left = gradient.to(factors.U.dtype) @ factors.U
                    add(name, left, x.to(factors.V.dtype) @ factors.V)

            # Below the first adapted module nothing requires a gradient yet, not even its own output. A copy, since
            # what requires a gradient by itself must not be overwritten, and a model may do that with a result.
            seen = output if output.requires_grad else output.requires_grad_().clone()
            seen.register_hook(backward_hook)
            return seen

        return forward_hook

    hooks = [layer.register_forward_hook(watch(name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _groups(layers: Mapping[str, nn.Linear], diagonal: bool) -> list[list[str]]:
    """Split the modules into groups whose M fit BYTES_PER_PASS."""
    groups: list[list[str]] = [[]]
    held = 0
    for name, layer in layers.items():
        need = 0 if diagonal else 8 * components_of(layer) ** 2
        if groups[-1] and held + need > BYTES_PER_PASS:
            groups.append([])
            held = 0
        groups[-1].append(name)
        held += need
    return groups


def components_of(layer: nn.Linear) -> int:
    """Return how many singular components a module's weight has."""
    return min(layer.out_features, layer.in_features)


def _rows(batch: Batch) -> int:
    return len(next(iter(batch.values())))


def check_finite(values: Mapping[str, Tensor]) -> None:
    """Refuse gradients that are not finite.

    Raises:
        MethodError: names the first module whose gradients are not.
    """
    for name, value in values.items():
        if not torch.isfinite(value).all():
            raise MethodError(f"LoRSA: the gradients of {name} on the calibration rows are not finite.")
