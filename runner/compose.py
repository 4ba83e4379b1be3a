"""Compose configs without a command line: for tests, scripts and commands that need them."""

from __future__ import annotations

from pathlib import Path

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

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


def compose_sweep(*overrides: str) -> list[JobConfig]:
    """Return what `lorsa-run -m OVERRIDES` would run, what an experiment sweeps over by itself included.

    Raises:
        hydra.errors.HydraException: an override names nothing.
        omegaconf.errors.OmegaConfBaseException: a value has the wrong type.
    """
    register_resolvers()
    parser = OverridesParser.create()
    with initialize_config_dir(CONFIG_DIR, version_base="1.3"):
        single = [each.input_line for each in parser.parse_overrides(list(overrides)) if not each.is_sweep_override()]
        master = hydra_compose("config", overrides=[str(line) for line in single], return_hydra_config=True)
        params = OmegaConf.select(master, "hydra.sweeper.params") or {}
        swept = parser.parse_overrides([f"{key}={value}" for key, value in params.items()] + list(overrides))
        runs = BasicSweeper.split_arguments(swept, max_batch_size=None)[0]
        return [typed(hydra_compose("config", overrides=run)) for run in runs]
