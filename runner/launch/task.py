"""What runs in a job: each of its runs, one after the other, in a process of its own.

SLURM starts this once for every process of a run, with `srun`; each starts its worker with the environment that
PyTorch and DeepSpeed expect. It stays light, so that it outlives a worker that runs out of memory, passes signals on,
and says by its exit code what is to become of the job (see slurm.py):

    0    all runs are done
    1    a run failed, and would again
    75   a run was told to stop: begin the job again, and it goes on
    128+ a worker was killed: begin the job again
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from lorsa.runner.errors import UserError
from lorsa.runner.launch.scheduler import command
from lorsa.runner.rundir import JOB_ID, LAUNCHER, RunDirectory
from lorsa.runner.stop import EXIT_STOPPED, SIGNALS

EXIT_DONE, EXIT_FAILED = 0, 1
# How often a worker may be killed while it starts.
EARLY_DEATHS = 3
# submitit's local jobs are begun again when they exit with this.
LOCAL_AGAIN = 144

# To end the worker of a run that was cancelled, in a SLURM job that has others; a local job looks by itself.
CANCEL_SIGNAL = signal.SIGUSR1
LOOK_SECONDS = 2.0
# submitit kills a local job's processes one second after their Ctrl-C.
INTERRUPT_SECONDS = 0.5


@dataclass(frozen=True)
class Task:
    """The runs of one job; submitit pickles this and calls it in the job.

    Attributes:
        runs_dir: the folder of the runs.
        configs: the folder of their frozen configs.
        runs: their signatures.
    """

    runs_dir: str
    configs: str
    runs: tuple[str, ...]

    def __call__(self) -> None:
        """Do the runs, and exit with what is to become of the job."""
        environment = distributed_environment()
        worker = Worker(self._cancelled)
        failed = False
        for name in self.runs:
            if not self._mine(name, environment):
                continue
            if self._cancelled(name) or (len(self.runs) > 1 and self._over(name, environment[JOB_ID])):
                continue
            attempt = self._attempt(name)
            code = worker.run(name, self._command(name), self._log(name, environment), environment)
            if code < 0 and self._attempt(name) == attempt and self._hopeless(name, code, environment):
                failed = True
                continue
            if code == EXIT_STOPPED or (code < 0 and not self._cancelled(name)):
                _requeue_at_the_limit(environment)
                _exit_to_go_on(code, environment[LAUNCHER])
            if code > 0 and "RANK" in environment:
                self._mark(environment[JOB_ID]).touch()
            failed |= code != 0
        # The first process alone writes that a run is done, and others may end before it does.
        first = environment.get("RANK", "0") == "0"
        mine = [name for name in self.runs if self._mine(name, environment)]
        if failed or (first and any(self._state(name) != "done" for name in mine)):
            sys.exit(EXIT_FAILED)

    def _attempt(self, name: str) -> int:
        return int(_read(Path(self.runs_dir, name, "status.json")).get("attempt", 0))

    def _hopeless(self, name: str, code: int, environment: Mapping[str, str]) -> bool:
        """Count a worker that was killed before it could count itself; after some, give the run up."""
        if environment.get("RANK", "0") != "0" or self._cancelled(name):
            return False
        count = Path(os.environ["SUBMITIT_FOLDER"], f"{environment[JOB_ID]}.{name}.early")
        with count.open("a", encoding="utf-8") as file:
            file.write("died\n")
        if len(count.read_text(encoding="utf-8").splitlines()) <= EARLY_DEATHS:
            return False
        count.unlink()
        directory = RunDirectory(self.runs_dir, name)
        status = directory.status() | {"state": "failed", "job_id": environment[JOB_ID]}
        status["error"] = (
            f"Its process was killed by {signal.Signals(-code).name} {EARLY_DEATHS + 1} times before the run began; "
            "more memory may help: resources.mem_gb=…"
        )
        directory.write("status.json", json.dumps(status, indent=2))
        return True

    def _mark(self, job_id: str) -> Path:
        """Return the file that tells the job's script that it need not begin again."""
        return Path(os.environ["SUBMITIT_FOLDER"], f"{job_id}.failed")

    def _over(self, name: str, job_id: str) -> bool:
        """Whether nothing is left to do for a run, in this attempt of the job."""
        status = _read(Path(self.runs_dir, name, "status.json"))
        return status.get("state") == "done" or (status.get("state") == "failed" and status.get("job_id") == job_id)

    def _mine(self, name: str, environment: Mapping[str, str]) -> bool:
        """Whether no other job has the run by now: one that was cancelled or failed may have been retried."""
        job_id = _read(Path(self.runs_dir, name, "job.json")).get("job_id")
        return environment[LAUNCHER] != "slurm" or job_id in (None, environment[JOB_ID])

    def _cancelled(self, name: str) -> bool:
        return "cancelled" in _read(Path(self.runs_dir, name, "job.json"))

    def _command(self, name: str) -> list[str]:
        return [sys.executable, "-u", "-m", "lorsa.runner.launch.worker", str(Path(self.configs, f"{name}.yaml"))]

    def _log(self, name: str, environment: Mapping[str, str]) -> Path:
        rank = int(environment.get("RANK", "0"))
        return Path(self.runs_dir, name, "logs", "output.log" if rank == 0 else f"output.rank{rank}.log")

    def _state(self, name: str) -> str:
        return str(_read(Path(self.runs_dir, name, "status.json")).get("state"))


