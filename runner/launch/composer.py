"""Composing a thousand runs of a sweep in seconds.

Hydra reads and merges every file again for each run, and most runs of a sweep differ in values alone (seed=3,
train.lr=1e-3). Here each combination of choices is composed once, and values are set on copies of it, by Hydra's own
function and in the order in which Hydra does it.
"""

from __future__ import annotations

import copy
from typing import Any, cast

from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig, open_dict
from omegaconf.errors import OmegaConfBaseException

from lorsa.runner.cli import check_names
from lorsa.runner.schema import JobConfig, typed


class SweepComposer:
    """Stands in for Hydra's config loader, in a launcher and its sweeper; all but `load_sweep_config` is passed on.

    Args:
        loader: Hydra's.
    """

    def __init__(self, loader: ConfigLoader) -> None:
        self._loader = loader
        self._groups = set(loader.list_groups(""))
        self._composed: dict[tuple[str, ...], DictConfig] = {}
        self._typed: dict[int, DictConfig] = {}
        self._parser = OverridesParser.create()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        """Return the config of one run, as Hydra's loader would.

        Raises:
            hydra.errors.HydraException: an override names nothing, or has a wrong value.
        """
        base, parsed, values = self._base(master_config, sweep_overrides)
        config = _with_values(base, values)
        config.hydra.overrides.task = list(sweep_overrides)
        naming = config.hydra.job.config.override_dirname
        config.hydra.job.override_dirname = get_overrides_dirname(
            [override for override in parsed if not override.is_hydra_override()],
            naming.exclude_keys,
            naming.item_sep,
            naming.kv_sep,
        )
        return config

    def job_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> JobConfig:
        """Return the same as the config of a job, typed and without Hydra's part.

        Raises:
            hydra.errors.HydraException: as above.
            omegaconf.errors.OmegaConfBaseException: a value has the wrong type.
            UserError: a chosen file calls itself by another's name.
        """
        base, _, values = self._base(master_config, sweep_overrides)
        if any(override.is_add() or override.is_force_add() or override.is_delete() for override in values):
            # Keys come and go only before the types are there.
            return cast(JobConfig, _typed(_with_values(base, values)))
        if id(base) not in self._typed:
            self._typed[id(base)] = _typed(copy.deepcopy(base))
        config = _with_values(self._typed[id(base)], values)
        check_names(config, base.hydra.runtime.choices)  # again: a value may be a name
        return cast(JobConfig, config)

    def _base(
        self, master_config: DictConfig, sweep_overrides: list[str]
    ) -> tuple[DictConfig, list[Override], list[Override]]:
        """Return the config of the choices among the overrides, all overrides, and those that are not choices."""
        parsed = self._parser.parse_overrides(sweep_overrides)
        values = [override for override in parsed if self._is_value(override)]
        choices = tuple(str(override.input_line) for override in parsed if not self._is_value(override))
        if choices not in self._composed:
            self._composed[choices] = self._loader.load_sweep_config(master_config, list(choices))
        return self._composed[choices], parsed, values

    def _is_value(self, override: Override) -> bool:
        """Whether this override sets, adds or deletes keys; all else may change which files are merged."""
        key = override.key_or_group
        plain = override.package is None and "/" not in key and key not in self._groups
        return plain and key.split(".")[0] != "hydra"


def _typed(config: DictConfig) -> DictConfig:
    check_names(config, config.hydra.runtime.choices)
    with open_dict(config):
        config.pop("hydra")
    return cast(DictConfig, typed(config))


def _with_values(base: DictConfig, values: list[Override]) -> DictConfig:
    config = copy.deepcopy(base)
    try:
        ConfigLoaderImpl._apply_overrides_to_config(values, config)
    except OmegaConfBaseException as error:
        raise ConfigCompositionException() from error
    return config
