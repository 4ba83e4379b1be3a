"""Parameters of which this process holds a part: DeepSpeed's ZeRO-3 leaves one Nth of each with each of N processes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor


def is_partitioned(parameter: Tensor) -> bool:
    """Say whether ZeRO-3 manages a parameter: its own shape is then (0,), unless it is gathered at the moment."""
    return hasattr(parameter, "ds_id")


def size(parameter: Tensor) -> int:
    """Return how many numbers a parameter has, over all processes."""
    return int(parameter.ds_numel) if is_partitioned(parameter) else parameter.numel()  # type: ignore[attr-defined]


def shape(parameter: Tensor) -> tuple[int, ...]:
    """Return the shape that a parameter has when it is whole."""
    return tuple(parameter.ds_shape if is_partitioned(parameter) else parameter.shape)  # type: ignore[attr-defined]


@contextmanager
def whole(parameters: Iterable[Tensor], change: bool = False) -> Iterator[None]:
    """Within, the parameters are there as a whole, in every process.

    All processes have to come here with the same parameters, in the same order. Does nothing for ordinary ones.

    Args:
        parameters: to gather.
        change: keep what the first process writes to them, for all; otherwise what is written is lost.
    """
    partitioned = [parameter for parameter in parameters if is_partitioned(parameter)]
    if not partitioned:
        yield
        return
    import deepspeed
    from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

    # DeepSpeed keeps small parameters whole while it trains, and counts on finding them so.
    kept = [parameter for parameter in partitioned if parameter.ds_status == ZeroParamStatus.AVAILABLE]  # type: ignore[attr-defined]
    with deepspeed.zero.GatheredParameters(partitioned, modifier_rank=0 if change else None):
        yield
    if kept:
        kept[0].all_gather(param_list=kept)  # type: ignore[attr-defined]
