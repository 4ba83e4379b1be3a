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
import copy
import csv
import logging
import os
import platform
import random
import re
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # read when torch is imported

import torch
from torch import Tensor, nn

from lorsa.kernels import dispatch, implementation, operators, reference
from lorsa.kernels.library import COMMAND

if TYPE_CHECKING:
    from peft import PeftConfig

# transformers, PEFT and the tuner are imported by the sections that need them: the operators need torch alone.

MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
FORMS = {
    "subspace": {"space": "subspace", "rotate": "selected"},
    "selected": {"space": "ambient", "rotate": "selected"},
    "all": {"space": "ambient", "rotate": "all"},
}
BASE = "frozen base"
ROUNDS = 200


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama."""

    name: str
    hidden: int
    key_value: int
    intermediate: int
    heads: int
    layers: int
    vocabulary: int = 1000

    def modules(self) -> list[tuple[int, int]]:
        """Return (m, n) of one layer's linear modules."""
        h, kv, i = self.hidden, self.key_value, self.intermediate
        return [(h, h), (kv, h), (kv, h), (h, h), (i, h), (i, h), (h, i)]

    def config(self, **options: Any) -> Any:
        """Return transformers' configuration."""
        from transformers import LlamaConfig

        return LlamaConfig(
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads * self.key_value // self.hidden,
            vocab_size=self.vocabulary,
            attn_implementation="sdpa",
            **options,
        )


SMOLLM2 = Shape("SmolLM2-135M", 576, 192, 1536, 9, 30, 49152)
LLAMA_7B = Shape("LLaMA-2 7B", 4096, 4096, 11008, 32, 32)
LLAMA_13B = Shape("LLaMA-2 13B", 5120, 5120, 13824, 40, 40)
TINY = Shape("tiny", 32, 16, 48, 2, 2)


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


def gradients(outputs: Sequence[Tensor], leaves: Sequence[Tensor], grads: Sequence[Tensor]) -> None:
    """Run a backward pass to the leaves, and let its results go."""
    torch.autograd.grad(outputs, leaves, grads)


# --- ops ---


def ops(bench: Bench, tokens: int) -> None:
    """Every operator by itself."""
    for shape in (TINY,) if bench.quick else (SMOLLM2, LLAMA_7B, LLAMA_13B):
        bench_rotation_core(bench, shape)
    few = random.Random(0)
    modules, k, most = (3, 8, 12) if bench.quick else (210, 64, 112)
    bench_subspace_core(bench, f"{modules} modules, k={k}, r=2", [k] * modules)
    ragged = [few.randint(4, most) for _ in range(modules)]
    bench_subspace_core(bench, f"{modules} modules, k=4 to {most}, r=2", ragged)

    dtypes = (torch.float32, torch.bfloat16)
    for dtype in dtypes:
        for n in (32,) if bench.quick else (576, 4096, 11008):
            bench_thin_rotation(bench, dtype, tokens, n)
        bench_thin_rotation(bench, dtype, tokens - 3, 29 if bench.quick else 1531)
    for dtype in dtypes:
        for m, n in ((48, 32),) if bench.quick else ((1536, 576), (11008, 4096)):
            for kind in ("diagonal", "full", "sides"):
                bench_spectral_linear(bench, kind, dtype, tokens, m, n, 8 if bench.quick else 64)
        odd = (tokens - 3, 47, 29, 7) if bench.quick else (tokens - 3, 1531, 577, 61)
        bench_spectral_linear(bench, "sides", dtype, *odd)
    for samples, K in ((2, 16),) if bench.quick else ((16, 576), (1, 4096)):
        bench_component_sensitivity(bench, tokens, samples, K)


