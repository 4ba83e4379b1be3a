"""How long does the command line take before it answers? Ratios to an empty Hydra application on the same machine.

python scripts/bench_startup.py
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

EMPTY = """
import hydra
@hydra.main(version_base="1.3", config_path=None)
def main(cfg):
    pass
main()
"""
REPEATS = 9


def seconds(command: list[str], folder: str) -> float:
    """Return how long a command takes."""
    start = time.perf_counter()
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    """Measure in turns, so that a busy moment hits every command alike, and print medians."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "empty.py"
        script.write_text(EMPTY)
        run = [str(Path(sys.executable).with_name("lorsa-run"))]
        small = ["debug=smoke", "data.train_rows=40"]
        subprocess.run([*run, *small], cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        commands = {
            "empty Hydra application, --help": [sys.executable, str(script), "--help"],
            "empty Hydra application, --cfg job": [sys.executable, str(script), "--cfg", "job"],
            "lorsa-run --help": [*run, "--help"],
            "lorsa-run --cfg job": [*run, "--cfg", "job"],
            "lorsa-run, a job that is done": [*run, *small],
        }
        times: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(REPEATS):
            for name, command in commands.items():
                times[name].append(seconds(command, folder))
    medians = {name: statistics.median(values) for name, values in times.items()}
    empty = medians["empty Hydra application, --help"], medians["empty Hydra application, --cfg job"]
    print(f"{'command':40} {'median, s':>10} {'ratio':>6} {'at most':>8}")
    limits = {"lorsa-run --help": 1.5, "lorsa-run --cfg job": 1.5, "lorsa-run, a job that is done": 3 * 1.5}
    for name, median in medians.items():
        yardstick = empty[1] if "cfg" in name or "done" in name else empty[0]
        limit = limits.get(name)
        print(f"{name:40} {median:10.3f} {median / yardstick:6.2f} {limit or '':>8}")


if __name__ == "__main__":
    main()
