"""Composing a thousand runs of a sweep in seconds.

Hydra reads and merges every file again for each run, and most runs of a sweep differ in values alone (seed=3,
train.lr=1e-3). Here each combination of choices is composed once, and values are set on copies of it, by Hydra's own
function and in the order in which Hydra does it.
"""

from __future__ import annotations

import copy
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException


class SweepComposer:
    """Stands in for Hydra's config loader, in a launcher and its sweeper; all but `load_sweep_config` is passed on.

    Args:
        loader: Hydra's.
    """

    def __init__(self, loader: ConfigLoader) -> None:
        self._loader = loader
        self._groups = set(loader.list_groups(""))
        self._composed: dict[tuple[str, ...], DictConfig] = {}
        self._parser = OverridesParser.create()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        """Return the config of one run, as Hydra's loader would.

        Raises:
            hydra.errors.HydraException: an override names nothing, or has a wrong value.
        """
        parsed = self._parser.parse_overrides(sweep_overrides)
        values = [override for override in parsed if self._is_value(override)]
        choices = tuple(str(override.input_line) for override in parsed if not self._is_value(override))
        if choices not in self._composed:
            self._composed[choices] = self._loader.load_sweep_config(master_config, list(choices))
        config = copy.deepcopy(self._composed[choices])
        try:
            ConfigLoaderImpl._apply_overrides_to_config(values, config)
        except OmegaConfBaseException as error:
            raise ConfigCompositionException() from error
        config.hydra.overrides.task = list(sweep_overrides)
        return config

    def _is_value(self, override: Override) -> bool:
        """Whether this override sets one key that is there; all else may change which files are merged."""
        key = override.key_or_group
        plain = override.type == OverrideType.CHANGE and override.package is None
        return plain and "/" not in key and key.split(".")[0] != "hydra" and key not in self._groups