def bench_rotation_core(bench: Bench, shape: Shape) -> None:
    """The cores of a whole model's rotations, from each layer's own parameters to their gradients."""
    modules = shape.modules() * shape.layers
    sizes = [side for module in modules for side in module]
    P, Q = ([bench.random(size, 1, scale=scale) for size in sizes] for scale in (0.1, 1.0))
    leaves, grad_K = [*P, *Q], bench.random(len(sizes), 2, 2, grad=False)
    packed = [torch.cat(parts).detach().requires_grad_() for parts in (P, Q)]
    of_size = {size: [i for i, other in enumerate(sizes) if other == size] for size in dict.fromkeys(sizes)}
    grad_of_size = [grad_K[places] for places in of_size.values()]
    compiled = bench.compile(reference.cayley_core)

    def each() -> list[Tensor]:
        return [reference.cayley_core(*pair) for pair in zip(P, Q, strict=True)]

    def stacked(core: Callable[[Tensor, Tensor], Tensor]) -> list[Tensor]:
        return [
            core(torch.stack([P[i] for i in places]), torch.stack([Q[i] for i in places]))
            for places in of_size.values()
        ]

    def back(K: Tensor) -> None:
        gradients([K], leaves, [grad_K])

    def back_each(K: list[Tensor]) -> None:
        gradients(K, leaves, grad_K.unbind())

    def back_stacked(K: list[Tensor]) -> None:
        gradients(K, leaves, grad_of_size)

    contenders = [
        Contender("eager, each layer", each, back_each, leaves),
        Contender("reference", lambda: reference.rotation_core(torch.cat(P), torch.cat(Q), sizes), back, leaves),
        Contender("eager, stacked by size", lambda: stacked(reference.cayley_core), back_stacked, leaves),
        Contender("torch.compile, stacked by size", lambda: stacked(compiled), back_stacked, leaves, optional=True),
    ]
    if bench.built:
        contenders += [
            Contender("operator", lambda: operators.rotation_core(torch.cat(P), torch.cat(Q), sizes), back, leaves),
            Contender(
                "operator, packed before",
                lambda: operators.rotation_core(*packed, sizes),
                lambda K: gradients([K], packed, [grad_K]),
                packed,
            ),
        ]
    bench.compare("rotation_core", f"{shape.name}: {len(modules)} modules, r=1", torch.float32, contenders)


def bench_subspace_core(bench: Bench, shape: str, sizes: list[int]) -> None:
    """The cores of a whole model's modules in subspace form, from each one's own parameters to their gradients."""
    r = 2
    rotations = [[bench.random(k, r, scale=0.2) for k in sizes] for _ in range(4)]
    s, d = [bench.random(k, grad=False) for k in sizes], [bench.random(k, scale=0.1) for k in sizes]
    leaves = [leaf for part in (*rotations, d) for leaf in part]
    fixed = [*leaves, *s]
    grads = [bench.random(k, k, grad=False) for k in sizes]
    flat_grads = torch.cat([grad.flatten() for grad in grads])
    most = max(sizes)
    padded_grads = torch.stack([nn.functional.pad(grad, (0, most - len(grad)) * 2) for grad in grads])
    batched = torch.vmap(reference.subspace_difference)
    compiled = bench.compile(batched)

    def each() -> list[Tensor]:
        return [reference.subspace_difference(*parts) for parts in zip(*rotations, s, d, strict=True)]

    def packed(core: Callable[..., Tensor]) -> Tensor:
        return core(*(torch.cat(part) for part in (*rotations, s, d)), sizes)

    def padded(core: Callable[..., Tensor]) -> Tensor:
        # Rows of zeros do not turn, and a zero singular value adds nothing.
        return core(*(nn.utils.rnn.pad_sequence(part, batch_first=True) for part in (*rotations, s, d)))

    def back_packed(C: Tensor) -> None:
        gradients([C], leaves, [flat_grads])

    def back_padded(C: Tensor) -> None:
        gradients([C], leaves, [padded_grads])

    contenders = [
        Contender("eager, each layer", each, lambda C: gradients(C, leaves, grads), fixed),
        Contender("reference", lambda: packed(reference.subspace_core), back_packed, fixed),
        Contender("eager, padded", lambda: padded(batched), back_padded, fixed),
        Contender("torch.compile, padded", lambda: padded(compiled), back_padded, fixed, optional=True),
    ]
    if bench.built:
        contenders.append(Contender("operator", lambda: packed(operators.subspace_core), back_packed, fixed))
    bench.compare("subspace_core", shape, torch.float32, contenders)


