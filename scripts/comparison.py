"""Run the comparison that scripts/comparison.yaml describes, run by run, and write docs/comparison/runs.csv.

    python scripts/unpack_small_models.py models
    python scripts/comparison.py --models models --glue glue --workers 2

A run that is in the CSV is not run again, on whatever machine it was made; one that a killed process left unfinished
resumes from its checkpoint. On a CPU without bfloat16 arithmetic give `--precision fp32`; the CSV keeps what a run had,
a learning rate is chosen among searches of one precision, and differences are taken within one: `--partners` runs the
reference again where only another method has a run in that precision.
A copy of the code outside git names its commit in LORSA_COMMIT.
`python scripts/comparison_report.py` makes the tables and the plot from the CSV.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import multiprocessing
import os
import statistics
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

PRECISION = "engine.precision="  # what a run may have besides the plan's overrides, as the machine has it
PRECISIONS = ("bf16", "fp32")  # the plan's first
REFERENCE = "lora r=8"
HERE = Path(__file__).resolve().parent
CSV = HERE.parent / "docs" / "comparison" / "runs.csv"
MODELS = {"compare_minilm": "minilm", "compare_smollm2": "smollm2_135m"}


@dataclass(frozen=True)
class Cell:
    """One run of the comparison: what it is, apart from how it came out."""

    stage: str
    method: str
    task: str
    phase: str  # search: rates with the search seeds; final: the seeds at the chosen rate
    lr: float
    seed: int


@dataclass(frozen=True)
class Row(Cell):
    """One line of the CSV."""

    metric: str
    dev: float
    validation: float
    adapter_params: int
    head_params: int
    total_params: int
    adapt_seconds: float
    train_seconds: float
    peak_bytes: int
    best_step: int
    signature: str
    commit: str
    torch: str
    peft: str
    cpu: str
    overrides: str

    @property
    def cell(self) -> Cell:
        """What it is a run of."""
        return Cell(self.stage, self.method, self.task, self.phase, self.lr, self.seed)

    @property
    def planned(self) -> list[str]:
        """What the plan asked for: the overrides without the precision."""
        return [each for each in json.loads(self.overrides) if not each.startswith(PRECISION)]

    @property
    def precision(self) -> str:
        """What it ran in."""
        given = [each[len(PRECISION) :] for each in json.loads(self.overrides) if each.startswith(PRECISION)]
        return given[0] if given else PRECISIONS[0]


def read_rows(path: Path) -> list[Row]:
    """Return the CSV's lines, [] where there is no file.

    Raises:
        SystemExit: a line is not whole, as the last can be after a power cut.
    """
    if not path.exists():
        return []
    types = {name: field.type for name, field in Row.__dataclass_fields__.items()}
    read = {"int": int, "float": float, "str": str}
    rows = []
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        for line in reader:
            try:
                rows.append(Row(**{name: read[str(types[name])](value) for name, value in line.items()}))
                json.loads(rows[-1].overrides)  # the last column
            except (KeyError, TypeError, ValueError):
                raise SystemExit(f"{path}, line {reader.line_num}: not a whole run; delete the line.") from None
    return rows


def append_row(path: Path, row: Row) -> None:
    """Add one line, and have it on the disk before returning."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(Row.__dataclass_fields__), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(asdict(row))
        file.flush()
        os.fsync(file.fileno())


