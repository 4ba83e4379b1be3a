"""`lorsa prefetch`: fill the cache of singular bases ahead of a sweep."""

from __future__ import annotations

from typing import Annotated

import typer

from lorsa.runner.errors import UserError
from lorsa.runner.terminal import say


def prefetch(
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[OVERRIDES]...", help="As for lorsa-run; a model and a LoRSA method.")
    ] = None,
) -> None:
    """Compute the singular bases that a LoRSA run needs, and keep them where every run finds them.

    That is $LORSA_CACHE, by default ~/.cache/lorsa. What is there already is not computed again, and a command that
    was interrupted goes on with the next matrix.
    """
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from lorsa.runner.cli import explain
    from lorsa.runner.compose import compose
    from lorsa.runner.validate import check

    try:
        cfg = compose(*(overrides or []))
        check(cfg)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error)) from error

    from lorsa.methods import LorsaConfig
    from lorsa.methods.lorsa import default_folder
    from lorsa.runner.bases import fill_cache
    from lorsa.runner.job import prepare
    from lorsa.runner.models import load_model, load_tokenizer

    device, method = prepare(cfg)
    if not isinstance(method, LorsaConfig):
        raise UserError(f"method={cfg.method.name} needs no bases; LoRSA's methods do, such as method=lorsa.")
    base = load_model(cfg, load_tokenizer(cfg))
    base.model.to(device)  # type: ignore[arg-type]  # transformers' wrapper of `to` hides its signature
    computed, count = fill_cache(base.model, base.head, method)
    say(f"{cfg.model.name}: {count} bases in {default_folder()}, {computed} of them computed now.")
