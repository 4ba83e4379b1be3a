#!/bin/bash

# Parameters
#SBATCH --account=me
#SBATCH --array=0-11%5
#SBATCH --comment='two words'
#SBATCH --constraint='a100|h100'
#SBATCH --cpus-per-task=8
#SBATCH --exclusive
#SBATCH --gpus-per-node=4
#SBATCH --job-name=lorsa-2026-01-01_00-00-00
#SBATCH --mail-type=FAIL,END
#SBATCH --mem=64000M
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --open-mode=append
#SBATCH --output=/HOME/sweeps/2026-01-01_00-00-00/submitit/%A_%a_0_log.out
#SBATCH --partition=gpu
#SBATCH --qos=long
#SBATCH --requeue
#SBATCH --signal=USR2@300
#SBATCH --time=1440
#SBATCH --wckey=submitit

# setup
module load cuda
export NAME="a b"
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1
export PYTHONPATH=/HOME/sweeps/2026-01-01_00-00-00/code${PYTHONPATH:+:$PYTHONPATH}
id="${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}}"
id="${id:-$SLURM_JOB_ID}"
rm -f /HOME/sweeps/2026-01-01_00-00-00/submitit/"$id".failed

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /HOME/sweeps/2026-01-01_00-00-00/submitit/%A_%a_%t_log.out --kill-on-bad-exit=1 --cpus-per-task=8 PYTHON -u -m submitit.core._submit /HOME/sweeps/2026-01-01_00-00-00/submitit


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