"""The directory of one run: who holds it, what state it is in, and files that are whole or not there.

<runs_dir>/<signature>/
    config.yaml      the resolved config
    status.json      what is run, its state, attempt, host, process id, job id; the file's own time is the heartbeat
    job.json         the job that it was last submitted as
    metrics.jsonl    one line per logged step and per evaluation
    checkpoints/     what a killed run resumes from, in training or evaluation; removed when the run is done
    adapter/         the trained adapter and head
    predictions/     one file per scored or predicted split
    logs/            profiles
    result.json      written last: the run is done when it is there
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lorsa.runner.checkpoints import kept_pieces, last_checkpoint, step_of
from lorsa.runner.errors import AlreadyRunningError, GaveUpError, UserError
from lorsa.runner.result import SCHEMA_VERSION
from lorsa.runner.stop import StopRequested

# Set by a launcher for what it starts: the job's id, and "slurm" or "local".
JOB_ID = "LORSA_JOB_ID"
LAUNCHER = "LORSA_LAUNCHER"

BEAT_SECONDS = 20
# A node that vanished can hold its lock on a shared disk for a while; a job waits, a person is told.
LOCK_SECONDS_IN_A_JOB = 120

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader, or a crash at any instant, sees the old one or the new one, never a part."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def flush_to_disk(path: Path) -> None:
    """Wait until a file's bytes, or a folder's entries, would survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_folder(folder: Path) -> None:
    """Wait until everything in a folder, and the folder, would survive a power cut."""
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):  # a temporary file of another process
            flush_to_disk(path)
    flush_to_disk(folder)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals to write into sentences.

    Args:
        path: what is being written, for the message.

    Raises:
        UserError: no space left, or no permission.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        # torch.save and safetensors wrap the operating system's error in types of their own, without its number.
        number = error.errno if isinstance(error, OSError) else None
        if number in _FULL or _no_space(path) or "No space left" in str(error):
            raise UserError(
                f"No space left on the disk while writing {path}; the last complete checkpoint is kept. Make room, "
                "then run the same command to go on from it."
            ) from error
        if number in _FORBIDDEN:
            raise UserError(
                f"Cannot write {path}: {os.strerror(number or 0)}. Choose another place with runs_dir=…"
            ) from error
        raise


def _no_space(path: Path) -> bool:
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free == 0


