"""Which implementation is taken, where the answer depends on more than what is built."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lorsa.kernels import KernelError, dispatch, implementation

LAUNCH = Path(dispatch.__file__).parent / "csrc" / "cuda" / "launch.h"


@pytest.fixture
def built_for_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(dispatch._compiled, "cuda", True)


def test_the_largest_rank_is_that_of_the_cuda_sources():
    (found,) = re.findall(r"kMaxRank = (\d+);", LAUNCH.read_text())
    assert int(found) == dispatch.MAX_CUDA_RANK


def test_above_the_largest_rank_the_reference_turns_and_is_named(built_for_cuda, monkeypatch):
    monkeypatch.setenv("LORSA_KERNELS", "auto")
    assert implementation("cuda", dispatch.MAX_CUDA_RANK) == "CUDA"
    assert implementation("cuda", dispatch.MAX_CUDA_RANK + 1) == "reference (PyTorch)"


@pytest.mark.parametrize("setting", ["built", "jit"])
def test_kernels_that_were_asked_for_are_not_replaced(built_for_cuda, monkeypatch, setting):
    monkeypatch.setenv("LORSA_KERNELS", setting)
    assert implementation("cuda", dispatch.MAX_CUDA_RANK) == "CUDA"
    with pytest.raises(KernelError, match="rank r of at most 32, not 33; with LORSA_KERNELS=auto"):
        implementation("cuda", dispatch.MAX_CUDA_RANK + 1)
