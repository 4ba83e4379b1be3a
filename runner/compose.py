"""Compose a job's config without a command line: for tests, scripts and commands that need one."""

from __future__ import annotations

from typing import cast

from hydra import compose as hydra_compose
from hydra import initialize_config_module
from hydra.core.config_store import ConfigStore

from lorsa.runner.schema import JobConfig, register_resolvers


def register_schema() -> None:
    """Make Hydra know the types of all keys, and OmegaConf our resolvers."""
    register_resolvers()
    ConfigStore.instance().store("schema", JobConfig)


def compose(*overrides: str) -> JobConfig:
    """Return what `lorsa-run OVERRIDES` would run: a `DictConfig` with the keys and types of `JobConfig`.

    Raises:
        hydra.errors.HydraException: an override names nothing, or has the wrong type.
    """
    register_schema()
    with initialize_config_module("lorsa.conf", version_base="1.3"):
        return cast(JobConfig, hydra_compose("config", overrides=list(overrides)))
