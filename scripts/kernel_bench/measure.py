"""Groups of contenders that take turns: their times, what they keep in memory, tables and the CSV."""

from __future__ import annotations

import csv
import platform
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

BASE = "frozen base"
ROUNDS = 200


@dataclass
class Contender:
    """One way to do a group's work.

    Args:
        name: what to call it.
        forward: does the first half; what it keeps for the second is measured.
        backward: is given the result of the first half.
        fixed: parameters and buffers, which no way of doing it could do without keeping.
        optional: if it fails it is left out with a message.
        extra: the FLOPs that it adds to those of the frozen base, as a share of these.
    """

    name: str
    forward: Callable[[], Any]
    backward: Callable[[Any], object] | None = None
    fixed: Iterable[Tensor] = ()
    optional: bool = False
    extra: float | None = None

    def step(self) -> None:
        """Do it once."""
        result = self.forward()
        if self.backward is not None:
            self.backward(result)


@dataclass
class Row:
    """A line of the CSV."""

    what: str
    shape: str
    dtype: str
    contender: str
    median_ms: float
    p20_ms: float
    p80_ms: float
    wall_ms: float
    ratio: float
    over_floor: float | str
    peak_bytes: int | str
    rounds: int
    hardware: str
    torch: str
    threads: int


@dataclass
class Bench:
    """Measures groups, prints their tables and writes the CSV.

    Args:
        device: "cpu" or "cuda".
        path: the CSV.
        seconds: how long an operator's group goes on, warm-up not counted.
        quick: tiny shapes and two rounds, to see that all of it runs.
        compiled: with torch.compile.
        built: with the compiled operators.
    """

    device: str
    path: Path
    seconds: float
    quick: bool
    compiled: bool
    built: bool

    def compare(
        self, what: str, shape: str, dtype: torch.dtype, contenders: Sequence[Contender], seconds: float = 1.0
    ) -> None:
        """Measure one group, for `seconds` times the time of an operator's; the first contender is the yardstick."""
        contenders = [contender for contender in contenders if self._warm_up(contender)]
        peaks = {contender.name: self._peak_bytes(contender) for contender in contenders}
        times: dict[str, list[tuple[float, float]]] = defaultdict(list)
        least, most = (2, 2) if self.quick else (3, ROUNDS)
        order, end = random.Random(0), time.monotonic() + seconds * self.seconds
        turns = list(contenders)
        for done in range(most):
            if done >= least and time.monotonic() > end:
                break
            order.shuffle(turns)
            for contender in turns:
                times[contender.name].append(self._time(contender))
        rows = self._rows((what, shape, str(dtype).removeprefix("torch.")), contenders, times, peaks)
        print_table(rows)
        write_csv(self.path, rows)
        torch._dynamo.reset()  # its limit of recompilations is per function, and the reference's share one

    def compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function compiled by inductor, once for every shape that it meets."""
        return torch.compile(function, dynamic=False)

    def random(self, *shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0, grad: bool = True) -> Tensor:
        """Return normally distributed numbers as a leaf."""
        return (torch.randn(*shape, device=self.device) * scale).to(dtype).requires_grad_(grad)

    def _warm_up(self, contender: Contender) -> bool:
        if not contender.optional:
            return True  # `_peak_bytes` runs it once
        if not self.compiled:
            return False
        try:
            contender.step()
        except Exception as error:  # whatever a compiler may come up with
            print(f"{contender.name}: left out, {str(error).strip().splitlines()[0]}")
            return False
        return True

    def _time(self, contender: Contender) -> tuple[float, float]:
        """Return the milliseconds of one step, and those on the wall."""
        if self.device == "cpu":
            wall, cpu = time.perf_counter(), time.process_time()
            contender.step()
            return 1e3 * (time.process_time() - cpu), 1e3 * (time.perf_counter() - wall)
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        wall = time.perf_counter()
        start.record()
        contender.step()
        stop.record()
        torch.cuda.synchronize()
        return start.elapsed_time(stop), 1e3 * (time.perf_counter() - wall)

    def _peak_bytes(self, contender: Contender) -> int | str:
        if self.device == "cpu":
            return kept_bytes(contender) if contender.backward is not None else ""
        contender.step()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        contender.step()
        return torch.cuda.max_memory_allocated() - before

    def _rows(
        self,
        group: tuple[str, str, str],
        contenders: Sequence[Contender],
        times: dict[str, list[tuple[float, float]]],
        peaks: dict[str, int | str],
    ) -> list[Row]:
        medians = {name: statistics.median(step for step, _ in pairs) for name, pairs in times.items()}
        rows = []
        for contender in contenders:
            steps, walls = zip(*times[contender.name], strict=True)
            p20, *_, p80 = statistics.quantiles(steps, n=5, method="inclusive")
            median, over_floor = medians[contender.name], ""
            if contender.extra is not None:
                over_floor = round(median / (medians[BASE] * (1 + contender.extra)), 4)
            numbers = [round(number, 4) for number in (median, p20, p80, statistics.median(walls))]
            ratio = round(median / medians[contenders[0].name], 4)
            where = (hardware(self.device), torch.__version__, torch.get_num_threads())
            peak = peaks[contender.name]
            rows.append(Row(*group, contender.name, *numbers, ratio, over_floor, peak, len(steps), *where))
        return rows


def kept_bytes(contender: Contender) -> int:
    """Return how much memory a forward pass keeps for its backward pass beyond what is `fixed`; runs both."""
    fixed = {tensor.untyped_storage().data_ptr() for tensor in contender.fixed}
    kept = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in fixed:
            kept[storage.data_ptr()] = storage  # held, so that no other takes its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = contender.forward()
    total = sum(storage.nbytes() for storage in kept.values())
    kept.clear()
    contender.backward(result)
    return total


def print_table(rows: Sequence[Row]) -> None:
    """Print one group."""
    first = rows[0]
    print(f"\n{first.what}, {first.shape}, {first.dtype}: {first.rounds} rounds")
    width = max(len(row.contender) for row in rows)
    print(f"  {'':{width}}  median ms   p20   to   p80    wall ms   ratio  over floor   peak MiB")
    for row in rows:
        floor = "" if row.over_floor == "" else f"{row.over_floor:.3f}"
        peak = "" if row.peak_bytes == "" else f"{row.peak_bytes / 2**20:.2f}"
        print(
            f"  {row.contender:{width}} {row.median_ms:10.3f} {row.p20_ms:9.3f} {row.p80_ms:9.3f} {row.wall_ms:9.3f} "
            f"{row.ratio:7.3f} {floor:>11} {peak:>10}",
            flush=True,
        )


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Put a group into the CSV, in place of the same one measured before."""
    group = (rows[0].what, rows[0].shape, rows[0].dtype)
    names = [field.name for field in fields(Row)]
    kept = []
    if path.exists():
        with path.open(newline="") as file:
            kept = [row for row in csv.DictReader(file) if (row["what"], row["shape"], row["dtype"]) != group]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows([*kept, *map(asdict, rows)])


def hardware(device: str) -> str:
    """Return what the times depend on."""
    if device != "cpu":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
