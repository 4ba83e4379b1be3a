"""The signature changes with everything that can change a result, and with nothing else."""

import shutil

import pytest

from lorsa.runner.compose import compose
from lorsa.runner.signature import model_folder, signature

BASE = signature(compose())


@pytest.mark.parametrize(
    "override",
    ["runs_dir=elsewhere", "force=true", "tracker=none", "engine.threads=3", "method.lr=4e-3", "method.lr=0.004"],
)
def test_where_and_how_a_run_is_watched_does_not_change_it(override):
    assert signature(compose(override)) == BASE


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "method.lr=3e-3",
        "method.config.k=32",
        "task=cola",
        "task.epochs=3",
        "train.eval_batch_size=32",
        "data.split_seed=1",
        "optim.eps=1e-6",
        "protocol=best_epoch",
        "engine.precision=bf16",
    ],
)
def test_every_other_key_changes_it(override):
    assert signature(compose(override)) != BASE


def test_a_changed_default_changes_it_as_an_override_does(monkeypatch):
    cfg = compose()
    cfg.optim.weight_decay = 0.01  # as if the YAML said so
    assert signature(cfg) == signature(compose("optim.weight_decay=0.01")) != BASE


def test_a_model_folder_counts_by_its_content(tmp_path):
    source = model_folder(compose().model.path)
    for name in ("one", "two"):
        shutil.copytree(source, tmp_path / name)
    one, two = (signature(compose(f"model.path={tmp_path / name}")) for name in ("one", "two"))
    assert one == two
    config = tmp_path / "two" / "config.json"
    config.write_text(config.read_text() + " ")
    assert signature(compose(f"model.path={tmp_path / 'two'}")) != one


def test_it_is_stable_between_releases_of_python_and_orders_of_keys():
    cfg = compose()
    assert signature(cfg) == signature(compose()) == BASE
    assert len(BASE) == 16
    assert set(BASE) <= set("0123456789abcdef")
