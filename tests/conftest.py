"""What all tests share: no network, one thread per process, and ways to run a job."""

import atexit
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Before torch or a hub library is imported anywhere.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Bases are shared by the tests of one run, and by no other; the built kernels are the machine's.
_home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
_kernels = Path(os.environ.get("LORSA_CACHE") or _home / "lorsa").absolute() / "kernels"
_kernels.mkdir(parents=True, exist_ok=True)
os.environ["LORSA_CACHE"] = tempfile.mkdtemp(prefix="lorsa-cache-")
Path(os.environ["LORSA_CACHE"], "kernels").symlink_to(_kernels)
atexit.register(shutil.rmtree, os.environ["LORSA_CACHE"], ignore_errors=True)

import pytest  # noqa: E402

REPOSITORY = Path(__file__).resolve().parents[1]

Result = dict[str, Any]


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real GLUE files and small real models that are not part of the repository."""
    folder = os.environ.get("LORSA_SHARED")
    if not folder:
        pytest.skip("LORSA_SHARED is not set: no real GLUE files and models here")
    return Path(folder)


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., Result]:
    """Compose and run a job in this process; returns its result.json."""
    from lorsa.runner.compose import compose
    from lorsa.runner.job import run
    from lorsa.runner.signature import signature

    def run_job(*overrides: str) -> Result:
        cfg = compose(f"runs_dir={tmp_path / 'runs'}", *overrides)
        run(cfg)
        return json.loads((tmp_path / "runs" / signature(cfg) / "result.json").read_text())

    return run_job


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `lorsa-run` in a process of its own, in an empty folder."""

    def run_command(*overrides: str, **options: Any) -> subprocess.CompletedProcess[str]:
        arguments = [sys.executable, "-m", "lorsa.runner.cli", *overrides]
        return subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, timeout=300, **options)

    return run_command