class Plan:
    """The runs of scripts/comparison.yaml, and which of them can start."""

    def __init__(self, path: Path, stages: Sequence[str], methods: Sequence[str], tasks: Sequence[str]) -> None:
        self.settings: dict[str, Any] = yaml.safe_load(path.read_text())
        known = list(self.settings["stages"])
        for stage in stages:
            if stage not in known:
                raise SystemExit(f"There is no stage {stage}; the stages are {', '.join(known)}.")
        for stage in self.settings["stages"].values():
            stage.setdefault("tasks", self.settings["tasks"])
            of_all = dict.fromkeys(stage["tasks"], self.settings["search_seeds"])
            stage["search_seeds"] = of_all | stage.get("search_seeds", {})
            for method in stage["methods"]:
                method["search_seeds"] = stage["search_seeds"]
                for each in ("tasks", "seeds"):
                    method.setdefault(each, stage[each])
        self._check(path)
        self.methods = [
            (stage, method)
            for stage in stages or known
            for method in self.settings["stages"][stage]["methods"]
            if not methods or method["label"] in methods
        ]
        # What comes first gives the most useful partial table.
        self.methods.sort(key=lambda pair: pair[1].get("round", 1))
        self.tasks = [task for task in self.settings["tasks"] if not tasks or task in tasks]

    def _check(self, path: Path) -> None:
        """Refuse what would be run and never shown, or silently not compared."""
        for name, stage in self.settings["stages"].items():
            where, labels = f"{path}, stage {name}", [method["label"] for method in stage["methods"]]
            if unknown := {*stage["tasks"], *stage["search_seeds"]} - set(self.settings["tasks"]):
                raise SystemExit(f"{where} may not have tasks that the plan has not: {', '.join(unknown)}.")
            for method in stage["methods"]:
                if unknown := set(method["tasks"]) - set(stage["tasks"]):
                    raise SystemExit(f"{where}: {method['label']} may not have other tasks: {', '.join(unknown)}.")
                if any(each.startswith(PRECISION) for each in method["overrides"]):
                    raise SystemExit(f"{where}: {method['label']} may not set {PRECISION[:-1]}; that is --precision.")
            if not set(stage["tasks"]).intersection(*(method["tasks"] for method in stage["methods"])):
                raise SystemExit(f"{where} has no task that all its methods have, to take a mean over.")
            named = {stage.get("reference", REFERENCE), *stage.get("curve", ())}.union(*stage.get("pairs", []))
            if unknown := named - set(labels):
                raise SystemExit(f"{where} compares with what it does not have: {', '.join(unknown)}.")

    def ready(self, rows: Iterable[Row]) -> Iterator[tuple[Cell, list[str]]]:
        """Yield the runs that can start now and their overrides, in order; those in `rows` among them."""
        rows = list(rows)
        for stage, method in self.methods:
            for task in self.tasks:
                if task not in method["tasks"]:
                    continue
                for seed in method["search_seeds"][task]:
                    for rate in map(float, method["lr"]):
                        cell = Cell(stage, method["label"], task, "search", rate, seed)
                        yield cell, self.overrides(cell, method)
                best = best_rate([row for row in rows if row.stage == stage], method, task)
                if best is None:
                    continue
                for seed in method["seeds"]:
                    cell = Cell(stage, method["label"], task, "final", best, seed)
                    yield cell, self.overrides(cell, method)

    def current(self, rows: Sequence[Row]) -> list[Row]:
        """Return the rows that are what the plan asks for now: a changed grid or recipe leaves others behind."""
        searches = [row for row in rows if row.phase == "search"]
        cells: dict[Cell, list[str]] = dict(self.ready(searches))
        searches = [row for row in searches if row.planned == cells.get(row.cell)]
        cells = dict(self.ready(searches))
        current = [row for row in rows if row.planned == cells.get(row.cell)]
        for (cell, precision), count in Counter((row.cell, row.precision) for row in current).items():
            if count > 1:
                raise SystemExit(f"The CSV has {count} lines of one run in {precision}, {cell}; delete all but one.")
        return current

    def missing(self, rows: Sequence[Row], precision: str) -> Iterator[tuple[Cell, list[str]]]:
        """Yield what can start now and is not in `rows`: final runs in any precision, searches all in the same."""
        cells = list(self.ready(rows))
        chosen = {(cell.stage, cell.method, cell.task) for cell, _ in cells if cell.phase == "final"}
        have = {row.cell for row in rows if row.phase == "final" or row.precision == precision}
        for cell, overrides in cells:
            decided = cell.phase == "search" and (cell.stage, cell.method, cell.task) in chosen
            if cell not in have and not decided:
                yield cell, in_precision(overrides, precision)

    def partners(self, rows: Sequence[Row], precision: str) -> Iterator[tuple[Cell, list[str]]]:
        """Yield the reference's final runs that another method has in this precision, and the reference has not."""
        wanted = {
            (row.stage, row.task, row.seed) for row in rows if row.phase == "final" and row.precision == precision
        }
        have = {row.cell for row in rows if row.precision == precision}
        for cell, overrides in self.ready(rows):
            reference = self.settings["stages"][cell.stage].get("reference", REFERENCE)
            asked = cell.phase == "final" and (cell.stage, cell.task, cell.seed) in wanted
            if cell.method == reference and asked and cell not in have:
                yield cell, in_precision(overrides, precision)

    def overrides(self, cell: Cell, method: dict[str, Any]) -> list[str]:
        """Return what lorsa-run would be given for this run, without the paths."""
        experiment = self.settings["stages"][cell.stage]["experiment"]
        rate = method.get("lr_key", "train.lr")
        return [
            f"experiment={experiment}",
            f"task={cell.task}",
            *method["overrides"],
            f"{rate}={cell.lr:g}",
            f"seed={cell.seed}",
        ]


def best_rate(rows: Sequence[Row], method: Mapping[str, Any], task: str) -> float | None:
    """Return the rate with the best mean dev score, None while the search is not whole in one precision.

    Args:
        rows: of one stage.
        method: as in the plan.
        task: each has a rate of its own.
    """
    for precision in PRECISIONS:
        scores = searched(rows, method, task, precision)
        if len(scores) == len(method["lr"]):
            return max(scores, key=lambda rate: scores[rate])
    return None


