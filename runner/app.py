"""`lorsa`: what is done with runs and models besides training, which is `lorsa-run`.

This module and those of the commands import nothing heavy, so that help and shell completion answer at once.
"""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import NoReturn

import typer
from rich.console import Console

from lorsa.runner.commands.analyze import analyze
from lorsa.runner.commands.cancel import cancel
from lorsa.runner.commands.dashboard import dashboard
from lorsa.runner.commands.errors import errors
from lorsa.runner.commands.estimate import estimate
from lorsa.runner.commands.export import export
from lorsa.runner.commands.logs import logs
from lorsa.runner.commands.merge import merge
from lorsa.runner.commands.prefetch import prefetch
from lorsa.runner.commands.report import report
from lorsa.runner.commands.retry import retry
from lorsa.runner.commands.run import run
from lorsa.runner.commands.status import status
from lorsa.runner.commands.submit_glue import submit_glue
from lorsa.runner.commands.sync import sync
from lorsa.runner.errors import UserError

EXIT_BAD_INPUT = 2

_EPILOG = """\
lorsa COMMAND --help has an example of each.

Exit codes: 0 done; 1 a defect of the program; 2 refused (bad input), with one sentence; 130 or 143 interrupted.

Completion with the tab key: lorsa --install-completion, once; for lorsa-run see lorsa-run --help.
"""

app = typer.Typer(
    name="lorsa",
    help="Work with the runs that [bold]lorsa-run[/bold] leaves.",
    epilog=_EPILOG,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
app.command(epilog="Example: lorsa status latest state=failed,lost")(status)
app.command(epilog="Example: lorsa logs 1f0c5e8a --tail 20")(logs)
app.command(epilog="Example: lorsa errors latest task=cola")(errors)
app.command(epilog="Example: lorsa retry latest 'state=out of memory' --set resources.mem_gb=64")(retry)
app.command(epilog="Example: lorsa cancel latest method=lora")(cancel)
app.command(epilog="Example: lorsa run 1f0c5e8a --debug")(run)
app.command(epilog="Example: lorsa report latest --baseline lora --html report.html")(report)
app.command(epilog="Example: lorsa analyze runs/1f0c5e8a9b7d6342 --top 20")(analyze)
app.command(epilog="Example: lorsa export runs/1f0c5e8a9b7d6342 --as lora my-lora")(export)
app.command(epilog="Example: lorsa merge runs/1f0c5e8a9b7d6342 my-model")(merge)
app.command(name="submit-glue", epilog="Example: lorsa submit-glue runs/* --best glue.zip")(submit_glue)
app.command(epilog="Example: lorsa estimate model=llama2_13b engine=zero3 resources=gpu8 --card a100-80gb")(estimate)
app.command(epilog="Example: lorsa sync latest --project lorsa")(sync)
app.command(epilog="Example: lorsa dashboard --project lorsa")(dashboard)
app.command(epilog="Example: lorsa prefetch model=minilm method=lorsa")(prefetch)


def main() -> None:
    """Run the command line `lorsa COMMAND …`; exits 0 when done, 2 on bad input, with one sentence."""
    # A polite kill ends like Ctrl-C: what is half-written is removed.
    signal.signal(signal.SIGTERM, _terminate)
    try:
        app()
    except UserError as error:
        _refuse(error)
    except ValueError as error:
        from lorsa.methods import MethodError  # loaded by now, if this is one

        if not isinstance(error, MethodError):
            raise
        _refuse(error)


def _refuse(error: Exception) -> NoReturn:
    Console(stderr=True, highlight=False).print(f"lorsa: {error}", style="red", markup=False, soft_wrap=True)
    sys.exit(EXIT_BAD_INPUT)


def _terminate(signal_number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + signal_number)


if __name__ == "__main__":
    main()
