"""The signature changes with everything that can change a result, and with nothing else."""

import shutil

import pytest

from lorsa.runner.compose import compose
from lorsa.runner.signature import hash_of, model_folder, signature

BASE = signature(compose())


@pytest.mark.parametrize(
    "override",
    ["runs_dir=elsewhere", "force=true", "engine.threads=3", "train.checkpoint_every=5", "train.profile=true"],
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


def test_the_same_number_written_otherwise_is_the_same_run():
    assert signature(compose("method.lr=0.004")) == signature(compose("method.lr=4e-3"))


def test_it_is_a_hash_of_the_canonical_identity_and_of_nothing_else():
    # A value written down: were the canonical form to change, every stored run would be trained again.
    assert hash_of({"b": [1, 2.5, None], "a": {"x": True}}) == "e4f1f0315dfff37b"
    assert len(BASE) == 16
    assert set(BASE) <= set("0123456789abcdef")
