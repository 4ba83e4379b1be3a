"""`lorsa-run`: from the command line to a config, or to one sentence about what is wrong with it."""

from __future__ import annotations

import os
import sys
from typing import Any, cast

import hydra
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from lorsa.runner.compose import register_schema
from lorsa.runner.errors import UserError, nearest
from lorsa.runner.schema import JobConfig

EXIT_BAD_INPUT = 2


def main() -> None:
    """Run the command line `lorsa-run [overrides]`; exits 0 if the run is done, 2 on bad input."""
    register_schema()
    # Hydra would print its own errors and exit; with this set it raises them, and we put them into words.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    try:
        _hydra_main()
    except (HydraException, OmegaConfBaseException) as error:
        print(f"lorsa-run: {explain(error)}", file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT)
    except KeyboardInterrupt:
        print("lorsa-run: interrupted; the same command goes on from the last checkpoint.", file=sys.stderr)
        sys.exit(130)


@hydra.main(version_base="1.3", config_path="pkg://lorsa.conf", config_name="config")
def _hydra_main(cfg: DictConfig) -> float | None:
    from lorsa.runner.job import run

    try:
        return run(cast(JobConfig, cfg))
    except UserError as error:
        # Here, because Hydra would first print a line about the job.
        print(f"lorsa-run: {error}", file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT)


def explain(error: Exception) -> str:
    """Return one sentence for an error of composition: what is wrong, where, and what would be valid."""
    if isinstance(error, MissingConfigException) and error.options is not None and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        return f"there is no {group} named '{name}'{nearest(name, error.options)}"
    cause: Any = error.__cause__ if isinstance(error, ConfigCompositionException) else error
    if isinstance(cause, OmegaConfBaseException):
        parent = cause.parent_node
        key = str(cause.key) if cause.key is not None else ""
        if parent is not None and isinstance(parent, DictConfig) and key and key not in parent:
            where = cause.full_key or key
            return f"there is no key '{where}'{nearest(key, [str(name) for name in parent])}"
        first_line = str(cause.msg or cause).splitlines()[0]
        place = f"{cause.full_key}: " if cause.full_key else ""
        return f"{place}{first_line}"
    return " ".join(str(error).split())


if __name__ == "__main__":
    main()
