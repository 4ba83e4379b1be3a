"""The process beside a run that shows it to a tracker: `python -m lorsa.runner.trackers.companion RUN [GROUP]`.

The run tells on this process' standard input how it ended: `done`, `failed` or `stopped`. If that closes without a
word, the run was killed.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Any, Protocol

from lorsa.runner.trackers.rows import Row, read_config, read_rows

POLL_SECONDS = 2.0


class Tracker(Protocol):
    """What shows a run's rows to a person."""

    def update(self, rows: list[Row]) -> None:
        """Show the rows, all there are so far; called every two seconds, and must return soon."""

    def finish(self, rows: list[Row], end: str) -> None:
        """Show the rest.

        Args:
            rows: all rows.
            end: `done`, `failed`, `stopped` or `killed`; after the first two nothing follows.
        """


class MetricsFile:
    """metrics.jsonl, read again only when it has changed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, int] | None = None
        self._rows: list[Row] = []

    def rows(self) -> list[Row]:
        """Return all rows."""
        try:
            stat = self._path.stat()
        except OSError:
            return []
        if (stamp := (stat.st_mtime_ns, stat.st_size)) != self._stamp:
            self._rows, self._stamp = read_rows(self._path), stamp
        return self._rows


def follow(tracker: Tracker, metrics: MetricsFile, seconds: float) -> None:
    """Update the tracker until the run ends, then finish.

    Args:
        tracker: what is updated.
        metrics: the run's log.
        seconds: how long the run waits for the end; for a while longer this process goes on without it.
    """
    while not select.select([sys.stdin], [], [], POLL_SECONDS)[0]:
        tracker.update(metrics.rows())
    end = sys.stdin.readline().strip() or "killed"
    watchdog = threading.Timer(seconds + 5, os._exit, [1])
    watchdog.daemon = True
    watchdog.start()
    tracker.finish(metrics.rows(), end)


def make_tracker(run: Path, config: dict[str, Any], group: str | None) -> Tracker:
    """Return the tracker that a run's config names."""
    if config["tracker"]["name"] == "tensorboard":
        from lorsa.runner.trackers.tensorboard import TensorBoard

        return TensorBoard(run, config)
    from lorsa.runner.trackers.wandb_live import LiveWandb

    return LiveWandb(run, config, group)


def main() -> None:
    """Follow the run that the command line names."""
    # The run answers a scheduler's signals, and says what comes of it.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    from filelock import FileLock

    run, group = Path(sys.argv[1]), sys.argv[2] or None
    config = read_config(run)
    seconds = float(config["tracker"]["finish_seconds"])
    # The companion of an attempt that was killed may still be at it.
    lock = FileLock(run / ".tracker.lock", timeout=seconds + 10)
    try:
        with lock:
            follow(make_tracker(run, config, group), MetricsFile(run / "metrics.jsonl"), seconds)
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
        # Not by way of the libraries' exit hooks, which may wait for a network.
        os._exit(1)
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
