"""A sweep to which everything happens that happens on a cluster; it ends with the results of a quiet one."""

import json
import os
import signal
import subprocess
import sys
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

    # One run on a partition that is preempted, one with a time limit that it cannot keep, then the sweep of all 24.
    said = sweeps.launch("method=lorsa", "seed=0", "resources.partition=low")
    assert "1 runs: 1 to do. Submitted 1 runs" in said
    sweeps.launch("method=lorsa", "seed=1", "resources.minutes=1", "resources.signal_seconds=30", "resources.retries=9")
    said = sweeps.launch(*SWEEP)
    assert "24 runs: 22 to do" in said
    assert len(sweeps.states()) == 24
    by_name = {(run["method"], run["seed"]): name for name, run in sweeps.states().items()}
    low, limited = by_name["lorsa", 0], by_name["lorsa", 1]
    cluster.run("scancel", filler)

    def state(name: str) -> dict[str, object]:
        return json.loads((sweeps.runs_dir / name / "status.json").read_text())

    def trains(name: str) -> bool:
        return state(name).get("state") == "running" and state(name).get("step", 0) > 0

    def training() -> list[str]:
        return [name for name in by_name.values() if name not in (low, limited) and trains(name)]

    # Preemption: every CPU is taken, so a job on `high` gets that of the run on `low`.
    wait_for(lambda: trains(low), "the run on `low` trains", 120)
    cluster.submit("sleep 5", "--partition=high", cwd=tmp_path)

    # The time limit: the run stands still until SLURM has told it to stop, half a minute before the end.
    wait_for(lambda: trains(limited) or state(limited)["attempt"] > 1, "the limited run trains", 120)
    held = int(state(limited)["pid"])
    os.kill(held, signal.SIGSTOP)

    # The worker of one run is killed, and the task of another.
    wait_for(training, "a run trains", 120)
    killed = training()[0]
    os.kill(int(state(killed)["pid"]), signal.SIGKILL)
    wait_for(lambda: [name for name in training() if name != killed], "another run trains", 120)
    orphaned = next(name for name in training() if name != killed)
    worker = int(state(orphaned)["pid"])
    os.kill(parent_of(worker), signal.SIGKILL)

    cluster.restart_controller()

    # A node vanishes under its runs, and comes back.
    on_n2 = {line.split("|")[0] for line in cluster.squeue(form="%i|%T|%N") if line.endswith("|RUNNING|n2")}
    cluster.node_down("n2")
    # Not those that ended in the meantime.
    lost = [name for name in by_name.values() if str(state(name).get("job_id")) in on_n2 and trains(name)]
    cluster.node_up("n2")

    wait_for(lambda: told_to_stop(held), "SLURM tells the limited run to stop", 90)
    if Path(f"/proc/{held}").exists():
        os.kill(held, signal.SIGCONT)

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


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/status").read_text().split("PPid:")[1].split()[0])


def told_to_stop(pid: int) -> bool:
    """Whether a process has USR2 waiting, or is gone."""
    try:
        pending = Path(f"/proc/{pid}/status").read_text().split("ShdPnd:")[1].split()[0]
    except FileNotFoundError:
        return True
    return bool(int(pending, 16) >> (signal.SIGUSR2 - 1) & 1)


def scores(run: Path) -> list[str]:
    return [line for line in (run / "metrics.jsonl").read_text().splitlines() if "primary" in line]
