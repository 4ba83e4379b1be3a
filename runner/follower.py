"""What the processes other than the main one know of the run's directory: where it is, and no more."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lorsa.runner.rundir import RunDirectory


class Follower(RunDirectory):
    """A run's directory in a process that does not write to it: checkpoints alone are written by all."""

    @contextmanager
    def held(self, retries: int = 0) -> Iterator[None]:
        """Do nothing: the main process holds it for all."""
        yield

    def start(self, restart: bool) -> None:
        """Do nothing."""

    def report(self, state: str, **details: Any) -> None:
        """Do nothing."""

    def write(self, name: str, content: str | bytes) -> None:
        """Do nothing."""

    def keep_metrics_until(self, step: int) -> None:
        """Do nothing."""

    def log(self, record: dict[str, Any]) -> None:
        """Do nothing."""
