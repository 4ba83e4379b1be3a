"""The benchmark of the operators: its floor, how it counts memory, and that all of it runs."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
sys.path.insert(0, str(SCRIPTS))

from kernel_bench import measure, models  # noqa: E402  # beside the script that runs them


@pytest.mark.parametrize("form", models.FORMS)
def test_the_floor_counts_the_products_that_an_adapter_adds(form: str, monkeypatch: pytest.MonkeyPatch):
    m, n, tokens, k, r = 96, 160, 256, 16, 1
    monkeypatch.setattr(models, "MODULES", ("0",))
    bench = measure.Bench("cpu", Path(), seconds=0, quick=False, compiled=False, built=False)
    base = nn.Sequential(nn.Linear(n, m, bias=False)).requires_grad_(False)
    x = torch.randn(tokens, n, requires_grad=True)

    def contender(name: str, model: nn.Module) -> measure.Contender:
        return measure.Contender(name, lambda: getattr(model, "base_model", model)(x), lambda y: y.sum().backward())

    monkeypatch.setattr(models, "FORMS", {form: models.FORMS[form]})
    frozen, *_, adapted = models.models(bench, base, contender, [(m, n)], tokens, 1.0, k=k)
    counts = []
    for each in (frozen, adapted):
        with FlopCounterMode(display=False) as counter:
            each.step()
        counts.append(counter.get_total_flops())
    assert counts[0] == models.flops_of_base([(m, n)], tokens, 0, n)
    floor = models.adapter_flops(form, m, n, tokens, k, r)
    # The reference also multiplies matrices without a large side, and takes gradients of U_S and V_S beside the sides.
    more = 4 * tokens * (m + n) * k / 2 if form == "selected" else 0
    assert floor <= counts[1] - counts[0] <= 1.1 * (floor + more)


def test_kept_bytes_are_those_of_the_activations():
    layer, x = nn.Linear(8, 4), torch.randn(16, 8)

    def contender(*fixed: torch.Tensor) -> measure.Contender:
        return measure.Contender("", lambda: layer(x).exp().exp(), lambda y: y.sum().backward(), fixed)

    # x, and the results of both exponentials.
    assert measure.kept_bytes(contender(*layer.parameters())) == 4 * 16 * (8 + 4 + 4)
    assert measure.kept_bytes(contender(*layer.parameters(), x)) == 4 * 16 * (4 + 4)


@pytest.mark.slow
def test_every_group_is_measured(tmp_path: Path):
    path = tmp_path / "bench.csv"
    command = [sys.executable, str(SCRIPTS / "bench_kernels.py"), "--quick", "--no-compile", "--csv", str(path)]
    for only in ("ops,layer,step", "step"):  # the second time, the other groups stay
        done = subprocess.run([*command, "--only", only], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    groups: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for row in rows:
        groups.setdefault((row["what"], row["shape"], row["dtype"]), []).append(row)
    for group in groups.values():
        assert float(group[0]["ratio"]) == 1
        assert all(0 < float(row["p20_ms"]) <= float(row["median_ms"]) <= float(row["p80_ms"]) for row in group)
        assert len({row["contender"] for row in group}) == len(group) > 1 or "operators: reference" in done.stdout
    measured = {what.partition(",")[0] for what, *_ in groups}
    assert measured >= {"rotation_core", "subspace_core", "thin_rotation", "spectral_linear", "component_sensitivity"}
    for what in ("decoder layer of tiny", "training step of tiny"):
        names = {row["contender"] for row in rows if row["what"] == what}
        assert {"frozen base", "LoRA r=2", "PSOFT r=8", "LoRSA subspace, reference", "LoRSA all, reference"} <= names
