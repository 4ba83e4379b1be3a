"""Bases of weights on disk: a weight's SVD is computed once, and read component by component from then on.

<folder>/bases/
    <fingerprint>.safetensors   a basis; see basis_file.py
    <fingerprint>.part          one being written, or left by a process that was killed: the next one overwrites it
    <fingerprint>.lock          held while the basis is computed
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from filelock import FileLock
from torch import Tensor, nn

from lorsa.methods.errors import MethodError
from lorsa.methods.lorsa.basis import ALGORITHM_VERSION, Basis, check_decomposable, singular_basis
from lorsa.methods.lorsa.basis_file import BasisFile, DamagedFileError, write_basis_file
from lorsa.methods.partitioned import is_partitioned, whole


def default_folder() -> Path:
    """Return the folder of the environment variable LORSA_CACHE, else ${XDG_CACHE_HOME:-~/.cache}/lorsa.

    Raises:
        MethodError: neither is set, and there is no home.
    """
    try:
        if folder := os.environ.get("LORSA_CACHE"):
            return Path(folder).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "lorsa"
    except RuntimeError as error:
        raise MethodError("There is no home folder for ~/.cache/lorsa; set LORSA_CACHE to a folder.") from error


class BasisCache:
    """Bases in `folder`/bases, by what the weight is, not by its name. Any number of processes may share a folder.

    Args:
        folder: made when the first basis is stored.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder) / "bases"
        self.close: Callable[[], object] = lambda: None

    @classmethod
    def temporary(cls) -> BasisCache:
        """Return a cache whose folder is deleted by `close`, with the object, or at the end of the process."""
        folder = tempfile.mkdtemp(prefix="lorsa-")
        cache = cls(folder)
        cache.close = weakref.finalize(cache, shutil.rmtree, folder, ignore_errors=True)
        return cache

    def has(self, weight: Tensor) -> bool:
        """Say whether there is a file for this weight, (m, n); it is not read."""
        return self._path(weight, "weight").exists()

    def basis(self, weight: Tensor, name: str = "weight") -> StoredBasis:
        """Return the basis of a weight, computed and stored if it is not there; see `singular_basis`.

        A process that finds another one computing the same basis waits for it. A file that is damaged, or that is not
        of this format, is replaced, with a warning.

        Args:
            weight: (m, n), any floating dtype. Referred to as long as the result is, to replace a file that decays.
            name: what to call the weight in an error.

        Raises:
            MethodError: the weight has no decomposition, or the basis cannot be stored.
        """
        partitioned = is_partitioned(weight)
        with whole([weight]):
            path = self._path(weight, name)
            computed = not path.exists() and self._fill(path, weight, name)

        def repair() -> None:
            if partitioned:  # this process alone cannot gather it
                raise MethodError(f"{path} is damaged; remove it and start again.")
            if self._path(weight, name) != path:
                raise MethodError(f"{path} is damaged, and {name} has changed since; load the model again.")
            self._fill(path, weight, name)

        return StoredBasis(path, computed, repair)

    def put(self, stem: str, basis: Basis) -> None:
        """Store a basis that another process computed and that is not here; U, s and V on the CPU.

        Args:
            stem: what `StoredBasis.stem` is there.
            basis: all components.

        Raises:
            MethodError: it cannot be stored.
        """
        path = self.folder / f"{stem}.safetensors"
        with _writing(path, (len(basis.U), len(basis.V)), basis.s.element_size(), stem):
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(path.with_suffix(".lock")):
                if not path.exists():
                    write_basis_file(path, basis.U.mT.contiguous(), basis.s, basis.V.mT.contiguous())

    def has_stem(self, stem: str) -> bool:
        """Say whether there is a file for the weight with this fingerprint; it is not read."""
        return (self.folder / f"{stem}.safetensors").exists()

    def _path(self, weight: Tensor, name: str) -> Path:
        check_decomposable(weight, name)
        digest = hashlib.sha256(f"{ALGORITHM_VERSION} {weight.dtype} {tuple(weight.shape)} ".encode())
        for rows in weight.detach().split(1024):
            digest.update(rows.cpu().contiguous().view(torch.uint8).numpy())
        return self.folder / f"{digest.hexdigest()}.safetensors"

    def _fill(self, path: Path, weight: Tensor, name: str) -> bool:
        """Compute and store a basis, unless a whole one is there once the lock is held; return which."""
        with _writing(path, weight.shape, max(weight.element_size(), 4), name):
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(path.with_suffix(".lock")):  # released by a kill, too
                if path.exists():
                    try:
                        BasisFile(path).verify()
                        return False
                    except DamagedFileError:
                        pass
                basis = singular_basis(weight, name)
                write_basis_file(path, basis.U.mT.cpu(), basis.s.cpu(), basis.V.mT.cpu())
        return True


