"""Short digests of content, for the signature of a run: the same bytes give the same digest wherever they lie.

Standard library only: a signature is computed on the login node, before anything heavy is imported.
"""

import hashlib
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from lorsa.runner.errors import UserError
from lorsa.runner.glue.layout import find_files
from lorsa.runner.schema import DataConfig, TaskConfig

if TYPE_CHECKING:
    from hashlib import _Hash

HUB_DATASET = "nyu-mll/glue"

_MIB = 1024 * 1024
_WHOLE_UP_TO = 64 * _MIB
_BLOCK = 64 * 1024
_BLOCKS = 64
_DIGITS = 16
_TICK_NS = 2 * 10**9


def content_fingerprint(path: Path) -> str:
    """Return a digest of the content of a file or folder: 16 hexadecimal digits of a SHA-256.

    It covers, for every file, its name relative to `path` (empty when `path` is the file itself, so that renaming it
    changes nothing), its size and its bytes. Hidden files and folders are left out: downloaders keep their own notes
    there. Of a file above 64 MiB only a sample is read, so that 26 GB of weights cost a fraction of a second: the
    first and the last MiB and 64 blocks of 64 KiB evenly spaced over the file. Weights that were trained further
    differ everywhere and are told apart; an edit of a few bytes in the middle of such a file may not be.

    Raises:
        UserError: there is nothing at `path`, or it cannot be read.
    """
    if path.is_dir():
        relative = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
        files = [(name, path / name) for name in relative if not any(part.startswith(".") for part in name.split("/"))]
    elif path.is_file():
        files = [("", path)]
    else:
        raise UserError(f"There is no file or folder at {path}.")
    return _digest(files)


def data_fingerprint(task: TaskConfig, data: DataConfig) -> str:
    """Return where the rows of `task` come from, down to their content where that can be known without a network.

    "demo v<version>", "<repository>@<revision>" or "local:<digest>"; the digest covers the files of this task alone,
    so that adding another task to the folder does not make earlier runs look new.

    Raises:
        UserError: `data.name` is unknown, or the local folder does not hold the task.
    """
    match data.name:
        case "demo":
            from lorsa.runner.demo.data import DEMO_VERSION

            return f"demo v{DEMO_VERSION}"
        case "glue":
            return f"{data.path or HUB_DATASET}@{data.revision or 'main'}"
        case "local":
            splits = find_files(task, data).splits
            numbered = [(f"{split}/{i}", file) for split in sorted(splits) for i, file in enumerate(splits[split])]
            return f"local:{_digest(numbered)}"
    raise UserError(f"data={data.name} is unknown; valid: demo, glue, local.")


def _digest(files: list[tuple[str, Path]]) -> str:
    entries = []
    for name, file in files:
        try:
            state = file.stat()
        except OSError as error:
            raise UserError(f"{file} cannot be read: {error.strerror}.") from error
        entries.append((name, file, state.st_size, state.st_mtime_ns, state.st_ino))
    # A sweep has one model and one data set for thousands of runs: as long as the files stay as they are, they are read
    # once. A file that was written a moment ago could change again within one tick of the file system's clock.
    settled = all(time.time_ns() - modified > _TICK_NS for _, _, _, modified, _ in entries)
    return (_kept_digest if settled else _digest_of)(tuple(entries))


def _digest_of(entries: tuple[tuple[str, Path, int, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for name, file, size, *_ in entries:
        try:
            _add_file(digest, name, file, size)
        except OSError as error:
            raise UserError(f"{file} cannot be read: {error.strerror}.") from error
    return digest.hexdigest()[:_DIGITS]


_kept_digest = cache(_digest_of)


def _add_file(digest: "_Hash", name: str, file: Path, size: int) -> None:
    digest.update(f"{name}\0{size}\0".encode())
    with file.open("rb") as stream:
        for start, length in _spans(size):
            stream.seek(start)
            digest.update(stream.read(length))


def _spans(size: int) -> Iterator[tuple[int, int]]:
    """Yield (start, length) of the parts of a file of `size` bytes that enter its digest."""
    if size <= _WHOLE_UP_TO:
        yield from ((start, _MIB) for start in range(0, size, _MIB))
        return
    yield 0, _MIB
    yield from ((i * (size - _BLOCK) // (_BLOCKS - 1), _BLOCK) for i in range(_BLOCKS))
    yield size - _MIB, _MIB
