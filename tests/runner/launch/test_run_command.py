"""`lorsa run` on made-up run directories."""

import shutil

import pytest

from lorsa.runner.commands import run as run_command
from lorsa.runner.errors import UserError


@pytest.fixture
def frozen(sweep, compose_run):
    """The config of run bbbb, frozen with force=true."""
    from omegaconf import OmegaConf

    cfg = compose_run(f"runs_dir={sweep.runs_dir}", "force=true", "seed=5")
    sweep.config("bbbb").write_text(OmegaConf.to_yaml(cfg, resolve=True))
    return sweep


@pytest.fixture
def did(monkeypatch):
    """The configs that were run."""
    configs = []
    monkeypatch.setattr("lorsa.runner.job.run", configs.append)
    return configs


def test_run_does_one_run_here_with_its_frozen_config(frozen, lorsa, did):
    lorsa("run", "bb")
    assert (did[0].seed, did[0].runs_dir, did[0].force) == (5, str(frozen.runs_dir), False)


def test_run_writes_where_it_found_the_run(frozen, lorsa, did, tmp_path):
    shutil.copytree(frozen.runs_dir / "bbbb", tmp_path / "moved" / "bbbb")
    lorsa("run", "bb", "--runs-dir", "moved")
    assert did[0].runs_dir == str(tmp_path / "moved")


def test_run_for_debugging_leaves_the_run_alone(frozen, lorsa, did):
    text = lorsa("run", "bb", "--debug")
    assert did[0].runs_dir in text
    assert did[0].runs_dir != str(frozen.runs_dir)
    shutil.rmtree(did[0].runs_dir)


def test_run_for_debugging_opens_a_debugger_on_an_error(frozen, lorsa, monkeypatch):
    opened = []

    def fail(cfg):
        raise ZeroDivisionError

    monkeypatch.setattr("lorsa.runner.job.run", fail)
    with pytest.raises(ZeroDivisionError):  # no terminal: the traceback
        run_command.run("bb", debug=True)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("pdb.post_mortem", lambda: opened.append(True))
    with pytest.raises(run_command.typer.Exit):
        run_command.run("bb", debug=True)
    assert opened


def test_run_takes_the_runs_own_config_where_the_sweep_is_gone(frozen, lorsa, did):
    (frozen.runs_dir / "bbbb" / "config.yaml").write_text(frozen.config("bbbb").read_text())
    shutil.rmtree(frozen.path)
    lorsa("run", "bb")
    assert did[0].seed == 5
    (frozen.runs_dir / "bbbb" / "config.yaml").unlink()
    with pytest.raises(UserError, match="bbbb has no config any more"):
        lorsa("run", "bb")


@pytest.mark.parametrize("text", ["seed: {", "newer_key: 3", "seed: x"])
def test_run_of_a_config_of_another_version_is_a_sentence(frozen, lorsa, did, text):
    frozen.config("bbbb").write_text(text)
    with pytest.raises(UserError, match=r"bbbb.yaml is damaged, or of another version"):
        lorsa("run", "bb")
    assert did == []
