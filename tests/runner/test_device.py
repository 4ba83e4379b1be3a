"""What a result says of the code that made it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from lorsa.runner import device


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with the packages' folders, a document, and all of it committed."""
    for name in ("conf/config.yaml", "runner/device.py", "docs/runs.csv"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("a\n")
    who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    for command in (["init", "-q"], ["add", "-A"], [*who, "commit", "-qm", "all"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    monkeypatch.setattr(device, "__file__", str(tmp_path / "runner" / "device.py"))
    return tmp_path


def test_a_commit_is_told_and_a_change_of_the_code(checkout: Path):
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=checkout, capture_output=True, text=True).stdout.strip()
    assert device.git_state() == {"commit": head, "dirty": False}
    (checkout / "docs" / "runs.csv").write_text("b\n")
    (checkout / "notes.txt").write_text("mine\n")
    assert device.git_state() == {"commit": head, "dirty": False}
    (checkout / "conf" / "method.yaml").write_text("new\n")
    assert device.git_state()["dirty"] is True
    (checkout / "conf" / "method.yaml").unlink()
    (checkout / "runner" / "device.py").write_text("b\n")
    assert device.git_state()["dirty"] is True


def test_outside_a_checkout_nothing_is_said(tmp_path: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch):
    inside = checkout / ".venv" / "runner"  # of another project's checkout
    inside.mkdir(parents=True)
    (inside / "device.py").touch()
    monkeypatch.setattr(device, "__file__", str(inside / "device.py"))
    assert device.git_state() == {"commit": None, "dirty": None}
