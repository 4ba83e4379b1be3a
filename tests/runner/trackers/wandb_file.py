"""What is in a .wandb file: records of wandb's protocol buffers in the log format of LevelDB."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zlib import crc32

from wandb.proto.wandb_internal_pb2 import Record

HEADER, BLOCK = 7, 32768
FULL, LAST = 1, 4


def records(path: Path) -> Iterator[Record]:
    """The records; a checksum that is wrong is an error."""
    data = path.read_bytes()
    assert data[:4] == b":W&B"
    position, parts = HEADER, b""
    while position + HEADER <= len(data):
        left = BLOCK - position % BLOCK
        if left < HEADER:
            position += left
            continue
        checksum, length, kind = struct.unpack("<IHB", data[position : position + HEADER])
        part = data[position + HEADER : position + HEADER + length]
        assert checksum == crc32(bytes([kind]) + part)
        parts += part
        position += HEADER + length
        if kind in (FULL, LAST):
            record = Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def history(path: Path) -> list[dict[str, Any]]:
    """The rows of a run's history, without the times."""
    rows = []
    for record in records(path):
        if record.WhichOneof("record_type") == "history":
            items = {
                (item.key or "/".join(item.nested_key)): json.loads(item.value_json) for item in record.history.item
            }
            rows.append({key: value for key, value in items.items() if key not in ("_runtime", "_timestamp")})
    return rows


def only(path: Path, kind: str) -> list[Any]:
    """The records of one kind."""
    return [getattr(record, kind) for record in records(path) if record.WhichOneof("record_type") == kind]
