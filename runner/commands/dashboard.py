"""`lorsa dashboard`: a workspace at wandb that shows a project's runs as methods by tasks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from lorsa.runner.errors import UserError


def dashboard(
    project: Annotated[str, typer.Option(help="wandb's project.")] = "lorsa",
    entity: Annotated[str | None, typer.Option(help="User or team; default: WANDB_ENTITY, or the key's.")] = None,
    name: Annotated[str, typer.Option(help="Name of the workspace; one of that name is replaced.")] = "lorsa",
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write the workspace as JSON there instead of saving it.", show_default=False
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Save a workspace for a project: score by method and task, Pareto plots, curves, memory, LoRSA's components.

    The panels show what `lorsa sync` and tracker=wandb send. With --out nothing is sent, and no key is needed.
    """
    from lorsa.runner.trackers.wandb_account import check_account, default_entity, find_key, require

    if out is not None and not out.expanduser().absolute().parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.expanduser().absolute().parent}.")
    require()
    try:
        import wandb_workspaces  # noqa: F401
    except ImportError as error:
        raise UserError(f"wandb-workspaces is not installed ({error}): pip install 'lorsa[wandb]'.") from error

    from lorsa.runner.rundir import write_atomic
    from lorsa.runner.terminal import say
    from lorsa.runner.trackers.workspace import make_workspace, save, spec

    if out is not None:
        workspace = make_workspace(entity or "entity", project, name)
        try:
            write_atomic(out.expanduser().absolute(), json.dumps(spec(workspace), indent=1) + "\n")
        except OSError as error:
            raise UserError(f"--out {out}: it cannot be written: {error.strerror or error}.") from error
        where = str(out)
    else:
        entity = entity or default_entity(check_account(find_key()))
        if not entity:
            raise UserError("The key has no default entity at wandb; name a user or team with --entity.")
        where = save(make_workspace(entity, project, name))
    if as_json:
        print(json.dumps({"workspace": where, "project": project, "entity": entity}))
    else:
        say(f"Workspace: {where}")
