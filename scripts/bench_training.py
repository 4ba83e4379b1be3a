"""How long does a method train, as a ratio to LoRA on the same machine? The comparison's runs come from several.

python scripts/unpack_small_models.py models
python scripts/bench_training.py --models models --glue glue --repeats 3      # needs a quiet machine

Updates on CoLA as the comparison does them (MiniLM, bfloat16 autocast, one thread), in turns. Prints for each method
the median seconds of training, their ratio to LoRA's, and the median seconds of what comes before: taking the singular
bases from the cache, choosing components, adapting the model.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

REFERENCE = "lora r=8"
METHODS = {
    REFERENCE: ["method=lora"],
    "lorsa r=1": ["method=lorsa"],
    "lorsa_selected r=1": ["method=lorsa_selected"],
    "lorsa_subspace k=64 r=1": ["method=lorsa_subspace", "method.config.r=1"],
    "psoft": ["method=psoft"],
    "full": ["method=full", "train.lr=1e-4"],
}
BEFORE = ("basis", "select", "adapt")


def timings(method: list[str], models: Path, glue: Path, updates: int) -> dict[str, float]:
    """Run a method, and return the seconds of each phase."""
    with tempfile.TemporaryDirectory(prefix="bench-training-") as folder:
        command = [sys.executable, "-m", "lorsa.runner.cli", "experiment=compare_minilm", "task=cola", "train.lr=2e-3"]
        command += [f"model.path={models / 'minilm'}", f"data.path={glue}", "engine.device=cpu"]
        command += [f"train.max_steps={updates}", "task.predict_splits=[]", f"runs_dir={folder}", *method]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        (result,) = Path(folder).glob("*/result.json")
        seconds: dict[str, float] = json.loads(result.read_text())["timings"]
        return seconds


def main() -> None:
    """Time every method, in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True, help="the folder that unpack_small_models.py wrote")
    parser.add_argument("--glue", type=Path, required=True, help="GLUE, in either layout that data=local takes")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--updates", type=int, default=60)
    given = parser.parse_args()
    models, glue = given.models.resolve(), given.glue.resolve()
    # The first run takes the singular bases; it is not counted.
    timings(METHODS["lorsa r=1"], models, glue, updates=1)
    trained: dict[str, list[float]] = {label: [] for label in METHODS}
    before: dict[str, list[float]] = {label: [] for label in METHODS}
    for _ in range(given.repeats):
        for label, method in METHODS.items():
            seconds = timings(method, models, glue, given.updates)
            trained[label].append(seconds["train"])
            before[label].append(sum(seconds.get(phase, 0.0) for phase in BEFORE))
    print("| method | training, s | of LoRA's | before it, s |\n|---|---|---|---|")
    for label in METHODS:
        median = statistics.median(trained[label])
        ratio = median / statistics.median(trained[REFERENCE])
        print(f"| {label} | {median:.1f} | {ratio:.2f} | {statistics.median(before[label]):.1f} |")


if __name__ == "__main__":
    main()
