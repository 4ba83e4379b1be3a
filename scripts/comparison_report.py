"""Write docs/comparison/README.md and its plots from docs/comparison/runs.csv.

    python scripts/comparison_report.py

A mean over tasks is given where all of them and all seeds are there, a difference where two seeds of every task are. A
stage with methods that the plan gives fewer tasks has means over the tasks that all its methods have, and over all.
Scores are points: 100 times the task's metric on the validation set.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lorsa.runner.report.statistics import Difference, mean_difference

sys.path.insert(0, str(Path(__file__).resolve().parent))
from comparison import CSV, HERE, PRECISIONS, REFERENCE, Plan, Row, best_rate, read_rows, searched

OTHER = "†"  # behind a mean with runs in another precision than the plan's


def text(difference: Difference | None) -> str:
    """Return a mean paired difference with its 95 % interval; a dash for none, or where noise is not known."""
    if difference is None or difference.low is None:
        return "-"
    return f"{difference.mean:+.2f} [{difference.low:+.2f}, {difference.high:+.2f}]"


class Results:
    """The final runs of one stage."""

    def __init__(self, rows: Sequence[Row], tasks: Sequence[str]) -> None:
        self.tasks = tasks
        # The plan's precision takes the place of others.
        self.rows: dict[str, dict[str, dict[int, Row]]] = defaultdict(lambda: defaultdict(dict))
        self._finals = [row for row in rows if row.phase == "final"]
        for row in sorted(self._finals, key=lambda row: PRECISIONS.index(row.precision), reverse=True):
            self.rows[row.method][row.task][row.seed] = row

    def points(self, method: str, task: str) -> list[float]:
        """Return the scores of one method on one task, by seed."""
        return [100 * row.validation for _, row in sorted(self.rows[method][task].items())]

    def mean(self, method: str, seeds: Sequence[int], tasks: Sequence[str]) -> float | None:
        """Return the mean over tasks of the mean over seeds, in points; None unless every task has these seeds."""
        if any(not self.rows[method][task].keys() >= set(seeds) for task in tasks):
            return None
        return statistics.mean(statistics.mean(self.points(method, task)) for task in tasks)

    def all_rows(self, method: str) -> list[Row]:
        """Return every run of a method."""
        return [row for by_seed in self.rows[method].values() for row in by_seed.values()]

    def against(
        self, method: str, others: Mapping[str, float], tasks: Sequence[str], part: str = "validation"
    ) -> Difference | None:
        """Compare a method with a weighted mean of others over the seeds that all have; None where a task has none.

        Args:
            method: its label.
            others: their labels and weights.
            tasks: what the mean is over.
            part: what was scored: validation, or dev, which also chose the rate and the checkpoint.
        """
        pairs = {task: list(self.pairs(method, others, task, part).values()) for task in tasks}
        return mean_difference(pairs) if min(map(len, pairs.values())) > 1 else None

    def pairs(self, method: str, others: Mapping[str, float], task: str, part: str = "validation") -> dict[int, float]:
        """Return the differences in points by seed, each between runs of one precision, the plan's before others."""
        found: dict[int, float] = {}
        for precision in PRECISIONS:
            mine, *theirs = (
                {row.seed: 100 * getattr(row, part) for row in self.in_precision(label, task, precision)}
                for label in (method, *others)
            )
            for seed in sorted(mine.keys() - found.keys()):
                if all(seed in scores for scores in theirs):
                    mean = sum(w * scores[seed] for w, scores in zip(others.values(), theirs, strict=True))
                    found[seed] = mine[seed] - mean
        return found

    def on_curve(self, method: str, ends: Sequence[str]) -> dict[str, float] | None:
        """Return the weights of two methods whose mean has as many parameters, in their logarithm; None outside."""
        if not all(self.all_rows(label) for label in (method, *ends)):
            return None
        size, low, high = (parameters(self, label) for label in (method, *ends))
        if method in ends or not 0 < low <= size <= high or low == high:
            return None
        weight = math.log(size / low) / math.log(high / low)
        return {ends[0]: 1 - weight, ends[1]: weight}

    def in_precision(self, method: str, task: str, precision: str) -> list[Row]:
        """Return a method's runs of a task that are in this precision."""
        return [row for row in self._finals if (row.method, row.task, row.precision) == (method, task, precision)]

    def mixed(self, method: str, task: str) -> bool:
        """Say whether a mean has runs in another precision than the plan's."""
        return any(row.precision != PRECISIONS[0] for row in self.rows[method][task].values())


