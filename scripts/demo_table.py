"""Does the demo mean something? Head, full fine-tuning and LoRSA on its nine tasks, side by side.

    python scripts/demo_table.py

A task is worth something as a demo if full fine-tuning beats a trained head on the frozen backbone by ten points or
more, and an adapter is if it recovers most of that difference. Runs that are done already are read, not repeated.
"""

import argparse

from lorsa.runner.compose import compose
from lorsa.runner.job import run
from lorsa.runner.rundir import RunDirectory
from lorsa.runner.signature import signature

TASKS = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli")
# The same epochs for all. A model of a million parameters wants other steps than the defaults, which are
# for models of a hundred million and more, and the tasks that compare two sentences want every linear module.
EPOCHS = "train.epochs=16"
METHODS = {
    "head": [EPOCHS, "method=head"],
    "full": [EPOCHS, "method=full", "method.lr=1e-3", "method.head_lr=1e-3"],
    "lorsa": [
        EPOCHS,
        "method=lorsa",
        "method.config.target_modules=${model.modules.all}",
        "method.config.r=4",
        "method.lr=2e-3",
        "method.head_lr=2e-3",
    ],
}
POINTS, RECOVERED = 10.0, 0.8


def score(task: str, method: str, runs_dir: str, seed: int) -> float:
    """Return the primary metric on the validation set, in points."""
    cfg = compose(f"task={task}", f"runs_dir={runs_dir}", f"seed={seed}", *METHODS[method])
    run(cfg)
    result = RunDirectory(runs_dir, signature(cfg)).result()
    assert result is not None
    return 100 * float(result["primary_metric"]["test"] or 0.0)


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs-dir", default="runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    arguments = parser.parse_args()
    lines, worthy, recovered_tasks = [], 0, 0
    for task in arguments.tasks:
        scores = {method: score(task, method, arguments.runs_dir, arguments.seed) for method in METHODS}
        gain = scores["full"] - scores["head"]
        recovered = (scores["lorsa"] - scores["head"]) / gain if gain > 0 else float("nan")
        counts = gain >= POINTS
        worthy += counts
        recovered_tasks += counts and recovered >= RECOVERED
        cells = [f"{scores[method]:.1f}" for method in METHODS]
        lines.append(f"| {task} | {' | '.join(cells)} | {gain:+.1f} | {recovered:.0%} |")
    print(f"\n| task | {' | '.join(METHODS)} | full - head | LoRSA recovers |")
    print("|---|" + "---|" * (len(METHODS) + 2))
    print("\n".join(lines))
    print(
        f"\nFull fine-tuning beats the head by {POINTS:g} points or more on {worthy} of {len(arguments.tasks)} tasks;"
    )
    print(f"LoRSA recovers {RECOVERED:.0%} or more of the difference on {recovered_tasks} of these.")


if __name__ == "__main__":
    main()
