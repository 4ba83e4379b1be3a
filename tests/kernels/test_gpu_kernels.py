"""The CUDA kernels on a GPU against the reference in float64: the checks of scripts/gpu_check.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]


def test_every_operator_passes_the_gpu_check(repository: Path):
    # In a process of its own: this one may have loaded the operators without CUDA, which cannot be taken back.
    command = [sys.executable, repository / "scripts" / "gpu_check.py", "--checks-only"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
