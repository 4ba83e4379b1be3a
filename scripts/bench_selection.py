"""What choosing the components costs, in training steps of the run that it is done for.

    python scripts/bench_selection.py                                     # the demo's SST-2, the embedded model
    python scripts/bench_selection.py experiment=compare_minilm model.path=models/minilm data.path=glue task=mrpc

Takes overrides as lorsa-run does. The bases are computed beforehand: they are shared by every run of a sweep, and
scripts/bench_basis.py measures them. Goal: 20 steps.
"""

import statistics
import sys
import tempfile

from bench_batches import trainer_seconds

from lorsa.runner.compose import compose
from lorsa.runner.job import Clock, adapt, load, prepare

ROUNDS = 3
UPDATES = 30


def main() -> None:
    """Measure, and print one line."""
    choices, steps = [], []
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory() as folder:
            cfg = compose("method=lorsa", *sys.argv[1:], f"runs_dir={folder}", f"train.max_steps={UPDATES}")
            device, method = prepare(cfg)
            _, base, rows = load(cfg)
            clock = Clock()
            model, _ = adapt(cfg, method, base, rows["train"], device, clock)
            choices.append(clock.parts["select"])
            steps.append(trainer_seconds(cfg, base, model, rows))
    choice, step = statistics.median(choices), statistics.median(steps)
    print(
        f"{cfg.method.name} on {cfg.task.name}, {cfg.model.name}: {choice:.2f} s to choose from "
        f"{cfg.method.calibration_rows} rows, {step:.3f} s a step: {choice / step:.1f} steps"
    )


if __name__ == "__main__":
    main()
