"""Which runs a report is about: those that its arguments name, finished and whole; and what was left out, and why."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lorsa.runner.commands.runs import all_runs, find_run
from lorsa.runner.errors import UserError, nearest
from lorsa.runner.launch.sweep import SWEEPS, Sweep, find_sweep
from lorsa.runner.report.record import NAMES, NotAResultError, Run, read_record

NO_RUN = "no run's folder"


@dataclass(frozen=True)
class LeftOut:
    """A folder that is not in the tables.

    Attributes:
        path: the folder.
        reason: why, in few words.
        state: the run's own word, where it has one: failed, running, …
        error: what it failed with, its traceback where there is one.
        about: model, method, task and seed, as far as it says them.
    """

    path: Path
    reason: str
    state: str = ""
    error: str = ""
    about: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Collection:
    """The runs of a report, by path, and what was left out."""

    runs: list[Run]
    left_out: list[LeftOut]

    def reasons(self) -> list[str]:
        """Return one sentence for each reason to leave folders out, the most frequent first."""
        counts = Counter(each.reason for each in self.left_out)
        examples = {each.reason: each.path.name for each in reversed(self.left_out)}
        return [
            f"Left out: {count} {'folder' if count == 1 else 'folders'}, {reason} ({examples[reason]}"
            f"{'' if count == 1 else ' and others'})."
            for reason, count in counts.most_common()
        ]


def collect(names: Sequence[str], runs_dir: Path, filters: Sequence[str] = ()) -> Collection:
    """Read every finished run that is named.

    Args:
        names: run directories, folders of runs, sweeps or signatures; none for all of `runs_dir`.
        runs_dir: where names of sweeps and signatures are looked up.
        filters: `KEY=VALUE[,VALUE]`, with a name of `record.NAMES` or a dotted key of the config.

    Raises:
        UserError: a name or filter means nothing, or no finished run is left.
    """
    runs: list[Run] = []
    left_out: list[LeftOut] = []
    for path in dict.fromkeys(_directories(names, runs_dir)):
        try:
            runs.append(read_record(path))
        except NotAResultError as error:
            left_out.append(LeftOut(path, str(error)))
        except FileNotFoundError:
            left_out.append(_unfinished(path))
        except OSError as error:
            left_out.append(LeftOut(path, f"result.json cannot be read: {error.strerror}"))
    runs, copies = _without_copies(runs)
    found = Collection(runs, left_out + copies)
    if not runs:
        where = ", ".join(names) or str(runs_dir)
        raise UserError(f"There is no finished run in {where}. {' '.join(found.reasons())}".rstrip())
    if not filters:
        return found
    wanted = [_filter(each, runs) for each in filters]
    kept = [run for run in runs if all(_has(run.value(key), values) for key, values in wanted)]
    if not kept:
        raise UserError(f"No run has {' and '.join(filters)}; {_choices(wanted, runs)}.")
    return Collection(kept, [each for each in found.left_out if _may_pass(each, wanted)])


def check_key(option: str, key: str, runs: Iterable[Run]) -> None:
    """Refuse a key by which runs can be neither filtered nor grouped.

    Raises:
        UserError: no run has it.
    """
    if key in NAMES or any(key in run.settings for run in runs):
        return
    if "." in key:
        known = {setting for run in runs for setting in run.settings}
        close = nearest(key, known).partition(" Valid:")[0]
        raise UserError(f"{option} {key}: no run's config has that key{close}")
    raise UserError(
        f"{option} {key}: there is no '{key}'{nearest(key, NAMES)} Or a dotted key of the config, such as train.lr."
    )


def _directories(names: Sequence[str], runs_dir: Path) -> Iterator[Path]:
    if not names:
        yield from _absolute(all_runs(runs_dir))
    for name in names:
        path = Path(name).expanduser()
        if not path.is_dir():
            known = (runs_dir / SWEEPS / name / "sweep.json").is_file()
            if name == "latest" or known:
                yield from _of_sweep(find_sweep(name, runs_dir))
            elif runs_dir.expanduser().is_dir():
                yield find_run(name, runs_dir)
            else:
                raise UserError(f"There is no run, folder of runs or sweep {name}.")
        elif (path / "sweep.json").is_file():
            yield from _of_sweep(Sweep(path))
        elif any((path / file).exists() for file in ("result.json", "status.json")):
            yield path.absolute()
        else:
            yield from _absolute(all_runs(path))


def _absolute(paths: Iterable[Path]) -> Iterator[Path]:
    return (path.absolute() for path in paths)


def _of_sweep(sweep: Sweep) -> Iterator[Path]:
    return _absolute(sweep.runs_dir / run.signature for run in sweep.runs)


def _unfinished(path: Path) -> LeftOut:
    try:
        status = json.loads((path / "status.json").read_bytes())
        state = str(status.get("state", "?"))
    except FileNotFoundError:
        return LeftOut(path, NO_RUN if path.is_dir() else "not started")
    except (OSError, ValueError, AttributeError):
        return LeftOut(path, "no result.json, and a damaged status.json")
    about = {key: status[key] for key in ("model", "method", "task", "seed") if key in status}
    error = str(status.get("traceback") or status.get("error") or "")
    # "running" is what the run said last; whether it is alive, lorsa status knows.
    return LeftOut(path, f"not finished, state {state}", state, error, about)


def _without_copies(runs: list[Run]) -> tuple[list[Run], list[LeftOut]]:
    """Keep one of each signature: a run that was copied is still one run."""
    first: dict[str, Run] = {}
    copies = []
    for run in runs:
        if first.setdefault(run.signature, run) is not run:
            copies.append(LeftOut(run.path, "the same run as another of these"))
    return list(first.values()), copies


def _has(value: object, texts: set[str]) -> bool:
    """Whether a value is one of those that were written: 0.001 is also 1e-3, and what is not set is null."""
    if value is None:
        return "null" in texts
    if str(value) in texts or (isinstance(value, bool) and str(value).lower() in texts):
        return True
    return isinstance(value, int | float) and any(_number(text) == value for text in texts)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _filter(text: str, runs: list[Run]) -> tuple[str, set[str]]:
    key, equals, values = text.partition("=")
    if not equals or not values:
        raise UserError(f"--where {text}: it has to be KEY=VALUE, such as task=cola or train.lr=0.001.")
    check_key("--where", key, runs)
    return key, set(values.split(","))


def _choices(wanted: list[tuple[str, set[str]]], runs: list[Run]) -> str:
    texts = []
    for key, _ in wanted:
        values = sorted({str(run.value(key)) for run in runs})
        texts.append(f"{key} is {', '.join(values[:12])}{', …' if len(values) > 12 else ''}")
    return "; ".join(texts)


def _may_pass(folder: LeftOut, wanted: list[tuple[str, set[str]]]) -> bool:
    """Whether a folder that is left out would have been asked for, as far as it says what it is."""
    return all(key not in folder.about or _has(folder.about[key], values) for key, values in wanted)
