"""`lorsa export`: a run's LoRSA adapter as a LoRA adapter, for whatever loads LoRA."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated, Literal

import typer

from lorsa.runner.commands.finished import FinishedRun, load_run, read_run
from lorsa.runner.commands.output import check_out, new_folder
from lorsa.runner.errors import UserError
from lorsa.runner.terminal import say


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run, <runs_dir>/<signature>.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write.")],
    form: Annotated[Literal["lora"], typer.Option("--as", help="What to write.")] = "lora",
    rank: Annotated[
        int | None, typer.Option(min=1, help="Keep at most this rank per module; default: all there is, exactly.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT if it is a model or adapter folder.")] = False,
) -> None:
    """Write the adapter of a LoRSA run as a LoRA adapter, which PEFT loads without lorsa.

    It gives the same answers, and holds the trained head and a model card. With --rank it is the best approximation
    of that rank.
    """
    finished = read_run(run)
    _check_method(finished)
    out = check_out(out, force, [finished.directory.path])

    from peft import PeftModel

    from lorsa.methods.lorsa.export import lorsa_to_lora
    from lorsa.runner.card import CARD, card

    _, model = load_run(finished)
    assert isinstance(model, PeftModel)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's, about the vocabulary of a base without config.json
        exported = lorsa_to_lora(model, rank=rank)
    with new_folder(out) as folder:
        exported.save(folder)
        (folder / CARD).write_text(card(finished.result, "lora", exported.relative_error), encoding="utf-8")
    ranks = [each for each in exported.ranks.values() if each]
    span = " to ".join(str(each) for each in sorted({min(ranks), max(ranks)})) if ranks else "0"
    say(f"LoRA of rank {span} on {len(ranks)} of {len(exported.ranks)} modules: {out}")
    if rank is not None:
        say(f"Relative Frobenius error at rank {rank}, over all modules: {exported.relative_error:.3g}")


def _check_method(run: FinishedRun) -> None:
    name, adapter = run.cfg.method.name, run.directory.adapter
    if run.peft_type is None:
        raise UserError(f"method={name} trained the model's own parameters, which no LoRA holds; use lorsa merge.")
    if run.peft_type != "LORSA":
        raise UserError(f"method={name} is PEFT's: {adapter} loads with peft.PeftModel.from_pretrained as it is.")
