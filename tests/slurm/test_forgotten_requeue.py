"""The end of a job's script, with a controller that dies as it is asked to begin the job again."""

import re
from pathlib import Path

import pytest
import yaml
from cluster import Cluster, wait_for

from lorsa.runner.launch.slurm import script
from lorsa.runner.launch.sweep import Sweep

ELEMENTS = 4
# In place of the run: killed in the job's first attempt, done in its second.
COMMAND = """
if [ -z "$SLURM_RESTART_COUNT" ]; then
    touch started."$id"
    until [ -e die ]; do sleep 0.02; done
    bash -c 'exit 137'
fi
"""


@pytest.mark.slow
def test_a_job_begins_again_though_the_controller_forgets_that_it_was_asked(
    cluster: Cluster, alone: None, repository: Path, tmp_path: Path
):
    sweep = Sweep(tmp_path / "sweep")
    sweep.jobs.mkdir(parents=True)
    launcher, cpu = (
        yaml.safe_load((repository / "conf" / name).read_text())
        for name in ("hydra/launcher/slurm.yaml", "resources/cpu.yaml")
    )
    text, commands = re.subn("^srun .*$", COMMAND, script(sweep, launcher, cpu, ELEMENTS), flags=re.MULTILINE)
    assert commands == 1
    path = tmp_path / "job.sh"
    path.write_text(text)
    job = cluster.run("sbatch", "--parsable", f"--array=0-{ELEMENTS - 1}", str(path), cwd=tmp_path).strip()
    wait_for(lambda: len(list(tmp_path.glob("started.*"))) == ELEMENTS, "all have begun")

    cluster.run("scontrol", "update", f"JobId={job}", "Comment=saved")
    cluster.wait_for_save()
    before = cluster.job_state.read_bytes()
    (tmp_path / "die").touch()
    wait_for(lambda: "DUE TO JOB REQUEUE" in logs(sweep), "a job is to begin again", 60)
    cluster.crash_controller(before)

    wait_for(lambda: cluster.squeue(job) == ["COMPLETED"] * ELEMENTS, "all are done, the second time", 90)
    # One requeue at least was accepted, forgotten, and asked for again.
    assert logs(sweep).count("the job begins again") > ELEMENTS


def logs(sweep: Sweep) -> str:
    return "".join(path.read_text() for path in sweep.jobs.glob("*_log.out"))
