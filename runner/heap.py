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
