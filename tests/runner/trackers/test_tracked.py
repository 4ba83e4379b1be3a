"""What a tracker may do to a run: nothing."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lorsa.runner.errors import UserError
from lorsa.runner.rundir import JOB_ID, RunDirectory
from lorsa.runner.stop import StopRequested
from lorsa.runner.trackers.tracking import tracked
from lorsa.runner.validate import check


@pytest.fixture
def directory(make_run):
    run = make_run()
    return RunDirectory(str(run.parent), run.name)


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Put a script in the place of the companion."""
    started = []

    def make(code):
        real = subprocess.Popen

        def start(command, **options):
            started.append(real([sys.executable, "-c", code, *command[3:]], **options))
            return started[-1]

        monkeypatch.setattr("lorsa.runner.trackers.tracking.subprocess.Popen", start)
        return started

    return make


@pytest.fixture
def quick(config):
    cfg = config.copy()
    cfg.tracker.finish_seconds = 1.0
    return cfg


def test_other_processes_than_the_main_one_start_nothing(quick, directory, stand_in, monkeypatch):
    started = stand_in("")
    monkeypatch.setenv("RANK", "1")
    with tracked(quick, directory):
        pass
    monkeypatch.delenv("RANK")
    quick.tracker.name = "none"
    with tracked(quick, directory):
        pass
    assert started == []


@pytest.mark.parametrize(("error", "word"), [(None, "done"), (ValueError, "failed"), (StopRequested, "stopped")])
def test_the_companion_hears_how_the_run_ended(quick, directory, stand_in, tmp_path, error, word):
    stand_in(f"import sys; open({str(tmp_path / 'heard')!r}, 'w').write(sys.stdin.read())")
    try:
        with tracked(quick, directory):
            if error is not None:
                raise error("USR2")
    except (ValueError, StopRequested):
        assert error is not None
    assert (tmp_path / "heard").read_text() == f"{word}\n"


@pytest.mark.parametrize("code", ["import time; time.sleep(60)", "import os; os._exit(1)", "raise SystemExit(3)"])
def test_a_companion_that_hangs_or_dies_costs_a_second_at_most(quick, directory, stand_in, capsys, code):
    started = stand_in(f"import signal; signal.signal({int(signal.SIGTERM)}, signal.SIG_IGN)\n{code}")
    start = time.monotonic()
    with tracked(quick, directory):
        pass
    assert time.monotonic() - start < 3
    (companion,) = started
    assert companion.returncode is not None
    assert f"lorsa sync {directory.path} sends it" in " ".join(capsys.readouterr().out.split())


def test_a_companion_that_cannot_be_started_is_said(quick, directory, monkeypatch, capsys):
    def fail(*args, **options):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr("lorsa.runner.trackers.tracking.subprocess.Popen", fail)
    with tracked(quick, directory):
        pass
    assert "tracker=wandb does not run: [Errno 12] Cannot allocate memory" in capsys.readouterr().out


def test_a_tracker_that_is_not_installed_is_refused_at_the_terminal_and_not_in_a_job(config, monkeypatch):
    cfg = config.copy()
    monkeypatch.setattr("lorsa.runner.validate.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"wandb is not installed: pip install 'lorsa\[wandb\]'"):
        check(cfg)
    monkeypatch.setenv(JOB_ID, "7")
    check(cfg)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("mode", "onlin", "tracker.mode=onlin is not known; did you mean 'online'"),
        ("finish_seconds", -1.0, "tracker.finish_seconds=-1.0 must be 0 or more"),
        ("project", "a/b", "tracker.project=a/b must be a name without"),
        ("tags", ["x" * 65], "a list of words of 1 to 64 characters"),
    ],
)
def test_wrong_values_are_named(config, key, value, words):
    cfg = config.copy()
    cfg.tracker[key] = value
    with pytest.raises(UserError) as error:
        check(cfg)
    assert words in str(error.value)


def test_nothing_of_a_tracker_is_imported_where_the_run_trains():
    code = "import sys; import lorsa.runner.job; print({'wandb', 'tensorboard', 'requests'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path.home(), capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
