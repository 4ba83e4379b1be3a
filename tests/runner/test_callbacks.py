"""What happens beside the training loop."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
import torch

from lorsa.runner.callbacks import HeapTrim


def resident() -> int:
    """Bytes of this process that are in main memory."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
@pytest.mark.parametrize("event", ["on_step_end", "on_prediction_step"])
def test_the_free_pages_of_the_heap_go_back_to_the_system(event: str):
    trim = HeapTrim()
    size = 96 * 2**10  # below the size from which glibc asks the system for each block
    blocks = [torch.ones(size, dtype=torch.uint8) for _ in range(2000)]
    blocks = blocks[::2]  # every second one stays, so that the heap cannot shrink from its end
    before = resident()
    getattr(trim, event)()
    assert before - resident() > 0.5 * size * len(blocks)
    assert all(block.sum() == size for block in blocks)
