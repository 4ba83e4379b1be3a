"""result.json: what one run found, in a form that is published, versioned and checked (result.schema.json)."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

SCHEMA_VERSION = 1
SCHEMA_FILE = Path(__file__).with_name("result.schema.json")

Result = dict[str, Any]


@cache
def schema() -> dict[str, Any]:
    """Return the JSON schema of result.json."""
    loaded: dict[str, Any] = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
    return loaded


def checked(result: Result) -> Result:
    """Return the result if it follows the schema.

    Raises:
        jsonschema.ValidationError: it does not, which is a defect of the runner.
    """
    import jsonschema

    jsonschema.validate(result, schema())
    return result


def to_text(result: Result) -> str:
    """Return the file's text; NaN would be refused, since it is not JSON."""
    return json.dumps(result, indent=2, allow_nan=False) + "\n"
