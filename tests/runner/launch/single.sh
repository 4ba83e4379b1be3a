#!/bin/bash

# Parameters
#SBATCH --cpus-per-task=2
#SBATCH --job-name=lorsa-2026-01-01_00-00-00
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/HOME/sweeps/2026-01-01_00-00-00/submitit/%j_0_log.out
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=60
#SBATCH --wckey=submitit

# setup
id="${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}}"
id="${id:-$SLURM_JOB_ID}"
rm -f /HOME/sweeps/2026-01-01_00-00-00/submitit/"$id".failed

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /HOME/sweeps/2026-01-01_00-00-00/submitit/%j_%t_log.out --kill-on-bad-exit=1 --cpus-per-task=2 PYTHON -u -m submitit.core._submit /HOME/sweeps/2026-01-01_00-00-00/submitit


# teardown
code=$?
case "$code" in 0|1|2) exit "$code" ;; esac
ls /HOME/sweeps/2026-01-01_00-00-00/submitit > /dev/null  # on a shared disk, see what other nodes wrote
[ -e /HOME/sweeps/2026-01-01_00-00-00/submitit/"$id".failed ] && exit 1
trap '' TERM
for pause in 6 6 12 24 48 96; do
    state=$(squeue --noheader --format=%T --jobs="$id") || state=RUNNING  # no answer: the job is there, since this runs
    [ "$state" = RUNNING ] || break
    echo "exit code $code: the job begins again, and goes on from the last checkpoint"
    scontrol requeue "$id"
    sleep "$pause"
done
exit "$code"