"""Submitting to SLURM, by submitit: one array for each shape of resources."""

from __future__ import annotations

import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from submitit import SlurmExecutor
from submitit.core.utils import FailedJobError
from submitit.slurm.slurm import _make_sbatch_string

from lorsa.runner.errors import UserError
from lorsa.runner.launch.scheduler import command
from lorsa.runner.launch.sweep import Sweep
from lorsa.runner.launch.task import Task
from lorsa.runner.terminal import say

NOT_AVAILABLE = "Requested node configuration is not available"

# What becomes of a job, by the exit code of its tasks (task.py). A task that failed for good says so in a file too,
# since srun gives another code where it then ends the others. An element of an array needs its full name: one of them
# has the array's own id as its job id, and to requeue that would begin the whole array again. A job that was cancelled
# meanwhile does not run, and is left alone. A controller that dies before it saves its state, which it does every five
# seconds, forgets a requeue, and would count the job as failed once this script is over: so the script outlives the
# TERM that comes with the requeue, and looks whether it still stands.
SETUP = """\
id="${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}}"
id="${id:-$SLURM_JOB_ID}"
rm -f JOBS/"$id".failed
"""
TEARDOWN = """\
code=$?
case "$code" in 0|1|2) exit "$code" ;; esac
ls JOBS > /dev/null  # on a shared disk, see what other nodes wrote
[ -e JOBS/"$id".failed ] && exit 1
trap '' TERM
for pause in 6 6 12 24 48 96; do
    state=$(squeue --noheader --format=%T --jobs="$id") || state=RUNNING  # no answer: the job is there, since this runs
    [ "$state" = RUNNING ] || break
    echo "exit code $code: the job begins again, and goes on from the last checkpoint"
    scontrol requeue "$id"
    sleep "$pause"
done
exit "$code"
"""


def script(sweep: Sweep, settings: Mapping[str, Any], resources: Mapping[str, Any], elements: int) -> str:
    """Return the sbatch script of one array; it needs no SLURM.

    Args:
        sweep: whose it is.
        settings: the keys of conf/hydra/launcher/slurm.yaml.
        resources: what each element asks for: the keys of conf/resources.
        elements: how many there are.
    """
    command_line = f"{shlex.quote(sys.executable)} -u -m submitit.core._submit {shlex.quote(str(sweep.jobs))}"
    count = {"map_count": elements} if elements > 1 else {}
    parameters = _parameters(sweep, settings, resources)
    return _make_sbatch_string(command=command_line, folder=sweep.jobs, **parameters, **count)


def check_script(text: str) -> None:
    """Have SLURM look at a script without submitting it.

    What would wait for nodes that are down is refused by `sbatch --test-only` like what no node could do; a submission
    that is held, and cancelled at once, tells the two apart.

    Raises:
        UserError: it would refuse it: an unknown partition, more than any node has; in its words.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".sh") as file:
        file.write(text)
        file.flush()
        try:
            command(["sbatch", "--test-only", file.name])
        except UserError as error:
            if NOT_AVAILABLE not in str(error):
                raise
            held = command(["sbatch", "--hold", "--parsable", file.name]).split(";")[0].strip()
            command(["scancel", held])
            say("SLURM takes it, but cannot say when it starts: nodes that it needs may be down, drained or reserved.")


def submit(sweep: Sweep, resources: Mapping[str, Any], jobs: Sequence[Sequence[str]]) -> list[str]:
    """Submit one array and return the ids of its elements.

    Args:
        sweep: whose it is; written already.
        resources: what each element asks for.
        jobs: the runs of each element.

    Raises:
        UserError: SLURM refuses it; in its words.
    """
    made = SlurmExecutor(sweep.jobs, python=shlex.quote(sys.executable))
    made.update_parameters(**_parameters(sweep, sweep.launcher, resources))
    tasks = [Task(str(sweep.runs_dir), str(sweep.configs), tuple(runs)) for runs in jobs]
    try:
        submitted = made.map_array(Task.__call__, tasks) if len(tasks) > 1 else [made.submit(tasks[0])]
    except FailedJobError as error:  # its text is what sbatch said
        raise UserError(f"SLURM refused: {' '.join(str(error).split())}") from error
    return [job.job_id for job in submitted]


def cancel(job_ids: Sequence[str], signal: str | None = None) -> None:
    """Cancel jobs, or send a signal to their tasks.

    Raises:
        UserError: SLURM refuses; in its words.
    """
    if job_ids:
        # Without --full the batch script, which knows nothing of signals, is left alone.
        command(["scancel", *([f"--signal={signal}"] if signal else []), *job_ids])


def _parameters(sweep: Sweep, settings: Mapping[str, Any], resources: Mapping[str, Any]) -> dict[str, Any]:
    """Return submitit's parameters for what conf/resources and conf/hydra/launcher say."""
    same = ("nodes", "cpus_per_task", "partition", "account", "qos", "constraint")
    parameters: dict[str, Any] = {key: resources[key] for key in same if resources[key] is not None}
    extra = {key.replace("_", "-"): value for key, value in resources["extra"].items()}
    parameters |= {
        "job_name": f"lorsa-{sweep.path.name}",
        "time": resources["minutes"],
        "ntasks_per_node": resources["tasks_per_node"],
        "signal_delay_s": resources["signal_seconds"],
        "array_parallelism": settings["parallel"],
        "stderr_to_stdout": True,
        "setup": [*sweep.shell_lines(settings), *_lines(SETUP, sweep)],
        "teardown": _lines(TEARDOWN, sweep),
        # One process of a run that ends badly ends the others. Since 22.05 srun does not take over --cpus-per-task.
        "srun_args": ["--kill-on-bad-exit=1", f"--cpus-per-task={resources['cpus_per_task']}"],
        "additional_parameters": {"requeue": True, **extra},
    }
    if resources["mem_gb"] is not None:
        parameters["mem"] = f"{round(resources['mem_gb'] * 1024)}M"
    if resources["gpus_per_node"]:
        parameters["gpus_per_node"] = resources["gpus_per_node"]
    return parameters


def _lines(text: str, sweep: Sweep) -> list[str]:
    return text.replace("JOBS", shlex.quote(str(sweep.jobs))).splitlines()
