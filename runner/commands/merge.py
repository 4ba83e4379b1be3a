"""`lorsa merge`: a run's trained model as a plain model folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorsa.runner.commands.finished import load_run, read_run
from lorsa.runner.commands.output import check_out, new_folder
from lorsa.runner.terminal import say

if TYPE_CHECKING:
    from torch import Tensor

    from lorsa.runner.models import BaseModel


def merge(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run, <runs_dir>/<signature>.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write.")],
    force: Annotated[bool, typer.Option("--force", help="Replace OUT if it is a model or adapter folder.")] = False,
) -> None:
    """Write the trained model of a run as a plain model folder, which transformers loads without peft and lorsa.

    Weights in the run's model.dtype with the adapter merged and the head in place, config with the labels,
    tokenizer, and a model card with what the run's result says.
    """
    finished = read_run(run)

    from lorsa.runner.signature import model_folder

    source = model_folder(finished.cfg.model.path)
    out = check_out(out, force, [finished.directory.path, *([source] if source else [])])

    import torch
    from peft import PeftModel

    from lorsa.methods.merging import merge_adapter
    from lorsa.runner.card import CARD, card

    base, model = load_run(finished)
    if isinstance(model, PeftModel):
        merge_adapter(model, probe(base))
    # On a backbone of half precision the head was kept in float32 to train; a plain model has one dtype.
    base.model.to(getattr(torch, finished.cfg.model.dtype))
    with new_folder(out) as folder:
        base.model.save_pretrained(folder)
        base.tokenizer.save_pretrained(folder)
        (folder / CARD).write_text(card(finished.result, "merged"), encoding="utf-8")
    say(f"{finished.cfg.method.name} on {finished.cfg.task.name}, merged: {out}")


def probe(base: BaseModel) -> dict[str, Tensor]:
    """Return two short rows, one of them padded, that merging must not change the answers to."""
    texts = ["A probe of what the model answers.", "Short."]
    return dict(base.tokenizer(texts, padding=True, return_tensors="pt"))