def searched(rows: Sequence[Row], method: Mapping[str, Any], task: str, precision: str) -> dict[float, float]:
    """Return the dev score of each rate, in the plan's order: the mean over the search seeds, where all are there."""
    wanted = ("search", method["label"], task, precision)
    scores = {(row.lr, row.seed): row.dev for row in rows if (row.phase, row.method, row.task, row.precision) == wanted}
    found = {}
    for rate in map(float, method["lr"]):
        by_seed = [scores[rate, seed] for seed in method["search_seeds"][task] if (rate, seed) in scores]
        if len(by_seed) == len(method["search_seeds"][task]):
            found[rate] = statistics.fmean(by_seed)
    return found


def in_precision(overrides: list[str], precision: str) -> list[str]:
    """Return the overrides of a run in a precision; the plan's is the experiments' own."""
    return overrides if precision == PRECISIONS[0] else [*overrides, f"{PRECISION}{precision}"]


def run_cell(cell: Cell, overrides: list[str], paths: list[str], log: str) -> Row:
    """Do one run in this process, its output appended to `log`, and return its line."""
    from lorsa.runner import job
    from lorsa.runner.compose import compose
    from lorsa.runner.rundir import RunDirectory
    from lorsa.runner.signature import signature

    with Path(log).open("a", buffering=1) as to, contextlib.redirect_stdout(to), contextlib.redirect_stderr(to):
        cfg = compose(*overrides, *paths)
        job.run(cfg)
        result = RunDirectory(cfg.runs_dir, signature(cfg)).result()
    assert result is not None
    return Row(
        **asdict(cell),
        metric=result["primary_metric"]["name"],
        # A correlation is undefined where a model predicts one value for every row; that is worth nothing.
        dev=result["primary_metric"]["dev"] or 0.0,
        validation=result["primary_metric"]["test"] or 0.0,
        adapter_params=result["adapter_params"],
        head_params=result["head_params"],
        total_params=result["total_params"],
        adapt_seconds=round(result["timings"]["adapt"], 2),
        train_seconds=round(result["timings"]["train"], 2),
        peak_bytes=result["memory"]["peak_bytes"],
        best_step=result["best_step"],
        signature=result["signature"],
        commit=result["git"]["commit"] or os.environ.get("LORSA_COMMIT", ""),
        torch=result["versions"]["torch"],
        peft=result["versions"]["peft"],
        cpu=result["hardware"]["cpu"],
        overrides=json.dumps(overrides),
    )


def main() -> int:
    """Run what is missing; 1 if a run failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True, help="the folder that unpack_small_models.py wrote")
    parser.add_argument("--glue", type=Path, required=True, help="GLUE, in either layout that data=local takes")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the run directories go")
    parser.add_argument("--csv", type=Path, default=CSV)
    parser.add_argument("--plan", type=Path, default=HERE / "comparison.yaml")
    parser.add_argument("--workers", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument("--precision", choices=PRECISIONS, default=PRECISIONS[0], help="the plan's is bf16")
    parser.add_argument(
        "--partners", action="store_true", help="the reference's runs that others have in this precision, and no more"
    )
    parser.add_argument("--stage", action="append", default=[], help="only this stage; may be repeated")
    parser.add_argument("--method", action="append", default=[], help="only this label; may be repeated")
    parser.add_argument("--task", action="append", default=[], help="only this task; may be repeated")
    parser.add_argument("--list", action="store_true", help="print what is missing and could start now, and stop")
    args = parser.parse_args()
    plan = Plan(args.plan, args.stage, args.method, args.task)
    everything = read_rows(args.csv)
    rows = plan.current(everything)
    missing = plan.partners if args.partners else plan.missing
    # A final run that waits for its rate's search is no current one, and is taken from here when it becomes one.
    known = {(row.cell, row.overrides): row for row in everything}
    print(f"{len(rows)} runs are in {args.csv}.", file=sys.stderr)
    if args.list:
        for _, overrides in missing(rows, args.precision):
            print("lorsa-run", *overrides)
        return 0
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    args.runs.mkdir(parents=True, exist_ok=True)
    log = str(args.runs / "comparison.log")
    running: dict[Future[Row], Cell] = {}
    failed: set[Cell] = set()
    # A process for each run: peak memory is the process'.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.workers, mp_context=context, max_tasks_per_child=1) as pool:
        while True:
            for cell, overrides in list(missing(rows, args.precision)):
                if len(running) == args.workers:
                    break
                if cell in failed or cell in running.values():
                    continue
                if row := known.get((cell, json.dumps(overrides))):
                    rows.append(row)
                    continue
                model = MODELS[plan.settings["stages"][cell.stage]["experiment"]]
                paths = [f"model.path={args.models / model}", f"data.path={args.glue}", f"runs_dir={args.runs}"]
                running[pool.submit(run_cell, cell, overrides, paths, log)] = cell
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                cell = running.pop(future)
                try:
                    row = future.result()
                except BrokenProcessPool:
                    raise SystemExit(f"A worker was killed in {cell}; the same command goes on.") from None
                except Exception as error:
                    failed.add(cell)
                    print(f"FAILED {cell}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
                    continue
                append_row(args.csv, row)
                rows.append(row)
                print(f"{len(rows)} {cell} dev {row.dev:.4f} validation {row.validation:.4f}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
