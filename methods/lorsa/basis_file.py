"""The file of one basis: safetensors, with components as rows and a checksum for each.

U (K, m) and V (K, n), the transposes of the factors, so that a component is a row and reading a few reads little;
s (K,), float32 or float64 as they are; crc (K,), int64, the CRC-32 of each row of U, continued over that of V. The
metadata have the version of the format, and a CRC-32 of everything else.
"""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

FORMAT_VERSION = "1"


class DamagedFileError(Exception):
    """A file is not a whole basis; the message follows the file's name."""


class BasisFile:
    """A basis' file, mapped into memory.

    Each component has a checksum of its own, so that a reader of a few checks those and reads no others. CRC-32 finds
    every change within 32 bits and all but 1 in 4e9 of larger ones, and the standard library has a fast one.
    """

    def __init__(self, path: Path) -> None:
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("lorsa_basis") != FORMAT_VERSION:
                    raise DamagedFileError(f"is not a basis of format {FORMAT_VERSION}")
                # On the CPU these are views of the mapped file, not copies.
                self.U, self.V, s, crc = (file.get_tensor(part) for part in ("U", "V", "s", "crc"))
        except (SafetensorError, OSError) as error:
            raise DamagedFileError(f"cannot be read ({error})") from error
        self.s, self._crc = s.clone(), crc.clone()
        if metadata.get("crc") != _head_crc(path, self.U, self.s, self.V, self._crc):
            raise DamagedFileError("does not match its checksum")
        self._verified = False

    def checked(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return rows of U and V, (k, m) and (k, n), as tensors of their own."""
        U, V = self.U.index_select(0, index), self.V.index_select(0, index)
        if not torch.equal(_row_crc(U, V), self._crc[index]):
            raise DamagedFileError("does not match its checksum")
        return U, V

    def verify(self) -> None:
        """Read all rows, once."""
        if not self._verified and not torch.equal(_row_crc(self.U, self.V), self._crc):
            raise DamagedFileError("does not match its checksum")
        self._verified = True


def _row_crc(U: Tensor, V: Tensor) -> Tensor:
    rows = zip(U.numpy(), V.numpy(), strict=True)
    return torch.tensor([zlib.crc32(v, zlib.crc32(u)) for u, v in rows], dtype=torch.int64)


def _head_crc(path: Path, U: Tensor, s: Tensor, V: Tensor, crc: Tensor) -> str:
    """Return the checksum of what the rows' own leave out; with the file's name, since a copy may have another's."""
    head = f"{path.stem} {U.dtype} {tuple(U.shape)} {tuple(V.shape)}".encode()
    return str(zlib.crc32(crc.numpy().data, zlib.crc32(s.numpy().data, zlib.crc32(head))))


def write_basis_file(path: Path, U: Tensor, s: Tensor, V: Tensor) -> None:
    """Write a basis in the safetensors format: a reader, or a crash at any instant, finds all of it or nothing."""
    crc = _row_crc(U, V)
    metadata = {"lorsa_basis": FORMAT_VERSION, "crc": _head_crc(path, U, s, V, crc)}
    header: dict[str, object] = {"__metadata__": metadata}
    end = 0
    for name, tensor in (("U", U), ("V", V), ("s", s), ("crc", crc)):
        dtype = {torch.float32: "F32", torch.float64: "F64", torch.int64: "I64"}[tensor.dtype]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [end, end := end + tensor.nbytes]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # aligns the tensors
    # Not safetensors' own writer: it does not wait for the disk, and a kill leaves a file of a name that nobody knows.
    part = path.with_suffix(".part")
    try:
        with part.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for tensor in (U, V, s, crc):
                file.write(tensor.numpy().data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
