"""What makes two runs the same run.

The signature is a hash of the whole resolved config, so a changed default in a YAML changes it as an override does.
Left out is what does not change a result: where results go, whether to force, the tracker, the resources, the number of
CPU threads, how often a checkpoint is written, and whether a profile is. Of the resources only the number of processes
counts, because an update sees the rows of all of them.
A path to a local model or data set is replaced by a fingerprint of the files there: the same files elsewhere are the
same run, other files in the same place are another.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from lorsa.runner.distributed import processes
from lorsa.runner.glue.fingerprint import content_fingerprint, data_fingerprint
from lorsa.runner.schema import JobConfig

LENGTH = 16
EMBEDDED = "embedded:"
_EMBEDDED_ROOT = Path(__file__).parent / "demo"


def model_folder(path: str) -> Path | None:
    """Return the local folder that a model path names, or None if it is a hub id.

    `embedded:NAME` is a model that comes with the package.
    """
    if path.startswith(EMBEDDED):
        return _EMBEDDED_ROOT / path.removeprefix(EMBEDDED)
    folder = Path(path).expanduser()
    return folder if folder.is_dir() else None


def identity(cfg: JobConfig) -> dict[str, Any]:
    """Return what the signature is a hash of: the resolved config without what cannot change a result."""
    resolved: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    for key in ("runs_dir", "force", "dry_run", "tracker"):
        resolved.pop(key)
    resolved.pop("resources")
    resolved["engine"]["processes"] = processes(cfg)
    resolved["engine"].pop("threads")
    if resolved["engine"]["zero"] is None:
        resolved["engine"].pop("zero")
    for key in ("checkpoint_every", "profile"):
        resolved["train"].pop(key)
    folder = model_folder(cfg.model.path)
    if folder is not None:
        resolved["model"]["path"] = f"content:{content_fingerprint(folder)}"
    if cfg.data.name == "local":
        resolved["data"]["path"] = f"content:{data_fingerprint(cfg.task, cfg.data)}"
    return resolved


def signature(cfg: JobConfig) -> str:
    """Return the run's name: 16 hexadecimal digits of the SHA-256 of its identity."""
    return hash_of(identity(cfg))


def hash_of(identity: dict[str, Any]) -> str:
    """Return the hash of a plain dictionary, whatever the order of its keys."""
    canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:LENGTH]