def parameters(results: Results, method: str) -> float:
    """Return the mean number of adapter parameters; a global allocation can differ by task and seed."""
    return statistics.mean(row.adapter_params for row in results.all_rows(method))


def task_sets(plan: Mapping[str, Any]) -> list[list[str]]:
    """Return what means are taken over: the tasks that all methods of a stage have, and all where there are more."""
    shared = [task for task in plan["tasks"] if all(task in method["tasks"] for method in plan["methods"])]
    return [shared] if shared == plan["tasks"] else [shared, plan["tasks"]]


def table(results: Results, plan: Mapping[str, Any], reference: str) -> list[str]:
    """Return the Markdown lines of one stage's table, fewest parameters first."""
    methods = {method["label"]: method for method in plan["methods"] if results.all_rows(method["label"])}
    found = sorted(methods, key=lambda label: parameters(results, label))
    memory = _memory(results, found, reference)
    head = ["method", "adapter parameters", *results.tasks]
    sets = task_sets(plan)
    for tasks in sets:
        over = f" of {len(tasks)} tasks" if len(sets) > 1 else ""
        head += [f"mean{over}", f"minus {reference} [95 %]"]
    head.append("memory")
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for label in found:
        cells = [label, f"{parameters(results, label):,.0f}"]
        cells += [_score(results, label, task, len(plan["seeds"])) for task in results.tasks]
        for tasks in sets:
            mean = results.mean(label, methods[label]["seeds"], tasks)
            mark = OTHER if any(results.mixed(label, task) for task in tasks) else ""
            count = "" if methods[label]["seeds"] == plan["seeds"] else f" ({len(methods[label]['seeds'])})"
            difference = results.against(label, {reference: 1.0}, tasks) if label != reference else None
            cells += [
                "-" if mean is None else f"{mean:.2f}{mark}{count}",
                text(difference),
            ]
        lines.append("| " + " | ".join([*cells, memory[label]]) + " |")
    return lines


def by_task(results: Results, plan: Mapping[str, Any], reference: str) -> list[str]:
    """Return the Markdown lines of a table of differences to the reference: by task, and on the dev part."""
    rows = []
    labels = [method["label"] for method in plan["methods"] if results.all_rows(method["label"])]
    for label in sorted(labels, key=lambda label: parameters(results, label)):
        cells = [text(results.against(label, {reference: 1.0}, [task])) for task in results.tasks]
        if label == reference or set(cells) == {"-"}:
            continue
        for tasks in task_sets(plan):
            cells.append(text(results.against(label, {reference: 1.0}, tasks, "dev")))
        rows.append("| " + " | ".join([label, *cells]) + " |")
    if not rows:
        return []
    sets = task_sets(plan)
    dev = [f"dev part, mean of {len(tasks)} tasks" if len(sets) > 1 else "dev part, mean" for tasks in sets]
    head = [f"minus {reference} [95 %]", *results.tasks, *dev]
    return ["", "| " + " | ".join(head) + " |", "|" + "---|" * len(head), *rows]


def partners(results: Results, reference: str) -> list[str]:
    """Return a paragraph with the reference's scores in other precisions, which its mean in the table lacks."""
    lines = []
    for precision in PRECISIONS[1:]:
        cells = []
        for task in results.tasks:
            points = [100 * row.validation for row in results.in_precision(reference, task, precision)]
            if points:
                spread = f" ± {statistics.stdev(points):.1f}" if len(points) > 1 else ""
                cells.append(f"{task} {statistics.mean(points):.1f}{spread} ({len(points)})")
        if cells:
            lines += ["", f"{reference} in {precision}, with which runs in {precision} are paired: {', '.join(cells)}."]
    return lines