def bench_thin_rotation(bench: Bench, dtype: torch.dtype, tokens: int, n: int) -> None:
    """One rotation of many rows; an odd n has an offset, as behind a linear layer with a bias."""
    x, grad = bench.random(tokens, n, dtype=dtype), bench.random(tokens, n, dtype=dtype, grad=False)
    P, Q = bench.random(n, 1, scale=0.1), bench.random(n, 1)
    K = reference.cayley_core(P, Q).detach().requires_grad_()
    offset = bench.random(n, dtype=dtype, grad=False) if n % 2 else None
    fixed = [P, Q, K] if offset is None else [P, Q, K, offset]
    compiled = bench.compile(reference.thin_rotation)

    def back(y: Tensor) -> None:
        gradients([y], [x, P, Q, K], [grad])

    def copy_of_x() -> Tensor:
        with torch.no_grad():
            return x.clone()

    contenders = [
        Contender("reference", lambda: reference.thin_rotation(x, P, Q, K, offset), back, fixed),
        Contender("torch.compile", lambda: compiled(x, P, Q, K, offset), back, fixed, optional=True),
    ]
    if bench.built:
        contenders += [
            Contender("operator", lambda: operators.thin_rotation(x, P, Q, K, offset), back, fixed),
            Contender(
                "operator, keeps its output",
                lambda: operators.thin_rotation(x, P, Q, K, offset, keep_output=True),
                back,
                fixed,
            ),
        ]
    # What must be moved: x to y, and x and y's gradient to x's.
    floor = Contender("copy x; add two to a third", copy_of_x, lambda y: torch.add(grad, y))
    bench.compare("thin_rotation", f"{tokens} x {n}, r=1", dtype, [*contenders, floor])


def bench_spectral_linear(bench: Bench, kind: str, dtype: torch.dtype, tokens: int, m: int, n: int, k: int) -> None:
    """One layer's update added to its base's output: diagonal (form all), full (subspace) or with sides (selected)."""
    base, x = bench.random(tokens, m, dtype=dtype), bench.random(tokens, n, dtype=dtype)
    grad = bench.random(tokens, m, dtype=dtype, grad=False)
    U, V = (orthonormal(size, k, bench.device).to(dtype) for size in (m, n))
    width = k + 2 if kind == "sides" else k
    core = bench.random(*((k,) if kind == "diagonal" else (width, width)), scale=0.1)
    sides = [bench.random(size, 2) for size in (m, n)] if kind == "sides" else []
    compiled = bench.compile(reference.spectral_linear)
    fixed = [U, V, core, *sides]

    def contender(name: str, function: Callable[..., Tensor], optional: bool = False) -> Contender:
        return Contender(
            name,
            lambda: function(base, x, U, core, V, *sides),
            lambda y: gradients([y], [base, x, core, *sides], [grad]),
            fixed,
            optional,
        )

    contenders = [
        contender("reference", reference.spectral_linear),
        contender("torch.compile", compiled, optional=True),
    ]
    if bench.built:
        contenders.append(contender("operator", operators.spectral_linear))
    bench.compare(f"spectral_linear, {kind}", f"{tokens} x {n} to {m}, k={k}", dtype, contenders)


def bench_component_sensitivity(bench: Bench, tokens: int, samples: int, K: int) -> None:
    """The scores of one module with K components; there is no backward pass."""
    left, right = (bench.random(tokens, K, grad=False) for _ in range(2))
    s, rows = torch.rand(K, device=bench.device), [tokens // samples] * samples
    kept = tokens // samples * samples
    for kind in operators.KINDS:
        arguments = (left[:kept], right[:kept], s, rows, kind)
        contenders = [Contender("reference", lambda arguments=arguments: reference.component_sensitivity(*arguments))]
        if bench.built:
            run = operators.component_sensitivity
            contenders.append(Contender("operator", lambda arguments=arguments, run=run: run(*arguments)))
        shape = f"{samples} samples of {tokens // samples} tokens, {K} components"
        bench.compare(f"component_sensitivity, {kind}", shape, torch.float32, contenders)


def orthonormal(size: int, k: int, device: str) -> Tensor:
    """Return random orthonormal columns (size, k)."""
    return torch.linalg.qr(torch.randn(size, k)).Q.contiguous().to(device)  # LAPACK gives them column by column


# --- layer and step ---


class DecoderLayer(nn.Module):
    """One decoder layer with random weights, on whole sequences of a fixed length."""

    def __init__(self, shape: Shape, tokens: int, dtype: torch.dtype, device: str) -> None:
        from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

        super().__init__()
        config = shape.config()
        with torch.device(device):
            self.layer = LlamaDecoderLayer(config, layer_idx=0).to(dtype)
            cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1, dtype=dtype), torch.arange(tokens)[None])
        self.register_buffer("cos", cos)
        self.register_buffer("sin", sin)

    def forward(self, x: Tensor) -> Tensor:
        """Turn (1, tokens, hidden) into as much."""
        return self.layer(x, position_embeddings=(self.cos, self.sin))