class Worker:
    """The process of the run whose turn it is; the scheduler's signals go to it.

    Args:
        cancelled: whether a run was cancelled, by its name.
    """

    def __init__(self, cancelled: Callable[[str], bool]) -> None:
        self._cancelled = cancelled
        self._name = ""
        self._process: subprocess.Popen[bytes] | None = None
        for number in (*SIGNALS, CANCEL_SIGNAL):
            signal.signal(number, self._on_signal)
        signal.signal(signal.SIGCONT, signal.SIG_DFL)

    def run(self, name: str, command: list[str], log: Path, environment: Mapping[str, str]) -> int:
        """Run a command to its end, its output appended to `log`, and return its exit code, negative if it was killed.

        Args:
            name: of the run.
            command: what to start.
            log: made with its folder, if it is not there.
            environment: of the process.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as output:
            output.write(f"--- job {environment[JOB_ID]} on {socket.gethostname()}\n")
            output.flush()
            self._name = name
            self._process = subprocess.Popen(command, env=dict(environment), stdout=output, stderr=subprocess.STDOUT)
            code = self._wait(self._process, look=environment[LAUNCHER] == "local")
            self._process = None
            if code < 0:
                output.write(f"--- killed by {signal.Signals(-code).name}\n")
        return code

    def _wait(self, process: subprocess.Popen[bytes], look: bool) -> int:
        """Wait for the worker's end; `look` at times whether its run was cancelled, where no signal will say so."""
        try:
            while True:
                with suppress(subprocess.TimeoutExpired):
                    return process.wait(LOOK_SECONDS if look else None)
                if self._cancelled(self._name):
                    process.kill()
        except BaseException:  # Ctrl-C, which a terminal sends to the worker too, and submitit to this process alone
            with suppress(subprocess.TimeoutExpired):
                process.wait(INTERRUPT_SECONDS)
            process.kill()
            raise

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == CANCEL_SIGNAL:
            if self._process is not None and self._cancelled(self._name):
                self._process.kill()
        elif self._process is not None:
            self._process.send_signal(number)
        else:
            sys.exit(EXIT_STOPPED)


def _read(path: Path) -> dict[str, Any]:
    try:
        stored: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return stored


def distributed_environment() -> dict[str, str]:
    """Return this process's environment with what a worker reads: its rank, where the others are, and its job.

    RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT, all of them, since DeepSpeed would
    otherwise look for MPI.
    """
    from submitit import JobEnvironment
    from submitit.helpers import TorchDistributedEnvironment

    job = JobEnvironment()
    environment = os.environ | {JOB_ID: job.job_id, LAUNCHER: job.cluster}
    if job.num_tasks > 1:
        # The device of a rank is its LOCAL_RANK's; runner/distributed.py handles tasks that see one GPU each.
        TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        environment |= {name: os.environ[name] for name in names}
        if job.cluster == "local":
            environment["MASTER_ADDR"] = "127.0.0.1"  # a laptop's own name need not resolve
    return environment


def _requeue_at_the_limit(environment: Mapping[str, str]) -> None:
    """Have a job begin again whose time is up; its script, which does that otherwise, is ended with it.

    That is so where the warning before the limit came while nobody listened, or was not sent.
    """
    if environment[LAUNCHER] != "slurm" or environment.get("RANK", "0") != "0":
        return
    job_id = environment[JOB_ID]
    with suppress(UserError):
        said = command(["scontrol", "show", "job", "--oneliner", job_id])
        if "Reason=TimeLimit" in said or "JobState=TIMEOUT" in said:
            command(["scontrol", "requeue", job_id])


def _exit_to_go_on(code: int, launcher: str) -> None:
    if launcher == "local":
        sys.exit(LOCAL_AGAIN)
    sys.exit(code if code > 0 else 128 - code)
