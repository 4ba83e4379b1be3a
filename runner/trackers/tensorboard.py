"""TensorBoard's event files of a run, in <run>/tensorboard."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorsa.runner.errors import UserError
from lorsa.runner.trackers.rows import Row, summary


class TensorBoard:
    """A run's event file, which has all of metrics.jsonl.

    Every attempt writes one of its own and removes the ones before, so that a resumed run is one curve. A TensorBoard
    that is watching forgets what it read of them.

    Args:
        run: the run's directory.
        config: its config.
    """

    def __init__(self, run: Path, config: Mapping[str, Any]) -> None:
        try:
            from tensorboard.compat.proto.event_pb2 import SessionLog
            from tensorboard.summary.writer.event_file_writer import EventFileWriter
        except ImportError as error:
            raise UserError(f"tensorboard is not installed ({error}): pip install 'lorsa[tensorboard]'.") from error
        self._run = run
        folder = run / "tensorboard"
        shutil.rmtree(folder, ignore_errors=True)
        self._writer = EventFileWriter(str(folder))
        self._last = -1
        # What torch's SummaryWriter does for purge_step: steps from here on were read from a file that is gone.
        self._add(0, session_log=SessionLog(status=SessionLog.START))

    def _add(self, step: int, **content: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._writer.add_event(Event(wall_time=time.time(), step=step, **content))

    def _add_numbers(self, step: int, numbers: Mapping[str, Any]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [
            Summary.Value(tag=name, simple_value=value)
            for name, value in numbers.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        ]
        self._add(step, summary=Summary(value=values))

    def update(self, rows: list[Row]) -> None:
        """Write what is new, all but the last row: its score may be missing yet."""
        self._write(rows[:-1])

    def _write(self, rows: list[Row]) -> None:
        new = [row for row in rows if row.step > self._last]
        for row in new:
            self._add_numbers(row.step, {name: value for name, value in row.values.items() if name != "step"})
            self._last = row.step
        if new:
            self._writer.flush()

    def finish(self, rows: list[Row], end: str) -> None:
        """Write the rest, and what the run found."""
        self._write(rows)
        if end == "done":
            result = json.loads((self._run / "result.json").read_text(encoding="utf-8"))
            self._add_numbers(self._last, summary(result))
        self._writer.close()