def layer(bench: Bench, tokens: int) -> None:
    """A decoder layer of LLaMA-2 7B: forward and backward, the input's gradient included."""
    shape = TINY if bench.quick else LLAMA_7B
    base_flops = flops_of_base(shape.modules(), tokens, tokens, shape.hidden)
    for dtype in (torch.float32, torch.bfloat16):
        base = DecoderLayer(shape, tokens, dtype, bench.device).requires_grad_(False)
        x = bench.random(1, tokens, shape.hidden, dtype=dtype)
        grad = bench.random(1, tokens, shape.hidden, dtype=dtype, grad=False)

        def contender(name: str, model: nn.Module, x: Tensor = x, grad: Tensor = grad) -> Contender:
            # Without a task PEFT's wrapper passes by the tuner's own forward pass, which shares the cores.
            run = getattr(model, "base_model", model)

            def back(y: Tensor) -> None:
                y.backward(grad)
                model.zero_grad()
                x.grad = None

            return Contender(name, lambda: run(x), back, constants(model))

        contenders = models(bench, base, contender, shape.modules(), tokens, base_flops)
        # LoRA is what the others are measured by.
        contenders.sort(key=lambda contender: not contender.name.startswith("LoRA"))
        sizes = f"hidden {shape.hidden}, intermediate {shape.intermediate}, {tokens} tokens"
        bench.compare(f"decoder layer of {shape.name}", sizes, dtype, contenders, seconds=45)


def step(bench: Bench, tokens: int) -> None:
    """Whole training steps of SmolLM2-135M on 16 sequences (one of 32 tokens for each 512 of `tokens`)."""
    from transformers import AutoModelForSequenceClassification

    shape = TINY if bench.quick else SMOLLM2
    length = tokens // 16
    config = shape.config(tie_word_embeddings=True, num_labels=2, pad_token_id=0)
    with torch.device(bench.device):
        base = AutoModelForSequenceClassification.from_config(config).requires_grad_(False).train()
        batch = {
            "input_ids": torch.randint(1, shape.vocabulary, (16, length)),
            "attention_mask": torch.ones(16, length, dtype=torch.long),
            "labels": torch.randint(0, 2, (16,)),
        }
    base.enable_input_require_grads()

    def contender(name: str, model: nn.Module) -> Contender:
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-6) if trained else None

        def back(loss: Tensor) -> None:
            loss.backward()
            if optimizer is not None:
                optimizer.step()
                optimizer.zero_grad()

        return Contender(name, lambda: model(**batch).loss, back, constants(model))

    modules = shape.modules() * shape.layers
    base_flops = flops_of_base(modules, 16 * length, length, shape.hidden * shape.layers)
    contenders = models(bench, base, contender, modules, 16 * length, base_flops, "SEQ_CLS")
    sizes = f"{len(modules)} modules, 16 x {length} tokens"
    bench.compare(f"training step of {shape.name}", sizes, torch.float32, contenders, seconds=45)


