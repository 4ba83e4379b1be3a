"""What SLURM says about jobs: one question for all of them, asked at most once a minute."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from lorsa.runner.errors import UserError

ASK_AGAIN_AFTER = 60.0
PATIENCE = 60.0
# The ids of finished jobs fit into a command line so many at a time.
IDS_PER_QUESTION = 500

NOT_OVER = ("PENDING", "RUNNING", "REQUEUED", "SUSPENDED", "RESIZING")


@dataclass(frozen=True)
class JobState:
    """A job's state in SLURM's words, such as PENDING or TIMEOUT, and why it waits."""

    state: str
    reason: str = ""


def installed() -> bool:
    """Whether this machine is part of a cluster."""
    return shutil.which("sbatch") is not None


@dataclass
class Scheduler:
    """The jobs of this user's cluster, by id: `123`, or `123_4` for an element of an array."""

    _queue: dict[str, JobState] | None = None
    _past: dict[str, JobState] = field(default_factory=dict)
    _asked: float = 0.0

    _named: set[str] = field(default_factory=set)
    _told: set[str] = field(default_factory=set)

    def state(self, job_id: str) -> JobState | None:
        """Return the state of a job that waits or runs; None where SLURM has no such job, or cannot be asked."""
        return self.queue().get(job_id)

    def queue(self) -> dict[str, JobState]:
        """Return all jobs that wait or run."""
        if self._queue is None or time.monotonic() - self._asked > ASK_AGAIN_AFTER:
            self._queue, self._asked = self._ask(), time.monotonic()
        return self._queue

    @cached_property
    def cluster(self) -> str:
        """The cluster's name; empty where SLURM does not say."""
        return cluster_name()

    @cached_property
    def user(self) -> str:
        """Whose jobs are listed."""
        try:
            return pwd.getpwuid(os.getuid()).pw_name
        except KeyError:  # as in a container
            return str(os.getuid())

    def can_tell(self, job: Mapping[str, Any]) -> bool:
        """Whether a job that job.json tells of is one of those here; ids are given anew by every cluster.

        Args:
            job: the file's content; an older one names neither cluster nor user.
        """
        return job.get("cluster") in (None, self.cluster) and job.get("user") in (None, self.user)

    def over(self, job_ids: set[str]) -> set[str]:
        """Return which of these jobs neither wait nor run.

        SLURM's last answer says so only of jobs that were known when it was asked: one that was submitted later is in
        no older answer. Where SLURM does not answer, nothing is known of any job.
        """
        before = self._asked
        queue = self.queue()
        if self._asked != before:
            self._named = set(job_ids)
        return (job_ids & self._named) - queue.keys() if self._reachable else set()

    @property
    def age(self) -> float:
        """Seconds since SLURM was asked."""
        return time.monotonic() - self._asked

    _reachable: bool = False

    def _ask(self) -> dict[str, JobState]:
        self._reachable = False
        self._named, self._told = set(), set()
        if not installed():
            return {}
        # -r: one line for each element of an array.
        done = _run(["squeue", "--me", "--noheader", "-r", "-o", "%i|%T|%r"])
        if done is None:
            return {}
        self._reachable = True
        lines = (line.split("|", 2) for line in done.splitlines() if line.count("|") >= 2)
        return {job: JobState(state, reason) for job, state, reason in lines}

    def past(self, job_ids: set[str]) -> dict[str, JobState]:
        """Return how jobs that are over ended, of those that the accounting knows; {} on a cluster without one."""
        missing = job_ids - self._past.keys() - self._told
        unknown = sorted({job_id.partition("_")[0] for job_id in missing})
        if unknown and shutil.which("sacct") is not None:
            self._told |= missing  # whatever it says now: not again before the queue is asked again
            for start in range(0, len(unknown), IDS_PER_QUESTION):
                ids = ",".join(unknown[start : start + IDS_PER_QUESTION])
                done = _run(["sacct", "-n", "-X", "-P", "-j", ids, "-o", "JobID,State"])
                for line in (done or "").splitlines():
                    job, _, state = line.partition("|")
                    if state and state.split(" ")[0] not in NOT_OVER:  # the accounting can lag behind
                        self._past[job] = JobState(state.split(" ")[0])
        return {job_id: self._past[job_id] for job_id in job_ids if job_id in self._past}


def cluster_name() -> str:
    """Return the name of this machine's cluster; empty where SLURM does not say."""
    if not installed():
        return ""
    found = re.search(r"^ClusterName\s*=\s*(\S+)", _run(["scontrol", "show", "config"]) or "", flags=re.MULTILINE)
    return found.group(1) if found else ""


def max_array_size() -> int:
    """Return how many elements an array may have.

    Raises:
        UserError: SLURM does not answer.
    """
    text = scontrol("show", "config")
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", text, flags=re.MULTILINE)
    # SLURM's own default; an index has to be below it.
    return int(found.group(1)) if found else 1001


def scontrol(*arguments: str) -> str:
    """Return what scontrol prints.

    Raises:
        UserError: it refuses, in its words.
    """
    return command(["scontrol", *arguments])


def command(words: list[str]) -> str:
    """Run one of SLURM's commands and return what it prints.

    Raises:
        UserError: it is not there, does not answer, or refuses; in its own words.
    """
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE)
    except FileNotFoundError:
        raise UserError(
            f"There is no {words[0]} on this machine; start sweeps on a login node of the cluster, or use "
            "hydra/launcher=local."
        ) from None
    except subprocess.TimeoutExpired:
        raise UserError(f"SLURM did not answer {words[0]} within {PATIENCE:.0f} seconds; try again.") from None
    if done.returncode:
        raise UserError(f"SLURM refused: {' '.join(done.stderr.split()) or f'{words[0]} exited {done.returncode}'}")
    return done.stdout


def _run(words: list[str]) -> str | None:
    try:
        return command(words)
    except UserError:
        return None
