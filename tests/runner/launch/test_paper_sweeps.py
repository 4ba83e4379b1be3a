"""The paper's sweeps, as one line each, without a cluster and without weights."""

import re

import pytest

from lorsa.runner.compose import compose_sweep
from lorsa.runner.validate import check


@pytest.mark.slow
@pytest.mark.parametrize(("size", "runs", "gpus"), [("7b", 270, 4), ("13b", 225, 8)])
def test_a_dry_run_shows_the_paper_s_sweep(command, tmp_path, size, runs, gpus):
    done = command(
        "-m", f"experiment=llama2_{size}_glue", "hydra/launcher=slurm", "dry_run=true", "resources.account=me"
    )
    assert done.returncode == 0, done.stderr
    assert f"{runs} runs: {runs} to do." in done.stdout
    assert re.findall(r"^#SBATCH --(?:array|account|gpus-per-node|ntasks-per-node)=.*$", done.stdout, re.MULTILINE) == [
        "#SBATCH --account=me",
        f"#SBATCH --array=0-{runs - 1}%{min(256, runs)}",
        f"#SBATCH --gpus-per-node={gpus}",
        f"#SBATCH --ntasks-per-node={gpus}",
    ]
    assert "export HF_HUB_OFFLINE=1" in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("size", "engine", "processes"), [("7b", "zero2", 4), ("13b", "zero3", 8)])
def test_the_paper_s_runs_share_rows_per_update_and_train_in_float32(size, engine, processes):
    for cfg in compose_sweep(f"experiment=llama2_{size}_glue", "task=rte", "seed=0"):
        check(cfg)
        assert cfg.engine.name == engine
        assert cfg.train.batch_size * processes == 32
        assert cfg.resources.tasks_per_node == processes
        assert cfg.model.dtype == ("float32" if cfg.method.name == "full" else "bfloat16")
