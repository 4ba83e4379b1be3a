"""The k and r that a share of the model's parameters pays for."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import ROUND_CEILING, Context
from fractions import Fraction

from torch import nn

from lorsa.methods.errors import MethodError
from lorsa.methods.lorsa.config import PREFIX, LorsaConfig
from lorsa.methods.partitioned import size
from lorsa.methods.targets import target_modules

Shape = tuple[int, int]


def resolve_budget(model: nn.Module, config: LorsaConfig) -> None:
    """Write the k and r that `config.budget` pays for on a model to `config`; do nothing where there is no budget.

    Idempotent. A saved adapter's config keeps its k and r, and so does one whose components are chosen: those have to
    fit the budget as they are.

    Args:
        model: with or without adapters, on any device, the meta device included; left as it was. Its own parameters
            are counted, tied ones once.
        config: says which modules, which form and how much.

    Raises:
        MethodError: nothing matches the targets, or the budget is too small.
    """
    if config.budget is None or config.factors == "saved":
        return
    targets = target_modules(model, config)
    layers = {name: module for name, module in targets.items() if isinstance(module, nn.Linear)}
    if len(layers) < len(targets):
        return  # The selection refuses what is not linear, by its name.
    shapes = {name: (layer.out_features, layer.in_features) for name, layer in layers.items()}
    total = sum(
        size(parameter)
        for name, parameter in model.named_parameters()
        if PREFIX not in name and ".modules_to_save." not in name
    )
    if config.components is None:
        config.k, config.r = fit_budget(shapes, total, config)
        return
    chosen = {name: len(config.components.get(name, ())) for name in shapes}
    taken = sum(module_size(shape, chosen[name], config.r, config.space) for name, shape in shapes.items())
    limit = _affordable(config.budget, total)
    if taken > limit:
        raise MethodError(
            f"LoRSA: the given components take {taken:,} parameters with r={config.r}, and budget={config.budget} % of "
            f"{total:,} is {limit:,}; give fewer components or budget={_percent(taken, total)}."
        )


def fit_budget(shapes: Mapping[str, Shape], total_params: int, config: LorsaConfig) -> tuple[int, int]:
    """Return the largest k and r, the same for all modules, whose adapter stays within `config.budget`.

    What is spent first differs by form:

    - subspace, 4 k r + k per module: on components. Thin rotations of many components beat thick rotations of few, so
      r stays 1 until k has reached the fewest components that a module has, and k is never lowered for a larger r.
      `config.k` does not matter.
    - subspace with `config.r` = 0, k per module: on components, there being nothing else; r stays 0.
    - ambient, 2 r (m + n) + k per module: on rotations. A component more costs one parameter there, and memory, so
      k is `config.k` or the fewest components of a module, and r as large as fits; k is lowered only where r = 1 is
      too much with it.

    So less than one step of r may be left over. Fitting a config with its own result gives the same result.

    Args:
        shapes: (m, n) of each target module.
        total_params: what `config.budget` is percent of.
        config: gives `budget`, `space`, `k` and `r`.

    Returns:
        k and r.

    Raises:
        MethodError: the smallest adapter is over the budget, or a module with a single component is to be rotated.
    """
    assert config.budget is not None
    modules, sides = len(shapes), sum(m + n for m, n in shapes.values())
    narrowest = min(shapes, key=lambda name: min(shapes[name]))
    components = min(shapes[narrowest])
    limit = _affordable(config.budget, total_params)
    if config.r > 0 and components < 2:
        raise MethodError(
            f"LoRSA: {narrowest} ({shapes[narrowest][0]} x {shapes[narrowest][1]}) has a single component and nothing "
            "to rotate; leave it out of target_modules."
        )
    if config.r == 0:
        k, r, least = min(components, limit // modules), 0, 1
    elif config.space == "subspace":
        k, least = min(components, limit // (5 * modules)), 2
        r = max(1, min(k // 2, (limit // (modules * max(k, 1)) - 1) // 4))
    else:
        k, least = min(config.k, components, (limit - 2 * sides) // modules), 1
        r = max(1, min(components // 2, (limit - modules * k) // (2 * sides)))
    if k < least:
        forms = {"space=ambient (k=1, r=1)": 2 * sides + modules, "space=subspace (k=2, r=1)": 10 * modules}
        forms["space=subspace with r=0 (k=1)"] = modules
        needs = ", ".join(f"{_percent(size, total_params)} for {form}" for form, size in forms.items())
        subspace = "space=subspace with rotate=selected or "
        smaller = subspace if config.space == "ambient" else "r=0 or " if config.r else ""
        raise MethodError(
            f"LoRSA: budget={config.budget} % of {total_params:,} parameters is {limit:,}, too few for {modules} "
            f"target modules; the smallest budget possible is {needs}: raise it, or use {smaller}fewer target modules."
        )
    return k, r


def module_size(shape: Shape, k: int, r: int, space: str) -> int:
    """Return how many parameters train on one module of shape (m, n)."""
    if space == "subspace":
        return k + 4 * k * min(r, k // 2)
    return k + 2 * r * sum(shape)


def _affordable(budget: float, total: int) -> int:
    # Exact in the decimal that was written: 100 * count / total, as reports print it, never exceeds the budget.
    return int(Fraction(str(budget)) * total / 100)


def _percent(count: int, total: int) -> str:
    """Return a share in percent, rounded up to three digits so that it is enough."""
    return f"{Context(prec=3, rounding=ROUND_CEILING).divide(100 * count, total):f}"
