"""The tracker's part of the training process: a companion is started, and at the end waited for, a bounded time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from lorsa.runner.distributed import is_main
from lorsa.runner.stop import StopRequested
from lorsa.runner.terminal import say
from lorsa.runner.trackers.rows import sweep_of
from lorsa.runner.trackers.state import read_state

if TYPE_CHECKING:
    from lorsa.runner.rundir import RunDirectory
    from lorsa.runner.schema import JobConfig

# A run that was told to stop has little time, and the next attempt sends what this one could not.
STOP_SECONDS = 5.0


@contextmanager
def tracked(cfg: JobConfig, directory: RunDirectory) -> Iterator[None]:
    """Within, a process beside this one shows the run's metrics.jsonl to the tracker; only the main process has one."""
    if cfg.tracker.name == "none" or not is_main():
        yield
        return
    companion = _Companion(cfg, directory)
    try:
        yield
    except (StopRequested, KeyboardInterrupt, SystemExit):
        companion.end("stopped", min(STOP_SECONDS, cfg.tracker.finish_seconds))
        raise
    except BaseException:
        companion.end("failed", cfg.tracker.finish_seconds)
        raise
    companion.end("done", cfg.tracker.finish_seconds)


class _Companion:
    """The process that follows the run. Whatever goes wrong with it is said, and nothing else comes of it."""

    def __init__(self, cfg: JobConfig, directory: RunDirectory) -> None:
        self._cfg = cfg
        self._run = directory.path.absolute()
        self._log = directory.logs / "tracker.log"
        self._started = time.time()
        self._process: subprocess.Popen[str] | None = None
        group = cfg.tracker.group or sweep_of(self._run) or _sweep_in_this_process()
        command = [sys.executable, "-m", "lorsa.runner.trackers.companion", str(self._run), group or ""]
        try:
            self._log.parent.mkdir(parents=True, exist_ok=True)
            with self._log.open("a", encoding="utf-8") as log:
                # A session of its own: Ctrl-C at the terminal ends the run, and the companion hears of it from the run.
                self._process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=log, stderr=log, text=True, start_new_session=True
                )
        except OSError as error:
            say(f"tracker={cfg.tracker.name} does not run: {error}")

    def end(self, how: str, seconds: float) -> None:
        """Tell the companion how the run ended, and give it so many seconds to end too."""
        if self._process is None:
            return
        try:
            with suppress(OSError, subprocess.TimeoutExpired):
                self._process.communicate(f"{how}\n", timeout=seconds)
            if self._process.poll() is None:
                say(f"tracker={self._cfg.tracker.name} was ended after {seconds:g} s{self._hint()}")
            else:
                self._say_how()
        finally:
            # Its own process group, with what it started.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _say_how(self) -> None:
        if self._cfg.tracker.name != "wandb":
            if self._process is not None and self._process.returncode:
                say(f"tracker={self._cfg.tracker.name} failed; see {self._log}.")
            return
        state = read_state(self._run)
        file = self._run / "wandb" / "state.json"
        if state is None or file.stat().st_mtime < self._started - 1:
            say(f"wandb failed, see {self._log}{self._hint()}")
        elif state.mode == "online":
            say(f"wandb: {state.url}")
        else:
            say(f"wandb: offline ({state.reason}){self._hint()}")

    def _hint(self) -> str:
        return f"; lorsa sync {self._run} sends it." if self._cfg.tracker.name == "wandb" else "."


def _sweep_in_this_process() -> str | None:
    """Return the name of the sweep whose runs follow one another in this process, as `-m` alone has it."""
    # Not imported where a job was begun without Hydra's command line.
    if "hydra.core.hydra_config" not in sys.modules:
        return None
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    if not HydraConfig.initialized() or HydraConfig.get().mode is not RunMode.MULTIRUN:
        return None
    return Path(HydraConfig.get().sweep.dir).name
