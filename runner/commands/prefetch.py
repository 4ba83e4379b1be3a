"""`lorsa prefetch`: fetch and compute ahead of a sweep what its runs would each want."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorsa.runner.errors import UserError
from lorsa.runner.terminal import say

if TYPE_CHECKING:
    from lorsa.runner.schema import JobConfig


def prefetch(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[OVERRIDES]...", help="As for lorsa-run, those of a sweep with -m among them."),
    ] = None,
) -> None:
    """Fetch models, tokenizers and data from the hubs, and compute the singular bases that LoRSA's methods need.

    Run it where there is internet, before the sweep: compute nodes often have none. The hubs' files go to their own
    caches (HF_HOME), bases to $LORSA_CACHE, by default ~/.cache/lorsa. What is there already is not fetched or
    computed again, and a command that was interrupted goes on.
    """
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from lorsa.runner.cli import explain
    from lorsa.runner.compose import compose_sweep
    from lorsa.runner.validate import check

    try:
        configs = compose_sweep(*(overrides or []))
        for cfg in configs:
            check(cfg)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error)) from error

    for cfg in _first(configs, lambda cfg: [cfg.data, cfg.task.name]):
        _fetch_data(cfg)
    for cfg in _first(configs, lambda cfg: [cfg.model, _without_seed(cfg.method.config)]):
        _fetch_model(cfg)


def _without_seed(method: dict[str, Any]) -> dict[str, Any]:
    """Return a method's settings; its seed chooses among the components of the same bases."""
    return {key: value for key, value in method.items() if key != "seed"}


def _first(configs: Sequence[JobConfig], key: Callable[[JobConfig], list[Any]]) -> list[JobConfig]:
    """Return the first config for each value of `key`."""
    from omegaconf import OmegaConf

    def plain(cfg: JobConfig) -> str:
        return json.dumps(key(cfg), sort_keys=True, default=OmegaConf.to_container)

    found: dict[str, JobConfig] = {}
    for cfg in configs:
        found.setdefault(plain(cfg), cfg)
    return list(found.values())


def _fetch_data(cfg: JobConfig) -> None:
    from lorsa.runner.glue.source import load_task

    data = load_task(cfg.task, cfg.data, hold_out=cfg.protocol == "split")
    say(f"{cfg.task.name}: {len(data.train):,} training rows of {data.source}.")


def _fetch_model(cfg: JobConfig) -> None:
    from lorsa.methods import LorsaConfig
    from lorsa.methods.lorsa import default_folder
    from lorsa.runner.bases import fill_cache
    from lorsa.runner.job import prepare
    from lorsa.runner.models import load_model, load_tokenizer
    from lorsa.runner.schema import in_one_process

    cfg = in_one_process(cfg)
    # Those of the machine that will train. A basis is of the weights as they are stored, whatever computes it.
    cfg.engine.device, cfg.engine.precision = "auto", "fp32"
    device, method = prepare(cfg)
    if not isinstance(method, LorsaConfig):
        load_model(cfg, load_tokenizer(cfg), on_meta=cfg.model.gguf_file is None)
        say(f"{cfg.model.name}: here; method={cfg.method.name} needs no bases.")
        return
    base = load_model(cfg, load_tokenizer(cfg))
    base.model.to(device)  # type: ignore[arg-type]  # transformers' wrapper of `to` hides its signature
    computed, count = fill_cache(base.model, base.head, method)
    say(f"{cfg.model.name}: {count} bases in {default_folder()}, {computed} of them computed now.")
