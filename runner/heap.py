"""The C library's heap."""

from __future__ import annotations

import ctypes

MMAP_THRESHOLD = -3  # glibc's M_MMAP_THRESHOLD
LARGE = 128 * 2**10


def return_large_blocks() -> None:
    """Have freed blocks of 128 KiB or more go back to the system at once, in this process.

    glibc starts that way, and raises the limit to the size of what is freed, up to 32 MiB. The weights that ZeRO-3
    gathers and lets go then lie between blocks that stay, and what they leave fits the next ones badly: the heap
    grows by the update. Without glibc nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(MMAP_THRESHOLD, LARGE)


def return_free_memory() -> None:
    """Give the pages of all free blocks back to the system, in this process.

    Between phases that take blocks of other sizes, as training and evaluation do: what the one freed fits the other
    badly, and the heap would grow beside it. Without glibc nothing happens.
    """
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(ctypes.c_size_t(0))
