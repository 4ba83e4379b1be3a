"""`lorsa-run`: from the command line to a config, or to one sentence about what is wrong with it."""

from __future__ import annotations

import argparse
import importlib
import io
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import redirect_stderr, suppress
from types import FrameType
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from lorsa.runner.completion import asking_shell, completions
from lorsa.runner.compose import CONFIG_DIR
from lorsa.runner.errors import UserError, nearest
from lorsa.runner.help import choices, help_text
from lorsa.runner.schema import register_resolvers, typed

# Where any key may be.
OPEN = ("method.config.", "resources.extra.", "engine.zero.")
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


def main() -> None:
    """Run the command line `lorsa-run [overrides]`; exits 0 if every run is done, 2 on bad input."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(help_text([CONFIG_DIR, *_extra_config_dirs(sys.argv[1:])]))
        return
    register_resolvers()
    # Hydra would print its own errors and exit; with this set it raises them, and we put them into words.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    if shell := asking_shell(sys.argv[1:]):
        _complete(shell)
        return
    # A scheduler's polite kill ends like Ctrl-C: the lock is given back, and status.json says so.
    signal.signal(signal.SIGTERM, _terminate)
    refused: list[str] = []
    try:
        _hydra_main(refused)
    except (HydraException, OmegaConfBaseException, UserError) as error:
        refused.append(_refuse(error))
    except KeyboardInterrupt:
        print("lorsa-run: interrupted; the same command goes on from the last checkpoint.", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    if len(refused) > 1:
        print(f"lorsa-run: {len(refused)} runs of the sweep are not done:", *refused, sep="\n  ", file=sys.stderr)
    if refused:
        sys.exit(EXIT_BAD_INPUT)


def _complete(shell: str) -> None:
    """Print what the command line that is being typed may go on with."""
    line = os.environ.get("COMP_LINE", "")
    found = completions(line, choices([CONFIG_DIR, *_extra_config_dirs(line.split())]))
    if found is not None:
        print(*found, sep="\n" if shell == "fish" else " ")
        return
    # Half a command line is often a wrong one; nobody wants to read that while typing.
    with redirect_stderr(io.StringIO()), suppress(HydraException, OmegaConfBaseException, SystemExit):
        _hydra_main([])


def _hydra_main(refused: list[str]) -> None:
    """Compose and run; a run that is refused is added to `refused`, so that it does not end a sweep."""

    @hydra.main(version_base="1.3", config_path=CONFIG_DIR, config_name="config")
    def run_one(cfg: DictConfig) -> float | None:
        from lorsa.runner.job import run

        try:
            check_names(cfg, HydraConfig.get().runtime.choices)
            launcher = HydraConfig.get().runtime.choices["hydra/launcher"]
            if HydraConfig.get().mode == RunMode.RUN and launcher in ("slurm", "local"):
                raise UserError(f"hydra/launcher={launcher} starts sweeps, of one run too: add -m.")
            return run(typed(cfg))
        except (UserError, OmegaConfBaseException) as error:
            refused.append(_refuse(error))
            return None

    _register_launchers()
    run_one()


def _register_launchers() -> None:
    """Make `hydra/launcher=slurm` and `local` known; Hydra's own search does not see them in an editable install."""
    plugins = Plugins.instance()
    launchers = importlib.import_module("hydra_plugins.lorsa_launcher")
    for launcher in (launchers.SlurmLauncher, launchers.LocalLauncher):
        plugins.register(launcher)


def _extra_config_dirs(arguments: list[str]) -> list[str]:
    parser = argparse.ArgumentParser(add_help=False)
    # A command line that is still being typed may end before the folder.
    parser.add_argument("--config-dir", "-cd", action="append", default=[], nargs="?")
    return [folder for folder in parser.parse_known_args(arguments)[0].config_dir if folder]


def check_names(cfg: DictConfig, choices: Mapping[str, str]) -> None:
    """Refuse a copied YAML that still calls itself by the original's name: its results would be taken for those.

    Args:
        cfg: the composed config.
        choices: the file that was chosen in each group.

    Raises:
        UserError: a file's `name` is not its own.
    """
    for group in ("model", "method", "task"):
        name, choice = cfg[group].name, choices[group]
        if name != choice:
            raise UserError(f"{group}={choice}: the file says name: {name}; give it its own, name: {choice}.")


def _refuse(error: Exception) -> str:
    sentence = explain(error)
    print(f"lorsa-run: {sentence}", file=sys.stderr)
    return sentence


def _terminate(signal_number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + signal_number)


def explain(error: Exception) -> str:
    """Return one sentence for an error: what is wrong, where, and what would be valid."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, MissingConfigException) and error.options is not None and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        return f"there is no {group} named '{name}'{nearest(name, error.options)}"
    cause: Any = error.__cause__ if isinstance(error, ConfigCompositionException) else error
    if isinstance(cause, OmegaConfBaseException):
        if isinstance(cause, ConfigKeyError | ConfigAttributeError) and isinstance(cause.parent_node, DictConfig):
            where = str(cause.full_key or cause.key)
            known = [str(name) for name in cause.parent_node]
            more = f" A new one is added by +{where}=…" if where.startswith(OPEN) else ""
            return f"there is no key '{where}'{nearest(str(cause.key), known) if known else '.'}{more}"
        first_line = str(cause.msg or cause).splitlines()[0]
        place = f"{cause.full_key}: " if cause.full_key else ""
        return f"{place}{first_line}"
    return " ".join(str(error).split())


if __name__ == "__main__":
    main()
