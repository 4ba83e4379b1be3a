"""Compose a job's config without a command line: for tests, scripts and commands that need one."""

from __future__ import annotations

from pathlib import Path

from hydra import compose as hydra_compose
from hydra import initialize_config_dir

from lorsa import conf
from lorsa.runner.schema import JobConfig, register_resolvers, typed

# The folder, not pkg://lorsa.conf: Hydra lists a folder faster than a package.
CONFIG_DIR = str(Path(conf.__file__).parent)


def compose(*overrides: str) -> JobConfig:
    """Return what `lorsa-run OVERRIDES` would run.

    Raises:
        hydra.errors.HydraException: an override names nothing.
        omegaconf.errors.OmegaConfBaseException: a value has the wrong type.
    """
    register_resolvers()
    with initialize_config_dir(CONFIG_DIR, version_base="1.3"):
        return typed(hydra_compose("config", overrides=list(overrides)))
