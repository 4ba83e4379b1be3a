"""A sweep to which everything happens that happens on a cluster; it ends with the results of a quiet one."""

import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from cluster import Cluster, wait_for
from sweeps import SHORT, Sweeps

SWEEP = ("method=lorsa,lora,head", "seed=0,1,2,3,4,5,6,7")
MINUTES = 10


@pytest.mark.slow
def test_a_disturbed_sweep_ends_like_a_quiet_one(cluster: Cluster, alone: None, tmp_path):
    sweeps = Sweeps(cluster, tmp_path)
    # The same sweep, one run after the other in one process, without SLURM.
    with (tmp_path / "quiet.log").open("w") as log:
        command = [sys.executable, "-m", "lorsa.runner.cli", "-m", *SHORT, *SWEEP, "runs_dir=quiet"]
        quiet = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log)

    # Nothing begins before all is submitted.
    filler = cluster.submit("sleep 600", "--ntasks=8", cwd=tmp_path)

    # One run on a partition that is preempted, one that will get a time limit, then the sweep of all 24.
    said = sweeps.launch("method=lorsa", "seed=0", "resources.partition=low")
    assert "1 runs: 1 to do. Submitted 1 runs" in said
    sweeps.launch(
        "method=lorsa", "seed=1", "resources.minutes=60", "resources.signal_seconds=90", "resources.retries=9"
    )
    said = sweeps.launch(*SWEEP)
    assert "24 runs: 22 to do" in said
    assert len(sweeps.states()) == 24
    by_name = {(run["method"], run["seed"]): name for name, run in sweeps.states().items()}
    low, limited = by_name["lorsa", 0], by_name["lorsa", 1]

    # Every CPU has a run that stands still in its training, whatever the machine's speed.
    with Frozen(sweeps.runs_dir, count=8) as frozen:
        cluster.run("scancel", filler)
        wait_for(frozen.full, "eight runs train", 240)
        assert {low, limited} <= set(frozen.pids)
        place = dict(line.split() for line in cluster.squeue(form="%i %N") if " n" in line)
        node = {name: place[frozen.jobs[name]] for name in frozen.pids}

        # Preemption: a job on `high` gets the CPU of the run on `low`.
        cluster.submit("sleep 5", "--partition=high", cwd=tmp_path)
        wait_for(lambda: frozen.told_to_stop(low), "SLURM tells the run on `low` to stop", 60)
        frozen.thaw(low)
        wait_for(lambda: "stopped by SIGUSR2" in sweeps.log(low), "the run on `low` saves", 60)

        # A node vanishes under its runs, and comes back; before, a worker is killed, a task, and the controller.
        vanishing = "n1" if node[limited] == "n2" else "n2"
        lost = [name for name in frozen.pids if node[name] == vanishing and name != low]
        killed, orphaned = [lost.pop(), lost.pop()]
        os.kill(frozen.pids[killed], signal.SIGKILL)
        os.kill(parent_of(frozen.pids[orphaned]), signal.SIGKILL)
        cluster.restart_controller()
        cluster.node_down(vanishing)
        cluster.node_up(vanishing)

        # The time limit, which leaves a minute and a half for saving beside all others, once they go on.
        for name in set(frozen.pids) - {limited}:
            frozen.thaw(name)
        cluster.limit_time_left(frozen.jobs[limited], 100)
        wait_for(lambda: frozen.told_to_stop(limited), "SLURM tells the limited run to stop", 150)
        frozen.thaw(limited)
        wait_for(lambda: "stopped by SIGUSR2" in sweeps.log(limited), "the limited run saves", 90)

    def all_over() -> bool:
        return not {run["state"] for run in sweeps.states().values()} & {"queued", "starting", "running", "requeued"}

    wait_for(all_over, "the sweep ends", 60 * MINUTES)
    ended = sweeps.states()
    assert {run["state"] for run in ended.values()} == {"done"}, sweeps.lorsa("errors")
    assert quiet.wait(60 * MINUTES) == 0, (tmp_path / "quiet.log").read_text()
    for name in by_name.values():
        alone_there = json.loads((tmp_path / "quiet" / name / "result.json").read_text())
        here = sweeps.result(name)
        assert here["metrics"] == alone_there["metrics"]
        assert here["best_step"] == alone_there["best_step"]
        # The curve of the loss has a point more where a run stopped; the scores on the way are the same.
        assert scores(sweeps.runs_dir / name) == scores(tmp_path / "quiet" / name)

    # All of it happened.
    assert lost
    for name in {low, limited, killed, orphaned, *lost}:
        assert ended[name]["attempt"] > 1, name
    assert "stopped by SIGUSR2" in sweeps.log(low)
    assert "stopped by SIGUSR2" in sweeps.log(limited)
    assert "killed by SIGKILL" in sweeps.log(killed)
    assert any(sweeps.result(name)["resumed_from_step"] > 0 for name in (low, killed, orphaned, *lost))

    said = sweeps.launch(*SWEEP)
    assert "24 runs: 24 done. Nothing to submit." in said
    assert not [line for line in cluster.squeue() if line in ("PENDING", "RUNNING")]


class Frozen:
    """Stops the first `count` runs of a folder, each when it has trained a little; in a thread, until the end.

    Attributes:
        pids: the processes of the stopped runs, by signature.
        jobs: their jobs.
    """

    def __init__(self, runs_dir: Path, count: int):
        self.pids: dict[str, int] = {}
        self.jobs: dict[str, str] = {}
        self._runs_dir, self._count = runs_dir, count
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> "Frozen":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join()
        for name in self.pids:
            self.thaw(name)

    def full(self) -> bool:
        return len(self.pids) == self._count

    def thaw(self, name: str) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pids[name], signal.SIGCONT)

    def told_to_stop(self, name: str) -> bool:
        """Whether a process has USR2 waiting, or is gone: SLURM may let it go on by itself."""
        try:
            pending = Path(f"/proc/{self.pids[name]}/status").read_text().split("ShdPnd:")[1].split()[0]
        except FileNotFoundError:
            return True
        return bool(int(pending, 16) >> (signal.SIGUSR2 - 1) & 1)

    def _watch(self) -> None:
        while not self._over.wait(0.02) and not self.full():
            for path in self._runs_dir.glob("*/status.json"):
                status, name = json.loads(path.read_bytes()), path.parent.name
                if name not in self.pids and status["state"] == "running" and status.get("step", 0) > 0:
                    with suppress(ProcessLookupError):
                        os.kill(status["pid"], signal.SIGSTOP)
                        self.jobs[name], self.pids[name] = status["job_id"], status["pid"]
                    if self.full():
                        return


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/status").read_text().split("PPid:")[1].split()[0])


def scores(run: Path) -> list[str]:
    return [line for line in (run / "metrics.jsonl").read_text().splitlines() if "primary" in line]
