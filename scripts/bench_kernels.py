"""What the compiled operators gain, side by side with all that could be used instead.

    python -m lorsa.kernels.build
    OMP_NUM_THREADS=1 python scripts/bench_kernels.py                     # on a CPU, some ten minutes of its time
    python scripts/bench_kernels.py --device cuda --only layer,step

Three sections, each a list of groups whose contenders take turns, in another order every round:

- ops: every operator, forward and backward, against the eager reference and `torch.compile` of it;
- layer: a decoder layer of LLaMA-2 7B's shape, forward and backward: PEFT's LoRA and PSOFT, the three forms of LoRSA on
  the operators and on the reference, and the frozen base without adapters;
- step: whole training steps (forward, backward, AdamW) of a SmolLM2-135M that classifies sequences, the same
  contenders. All linear modules are adapted; weights are random, the shapes are the models'.

A table per group goes to the output, all of them to one CSV; one that is there keeps the groups that were not measured
again. Times: on a CPU the process' own CPU time, which others on the machine disturb least (`wall_ms` beside it), on a
GPU that between two events. `ratio` is to the group's first contender. `peak_bytes`: on a GPU what a step allocates at
its peak; on a CPU what the forward pass keeps for the backward pass, without parameters and buffers. `over_floor`, of
LoRSA: the time over the frozen base's plus the adapter's FLOPs at the base's measured rate.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
from pathlib import Path

os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # read when torch is imported

import torch

from kernel_bench.measure import Bench, hardware
from kernel_bench.models import layer, step
from kernel_bench.ops import ops
from lorsa.kernels import dispatch, implementation
from lorsa.kernels.library import COMMAND

SECTIONS = {"ops": ops, "layer": layer, "step": step}


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, separated by commas (default: all)")
    parser.add_argument("--csv", type=Path, help="where to write (default: docs/kernels/bench_<hardware>.csv)")
    parser.add_argument("--tokens", type=int, help="per step (default: 512, on a GPU 1024 and 16384 for the operators)")
    parser.add_argument("--seconds", type=float, default=2.0, help="for an operator's group (default: 2)")
    parser.add_argument("--threads", type=int, default=1, help="on a CPU (default: 1)")
    parser.add_argument("--no-compile", action="store_true", help="without torch.compile")
    parser.add_argument("--quick", action="store_true", help="tiny shapes, two rounds: does it run?")
    arguments = parser.parse_args()
    sections = arguments.only.split(",")
    if unknown := set(sections) - set(SECTIONS):
        parser.error(f"--only takes {', '.join(SECTIONS)}; got {', '.join(sorted(unknown))}")
    logging.getLogger("torch").setLevel(logging.ERROR)
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    device, quick = arguments.device, arguments.quick
    name = re.sub(r"\W+", "_", hardware(device)).lower()
    path = arguments.csv or Path(__file__).parents[1] / "docs" / "kernels" / f"bench_{name}.csv"
    print(f"{hardware(device)}, {torch.get_num_threads()} thread(s), PyTorch {torch.__version__}")
    print(f"operators: {implementation(device)}")
    built = dispatch._compiled[device]
    if not built:
        print(f"the compiled operators are left out; to build them: {COMMAND}")
    bench = Bench(device, path, arguments.seconds, quick, not arguments.no_compile, built)
    for section in sections:
        default = 32 if quick else 512 if device == "cpu" else 16384 if section == "ops" else 1024
        SECTIONS[section](bench, arguments.tokens or default)


if __name__ == "__main__":
    main()
