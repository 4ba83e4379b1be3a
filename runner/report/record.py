"""What a report keeps of one finished run."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorsa.runner.result import SCHEMA_VERSION

# The indices of LoRSA's components are most of a result's bytes. The writer puts each key of the top level on a line of
# its own, two blanks in, and no JSON string holds a line break: so these are the bounds of that one value.
_COMPONENTS, _AFTER = b'\n  "components": ', b',\n  "timings": '


class NotAResultError(ValueError):
    """The file is not a result of this schema; the message says why, in few words."""


@dataclass(frozen=True, slots=True)
class Run:
    """One finished run.

    Attributes:
        path: its directory.
        settings: its resolved config, flattened: dotted key to value; with `engine.processes` and `model.content`. A
            key that is not there is as one that is null.
        score: the primary metric on the validation set; None where it is undefined, as a correlation with constant
            predictions is.
        dev: the same on the dev part of the training rows, which chose the checkpoint; None also where there is none.
        metric: what the primary metric is.
        train_seconds: None where the run was resumed, because its clock counts the last attempt alone.
        tokens_per_s: padding left out; None if the last attempt trained nothing.
        peak_bytes: most memory in use, of the GPU or resident.
        adapter_bytes: of the adapter's folder.
        hardware: the accelerators, or else the processor.
        versions: of Python and the libraries.
        commit: of lorsa's own code, None where it was not run from a repository.
        dirty: whether that code had changes that are in no commit.
        has_components: whether it is a LoRSA run, which lorsa.runner.analysis can read.
    """

    path: Path
    signature: str
    model: str
    method: str
    task: str
    seed: int
    protocol: str
    source: str
    is_demo: bool
    settings: dict[str, Any]
    score: float | None
    dev: float | None
    metric: str
    adapter_params: int
    head_params: int
    total_params: int
    train_seconds: float | None
    tokens_per_s: float | None
    peak_bytes: int
    adapter_bytes: int
    hardware: str
    versions: dict[str, str]
    commit: str | None
    dirty: bool
    has_components: bool

    @property
    def train_rows(self) -> int | None:
        """The first so many rows that it trained on, or None for all."""
        rows: int | None = self.settings.get("data.train_rows")
        return rows

    def value(self, key: str) -> Any:
        """Return what `--where` and `--by` compare: a name such as `task`, or a dotted key of the config."""
        return getattr(self, key) if key in NAMES else self.settings.get(key)


NAMES = ("model", "method", "task", "seed", "protocol", "source", "train_rows", "metric", "hardware")
"""What a run can be filtered and grouped by, besides every dotted key of its config."""


def read_record(path: Path) -> Run:
    """Read `<path>/result.json`.

    Raises:
        FileNotFoundError: there is none.
        NotAResultError: it is damaged, half-written or of another schema.
    """
    content = (path / "result.json").read_bytes()
    has_components = False
    start = content.find(_COMPONENTS)
    end = content.find(_AFTER, start) if start >= 0 else -1
    if end >= 0:
        value = start + len(_COMPONENTS)
        has_components = content[value : value + 4] != b"null"
        content = content[:value] + b"null" + content[end:]
    try:
        stored = json.loads(content)
    except ValueError as error:
        raise NotAResultError("result.json is damaged or half-written") from error
    if not isinstance(stored, dict) or "schema_version" not in stored:
        raise NotAResultError("result.json is not of lorsa")
    if stored["schema_version"] != SCHEMA_VERSION:
        raise NotAResultError(f"result.json has schema version {stored['schema_version']}, not {SCHEMA_VERSION}")
    try:
        return _record(path, stored, has_components or stored.get("components") is not None)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else "has a value of a wrong type"
        raise NotAResultError(f"result.json {what}") from error


def _record(path: Path, stored: Mapping[str, Any], has_components: bool) -> Run:
    metric, speed, memory = stored["primary_metric"], stored["throughput"], stored["memory"]
    whole = stored["resumed_from_step"] == 0
    hardware = stored["hardware"]
    return Run(
        path=path,
        signature=str(stored["signature"]),
        model=str(stored["model"]),
        method=str(stored["method"]),
        task=str(stored["task"]),
        seed=int(stored["seed"]),
        protocol=str(stored["protocol"]),
        source=str(stored["data_source"]),
        is_demo=bool(stored["is_demo"]),
        settings=flat(stored["config"]) | _content(stored) | _processes(hardware),
        score=_finite(metric["test"]),
        dev=_finite(metric["dev"]),
        metric=str(metric["name"]),
        adapter_params=int(stored["adapter_params"]),
        head_params=int(stored["head_params"]),
        total_params=int(stored["total_params"]),
        train_seconds=_finite(stored["timings"]["train"]) if whole else None,
        tokens_per_s=_finite(speed["tokens_per_s"]),
        peak_bytes=int(memory["peak_bytes"]),
        adapter_bytes=int(memory["adapter_bytes"]),
        hardware=", ".join(map(str, hardware.get("gpus") or [])) or str(hardware.get("cpu", "?")),
        versions=dict(stored["versions"]),
        commit=stored["git"]["commit"],
        dirty=bool(stored["git"]["dirty"]),
        has_components=has_components,
    )


def _content(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return which weights the model's path named when it was read."""
    found = stored.get("model_content") or stored.get("model_commit")
    return {} if found is None else {"model.content": found}


def _processes(hardware: Mapping[str, Any]) -> dict[str, Any]:
    """Return by how many processes it was trained, which torchrun may have decided; older results do not say it."""
    return {"engine.processes": hardware["processes"]} if "processes" in hardware else {}


def _finite(value: Any) -> float | None:
    if value is None:
        return None
    return float(value) if math.isfinite(value) else None


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested config as dotted keys; lists become text."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        elif isinstance(value, list):
            found[f"{prefix}{key}"] = json.dumps(value)
        else:
            found[f"{prefix}{key}"] = value
    return found
