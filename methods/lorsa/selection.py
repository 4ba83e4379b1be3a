"""Which singular components of which modules are adapted.

With G = dL/dW and M = U^T G V, the gradient of the parameters that component i would bring is known at step 0 without
training: M_ii for d_i, and for a rotation that mixes components i and j, s_j M_ij - s_i M_ji on the U side and
s_i M_ij - s_j M_ji on the V side. `sensitivity` ranks components by the expected square of these over calibration
rows; `fisher` uses M_ii alone. M of one row comes from the projections U^T dL/dy and V^T x of its tokens, so dW is
never formed.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lorsa.methods.errors import MethodError
from lorsa.methods.lorsa.basis import Basis, singular_basis
from lorsa.methods.lorsa.config import CALIBRATED, LorsaConfig
from lorsa.methods.targets import target_modules

Batch = Mapping[str, Tensor]


def target_layers(model: nn.Module, config: LorsaConfig) -> dict[str, nn.Linear]:
    """Return the linear modules that `config` targets, by name.

    Raises:
        MethodError: a target is not `nn.Linear`, or nothing matches.
    """
    layers: dict[str, nn.Linear] = {}
    for name, layer in target_modules(model, config).items():
        if not isinstance(layer, nn.Linear):
            raise MethodError(f"LoRSA: the target module {name} is a {type(layer).__name__}, not a linear layer.")
        layers[name] = layer
    return layers


def select_components(
    model: nn.Module, config: LorsaConfig, batches: Iterable[Batch] | None = None
) -> dict[str, list[int]]:
    """Choose the components to adapt, and write the choice to `config.components`.

    Args:
        model: the model before `get_peft_model`; left as it was.
        config: says which modules, which rule, and how many components.
        batches: keyword arguments of `model.forward`, with labels: for `sensitivity` and `fisher`. The rows are scored
            one by one in evaluation mode, so the result does not depend on how they are batched, and a deterministic
            model gives a deterministic choice.

    Returns:
        {module name: ascending indices of the selected components}.

    Raises:
        MethodError: nothing matches, k is larger than a module has components, or batches are missing.
    """
    layers = target_layers(model, config)
    for name, layer in layers.items():
        rank = min(layer.weight.shape)
        if config.k > rank:
            raise MethodError(
                f"LoRSA: k={config.k} is more than the {rank} components of {name} ({layer.out_features} x "
                f"{layer.in_features}); the largest k for these targets is "
                f"{min(min(each.weight.shape) for each in layers.values())}."
            )
    if config.selection in CALIBRATED:
        if batches is None:
            raise MethodError(f"LoRSA: selection={config.selection} needs calibration batches with labels.")
        # Kept in float32: the float64 factors of one module at a time are all that is in memory.
        bases = {name: singular_basis(layer.weight, name).to(torch.float32) for name, layer in layers.items()}
        scores = component_scores(model, layers, bases, config, batches)
        components = _best(scores, config)
        factors = {name: bases[name].select(indices) for name, indices in components.items()}
    else:
        factors, scores = {}, {}
        for name, layer in layers.items():
            scores[name] = _rank_score(config, name, min(layer.weight.shape), layer.weight)
        components = _best(scores, config)
    config.components = components
    # Not a field, so it is neither saved nor compared: the tuner takes the factors from here instead of a second SVD.
    config._factors = factors  # type: ignore[attr-defined]
    return components


def taken_factors(config: LorsaConfig, name: str) -> Basis | None:
    """Return, and forget, the factors that the selection computed for one module."""
    factors: dict[str, Basis] = getattr(config, "_factors", {})
    return factors.pop(name, None)


def component_scores(
    model: nn.Module,
    layers: Mapping[str, nn.Linear],
    bases: Mapping[str, Basis],
    config: LorsaConfig,
    batches: Iterable[Batch],
) -> dict[str, Tensor]:
    """Return the mean over rows of every component's squared gradient, {module name: (min(m, n),) float64}."""
    # Which gradients count: a rotation of all components does not depend on the selection, so d alone does there.
    pairs = config.selection == "sensitivity" and config.rotate == "selected"
    scores = {name: torch.zeros(basis.s.shape, dtype=torch.float64) for name, basis in bases.items()}
    device = next(model.parameters()).device

    # A module that runs several times in one forward pass, as DeBERTa's query projection does for content and
    # positions, has the sum over its calls for a gradient. Scored when the last is in, M is not kept for longer.
    calls = dict.fromkeys(bases, 0)
    partial: dict[str, Tensor] = {}

    def score(name: str) -> None:
        scores[name] += _squared_gradients(partial.pop(name), bases[name].s).double().cpu()

    def watch(name: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
        def forward_hook(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            basis = bases[name]
            z = inputs[0].detach().flatten(0, -2).to(basis.V.dtype) @ basis.V
            calls[name] += 1

            def backward_hook(gradient: Tensor) -> None:
                left = gradient.flatten(0, -2).to(basis.U.dtype) @ basis.U
                M = left.mT @ z if pairs else (left * z).sum(0)
                partial[name] = M + partial[name] if name in partial else M
                calls[name] -= 1
                if calls[name] == 0:
                    score(name)

            # Below the first adapted module nothing requires a gradient yet, not even its own output.
            (output if output.requires_grad else output.requires_grad_()).register_hook(backward_hook)

        return forward_hook

    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    modes = [(module, module.training) for module in model.modules()]
    hooks = [layer.register_forward_hook(watch(name)) for name, layer in layers.items()]
    rows = 0
    try:
        model.eval().requires_grad_(False)
        for batch in batches:
            for row in range(len(next(iter(batch.values())))):
                model(**{key: value[row : row + 1].to(device) for key, value in batch.items()}).loss.backward()
                for name in list(partial):  # the result of one of its calls does not enter the loss
                    score(name)
                calls.update(dict.fromkeys(calls, 0))
                rows += 1
    finally:
        for hook in hooks:
            hook.remove()
        for parameter in trainable:
            parameter.requires_grad_(True)
        for module, training in modes:
            module.training = training
    if rows == 0:
        raise MethodError(f"LoRSA: selection={config.selection} got no calibration rows.")
    for name, total in scores.items():
        if not torch.isfinite(total).all():
            raise MethodError(f"LoRSA: the gradients of {name} on the calibration rows are not finite.")
    return {name: total / rows for name, total in scores.items()}


def _squared_gradients(M: Tensor, s: Tensor) -> Tensor:
    """Return each component's score, (K,), from one row's M = U^T G V (K, K), or from its diagonal alone (K,)."""
    if M.ndim == 1:
        return M.square()
    own = M.diagonal().square()
    left, right = M * s, M * s[:, None]  # s_j M_ij and s_i M_ij
    return own + (left - left.mT).square().sum(1) + (right - right.mT).square().sum(1)


def _rank_score(config: LorsaConfig, name: str, count: int, weight: Tensor) -> Tensor:
    """Return the score of each component under a rule that needs no gradients, (K,)."""
    if config.selection == "random":
        # The seed goes into the checksum: the generator keeps no more than the low 32 bits of what it is given.
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode(), config.seed))
        return torch.rand(count, generator=generator, dtype=torch.float64)
    sign = 1.0 if config.selection == "principal" else -1.0
    if config.allocation == "global":
        return sign * singular_basis(weight, name).s.cpu()
    return sign * torch.arange(count, 0, -1, dtype=torch.float64)


def _best(scores: Mapping[str, Tensor], config: LorsaConfig) -> dict[str, list[int]]:
    if config.allocation == "layer":
        return {name: sorted(score.topk(config.k).indices.tolist()) for name, score in scores.items()}
    pool = torch.cat(list(scores.values()))
    chosen = torch.zeros(len(pool), dtype=torch.bool)
    chosen[pool.topk(config.k * len(scores)).indices] = True
    parts = chosen.split([len(score) for score in scores.values()])
    return {name: part.nonzero().flatten().tolist() for name, part in zip(scores, parts, strict=True)}
