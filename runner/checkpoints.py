"""Checkpoints on disk: which of them are whole."""

from __future__ import annotations

from pathlib import Path

# Written last into a checkpoint: without it the checkpoint is not one.
COMPLETE_FILE = "complete"


def step_of(checkpoint: Path) -> int:
    """Return the update after which a checkpoint was written."""
    return int(checkpoint.name.rpartition("-")[2])


def complete_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints that were written to the end, oldest first."""
    return sorted((marker.parent for marker in folder.glob(f"checkpoint-*/{COMPLETE_FILE}")), key=step_of)


def last_checkpoint(folder: Path) -> Path | None:
    """Return the checkpoint to resume from, or None."""
    checkpoints = complete_checkpoints(folder)
    return checkpoints[-1] if checkpoints else None
