"""`lorsa sync`: runs that were made without wandb, or without a network, sent to it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorsa.runner.commands.runs import RunsDir, all_runs, find_run
from lorsa.runner.completion import complete_runs
from lorsa.runner.errors import UserError
from lorsa.runner.launch.sweep import SWEEPS, Sweep, find_sweep

if TYPE_CHECKING:
    from lorsa.runner.trackers.wandb_sync import Place, Sent

_RUN_FILES = ("status.json", "result.json", "config.yaml", "metrics.jsonl")


def sync(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUNS",
            help="Run directories, folders of runs, signatures, sweeps, or latest; default: all of --runs-dir.",
            autocompletion=complete_runs,
        ),
    ] = None,
    runs_dir: RunsDir = Path("runs"),
    project: Annotated[str | None, typer.Option(help="wandb's project; default: the run's own, or lorsa.")] = None,
    entity: Annotated[
        str | None, typer.Option(help="User or team; default: the run's own, WANDB_ENTITY, or the key's.")
    ] = None,
    group: Annotated[str | None, typer.Option(help="Group of all these runs; default: each run's sweep.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Also what was sent already.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Send runs to wandb: those made without it from metrics.jsonl, and those that were offline.

    A run has one page there, by its signature. What the server has is not sent twice, so the command may be repeated,
    also while runs train; a run that is interrupted and goes on adds to its curve.
    """
    from lorsa.runner.trackers.wandb_account import check_account, find_key, require

    named, found = _find(runs or [], runs_dir)
    require()
    account = check_account(find_key())

    from lorsa.runner.terminal import say
    from lorsa.runner.trackers.wandb_sync import FAILED, SENT, Place

    place = Place(account, project, entity, group)
    outcomes = []
    for path in found:
        outcome = _send(path, place, again, path in named)
        outcomes.append(outcome)
        if not as_json:
            say(f"{path.name}: {outcome.state} {outcome.url or outcome.reason}".rstrip())
    if as_json:
        print(
            json.dumps(
                [
                    {"run": str(o.run), "state": o.state, "url": o.url or None, "reason": o.reason or None}
                    for o in outcomes
                ]
            )
        )
    else:
        say(f"{sum(o.state == SENT for o in outcomes)} of {len(outcomes)} runs sent.")
    failures = [o for o in outcomes if o.state == FAILED]
    if failures:
        raise UserError(f"{len(failures)} of {len(outcomes)} runs could not be sent: {failures[0].reason}")


def _send(path: Path, place: Place, again: bool, named: bool) -> Sent:
    """Send one run; what is wrong with it does not keep others from being sent."""
    from lorsa.runner.trackers.wandb_account import check_account, find_key
    from lorsa.runner.trackers.wandb_sync import FAILED, LEFT_OUT, Sent, send

    try:
        return send(path, place, again)
    except UserError as error:
        # Among all of a folder there may be others' folders, and runs that never began to train.
        ours = named or (path / "config.yaml").exists()
        return Sent(path, FAILED if ours else LEFT_OUT, reason=str(error))
    except Exception as error:
        check_account(find_key())  # the session may have ended, or the network; that concerns all runs
        lines = str(error).strip().splitlines() or [""]
        return Sent(path, FAILED, reason=f"{path}: wandb refused it ({type(error).__name__}: {lines[0]}).")


def _find(names: Sequence[str], runs_dir: Path) -> tuple[set[Path], list[Path]]:
    """Return the runs that are named one by one, and all that are meant."""
    named: set[Path] = set()
    found: list[Path] = list(_absolute(all_runs(runs_dir))) if not names else []
    for name in names:
        path = Path(name).expanduser()
        if (path / "sweep.json").is_file():
            found += _of_sweep(Sweep(path))
        elif _looks_like_one(path):
            found.append(path.absolute())
            named.add(path.absolute())
        elif path.is_dir():
            inside = [run for run in _absolute(all_runs(path)) if _looks_like_one(run)]
            if not inside:
                raise UserError(
                    f"{path} is no run's folder and holds none: there is no config.yaml and no metrics.jsonl."
                )
            found += inside
        elif name == "latest" or (runs_dir / SWEEPS / name / "sweep.json").is_file():
            found += _of_sweep(find_sweep(name, runs_dir))
        else:
            found.append(find_run(name, runs_dir))
            named.add(found[-1])
    return named, list(dict.fromkeys(found))


def _looks_like_one(path: Path) -> bool:
    return any((path / file).exists() for file in _RUN_FILES)


def _absolute(paths: Sequence[Path]) -> Iterator[Path]:
    return (path.absolute() for path in paths)


def _of_sweep(sweep: Sweep) -> Iterator[Path]:
    return (sweep.runs_dir / run.signature for run in sweep.runs)
