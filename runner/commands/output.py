"""A folder that is written whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lorsa.runner.errors import UserError

_OURS = ("config.json", "adapter_config.json")


def check_out(out: Path, force: bool, keep: Iterable[Path]) -> Path:
    """Refuse a folder that may not be written, before the work.

    Args:
        out: the folder to come.
        force: a model or adapter folder in its place may be replaced.
        keep: folders that must stay as they are.

    Returns:
        `out`, absolute and without links.

    Raises:
        UserError: it exists, or would take the place of something else.
    """
    out = out.expanduser().resolve()
    for folder in (each.resolve() for each in keep):
        if out == folder or out in folder.parents or folder in out.parents:
            raise UserError(f"{out} would change {folder}, which it is made from; choose another place.")
    if out.exists() and not force:
        raise UserError(f"{out} exists already; --force replaces it.")
    if out.exists() and not _replaceable(out):
        raise UserError(
            f"{out} is no model or adapter folder, and --force replaces nothing else; choose another place."
        )
    return out


def _replaceable(out: Path) -> bool:
    if not out.is_dir() or (out.parent / "result.json").is_file():  # no folder, or a run's own
        return False
    written = any((out / name).is_file() for name in _OURS) and any(out.glob("*.safetensors"))
    return written or not any(out.iterdir())


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Give a temporary folder beside `out` to write to, which takes its name at the end.

    Raises:
        UserError: the disk is full, or the place cannot be written; nothing of the new folder is left then.
    """
    from safetensors import SafetensorError

    temporary = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
        yield temporary
        _put_in_place(temporary, out)
    except (OSError, SafetensorError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise UserError(f"Cannot write {out}: {reason}.") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _put_in_place(new: Path, out: Path) -> None:
    from lorsa.runner.rundir import flush_to_disk

    for path in [*new.rglob("*"), new]:
        path.chmod(0o755 if path.is_dir() else 0o644)  # safetensors and mkdtemp write for the owner alone
        flush_to_disk(path)
    if not out.exists():
        new.rename(out)
        return
    # Inside the new folder's parent, so on the same disk: both renames are immediate.
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
        old = out.rename(Path(folder) / "old")
        try:
            new.rename(out)
        except BaseException:
            old.rename(out)
            raise
