"""Checkpoints on disk: which of them are whole. Beside them lie the logits that an evaluation has so far."""

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


def kept_logits_folder(step: int) -> str:
    """Return the name of the folder that holds what the evaluation of that update's weights has so far."""
    return f"logits-{step}"


def kept_pieces(folder: Path) -> list[Path]:
    """Return the files that evaluations left in such folders."""
    return list(folder.glob("logits-*/*.npy"))
