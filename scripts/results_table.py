"""Print a Markdown table of the runs in a folder: mean and standard deviation over seeds of the score on the test part.

    python scripts/results_table.py runs --model minilm

Runs that differ in anything but the seed are never averaged together, demo runs are shown only with --demo, and debug
runs not at all.
"""

import argparse
import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from lorsa.runner.signature import identity


def setting(result: dict[str, Any]) -> str:
    """Return everything that makes a run what it is but its seed, as a key to group by."""
    config = identity(OmegaConf.create(result["config"]))  # type: ignore[arg-type]
    config.pop("seed")
    config["method"]["config"].pop("seed", None)
    return json.dumps([config, result["data_source"]], sort_keys=True)


def row(results: list[dict[str, Any]]) -> list[str]:
    """Return one line of the table for runs of one setting."""
    first = results[0]
    train = first["config"]["train"]
    scores = {result["seed"]: result["primary_metric"]["test"] for result in results}
    values = [scores[seed] for seed in sorted(scores)]
    deviation = f"{statistics.stdev(values):.4f}" if len(values) > 1 else "-"
    return [
        first["model"],
        first["task"],
        first["method"],
        first["protocol"],
        f"{first['rows']['train']:,} x {train['epochs']:g}",
        f"{train['lr']:g}",
        f"{first['adapter_params']:,}",
        " / ".join(f"{value:.4f}" for value in values),
        f"{statistics.mean(values):.4f}",
        deviation,
        f"{statistics.mean(result['timings']['train'] for result in results):.0f}",
    ]


def main() -> None:
    """Read the results and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="a runs_dir")
    parser.add_argument("--model", help="only runs of this model")
    parser.add_argument("--demo", action="store_true", help="the demo runs instead of those on GLUE")
    arguments = parser.parse_args()
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for path in sorted(arguments.runs.glob("*/result.json")):
        result = json.loads(path.read_text())
        wanted = arguments.model in (None, result["model"]) and result["is_demo"] == arguments.demo
        whole = result["config"]["train"]["max_steps"] == -1 and result["config"]["train"]["overfit_rows"] is None
        if wanted and whole and result["primary_metric"]["test"] is not None:
            groups[setting(result)].append(result)
    header = [
        "model",
        "task",
        "method",
        "protocol",
        "rows x epochs",
        "lr",
        "adapter parameters",
        "by seed",
        "mean",
        "std",
        "training, s",
    ]
    print("| " + " | ".join(header) + " |")
    print("|" + "---|" * len(header))
    for line in sorted(row(results) for results in groups.values()):
        print("| " + " | ".join(line) + " |")


if __name__ == "__main__":
    main()
