"""What the person at the terminal sees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lorsa.runner.distributed import is_main

# Of several processes the main one speaks.
console = Console(highlight=False, quiet=not is_main())
# For what is said while a command works whose output a program may read.
aside = Console(highlight=False, quiet=not is_main(), stderr=True)


def say(text: str) -> None:
    """Print one line about the progress of a run."""
    console.print(text, markup=False, soft_wrap=True)


def show_result(result: dict[str, Any], folder: Path) -> None:
    """Print the final table of a run."""
    metric = result["primary_metric"]
    table = Table(title=f"{result['method']} on {result['task']}, {result['model']}", title_justify="left")
    table.add_column("what")
    table.add_column("value", justify="right")
    chosen = "dev part of the training set" if result["protocol"] == "split" else "best epoch on the validation set"
    table.add_row(f"{metric['name']}, {chosen}", _score(metric["dev"]))
    table.add_row(f"{metric['name']}, validation set", _score(metric["test"]))
    table.add_row("adapter parameters", f"{result['adapter_params']:,}")
    table.add_row("head parameters", f"{result['head_params']:,}")
    percent = 100 * result["adapter_params"] / result["total_params"]
    table.add_row("adapter, share of the model", f"{percent:.3g} %")
    table.add_row("peak memory", f"{result['memory']['peak_bytes'] / 2**20:,.0f} MiB")
    speed = result["throughput"]["tokens_per_s"]
    table.add_row("training speed", "-" if speed is None else f"{speed:,.0f} tokens/s")
    table.add_row("time", f"{result['timings']['total']:.1f} s")
    console.print(table)
    if result["is_demo"]:
        say("Demo data: made-up rows, not GLUE.")
    say(f"Results: {folder}")


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
