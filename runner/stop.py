"""Being asked to stop: a scheduler's signal before a time limit or a preemption, answered at a safe point.

A job on a cluster is told by USR2, or on some clusters by TERM alone, that it will be killed soon. While a model
trains, the request is noted, and the Trainer's next update ends with a checkpoint (`callbacks.py`). Elsewhere there is
nothing to save, and the run ends at once.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# For "temporary failure" in sysexits.h: the same command goes on where this one stopped.
EXIT_STOPPED = 75

SIGNALS = (signal.SIGUSR2, signal.SIGTERM)

_requested: str | None = None
_deferred = False
_raised = False


class StopRequested(BaseException):
    """The run was asked to stop, and can go on from what is on disk; no `except Exception` may swallow it.

    Args:
        signal: its name.
        agreed: all processes of the run stop here.
    """

    def __init__(self, signal: str, agreed: bool = False) -> None:
        super().__init__(signal)
        self.agreed = agreed


def listen() -> None:
    """Answer the signals from now on."""
    for number in SIGNALS:
        signal.signal(number, _on_signal)


def requested() -> str | None:
    """Return the name of the signal that asked the run to stop, or None."""
    return _requested


@contextmanager
def deferred() -> Iterator[None]:
    """Only note requests that come inside; who is inside asks `requested` where stopping is safe.

    Raises:
        StopRequested: at the end, if one came and was not answered inside.
    """
    global _deferred, _raised
    _deferred = True
    try:
        yield
    except StopRequested:
        _raised = True
        raise
    finally:
        _deferred = False
    if _requested is not None:
        _stop()


def _on_signal(number: int, frame: FrameType | None) -> None:
    global _requested
    _requested = signal.Signals(number).name
    if not _deferred:
        _stop()


def _stop() -> None:
    """Raise once: a second signal must not interrupt how the run records its end."""
    global _raised
    if not _raised:
        _raised = True
        raise StopRequested(_requested or "")
