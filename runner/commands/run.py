"""`lorsa run`: one run of a sweep again, here and now."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from lorsa.runner.commands.runs import RunsDir, find_run
from lorsa.runner.errors import UserError


def run(
    name: Annotated[str, typer.Argument(metavar="RUN", help="A run's folder, its name, or the name's beginning.")],
    runs_dir: RunsDir = Path("runs"),
    debug: Annotated[
        bool,
        typer.Option("--debug", help="In a folder of its own, leaving the run as it is; a debugger opens on an error."),
    ] = False,
) -> None:
    """Do one run on this machine, in this process, with the config that it was submitted with."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError  # type: ignore[import-untyped]

    from lorsa.runner.launch.again import frozen_config
    from lorsa.runner.schema import register_resolvers, typed
    from lorsa.runner.terminal import say

    path = find_run(name, runs_dir)
    register_resolvers()
    file = frozen_config(path)
    try:
        cfg = typed(OmegaConf.load(file))  # type: ignore[arg-type]
    except (OmegaConfBaseException, YAMLError, OSError) as error:
        raise UserError(f"{file} is damaged, or of another version ({str(error).splitlines()[0]}).") from error
    cfg.runs_dir = str(path.parent)  # it may have been moved
    # It was for the sweep: what the run has done since is not to be thrown away.
    cfg.force = False
    from lorsa.runner.job import run as run_job

    if not debug:
        run_job(cfg)
        return
    cfg.runs_dir = tempfile.mkdtemp(prefix="lorsa-debug-")
    say(f"Writing to {cfg.runs_dir}.")
    os.environ.pop("LORSA_JOB_ID", None)
    try:
        run_job(cfg)
    except UserError:
        raise
    except Exception:
        if not sys.stdin.isatty():
            raise
        import pdb
        import traceback

        traceback.print_exc()
        pdb.post_mortem()
        raise typer.Exit(1) from None
