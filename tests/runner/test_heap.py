"""What the C library keeps of what is freed, in processes of their own."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import ctypes, sys
from pathlib import Path
from lorsa.runner.heap import return_free_memory, return_large_blocks

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]

def resident():
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024

def block(size):
    address = libc.malloc(ctypes.c_size_t(size))
    ctypes.memset(address, 1, size)
    return address

if sys.argv[1] == "at once":
    return_large_blocks()
libc.free(block(16 * 2**20))  # from which glibc takes that blocks of this size come and go
before = resident()
# Every second one stays, so that the heap cannot shrink from its end.
blocks = [block(2**20) for _ in range(200)]
for address in blocks[::2]:
    libc.free(address)
if sys.argv[1] == "when asked":
    return_free_memory()
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_blocks_go_back_to_the_system_although_larger_ones_were_freed_before():
    kept = {
        asked: int(
            subprocess.run([sys.executable, "-c", SCRIPT, asked], capture_output=True, text=True, check=True).stdout
        )
        for asked in ("at once", "when asked", "never")
    }
    assert max(kept["at once"], kept["when asked"]) < 110 * 2**20 < 190 * 2**20 < kept["never"]


# A hundred holes of 1 MiB; then what a test does with them, and the peak and what of it are holes.
HOLES = """
from lorsa.runner.estimate.pool import KEPT, main_memory

pool = main_memory()
pool.take(30 * 2**20, "large")
pool.give(1)  # from which glibc takes that blocks of this size come and go
keys = [pool.take(2**20, "small") for _ in range(200)]
pool.give(*keys[::2])
{steps}
print(pool.peak // 2**20, pool.parts.get(KEPT, 0) // 2**20)
"""

GIVEN_BACK = """
pool.take(20 * 2**20, "before")  # fits none of the holes
print(pool.parts[KEPT] // 2**20)
pool.trim()
pool.take(150 * 2**20, "after")
"""

REFILLED = """
pool.trim()
again = [pool.take(0.9 * 2**20, "small") for _ in range(100)]  # in the holes, which have pages again then
pool.give(*again[::2])
pool.take(20 * 2**20, "after")
"""


def printed_by(steps: str) -> list[int]:
    script = HOLES.format(steps=steps)
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    return list(map(int, out.split()))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_an_estimate_knows_the_holes_of_the_heap_and_that_they_can_be_given_back():
    before, peak, after = printed_by(GIVEN_BACK)
    assert 95 <= before <= 110
    assert 270 <= peak <= 275  # 100 small blocks are left, 20 and 150 MiB came: as if there never were holes
    assert after <= 5


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_holes_that_were_used_again_count_again():
    peak, kept = printed_by(REFILLED)
    assert 42 <= kept <= 48
    assert 207 <= peak <= 213  # 100 blocks, 50 of 0.9 and as many that went once more, 20