class StoredBasis:
    """A basis on disk; made by `BasisCache.basis`.

    Attributes:
        computed: whether it was computed for this object, not found.
    """

    def __init__(self, path: Path, computed: bool, repair: Callable[[], None]) -> None:
        self.computed = computed
        self._path, self._repair = path, repair
        try:
            self._file = BasisFile(path)
        except DamagedFileError as damage:
            self._replace(damage)

    @property
    def stem(self) -> str:
        """The weight's fingerprint."""
        return self._path.stem

    @property
    def s(self) -> Tensor:
        """All singular values, (K,), descending, float32 or (of a float64 weight) float64; in memory, on the CPU."""
        return self._file.s

    def select(self, indices: list[int], device: torch.device | str | None = None) -> Basis:
        """Return the components with these indices, in this order, on `device` (default: CPU), reading no others."""
        index = torch.tensor(indices, dtype=torch.long)
        try:
            U, V = self._file.checked(index)
        except DamagedFileError as damage:
            self._replace(damage)
            U, V = self._file.checked(index)
        return Basis(U.mT.contiguous().to(device), self.s[index].to(device), V.mT.contiguous().to(device))

    def load(self, device: torch.device | str | None = None) -> Basis:
        """Return all components, on `device`, or by default as views of the file.

        The views' pages are the file's: the system reads them when they are used, and drops them when it needs memory.
        """
        try:
            self._file.verify()
        except DamagedFileError as damage:
            self._replace(damage)
        return Basis(self._file.U.mT.to(device), self.s.to(device), self._file.V.mT.to(device))

    def _replace(self, damage: DamagedFileError) -> None:
        warnings.warn(f"{self._path} {damage}; the basis is computed again.", stacklevel=3)
        self._repair()
        self.computed = True
        self._file = BasisFile(self._path)


def prefetch(
    layers: Mapping[str, nn.Linear], cache: BasisCache, on_done: Callable[[str, bool], None] | None = None
) -> None:
    """Store the bases of all layers, one after the other; a run that is stopped goes on where it was.

    Args:
        layers: by name. One basis is in memory at a time, in addition to the layers.
        cache: what is there already is skipped.
        on_done: called after each layer with its name, and whether its basis was computed.

    Raises:
        MethodError: a weight has no decomposition, or its basis cannot be stored.
    """
    for name, layer in layers.items():
        computed = cache.basis(layer.weight, name).computed
        if on_done is not None:
            on_done(name, computed)


@contextmanager
def _writing(path: Path, shape: Sequence[int], width: int, name: str) -> Iterator[None]:
    """Turn the operating system's refusals to write into a sentence."""
    try:
        yield
    except OSError as error:
        m, n = shape
        size = min(m, n) * ((m + n + 1) * width + 8)
        raise MethodError(
            f"Cannot store the basis of {name}, {size:,} bytes, in {path.parent} ({error.strerror or error}); set "
            "LORSA_CACHE to a folder that has room and can be written."
        ) from error