def _comparison(
    results: Results, plan: Mapping[str, Any], method: str, others: Mapping[str, float], name: str
) -> list[str]:
    """Return a Markdown paragraph for each set of tasks for which there is a difference."""
    lines = []
    for tasks in task_sets(plan):
        difference = results.against(method, others, tasks)
        if difference is not None:
            lines += ["", f"{method} minus {name}: {text(difference)}, {difference.pairs} pairs on {', '.join(tasks)}."]
    return lines


def _score(results: Results, method: str, task: str, seeds: int) -> str:
    """Return one cell: mean and standard deviation, and how many seeds where these are not all of the stage's."""
    points = results.points(method, task)
    if not points:
        return "-"
    spread = f" ± {statistics.stdev(points):.1f}" if len(points) > 1 else ""
    mark = OTHER if results.mixed(method, task) else ""
    count = "" if len(points) == seeds else f" ({len(points)})"
    return f"{statistics.mean(points):.1f}{spread}{mark}{count}"


def _memory(results: Results, methods: Sequence[str], reference: str) -> dict[str, str]:
    """Return each method's peak memory as a ratio to the reference's, over the tasks both have."""
    ratios = {}
    for label in methods:
        peaks = []
        for task in results.tasks:
            for precision in PRECISIONS:
                both = [results.in_precision(method, task, precision) for method in (label, reference)]
                if all(both):
                    mine, theirs = (statistics.median(row.peak_bytes for row in rows) for rows in both)
                    peaks.append(mine / theirs)
                    break
        ratios[label] = f"{statistics.mean(peaks):.2f}" if peaks else "-"
    return ratios


def rates(rows: Sequence[Row], methods: Sequence[Mapping[str, Any]], tasks: Sequence[str]) -> list[str]:
    """Return the Markdown lines of the table of learning rates: the dev score of each, the chosen one in bold."""
    lines = ["| method | rate | " + " | ".join(tasks) + " |", "|---|---|" + "---|" * len(tasks)]
    for method in methods:
        scores: dict[str, dict[float, float]] = defaultdict(dict)
        for task in tasks:
            for precision in reversed(PRECISIONS):  # the plan's takes the place of others
                scores[task] |= searched(rows, method, task, precision)
        for rate in map(float, method["lr"]):
            if not any(rate in of_task for of_task in scores.values()):
                continue
            cells = []
            for task, of_task in scores.items():
                shown = f"{100 * of_task[rate]:.1f}" if rate in of_task else "-"
                cells.append(f"**{shown}**" if rate == best_rate(rows, method, task) else shown)
            lines.append(f"| {method['label']} | {rate:g} | " + " | ".join(cells) + " |")
    return lines


