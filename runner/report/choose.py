"""`lorsa report --choose train.lr`: of the values that were tried, the one that was best on the dev part."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from lorsa.runner.errors import UserError
from lorsa.runner.report.collect import Collection, LeftOut, check_key
from lorsa.runner.report.compare import compared
from lorsa.runner.report.record import Run


def choose(collection: Collection, keys: Sequence[str]) -> Collection:
    """Keep, of runs that differ in these settings and their seeds alone, those at the values with the best dev score.

    So each method has its own values on each task and model. The score of values is the mean over the seeds that all of
    them have, of which one is enough; the rows that are scored have no say. Of equals the smallest values are kept.

    Args:
        collection: the runs.
        keys: names or dotted keys of the config, as `--where` takes them.

    Raises:
        UserError: a key means nothing, runs have no dev part to choose by, or values share no seed.
    """
    for key in keys:
        check_key("--choose", key, collection.runs)
    groups: dict[tuple[Any, ...], list[Run]] = defaultdict(list)
    for run in collection.runs:
        rest = {key: value for key, value in sorted(compared(run).items()) if key not in keys}
        where = (run.model, run.method, run.task, run.source, run.is_demo, run.protocol, run.train_rows)
        groups[*where, repr(rest)].append(run)
    kept: set[str] = set()
    for members in groups.values():
        kept |= {run.signature for run in _best(members, keys)}
    words = f"another {' and '.join(keys)} was better on the dev part"
    dropped = [LeftOut(run.path, words) for run in collection.runs if run.signature not in kept]
    return Collection([run for run in collection.runs if run.signature in kept], collection.left_out + dropped)


def _best(runs: Sequence[Run], keys: Sequence[str]) -> list[Run]:
    """Return the runs at the best values; all of them where there is one."""
    by_value: dict[tuple[Any, ...], dict[int, Run]] = defaultdict(dict)
    for run in runs:
        by_value[tuple(run.value(key) for key in keys)][run.seed] = run
    if len(by_value) == 1:
        return list(runs)
    about = f"{runs[0].method} on {runs[0].task}"
    if any(run.protocol != "split" for run in runs):
        raise UserError(
            f"--choose {', '.join(keys)}: the runs of {about} have no dev part to choose by: they are of "
            f"protocol={runs[0].protocol}, which looks at the scored rows. Runs of protocol=split have one."
        )
    shared = set.intersection(*(set(by_seed) for by_seed in by_value.values()))
    if not shared:
        raise UserError(
            f"--choose {', '.join(keys)}: the values of {about} share no seed, and scores of different seeds do not "
            "compare; run them all with one seed at least."
        )

    def score(value: tuple[Any, ...]) -> float:
        # A score that is undefined, as constant predictions have it, is worse than any.
        found = [by_value[value][seed].dev for seed in sorted(shared)]
        return fmean(each if each is not None else float("-inf") for each in found)

    def order(value: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple((each is not None, each if isinstance(each, int | float) else 0, str(each)) for each in value)

    best = max(sorted(by_value, key=order), key=score)
    return [run for run in runs if tuple(run.value(key) for key in keys) == best]
