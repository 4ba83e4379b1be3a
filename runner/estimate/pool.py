"""Memory as its two allocators hand it out: PyTorch's on a GPU, and the C library's in main memory."""

from __future__ import annotations

import ctypes
import platform
from collections import Counter

from lorsa.runner.heap import return_free_memory

KEPT = "holes of the heap"


class Pool:
    """A GPU's memory: what is taken, by what for, and the most that was ever taken at once.

    Attributes:
        phase: what is going on, set by who takes.
        peak: bytes.
        parts: of the peak, {what for: bytes}.
        peak_phase: in which phase it was.
    """

    def __init__(self) -> None:
        self.phase = ""
        self.peak = 0
        self.parts: dict[str, int] = {}
        self.peak_phase = ""
        self._live: dict[int, tuple[int, str]] = {}
        self._by_part: Counter[str] = Counter()
        self._total = 0
        self._next = 0

    def take(self, size: float, part: str, mapped: bool = False) -> int:
        """Take so many bytes; returns a key to give them back by.

        Args:
            size: bytes.
            part: what for.
            mapped: as pages of a file or the like, past the allocator; makes a difference in main memory alone.
        """
        self._next += 1
        self._live[self._next] = (int(size), part)
        self._by_part[part] += int(size)
        self._total += int(size)
        kept = self._place(self._next, int(size), mapped)
        if self._total + kept > self.peak:
            self.peak, self.peak_phase = self._total + kept, self.phase
            self.parts = {part: size for part, size in self._by_part.items() if size} | ({KEPT: kept} if kept else {})
        return self._next

    def give(self, *keys: int) -> None:
        """Give back what was taken."""
        for key in keys:
            size, part = self._live.pop(key)
            self._by_part[part] -= size
            self._total -= size
            self._leave(key, size)

    def briefly(self, size: float, part: str, mapped: bool = False) -> None:
        """Take and give back at once."""
        self.give(self.take(size, part, mapped))

    def rename(self, key: int, part: str) -> None:
        """Count what was taken for something else."""
        size, old = self._live[key]
        self._by_part[old] -= size
        self._by_part[part] += size
        self._live[key] = (size, part)

    def trim(self) -> None:
        """Give what is free back to the system, as a run does between its phases."""

    def _place(self, key: int, size: int, mapped: bool) -> int:
        """Find room for a block; returns what is free and still counts."""
        return 0

    def _leave(self, key: int, size: int) -> None:
        """Let a block's room go."""


class _MallInfo(ctypes.Structure):
    _fields_ = [  # ctypes' own way
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keep",
        )
    ]


class MainMemory(Pool):
    """Resident memory of a process: of the C library the same blocks are asked, and not touched.

    Untouched blocks take no memory, only addresses. What malloc makes of them is what it makes of them in a run: large
    ones go back to the system when they are freed, smaller ones leave holes in the heap, which fit less and less. The
    heap is that of this process, so that one process serves one estimate.
    """

    def __init__(self) -> None:
        super().__init__()
        self._libc = ctypes.CDLL(None)
        self._libc.mallinfo2.restype = _MallInfo
        self._libc.free.argtypes = [ctypes.c_void_p]
        self._libc.sbrk.restype = ctypes.c_size_t
        return_free_memory()
        self._at: dict[int, int] = {}
        self._own = 0
        self._holes = 0
        self._start = self._heap()
        # Of the last trim: the heap's end, the free bytes before it that lost their pages, what was taken before it
        # then and now, and the most that was since.
        self._end = self._trimmed = self._inside_then = self._inside = self._inside_since = 0

    def _heap(self) -> int:
        info = self._libc.mallinfo2()
        return int(info.arena + info.hblkhd)

    def trim(self) -> None:
        """Do so with the real heap, and remember how much of it has no pages now."""
        return_free_memory()
        self._trimmed = max(0, self._heap() - self._start - self._own)
        self._end = self._libc.sbrk(0)
        self._inside = sum(self._live[key][0] for key, address in self._at.items() if address < self._end)
        self._inside_then = self._inside_since = self._inside
        self._holes = 0

    def _place(self, key: int, size: int, mapped: bool) -> int:
        if not mapped and size:
            block = ctypes.c_void_p()
            if self._libc.posix_memalign(ctypes.byref(block), ctypes.c_size_t(64), ctypes.c_size_t(size)):
                return self._holes  # more addresses than this machine gives: it counts, and leaves no hole
            self._at[key] = block.value or 0
            self._own += size
            if self._at[key] < self._end:
                self._inside += size
                self._inside_since = max(self._inside_since, self._inside)
        # To ask costs as much as there are holes.
        if size > 2**20 or key % 16 == 0:
            # What is taken there since then has gone where there were no pages, for as long as it could.
            away = max(0, self._trimmed - (self._inside_since - self._inside_then))
            self._holes = max(0, self._heap() - self._start - self._own - away)
        return self._holes

    def _leave(self, key: int, size: int) -> None:
        if key in self._at:
            address = self._at.pop(key)
            self._libc.free(address)
            self._own -= size
            if address < self._end:
                self._inside -= size


def main_memory() -> Pool:
    """Return a model of main memory: without glibc one that knows of no holes."""
    return MainMemory() if platform.libc_ver()[0] == "glibc" else Pool()
