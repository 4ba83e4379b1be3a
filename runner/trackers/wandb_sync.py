"""Sending runs to wandb after the fact, whatever tracker they were made with: what `lorsa sync` does."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorsa.runner.errors import UserError
from lorsa.runner.trackers.rows import read_config, read_rows, sweep_of
from lorsa.runner.trackers.state import State, digest, folder, read_state, write_state
from lorsa.runner.trackers.wandb_account import Account, default_entity
from lorsa.runner.trackers.wandb_run import FIGURE, log_result, log_rows, open_run

if TYPE_CHECKING:
    import wandb

SENT, UP_TO_DATE, TRACKED, LEFT_OUT, FAILED = "sent", "up to date", "sends itself", "left out", "failed"


@dataclass(frozen=True)
class Place:
    """Where runs are sent, and what replaces the settings in their configs.

    Attributes:
        account: whose key it is.
        project: None for that of each run's config.
        entity: None for that of each run's config.
        group: None for each run's sweep.
    """

    account: Account
    project: str | None = None
    entity: str | None = None
    group: str | None = None

    def settings(self, tracker: Mapping[str, Any]) -> dict[str, Any]:
        """Return a run's settings of the tracker with these in their place."""
        own = tracker if tracker.get("name") == "wandb" else {}
        return {
            **own,
            "project": self.project or own.get("project") or "lorsa",
            "entity": self.entity or own.get("entity") or default_entity(self.account) or None,
        }


@dataclass(frozen=True)
class Sent:
    """What became of one run.

    Attributes:
        run: its directory.
        state: one of the words above.
        url: of its page.
        reason: of a failure.
    """

    run: Path
    state: str
    url: str = ""
    reason: str = ""


def send(run: Path, place: Place, again: bool) -> Sent:
    """Send a run, unless the server has all of it.

    Args:
        run: its directory.
        place: where to.
        again: also what was sent before.

    Raises:
        UserError: the directory is no run's, or damaged.
    """
    from filelock import FileLock, Timeout

    config = read_config(run)
    done = _is_done(run)
    config["tracker"] = place.settings(config.get("tracker") or {})
    known = read_state(run)
    where = f"{place.account.url}/{config['tracker']['entity'] or ''}/{config['tracker']['project']}"
    found = digest(run, where)
    if known is not None and known.digest == found and not again:
        return Sent(run, UP_TO_DATE, known.url)
    group = place.group or config["tracker"].get("group") or sweep_of(run) or (known.group if known else None)
    lock = FileLock(run / ".tracker.lock", timeout=0)
    try:
        with lock:
            url = _upload(run, config, group, done)
            write_state(run, State("online", url, found, group=group))
            _mark_files(run)
    except Timeout:
        return Sent(run, TRACKED, known.url if known else "")
    return Sent(run, SENT, url)


def _is_done(run: Path) -> bool:
    try:
        result = json.loads((run / "result.json").read_text(encoding="utf-8"))
        result["primary_metric"]["dev"]
    except FileNotFoundError:
        return False
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{run / 'result.json'} is damaged ({type(error).__name__}: {error}).") from error
    if not (run / "adapter").is_dir():
        raise UserError(f"{run} has a result but no adapter; run again with force=true.")
    return True


def _upload(run: Path, config: Mapping[str, Any], group: str | None, done: bool) -> str:
    rows = read_rows(run / "metrics.jsonl")
    if not done and _read_state(run) != "failed":
        rows = rows[:-1]  # after the losses of an update may come its scores
    # wandb's own files of a run that is sent from elsewhere are of no use to anyone.
    with tempfile.TemporaryDirectory(prefix="lorsa-sync-") as temporary:
        opened = open_run(run, config, group, online=True, root=Path(temporary))
        try:
            log_rows(opened, rows, opened.starting_step - 1)
            if done:
                artifacts = log_result(opened, run, config)
                _log_figure(opened, run)
                for artifact in artifacts:
                    artifact.wait()
        finally:
            opened.finish(exit_code=0 if done else 1)
        return str(opened.url)


def _read_state(run: Path) -> str:
    try:
        return str(json.loads((run / "status.json").read_text(encoding="utf-8"))["state"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _log_figure(opened: wandb.Run, run: Path) -> None:
    """Add the figure of `lorsa analyze`, once, if the run chose components."""
    if opened.summary.get(FIGURE) or not json.loads((run / "result.json").read_bytes())["components"]:
        return
    import wandb

    from lorsa.runner.analysis import read_run
    from lorsa.runner.plots import save_figure

    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary, "components.png")
        save_figure([read_run(run)], file)
        opened.log({FIGURE: wandb.Image(str(file))})


def _mark_files(run: Path) -> None:
    """Tell wandb's own `wandb sync` that there is nothing left for it."""
    for file in folder(run).glob("*-run-*/*.wandb"):
        file.with_suffix(".wandb.synced").touch()
