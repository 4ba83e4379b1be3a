"""The singular bases of a model's weights, computed with a progress bar where the cache has them not."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from lorsa.methods import LorsaConfig
from lorsa.methods.apply import name_head
from lorsa.methods.lorsa import BasisCache, default_folder, prefetch, resolve_budget, target_layers
from lorsa.methods.partitioned import is_partitioned, whole
from lorsa.runner.distributed import any_rank, broadcast, gathered, rank, world_size
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

        cache = BasisCache(default_folder())
        if world_size() == 1:
            prefetch(layers, cache, done)
        else:
            _prefetch_together(layers, cache, done)
    return computed, len(layers)


def _prefetch_together(
    layers: Mapping[str, nn.Linear], cache: BasisCache, on_done: Callable[[str, bool], None]
) -> None:
    """Do what `prefetch` does, each process with every N-th matrix; in the end every process' cache has all bases."""
    names = list(layers)
    for first in range(0, len(names), world_size()):
        turn = names[first : first + world_size()]
        weight = None
        with whole(layers[name].weight for name in turn):
            if rank() < len(turn):
                parameter = layers[turn[rank()]].weight
                weight = parameter.detach().clone() if is_partitioned(parameter) else parameter.detach()
        mine = None if weight is None else cache.basis(weight, turn[rank()])
        computed = gathered(None if mine is None else (mine.stem, mine.computed))
        stems = [entry[0] for entry in computed if entry is not None]
        # On a cluster whose nodes share no cache, those that lack a basis get it from the process that has it.
        lacking = [not cache.has_stem(stem) for stem in stems]
        for owner, (name, stem) in enumerate(zip(turn, stems, strict=True)):
            if any_rank(lacking[owner]):
                basis = broadcast(mine.load("cpu") if mine is not None and owner == rank() else None, owner)
                if lacking[owner]:
                    cache.put(stem, basis)
            entry = computed[owner]
            on_done(name, entry is not None and entry[1])
