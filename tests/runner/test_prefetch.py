"""`lorsa prefetch`, and the runs that find what it computed."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lorsa.methods import MethodError
from lorsa.runner.commands.prefetch import prefetch
from lorsa.runner.errors import UserError


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("LORSA_CACHE", str(folder))
    return folder


def stored(cache: Path) -> dict[str, float]:
    return {path.name: path.stat().st_mtime for path in cache.rglob("*.safetensors")}


def test_what_is_prefetched_is_not_computed_again(
    cache: Path, capsys: pytest.CaptureFixture[str], job, monkeypatch: pytest.MonkeyPatch
):
    prefetch(["method=lorsa"])
    first = stored(cache)
    assert f"tiny_llama: {len(first)} bases in {cache}, {len(first)} of them computed now." in capsys.readouterr().out
    prefetch(["method=lorsa_subspace", "method.config.k=16"])
    assert f"{len(first)} bases in {cache}, 0 of them computed now." in capsys.readouterr().out

    def fail(*_: object) -> None:
        raise AssertionError("a second decomposition")

    monkeypatch.setattr("lorsa.methods.lorsa.cache.singular_basis", fail)
    result = job("debug=smoke", "method=lorsa")
    assert stored(cache) == first
    assert all(result["timings"][part] > 0 for part in ("basis", "select", "adapt"))


def test_a_terminal_shows_how_many_bases_are_done(cache: Path, monkeypatch: pytest.MonkeyPatch):
    screen = io.StringIO()
    monkeypatch.setattr("lorsa.runner.bases.console", Console(file=screen, force_terminal=True, width=80))
    prefetch(["method=lorsa"])
    assert "Bases" in screen.getvalue()
    assert f"{len(stored(cache))}/{len(stored(cache))}" in screen.getvalue()


def test_all_linear_leaves_out_the_head_and_counts_the_budget_without_it(cache: Path, job):
    overrides = ("task=stsb", "method=lorsa_subspace", "method.config.target_modules=all-linear")
    overrides += ("method.config.budget=3", "method.config.allocation=layer", "method.config.selection=principal")
    prefetch(list(overrides))
    assert len(stored(cache)) == 28
    result = job("debug=smoke", *overrides)
    assert len(stored(cache)) == len(result["components"]) == 28
    assert 0.015 < result["adapter_params"] / result["total_params"] <= 0.03


def test_a_method_without_bases_needs_none_and_a_wrong_override_is_refused(
    cache: Path, capsys: pytest.CaptureFixture[str]
):
    prefetch(["method=lora"])
    assert "method=lora needs no bases" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"there is no model named 'tiny_lama'.*tiny_llama"):
        prefetch(["model=tiny_lama"])
    assert not cache.exists()


def test_what_another_machine_will_train_with_need_not_be_here(
    cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("lorsa.runner.device.has_bf16", lambda device: False)
    prefetch(["method=lorsa,full", "engine=zero3", "engine.device=cuda", "engine.precision=bf16", "resources=gpu8"])
    printed = capsys.readouterr().out
    assert f"tiny_llama: {len(stored(cache))} bases in {cache}" in printed
    assert "method=full needs no bases" in printed


def test_a_method_without_bases_has_the_files_fetched_and_no_weights_in_memory(
    cache: Path, monkeypatch: pytest.MonkeyPatch
):
    from lorsa.runner import models

    loaded = []

    def load(*arguments: Any, **options: Any) -> Any:
        loaded.append(load_model(*arguments, **options).model)

    load_model = models.load_model
    monkeypatch.setattr(models, "load_model", load)
    prefetch(["method=full"])
    assert {parameter.device.type for model in loaded for parameter in model.parameters()} == {"meta"}


def test_a_sweep_is_prefetched_as_a_whole(cache: Path, capsys: pytest.CaptureFixture[str]):
    prefetch(["method=lorsa,lora", "task=cola,sst2", "seed=0,1"])
    printed = capsys.readouterr().out
    assert printed.count("training rows") == 2
    assert printed.count("bases in") == printed.count("needs no bases") == 1


def test_a_cache_that_cannot_be_written_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("LORSA_CACHE", str(tmp_path / "file"))
    with pytest.raises(MethodError, match=r"Cannot store the basis of .*set LORSA_CACHE to a folder"):
        prefetch(["method=lorsa"])
