"""`lorsa estimate`: what a run or a sweep will take, before anything runs."""

from __future__ import annotations

import json
import os
from typing import Annotated

import typer

from lorsa.runner.errors import UserError


def _cards(incomplete: str) -> list[str]:
    from lorsa.runner.estimate.cards import CARDS

    return [name for name in CARDS if name.startswith(incomplete)]


def _overrides(incomplete: str) -> list[str]:
    """Return what an override may become: a group, or one of its choices."""
    from lorsa.runner.compose import CONFIG_DIR
    from lorsa.runner.help import choices

    groups = choices([CONFIG_DIR])
    group, equals, begun = incomplete.partition("=")
    if not equals:
        return [f"{name}=" for name in groups if name.startswith(group)]
    return [f"{group}={name}" for name in groups.get(group, ()) if name.startswith(begun)]


def estimate(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[OVERRIDES]...",
            help="As for lorsa-run, those of a sweep with -m among them.",
            autocompletion=_overrides,
        ),
    ] = None,
    card: Annotated[
        str | None,
        typer.Option(metavar="CARD", help="Will it fit? a100-80gb, h100, … or the GiB.", autocompletion=_cards),
    ] = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="First run a few updates here, to know how long they take.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what runs will take before they run: parameters, memory by part, time, disk.

    No weights are loaded and nothing is fetched; LLaMA-2 13B takes less than a minute. Memory is that of a GPU where
    --card names one, the run asks for GPUs (resources=gpu8) or there is one here; else main memory. One run is shown
    under every engine, a sweep as a table. Time needs a finished run of the same model and method in runs_dir, or
    --calibrate.
    """
    # Before a hub library is loaded: an estimate fetches nothing.
    offline = {name: os.environ.get(name) for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")}
    os.environ.update(dict.fromkeys(offline, "1"))
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from lorsa.runner.cli import explain
    from lorsa.runner.compose import compose_sweep
    from lorsa.runner.estimate.cards import card_bytes
    from lorsa.runner.validate import check

    size = None if card is None else card_bytes(card)
    try:
        configs = compose_sweep(*(overrides or []))
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error)) from error
    for number, cfg in enumerate(configs, 1):
        try:
            check(cfg)
        except (UserError, OmegaConfBaseException) as error:
            of = f"run {number} of {len(configs)}: " if len(configs) > 1 else ""
            raise UserError(f"{of}{explain(error)}") from error
    if calibrate:
        _calibrate(len(configs), overrides or [], offline)
    _quieten()

    from lorsa.runner.estimate.document import estimate as make_estimate
    from lorsa.runner.estimate.table import show
    from lorsa.runner.terminal import aside

    with aside.status("Estimating") as status:
        document = make_estimate(configs, size, len(configs) == 1, lambda run: status.update(f"Estimating {run}"))
    if as_json:
        print(json.dumps(document, indent=2))
    else:
        show(document)


def _calibrate(runs: int, overrides: list[str], offline: dict[str, str | None]) -> None:
    """Run some updates, with the network as the user has it."""
    from lorsa.runner.estimate.time import calibrate

    if runs > 1:
        raise UserError("--calibrate measures one run; give one model, method and task, then estimate the sweep.")
    here = dict(os.environ)
    try:
        for name, value in offline.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
        calibrate(overrides)
    finally:
        os.environ.update(here)


def _quieten() -> None:
    import warnings

    import transformers

    transformers.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
