"""The development cluster does what the launcher's tests rely on."""

import subprocess
from pathlib import Path

import pytest
from cluster import SCRIPT, Cluster, wait_for

# A task that says which signals it gets and, asked to end, ends.
TASK = """
import signal, time
def say(number, frame):
    print(signal.Signals(number).name, flush=True)
    if number == signal.SIGTERM:
        raise SystemExit
signal.signal(signal.SIGUSR2, say)
signal.signal(signal.SIGTERM, say)
print("start", flush=True)
time.sleep(600)
"""


@pytest.fixture
def task(tmp_path: Path) -> str:
    (tmp_path / "task.py").write_text(TASK)
    return f"srun python3 {tmp_path / 'task.py'}"


def said(tmp_path: Path, job: str) -> list[str]:
    path = tmp_path / f"{job}.out"
    return path.read_text().split("\n") if path.exists() else []


def test_array_uses_both_nodes(cluster: Cluster, alone: None, tmp_path: Path) -> None:
    # A CPU more than one node has.
    job = cluster.submit("srun hostname; sleep 2", "--array=0-4", "--partition=high", cwd=tmp_path)
    wait_for(lambda: cluster.squeue(job) == ["COMPLETED"] * 5, "the array's end")
    assert set(cluster.squeue(job, form="%N")) == {"n1", "n2"}
    assert len(list(tmp_path.glob(f"{job}_*.out"))) == 5


def test_gpus_are_handed_out(cluster: Cluster, tmp_path: Path) -> None:
    job = cluster.submit("echo gpu $CUDA_VISIBLE_DEVICES", "--gpus-per-node=2", cwd=tmp_path)
    wait_for(lambda: cluster.squeue(job) == ["COMPLETED"], "the job's end")
    if cluster.run("sinfo", "--noheader", "--format=%G").strip() == "(null)":
        pytest.skip("mknod is not permitted here: the nodes have no GPUs")
    assert "gpu 0,1" in said(tmp_path, job)


def test_lost_node_requeues_its_job(cluster: Cluster, alone: None, tmp_path: Path, task: str) -> None:
    job = cluster.submit(task, "--nodelist=n1", cwd=tmp_path)
    wait_for(lambda: "start" in said(tmp_path, job), "the job's start")
    cluster.node_down("n1")
    assert cluster.squeue(job) == ["PENDING"]
    assert said(tmp_path, job).count("SIGTERM") == 0
    cluster.node_up("n1")
    wait_for(lambda: said(tmp_path, job).count("start") == 2, "the job's second start")


def test_restarted_controller_knows_its_jobs(cluster: Cluster, alone: None, tmp_path: Path, task: str) -> None:
    running = cluster.submit(task, cwd=tmp_path)
    wait_for(lambda: "start" in said(tmp_path, running), "the job's start")
    queued = cluster.submit("true", "--hold", cwd=tmp_path)
    cluster.restart_controller()
    assert (cluster.squeue(running), cluster.squeue(queued)) == (["RUNNING"], ["PENDING"])
    cluster.run("scontrol", "release", queued)
    wait_for(lambda: cluster.squeue(queued) == ["COMPLETED"], "the queued job's end")
    assert cluster.squeue(running) == ["RUNNING"]


def test_preempted_job_gets_usr2_first(cluster: Cluster, alone: None, tmp_path: Path, task: str) -> None:
    options = ["--nodes=1", "--ntasks=1", "--cpus-per-task=4", "--nodelist=n2"]
    low = cluster.submit(task, "--partition=low", "--signal=USR2@5", *options, cwd=tmp_path)
    wait_for(lambda: "start" in said(tmp_path, low), "the low job's start")
    cluster.submit("sleep 1", "--partition=high", *options, cwd=tmp_path)
    wait_for(lambda: "SIGUSR2" in said(tmp_path, low), "SIGUSR2 to the low job")
    assert "SIGTERM" not in said(tmp_path, low)


@pytest.mark.slow
def test_time_out_sends_usr2_first(cluster: Cluster, tmp_path: Path, task: str) -> None:
    # A minute is the shortest limit, and the controller looks every half minute: this one's signal is due at once.
    job = cluster.submit(task, "--time=1", "--signal=USR2@60", cwd=tmp_path)
    wait_for(lambda: "SIGUSR2" in said(tmp_path, job), "SIGUSR2", 60)
    assert "SIGTERM" not in said(tmp_path, job)
    cluster.run("scancel", job)


def test_up_twice_says_so(cluster: Cluster) -> None:
    done = subprocess.run(["bash", SCRIPT, "up", cluster.folder], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.startswith("Already up")
    assert f"export SLURM_CONF={cluster.folder}/slurm.conf" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["go"], "unknown command 'go'; choose from up, down, status, env, restart-controller, node-down, node-up."),
        (["node-down", "n3"], "node-down needs the name of a node, n1 or n2."),
        (["up", "--gpus", "3"], "unknown option '--gpus'; choose from --accounting, --port N, --max-array-size N."),
        (["up", "/tmp/a b"], "must be short and plain"),
    ],
)
def test_mistakes_are_named(arguments: list[str], sentence: str) -> None:
    done = subprocess.run(["bash", SCRIPT, *arguments], capture_output=True, text=True)
    assert done.returncode == 1
    assert sentence in done.stderr
