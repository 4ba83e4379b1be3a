"""The singular bases of a model's weights, computed with a progress bar where the cache has them not."""

from __future__ import annotations

from torch import nn

from lorsa.methods import LorsaConfig
from lorsa.methods.apply import name_head
from lorsa.methods.lorsa import BasisCache, default_folder, prefetch, resolve_budget, target_layers
from lorsa.runner.terminal import console


def fill_cache(model: nn.Module, head: list[str], config: LorsaConfig) -> tuple[int, int]:
    """Compute the bases of the modules that `config` targets, one after the other, unless they are in the cache.

    What is done stays done: interrupted, it goes on with the next matrix.

    Returns:
        How many bases were computed, and how many there are.

    Raises:
        MethodError: the config does not fit the model, a weight has no basis, or the cache cannot be written.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    name_head(config, head)
    resolve_budget(model, config)
    layers = target_layers(model, config)
    computed = 0
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress("Bases", *columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=len(layers))

        def done(name: str, was_computed: bool) -> None:
            nonlocal computed
            computed += was_computed
            progress.advance(task)

        prefetch(layers, BasisCache(default_folder()), done)
    return computed, len(layers)