def models(
    bench: Bench,
    base: nn.Module,
    contender: Callable[[str, nn.Module], Contender],
    modules: list[tuple[int, int]],
    tokens: int,
    base_flops: float,
    task: str | None = None,
    k: int = 64,
) -> list[Contender]:
    """Return the frozen base, and it with each adapter on all linear modules."""
    from peft import LoraConfig, PsoftConfig

    from lorsa.methods.lorsa import LorsaConfig

    k, lora_r = (8, 2) if bench.quick else (k, 8)
    # The time does not depend on how exact its factors are: random weights have no principal components to speak of.
    psoft = PsoftConfig(
        r=k, psoft_alpha=k, psoft_svd="lowrank", psoft_svd_lowrank_niter=0, task_type=task, target_modules=list(MODULES)
    )
    lora = LoraConfig(r=lora_r, task_type=task, target_modules=list(MODULES))
    result = [
        contender(BASE, base),
        contender(f"LoRA r={lora_r}", adapted(base, lora)),
        contender(f"PSOFT r={k}", adapted(base, psoft)),
    ]
    names = [name for name, _ in base.named_modules() if name.endswith(MODULES)]
    for form, options in FORMS.items():
        # "saved" leaves the factors to be loaded: of random weights no basis need be taken, random columns do.
        config = LorsaConfig(
            k=k,
            r=1,
            task_type=task,
            target_modules=list(MODULES),
            components={name: list(range(k)) for name in names},
            factors="saved",
            **options,
        )
        model = adapted(base, config)
        give_factors(model)
        extra = sum(adapter_flops(form, *module, tokens, k, 1) for module in modules) / base_flops
        for compiled in (True, False) if bench.built else (False,):
            one = contender(f"LoRSA {form}, {'operators' if compiled else 'reference'}", model)
            one.forward, one.extra = on_operators(bench.device, compiled, one.forward), extra
            result.append(one)
    return result


def adapted(base: nn.Module, config: PeftConfig) -> nn.Module:
    """Return a model with adapters that shares the weights of `base`."""
    from peft import get_peft_model

    shared = {id(tensor): tensor for tensor in (*base.parameters(), *base.buffers())}
    return get_peft_model(copy.deepcopy(base, shared), config)


def give_factors(model: nn.Module) -> None:
    """Fill in random orthonormal factors, and rotations that are away from zero."""
    from lorsa.methods.lorsa.layer import LorsaLinear

    for module in model.modules():
        if isinstance(module, LorsaLinear):
            for sides in (module.lorsa_U, module.lorsa_V):
                sides["default"].copy_(orthonormal(*sides["default"].shape, "cpu"))
            module.lorsa_s["default"].copy_(torch.linspace(2, 1, len(module.lorsa_s["default"])))
            for P in (module.lorsa_P_out, module.lorsa_P_in):
                nn.init.normal_(P["default"], std=1e-3)


def on_operators(device: str, compiled: bool, forward: Callable[[], Any]) -> Callable[[], Any]:
    """Return a forward pass that takes the compiled operators, or the reference."""

    def run() -> Any:
        dispatch._compiled[device] = compiled
        return forward()

    return run


def constants(model: nn.Module) -> list[Tensor]:
    """Return a model's parameters and buffers."""
    return [*model.parameters(), *model.buffers()]


def flops_of_base(modules: list[tuple[int, int]], tokens: int, length: int, width: int) -> float:
    """Return the FLOPs of a frozen model's forward and backward pass: W x and W^T dy, and attention.

    Attention on sequences of `length` takes two products forward and five backward of 2 `length` FLOPs per token and
    each of `width` features, counted as if there were no causal mask: the rate comes out high, the floor low.
    """
    return sum(4.0 * tokens * m * n for m, n in modules) + 14.0 * tokens * length * width


def adapter_flops(form: str, m: int, n: int, tokens: int, k: int, r: int) -> float:
    """Return the FLOPs that a form adds to a frozen (m, n) module's forward and backward pass.

    Only its thin products, the fewest that will do; sums, and matrices without a side of `tokens`, m or n, are left
    out. A product of (a, b) and (b, c) is 2 a b c.
    """
    sides = m + n
    # Forward V^T x and U h, backward U^T dy and V dz.
    spectral = 4.0 * tokens * sides * k
    if form == "all":
        # A rotation of n: x [P, Q] and its way back, dy [P, Q] and its way back, and the gradients of P and Q by both.
        return spectral + 6 * 2.0 * tokens * sides * 2 * r
    if form == "subspace":
        # C z; backward C^T g and g z^T.
        return spectral + 6.0 * tokens * k * k
    width = k + 2 * r
    sided = 4.0 * tokens * sides * width + 6.0 * tokens * width * width
    # The gradients of the sides, dy^T h and x^T dz; Y^T U and Y^T V, and their gradients.
    return sided + 2.0 * tokens * sides * 2 * r + 2 * 2.0 * sides * 2 * r * k


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