def plot(results: Results, plan: Mapping[str, Any], path: Path) -> bool:
    """Draw the mean score against the adapter's parameters, a line per family; False where nothing is complete."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "lorsa"  # the same file from the same numbers
    from matplotlib import pyplot

    families: dict[str, list[tuple[float, float, float, str]]] = defaultdict(list)
    tasks = task_sets(plan)[0]
    for method in plan["methods"]:
        label = method["label"]
        mean = results.mean(label, method["seeds"], tasks)
        if mean is None or not parameters(results, label):  # a head alone has no place on the axis, and lies far below
            continue
        scores = [results.points(label, task) for task in tasks]
        error = math.sqrt(sum(statistics.variance(each) / len(each) for each in scores)) / len(scores)
        point = (parameters(results, label), mean, error, label)
        families[method.get("family", label)].append(point)
    if not families:
        return False
    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    markers = "osD^vP*Xhd"
    for index, (family, points) in enumerate(families.items()):
        points.sort()
        x, y, error = ([point[i] for point in points] for i in range(3))
        axes.errorbar(x, y, error, marker=markers[index % len(markers)], capsize=3, label=family)
        for point in points:
            axes.annotate(point[3], point[:2], xytext=(4, 5), textcoords="offset points", fontsize=7)
    axes.set_xscale("log")
    axes.set_xlabel("adapter parameters")
    axes.set_ylabel("mean validation score, points (± standard error)")
    axes.set_title(f"{plan['title']}: {', '.join(tasks)}")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
    return True


def report(rows: Sequence[Row], settings: Mapping[str, Any], folder: Path) -> str:
    """Return the README's text, and write the plots beside it."""
    lines = [
        "# The comparison",
        "",
        "Written by `python scripts/comparison_report.py` from [runs.csv](runs.csv), which "
        "`python scripts/comparison.py` fills; [scripts/comparison.yaml](../../scripts/comparison.yaml) says what "
        "runs. Within a stage every method has the same number of learning rates and the same seeds to try them with; "
        "for each task it takes the rate with the best score on a part of the training rows. The validation set is "
        "scored once per run. Numbers are points (100 x the metric), mean ± standard deviation over seeds; a number in "
        "brackets says how many seeds there are where not all are. `minus` a method is paired by task, seed and "
        "precision, with its 95 % confidence interval over seeds: with other rows to score, or rates chosen by another "
        "seed, it would be wider, and the intervals are not corrected for their number. The dev part chose the rates "
        f"and the checkpoints of all methods. {OTHER}: some runs are in another precision than bfloat16. "
        "Memory is the peak's ratio to that method's, in one precision. The runs were made on several machines, so "
        "their times do not compare, and memory does roughly; `python scripts/bench_training.py` times the methods "
        "side by side. `The line "
        "from` one method to another is their mean with weights such that it has as many parameters, in the logarithm. "
        "What was "
        "found is in [FINDINGS.md](FINDINGS.md), what was tried in [TRIED.md](TRIED.md).",
    ]
    for stage, plan in settings["stages"].items():
        of_stage = [row for row in rows if row.stage == stage]
        results = Results(of_stage, plan["tasks"])
        lines += ["", f"## Stage {stage}: {plan['title']}", ""]
        if not of_stage:
            lines.append("No runs yet.")
            continue
        reference = plan.get("reference", REFERENCE)
        lines += table(results, plan, reference)
        lines += by_task(results, plan, reference) + partners(results, reference)
        for first, second in plan.get("pairs", []):
            lines += _comparison(results, plan, first, {second: 1.0}, second)
        if ends := plan.get("curve"):
            for method in plan["methods"]:
                if weights := results.on_curve(method["label"], ends):
                    lines += _comparison(results, plan, method["label"], weights, f"the line from {' to '.join(ends)}")
        file = f"stage_{stage.lower()}.svg"
        if plan.get("plot", True) and plot(results, plan, folder / file):
            lines += ["", f"![Score against parameters]({file})"]
        seeds = {task: " and ".join(map(str, plan["search_seeds"][task])) for task in plan["tasks"]}
        several = [f"on {task} the mean over seeds {of_task}" for task, of_task in seeds.items() if "and" in of_task]
        usual = " and ".join(map(str, settings["search_seeds"]))
        lines += ["", f"Learning rates, dev score with seed {', '.join([usual, *several])}:", ""]
        lines += rates(of_stage, plan["methods"], plan["tasks"])
    made = Counter((row.cpu, row.precision, row.torch, row.peft) for row in rows)
    commits = sorted({row.commit for row in rows})
    lines += ["", "## What ran", ""]
    for (cpu, precision, torch, peft), count in sorted(made.items()):
        runs = "run" if count == 1 else "runs"
        lines.append(f"- {count} {runs} on {cpu} in {precision}, one thread each, torch {torch}, peft {peft}.")
    lines += [f"- Commits: {', '.join(commits)}."]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, default=CSV)
    parser.add_argument("--plan", type=Path, default=HERE / "comparison.yaml")
    args = parser.parse_args()
    folder = args.csv.parent
    plan = Plan(args.plan, [], [], [])
    rows = read_rows(args.csv)
    current = plan.current(rows)
    if len(current) < len(rows):
        print(f"{len(rows) - len(current)} runs of the CSV are not what the plan asks for now; they are left out.")
    text = report(current, plan.settings, folder)
    (folder / "README.md").write_text(text)


if __name__ == "__main__":
    main()
