"""<run>/wandb/state.json: what became of a run's copy at wandb, and whether it is still true."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class State:
    """How a run stands with wandb.

    Attributes:
        mode: `online` where the server has it, `offline` where only the disk has.
        url: of the run's page; empty where it is offline.
        digest: of the files as they were when the server had all of them; empty where it lacks something.
        reason: why it is offline, in words.
        group: the sweep.
    """

    mode: str
    url: str = ""
    digest: str = ""
    reason: str = ""
    group: str | None = None


def folder(run: Path) -> Path:
    """Return the folder of wandb's files of a run."""
    return run / "wandb"


def read_state(run: Path) -> State | None:
    """Return what was noted last; None where nothing was."""
    try:
        return State(**json.loads((folder(run) / "state.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def write_state(run: Path, state: State) -> None:
    """Note it, atomically."""
    from lorsa.runner.rundir import write_atomic

    folder(run).mkdir(exist_ok=True)
    write_atomic(folder(run) / "state.json", json.dumps(asdict(state), indent=1))


def digest(run: Path, place: str) -> str:
    """Return a hash of what wandb shows of a run, and of where.

    Args:
        run: the run's directory.
        place: server, entity and project.
    """
    hashed = hashlib.sha256(place.encode())
    for name in ("config.yaml", "metrics.jsonl", "result.json"):
        path = run / name
        hashed.update(path.read_bytes() if path.is_file() else b"")
    return hashed.hexdigest()[:16]
