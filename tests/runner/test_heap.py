"""What the C library keeps of what is freed, in processes of their own."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import ctypes, sys
from pathlib import Path
from lorsa.runner.heap import return_large_blocks

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

if sys.argv[1] == "yes":
    return_large_blocks()
libc.free(block(16 * 2**20))  # from which glibc takes that blocks of this size come and go
before = resident()
# Every second one stays, so that the heap cannot shrink from its end.
blocks = [block(2**20) for _ in range(200)]
for address in blocks[::2]:
    libc.free(address)
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_blocks_go_back_to_the_system_although_larger_ones_were_freed_before():
    kept = {
        asked: int(
            subprocess.run([sys.executable, "-c", SCRIPT, asked], capture_output=True, text=True, check=True).stdout
        )
        for asked in ("yes", "no")
    }
    assert kept["yes"] < 110 * 2**20 < 190 * 2**20 < kept["no"]
