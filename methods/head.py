"""A classification head that is fitted on the frozen features, before anything else trains.

A fresh head is random, and so is the direction in which it sends gradients back: at step 0 they pull the features
towards random vectors, and on a regression task towards the mean of the labels, before they pull them towards the task.
Fitted first, the head asks for what the features lack (Kumar et al., 2022, arXiv:2202.10054). Training starts from such
a head under `train.probe_rows`, and LoRSA's selection looks at gradients under one in any case.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from lorsa.methods.errors import MethodError
from lorsa.methods.frozen import frozen_evaluation
from lorsa.methods.targets import in_head

# Beside the loss: a tenth of the weights' squares, each in the unit of its input's mean square. For a squared error
# that is what dropout of a tenth adds on average (Wager et al., 2013, arXiv:1307.1493). Without it the weights grow
# until they tell all rows apart: no gradient is left, and they magnify the noise of the backbone's dropout until the
# training starts at a loss above that of a head that knows nothing.
PENALTY = 0.1
STEPS = 50


class _Replay(nn.Module):
    """Stands in for the backbone, and returns what that returned before."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: Any = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.outputs


def fit_head(model: nn.Module, head: Sequence[str], batches: Sequence[Mapping[str, Tensor]]) -> None:
    """Leave the head where it minimises the loss on `batches` over the frozen backbone, everything else as it was.

    Arguments and what is raised: as for `fitted_head`, but the model may be in any mode. Under `torch.autocast` the
    backbone runs in lower precision, and the head is still fitted in its own.
    """
    with frozen_evaluation(model):
        with fitted_head(model, head, batches):
            fitted = [parameter.detach().clone() for parameter in _parameters(model, head)]
        with torch.no_grad():
            for parameter, value in zip(_parameters(model, head), fitted, strict=True):
                parameter.copy_(value)


@contextmanager
def fitted_head(model: nn.Module, head: Sequence[str], batches: Sequence[Mapping[str, Tensor]]) -> Iterator[None]:
    """Within, the head minimises the loss on `batches` over the frozen backbone; afterwards it is as it was.

    The backbone runs once; what of the head lies inside it, as a pooler does in some models, is left as it is. L-BFGS
    with a line search is deterministic and wants no learning rate.

    Args:
        model: a transformers model with a head on a backbone (`model.base_model_prefix`), in evaluation mode.
        head: names of the head's modules; empty leaves the model alone.
        batches: keyword arguments of `model.forward` with labels, on the model's device.

    Raises:
        MethodError: the model has a head but no backbone to hold.
    """
    parameters = _parameters(model, head)
    if not parameters:
        yield
        return
    prefix = getattr(model, "base_model_prefix", "")
    backbone = getattr(model, prefix, None) if prefix else None
    if not isinstance(backbone, nn.Module):
        raise MethodError(
            f"{type(model).__name__} does not name its backbone (base_model_prefix), so its head {', '.join(head)} "
            "cannot be fitted first; use method.config.selection=principal and train.probe_rows=null."
        )
    before = [(parameter.detach().clone(), parameter.requires_grad) for parameter in parameters]
    outputs = _backbone_outputs(model, backbone, batches)
    replay = _Replay()
    try:
        setattr(model, prefix, replay)
        for parameter in parameters:
            parameter.requires_grad_(True)
        with torch.autocast(parameters[0].device.type, enabled=False):
            _minimise(model, parameters, replay, outputs, batches)
        setattr(model, prefix, backbone)
        outputs.clear()
        replay.outputs = None
        for parameter in parameters:
            parameter.requires_grad_(False)
            parameter.grad = None
        yield
    finally:
        setattr(model, prefix, backbone)
        with torch.no_grad():
            for parameter, (value, trained) in zip(parameters, before, strict=True):
                parameter.copy_(value)
                parameter.requires_grad_(trained)


def _parameters(model: nn.Module, head: Sequence[str]) -> list[nn.Parameter]:
    return [parameter for name, parameter in model.named_parameters() if in_head(name, head)]


def _backbone_outputs(model: nn.Module, backbone: nn.Module, batches: Sequence[Mapping[str, Tensor]]) -> list[Any]:
    outputs: list[Any] = []
    dtype = next(backbone.parameters()).dtype  # of what the backbone returns without autocast

    def keep(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        outputs.append(tree_map_only(Tensor, lambda each: each.to(dtype) if each.is_floating_point() else each, output))

    hook = backbone.register_forward_hook(keep)
    try:
        with torch.no_grad():
            for batch in batches:
                model(**batch)
    finally:
        hook.remove()
    return outputs


def _minimise(
    model: nn.Module,
    parameters: list[nn.Parameter],
    replay: _Replay,
    outputs: list[Any],
    batches: Sequence[Mapping[str, Tensor]],
) -> None:
    rows = sum(len(batch["labels"]) for batch in batches)
    optimizer = torch.optim.LBFGS(parameters, max_iter=STEPS, line_search_fn="strong_wolfe")

    def losses() -> Iterator[Tensor]:
        for output, batch in zip(outputs, batches, strict=True):
            replay.outputs = output
            yield model(**batch).loss * (len(batch["labels"]) / rows)

    inputs = _mean_square_inputs(model, parameters, losses())

    def closure() -> float:
        optimizer.zero_grad()
        total = 0.0
        for loss in losses():
            loss.backward()
            total += loss.item()
        for weight, mean_square in inputs:
            penalty = PENALTY * (weight.square() * mean_square).sum()
            penalty.backward()
            total += penalty.item()
        return total

    with torch.enable_grad():
        optimizer.step(closure)


@torch.no_grad()
def _mean_square_inputs(
    model: nn.Module, parameters: list[nn.Parameter], losses: Iterator[Tensor]
) -> list[tuple[nn.Parameter, Tensor]]:
    """Return the weight of each linear module of the head, (out, in), and the mean square of its inputs, (in,).

    The mean is over all that the module sees: of a causal model's head every token, padding too, though the loss takes
    one of each row. The committed measurements were made so.
    """
    squares: dict[nn.Parameter, list[Tensor]] = {parameter: [] for parameter in parameters}

    def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        squares[module.weight].append(inputs[0].flatten(0, -2).square().mean(0))  # type: ignore[index]

    hooks = [
        module.register_forward_pre_hook(look)
        for module in model.modules()
        if isinstance(module, nn.Linear) and module.weight in squares
    ]
    try:
        for _ in losses:
            pass
    finally:
        for hook in hooks:
            hook.remove()
    return [(weight, torch.stack(each).mean(0)) for weight, each in squares.items() if each]
