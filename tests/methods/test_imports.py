"""Imports point one way, and the kernels import torch alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh process, outside the repository, whose folders would be importable by their bare names."""
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, text=True, capture_output=True)


def test_the_import_contracts_hold(tmp_path: Path):
    pytest.importorskip("importlinter", reason="import-linter is not installed")
    config = str(ROOT / "pyproject.toml")
    code = f"from importlinter.cli import lint_imports; raise SystemExit(lint_imports(config_filename={config!r}))"
    result = run(code, tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 broken" in result.stdout


def test_kernels_load_torch_and_nothing_that_torch_does_not(tmp_path: Path):
    listing = "import json, sys; print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    torch_alone = run(f"import torch; {listing}", tmp_path)
    kernels = run(f"import lorsa.kernels; {listing}", tmp_path)
    assert kernels.returncode == 0, kernels.stderr
    extra = set(json.loads(kernels.stdout)) - set(json.loads(torch_alone.stdout))
    assert extra == {"lorsa"}
    assert "torch" in json.loads(kernels.stdout)


def test_methods_load_without_the_runner(tmp_path: Path):
    code = "import sys, lorsa.methods; print([n for n in sys.modules if n.startswith(('lorsa.runner', 'hydra'))])"
    result = run(code, tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"


def test_folders_are_not_importable_by_their_bare_names(tmp_path: Path):
    code = "import importlib.util as u; print([n for n in ('methods', 'runner', 'conf') if u.find_spec(n)])"
    assert run(code, tmp_path).stdout.strip() == "[]"
