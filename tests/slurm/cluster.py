"""A real SLURM for the tests: one development cluster, shared by all workers of a test run."""

import fcntl
import math
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "slurm_dev_cluster.sh"

PACKAGES = "slurm-wlm munge slurmdbd mariadb-server"


class Cluster:
    """Nodes n1 and n2, 4 CPUs and 2 GPUs each; partitions main, low and, preempting low, high."""

    def __init__(self, folder: Path):
        self.folder = folder
        # What a SLURM job that runs these tests says of itself would reach the jobs that they submit.
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_"))}
        self.environment["SLURM_CONF"] = str(folder / "slurm.conf")
        self.job_state = folder / "state" / "job_state"

    def run(self, *command: str, cwd: Path | None = None) -> str:
        """Run a command on the login node, so to speak; returns what it printed."""
        done = subprocess.run(command, env=self.environment, cwd=cwd, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, f"{' '.join(command)} said: {done.stderr or done.stdout}"
        return done.stdout

    def submit(self, script: str, *options: str, cwd: Path) -> str:
        """Submit a batch script, given as text; returns the job's number. Output goes to <number>[_<element>].out."""
        path = cwd / f"{time.monotonic_ns()}.sh"
        path.write_text(f"#!/bin/bash\n{script}\n")
        pattern = "%A_%a.out" if any(option.startswith("--array") for option in options) else "%j.out"
        output = [f"--output={cwd / pattern}", "--open-mode=append"]
        return self.run("sbatch", "--parsable", *output, *options, str(path), cwd=cwd).strip()

    def squeue(self, *jobs: str, form: str = "%T") -> list[str]:
        """A line per job or array element, also five minutes past its end; `form` is squeue's --format."""
        job_list = ["--jobs", ",".join(jobs)] if jobs else []
        return self.run("squeue", "--noheader", "--array", "--states=all", f"--format={form}", *job_list).splitlines()

    def limit_time_left(self, job: str, seconds: int) -> None:
        """Give a running job a time limit that it reaches in `seconds` to `seconds` + 60: SLURM counts in minutes."""
        elapsed = time.time() - time.mktime(time.strptime(self.squeue(job, form="%S")[0], "%Y-%m-%dT%H:%M:%S"))
        self.run("scontrol", "update", f"JobId={job}", f"TimeLimit={math.ceil((elapsed + seconds) / 60)}")

    def restart_controller(self) -> None:
        """Kill -9 slurmctld and start it again, when it has saved its state: a younger job would be lost."""
        self.wait_for_save()
        self._script("restart-controller")

    def wait_for_save(self) -> None:
        """Wait until slurmctld saves its state, which it does five seconds after something changed, at the latest."""
        called = time.time()
        while time.time() < called + 6 and not (self.job_state.exists() and self.job_state.stat().st_mtime > called):
            time.sleep(0.1)

    def crash_controller(self, job_state: bytes) -> None:
        """Kill -9 slurmctld and start it again with an earlier state of its jobs: it forgets what came after that."""
        os.kill(int((self.folder / "run" / "slurmctld.pid").read_text()), signal.SIGKILL)
        self.job_state.write_bytes(job_state)
        self._script("restart-controller")

    def node_down(self, name: str) -> None:
        self._script("node-down", name)

    def node_up(self, name: str) -> None:
        self._script("node-up", name)

    def log(self, lines: int = 60) -> str:
        """The end of the controller's log."""
        return "\n".join((self.folder / "log" / "slurmctld.log").read_text().splitlines()[-lines:])

    def up(self, *options: str) -> None:
        # Other software may take a port between our look at it and SLURM's, so a failure gets another try.
        for attempt in range(3):
            try:
                self._script("up", "--port", str(_free_ports()), *options)
                return
            except AssertionError:
                if attempt == 2:
                    raise

    def down(self) -> None:
        self._script("down")

    def _script(self, command: str, *arguments: str) -> None:
        node, options = (arguments[:1], arguments[1:]) if command.startswith("node-") else ((), arguments)
        self.run("bash", str(SCRIPT), command, *node, str(self.folder), *options)


def _free_ports() -> int:
    for _ in range(100):
        # Below the range from which the kernel picks ports for connections.
        first = random.SystemRandom().randrange(20000, 32000, 5)
        try:
            for port in range(first, first + 5):
                with socket.socket() as trial:
                    trial.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first
    raise RuntimeError("no five free ports in a row")


def why_not(*programs: str) -> str | None:
    """Why no cluster can run here, if so."""
    missing = [program for program in programs if not shutil.which(program)]
    if missing:
        return f"no SLURM here: {', '.join(missing)} not installed (apt-get install {PACKAGES})"
    return None if os.geteuid() == 0 else "SLURM's daemons need root"


def wait_for(condition: Callable[[], object], what: str, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.2)


@contextmanager
def locked(path: Path, exclusive: bool = True) -> Iterator[None]:
    """Wait for one's turn: alone, or with others that are content with a shared one."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
        yield


def join(folder: Path, *options: str) -> Cluster:
    """Use the cluster in this folder, and start it if nobody does yet."""
    cluster = Cluster(folder)
    users = folder.with_name(folder.name + "-users")
    users.mkdir(exist_ok=True)
    with locked(users / "lock"):
        if not _living(users):
            cluster.up(*options)
        (users / str(os.getpid())).touch()
    return cluster


def leave(cluster: Cluster) -> None:
    """Stop the cluster if nobody else uses it. Leaving twice does no harm."""
    users = cluster.folder.with_name(cluster.folder.name + "-users")
    mine = users / str(os.getpid())
    if not mine.exists():
        return
    with locked(users / "lock"):
        mine.unlink(missing_ok=True)
        if not _living(users):
            cluster.down()


def _living(users: Path) -> list[str]:
    # A worker that crashed could not leave.
    return [user.name for user in users.glob("[0-9]*") if Path("/proc", user.name).exists()]
