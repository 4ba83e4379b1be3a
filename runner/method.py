"""From `cfg.method.config` to the config object of a method, with its fields checked."""

from __future__ import annotations

import importlib
from dataclasses import fields
from typing import Any

from omegaconf import OmegaConf

from lorsa.methods.apply import MethodConfig, config_fields
from lorsa.runner.errors import UserError, nearest
from lorsa.runner.schema import MethodChoice

_NUMBERS = {"int": "a whole number", "float": "a number"}


def _is(value: Any, kind: str) -> bool:
    return not isinstance(value, bool) and isinstance(value, int if kind == _NUMBERS["int"] else int | float)


def build_method(method: MethodChoice) -> MethodConfig:
    """Instantiate the class that `_target_` names with the other keys.

    Raises:
        UserError: there is no such class, it is not a method's config, or a key or value does not fit it.
    """
    arguments: dict[str, Any] = OmegaConf.to_container(method.config, resolve=True)  # type: ignore[assignment]
    target = arguments.pop("_target_")
    module_name, _, class_name = target.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ImportError:
        raise UserError(f"method.config._target_={target}: there is no module {module_name}.") from None
    found = getattr(module, class_name, None)
    if not isinstance(found, type) or not issubclass(found, MethodConfig):
        configs = [
            name
            for name, value in vars(module).items()
            if isinstance(value, type) and issubclass(value, MethodConfig) and name.endswith("Config")
        ]
        raise UserError(f"method.config._target_={target} is no method's config{nearest(class_name, configs)}")
    valid = config_fields(found)
    for key in arguments:
        if key not in valid:
            raise UserError(f"method.config.{key} is not a field of {class_name}{nearest(key, valid)}")
    for field in fields(found):
        kind = _NUMBERS.get(str(getattr(field.type, "__name__", field.type)))
        value = arguments.get(field.name, field.default)
        # Some fields of PEFT's are null by default, whatever their type says.
        if kind and value != field.default and not _is(value, kind):
            raise UserError(f"method.config.{field.name}={value} must be {kind}.")
    try:
        return found(**arguments)
    except (ValueError, TypeError) as error:
        raise UserError(f"method={method.name}: {str(error).strip()}") from error