class RunDirectory:
    """One run's directory.

    Args:
        runs_dir: the folder of all runs.
        signature: the run's name.
        about: what is run, for status.json: model, method, task, seed.
    """

    def __init__(self, runs_dir: str, signature: str, about: Mapping[str, Any] | None = None) -> None:
        self.path = Path(runs_dir).expanduser() / signature
        self.signature = signature
        self.about = dict(about or {})
        self.attempt = 1
        self.deaths = 0
        self.progress: dict[str, Any] = {}  # training, step, max_steps, score, started_at: what every report also says

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def adapter(self) -> Path:
        """Folder of the trained adapter."""
        return self.path / "adapter"

    @property
    def predictions(self) -> Path:
        """Folder of the predictions."""
        return self.path / "predictions"

    @property
    def logs(self) -> Path:
        """Folder of profiles and the like."""
        return self.path / "logs"

    @property
    def metrics(self) -> Path:
        """The log of the training, one JSON object a line."""
        return self.path / "metrics.jsonl"

    def result(self) -> dict[str, Any] | None:
        """Return the stored result, or None while there is none."""
        try:
            stored: dict[str, Any] = json.loads((self.path / "result.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except ValueError as error:
            raise UserError(f"{self.path / 'result.json'} is damaged ({error}); run again with force=true.") from error
        if not isinstance(stored, dict) or stored.get("schema_version") != SCHEMA_VERSION:
            raise UserError(
                f"{self.path / 'result.json'} does not have schema version {SCHEMA_VERSION}; run again with force=true."
            )
        if not self.adapter.is_dir():
            raise UserError(f"{self.path} has a result but no adapter; run again with force=true.")
        return stored

    @contextmanager
    def held(self, retries: int = 0) -> Iterator[None]:
        """Hold the directory while the run is in it, and keep status.json true about how it ended.

        A run that a person started, and that ends before it trains, leaves no directory behind, or the one it found as
        it was; in a job, every end is recorded.

        Args:
            retries: how often, in one job, an attempt may end without a word or without progress before the run is
                given up.

        Raises:
            AlreadyRunningError: another process holds it.
            GaveUpError: it was begun too often.
            UserError: it cannot be written.
        """
        # Imported here: the answer "already done" does not need a lock.
        from filelock import FileLock, Timeout

        in_job = JOB_ID in os.environ
        fresh = not self.path.exists()
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / ".lock", mode=0o644)
        try:
            with writing(self.path):
                lock.acquire(timeout=LOCK_SECONDS_IN_A_JOB if in_job else 0)
        except Timeout:
            holder = self.status()
            raise AlreadyRunningError(
                f"This run is being trained already, by process {holder.get('pid', '?')} on {holder.get('host', '?')}; "
                f"see {self.path}."
            ) from None
        try:
            before = self.status()
            self._count(before)
            self.report("running")
            with self._beating():
                if self.deaths > retries and in_job:
                    raise GaveUpError(
                        f"It was begun {self.deaths} times in job {os.environ[JOB_ID]} and each time killed without a "
                        f"word, or stopped before it got any further (last on {before.get('host', '?')}); more "
                        "memory or time may help: resources.mem_gb=…, resources.minutes=…"
                    )
                yield
            self.report("done")
        except BaseException as error:
            if in_job or self.status().get("training", False):
                self._report_end(error)
            elif fresh:
                shutil.rmtree(self.path, ignore_errors=True)
            elif before:
                self.write("status.json", json.dumps(before, indent=2))
            raise
        finally:
            lock.release()

    def _count(self, before: Mapping[str, Any]) -> None:
        """Count this attempt, and those in the same job that ended without a word or before they got on.

        Args:
            before: what the last attempt left in status.json.
        """
        last = last_checkpoint(self.checkpoints)
        reached = (0 if last is None else step_of(last)) + len(kept_pieces(self.checkpoints))
        self.attempt = int(before.get("attempt", 0)) + 1
        if before.get("job_id") is not None and before.get("job_id") == os.environ.get(JOB_ID):
            # An earlier attempt may have thrown away what was there before the job (`start`); this one must not.
            self.progress["training"] = bool(before.get("training", False))
            got_on = reached > before.get("started_at", 0)
            self.deaths = 0 if got_on else int(before.get("deaths", 0)) + (before.get("state") != "failed")
        self.progress["started_at"] = reached

    @contextmanager
    def _beating(self) -> Iterator[None]:
        """Touch status.json every now and then, which tells anyone who sees the disk that the run is alive."""
        over = threading.Event()

        def beat() -> None:
            while not over.wait(BEAT_SECONDS):
                with suppress(OSError):
                    os.utime(self.path / "status.json")

        thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def start(self, restart: bool) -> None:
        """Say that the training begins.

        Args:
            restart: throw away what an earlier run with this signature left; not before now, so that a forced run
                which is refused costs nothing.
        """
        if restart:
            self._clear()
        self.progress["training"] = True
        self.report("running")

    def _report_end(self, error: BaseException) -> None:
        details: dict[str, Any] = {}
        if isinstance(error, StopRequested):
            state, details["reason"] = "requeued" if JOB_ID in os.environ else "interrupted", str(error)
        elif isinstance(error, KeyboardInterrupt | SystemExit):
            state = "interrupted"
        else:
            state = "failed"
            details["error"] = f"{type(error).__name__}: {error}"
            details["traceback"] = "".join(traceback.format_exception(error))
        # Where the disk is full, the error that is on its way says so.
        with suppress(UserError, OSError):
            self.report(state, **details)

    def status(self) -> dict[str, Any]:
        """Return status.json, empty if it is not there or not readable."""
        try:
            stored: dict[str, Any] = json.loads((self.path / "status.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return stored

    def report(self, state: str, **details: Any) -> None:
        """Write status.json: the state, who runs it where, a heartbeat, and any details."""
        status = {
            "state": state,
            **self.about,
            "attempt": self.attempt,
            "deaths": self.deaths,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "job_id": os.environ.get(JOB_ID),
            "launcher": os.environ.get(LAUNCHER),
            "heartbeat": time.time(),
            **self.progress,
            **details,
        }
        with writing(self.path / "status.json"):
            write_atomic(self.path / "status.json", json.dumps(status, indent=2))

    def write(self, name: str, content: str | bytes) -> None:
        """Write one file of the run, atomically."""
        with writing(self.path / name):
            (self.path / name).parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self.path / name, content)

    def keep_metrics_until(self, step: int) -> None:
        """Drop the lines of metrics.jsonl that a resumed run will write again: those after `step`."""
        if not self.metrics.is_file():
            return
        kept = []
        for line in self.metrics.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except ValueError:
                break  # the line being written when the run died
        self.write(self.metrics.name, "".join(f"{line}\n" for line in kept))

    def log(self, record: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        with writing(self.metrics), self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def _clear(self) -> None:
        kept = {".lock", "job.json", "status.json"} | ({"logs"} if JOB_ID in os.environ else set())
        for entry in self.path.iterdir():
            if entry.name in kept:
                continue
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()
