"""`lorsa analyze` on runs that were trained, and on what is left of them when they are damaged."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
import xml.etree.ElementTree
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, median

import matplotlib.image
import numpy as np
import pytest
import typer
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from lorsa.runner.analysis import read_run
from lorsa.runner.commands.analyze import analyze
from lorsa.runner.compose import compose
from lorsa.runner.errors import UserError
from lorsa.runner.job import run
from lorsa.runner.overlap import expected_jaccard, jaccard, overlap
from lorsa.runner.plots import draw
from lorsa.runner.signature import signature

ADAPTER = "adapter/adapter_model.safetensors"
CONFIG = "adapter/adapter_config.json"


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Path]:
    """LoRSA on SST-2 and, in its subspace form, on CoLA: trained for two updates with large steps."""
    folder = tmp_path_factory.mktemp("runs")
    configs = [
        compose(f"runs_dir={folder}", "debug=smoke", "data.train_rows=40", "train.lr=0.05", *overrides)
        for overrides in (
            ["method=lorsa", "task=sst2", "method.config.r=2"],
            ["method=lorsa_subspace", "task=cola", "method.config.k=32"],
        )
    ]
    for cfg in configs:
        run(cfg)
    return [folder / signature(cfg) for cfg in configs]


@pytest.fixture
def copy(runs: list[Path], tmp_path: Path) -> Path:
    """The first run, to be damaged."""
    return Path(shutil.copytree(runs[0], tmp_path / "runs" / runs[0].name))


def lorsa(*arguments: object) -> str:
    app = typer.Typer()
    app.command()(analyze)
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def document(*arguments: object) -> dict:
    return json.loads(lorsa(*arguments, "--json"))


def edit_result(folder: Path, **changes: object) -> None:
    path = folder / "result.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_tensors(folder: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    tensors = load_file(folder / ADAPTER)
    change(tensors)
    save_file(tensors, folder / ADAPTER)


def test_json_says_what_the_run_chose_and_how_far_it_moved(runs):
    (found,) = document(runs[0])["runs"]
    result = json.loads((runs[0] / "result.json").read_text())
    tensors = load_file(runs[0] / ADAPTER)
    assert {"folder": str(runs[0]), "form": "all", "empty_modules": []}.items() <= found.items()
    for key in ("signature", "task", "model", "method", "seed"):
        assert found[key] == result[key]
    assert {each["name"]: each["components"]["index"] for each in found["modules"]} == result["components"]
    for each in found["modules"]:
        part = {name: tensors[f"base_model.model.{each['name']}.lorsa_{name}"] for name in ("s", "d")}
        chosen, k = each["components"]["index"], each["chosen"]
        assert (each["count"], k) == (128, 64)
        assert (each["first"], each["last"], each["median"]) == (min(chosen), max(chosen), median(chosen))
        assert each["quartiles"] == [sum(32 * q <= i < 32 * (q + 1) for i in chosen) / k for q in range(4)]
        assert each["principal_share"] == sum(i < k for i in chosen) / k
        relative = np.abs(part["d"]) / part["s"]
        assert each["relative_d"]["median"] == pytest.approx(np.median(relative))
        assert each["relative_d"]["max"] == pytest.approx(relative.max())
        assert each["components"]["s"] == pytest.approx(part["s"].tolist())
        assert each["components"]["d"] == pytest.approx(part["d"].tolist())
        assert all(len(column) == k for column in each["components"].values())
        assert len(each["rotation_out"]) == len(each["rotation_in"]) == 2
        assert 0 < max(each["components"]["turn_out"]) <= max(each["rotation_out"]) < 180
        assert 0 < max(each["components"]["turn_in"]) <= max(each["rotation_in"]) < 180
    assert [(each["layer"], each["type"]) for each in found["modules"]] == [
        (layer, kind) for layer in range(4) for kind in ("k_proj", "o_proj", "q_proj", "v_proj")
    ]


def test_top_lists_the_components_that_changed_most(runs):
    (found,) = document(runs[0], "--top", 3)["runs"]
    changes = [change for each in found["modules"] for change in each["components"]["change"]]
    assert [row["change"] for row in found["top"]] == sorted(changes, reverse=True)[:3]
    row = found["top"][0]
    (module,) = (each for each in found["modules"] if each["name"] == row["module"])
    place = module["components"]["index"].index(row["index"])
    assert row == {"module": row["module"], **{name: column[place] for name, column in module["components"].items()}}
    assert document(runs[0], "--top", 0)["runs"][0]["top"] == []


def test_the_tables_have_a_row_per_module_and_what_json_has(runs, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = lorsa(runs[0], runs[1], "--top", 4).splitlines()
    found = document(runs[0], runs[1])
    assert not [line for line in lines if "…" in line]
    rows = [line.split() for line in lines if line[:1].isdigit()]
    modules = [each for analysed in found["runs"] for each in analysed["modules"]]
    printed = [row for row in rows if len(row) > 2 and "/" in row[2]]
    assert len(printed) == len(modules) == 32
    for row, each in zip(printed, modules, strict=True):
        assert row[:4] == [
            str(each["layer"]), each["type"], f"{each['chosen']}/{each['count']}", f"{each['first']}-{each['last']}",
        ]  # fmt: skip
        assert float(row[6]) == pytest.approx(100 * each["principal_share"], abs=0.5)
        assert float(row[7]) == pytest.approx(each["relative_d"]["median"], rel=0.06)
        assert float(row[9]) == pytest.approx(max(each["rotation_out"]), abs=0.06)
    assert sum("+" in row[4] or "-" in row[4] for row in rows if len(row) == 9) == 2 * 4  # signs of d
    (shared,) = found["overlap"]
    assert lines[-1].split() == [
        "1,",
        "2",
        "sst2,",
        "cola",
        "16",
        f"{shared['jaccard']:.3f}",
        f"{shared['expected']:.3f}",
    ]


def test_two_runs_are_compared_by_what_they_both_chose(runs):
    (shared,) = document(*runs)["overlap"]
    a, b = (json.loads((each / "result.json").read_text())["components"] for each in runs)
    assert (shared["runs"], shared["modules"]) == ([0, 1], 16)
    assert shared["jaccard"] == pytest.approx(fmean(jaccard(a[name], b[name]) for name in a))
    by_chance = fmean(expected_jaccard(128, len(a[name]), len(b[name])) for name in a)
    assert shared["expected"] == pytest.approx(by_chance)
    (same,) = document(runs[0], runs[0])["overlap"]
    assert same["jaccard"] == 1


def test_the_overlap_of_known_sets():
    assert jaccard([0, 1, 2], [1, 2, 3]) == 0.5
    assert jaccard([0, 1], []) == 0
    assert jaccard([3], [3]) == 1


@pytest.mark.parametrize(("count", "a", "b"), [(6, 2, 3), (5, 5, 2), (7, 4, 5), (4, 3, 0)])
def test_the_overlap_by_chance_is_the_mean_over_all_choices(count, a, b):
    first = range(a)
    every = [jaccard(first, second) for second in itertools.combinations(range(count), b)]
    assert expected_jaccard(count, a, b) == pytest.approx(fmean(every))


def test_runs_on_other_base_weights_are_not_compared(runs, copy):
    edit_tensors(copy, lambda tensors: [t.__imul__(1.1) for name, t in tensors.items() if name.endswith("lorsa_s")])
    assert overlap(read_run(runs[0]), read_run(copy)) is None
    assert document(runs[0], copy)["overlap"] == [{"runs": [0, 1], "modules": None, "jaccard": None, "expected": None}]
    assert "not the same base weights" in lorsa(runs[0], copy)
    # The last bits of the values are another device's.
    edit_tensors(copy, lambda tensors: [t.__imul__(1 / 1.10001) for n, t in tensors.items() if n.endswith("lorsa_s")])
    assert overlap(read_run(runs[0]), read_run(copy)).jaccard == 1


def test_a_module_that_a_global_allocation_left_out_is_said_and_counts_as_no_overlap(runs, copy):
    name = "model.layers.2.self_attn.q_proj"
    components = json.loads((copy / "result.json").read_text())["components"]
    edit_result(copy, components={**components, name: []})
    edit_tensors(copy, lambda tensors: [tensors.pop(each) for each in list(tensors) if f"{name}.lorsa_" in each])
    found = document(copy, runs[0])
    assert found["runs"][0]["empty_modules"] == [name]
    expected = pytest.approx(expected_jaccard(128, 64, 64) * 15 / 16)
    assert found["overlap"] == [{"runs": [0, 1], "modules": 16, "jaccard": 15 / 16, "expected": expected}]
    assert "gave 1 more modules no component" in lorsa(copy)


def test_a_zero_singular_value_that_grew_is_infinite_and_null_in_json(copy):
    name = "base_model.model.model.layers.0.self_attn.q_proj.lorsa_"

    def change(tensors):
        tensors[f"{name}s"][0], tensors[f"{name}d"][0] = 0, 100

    edit_tensors(copy, change)
    (found,) = document(copy)["runs"]
    assert found["top"][0]["relative_d"] is None
    assert found["top"][0]["change"] == pytest.approx(100)
    printed = lorsa(copy, "--plot", copy / "figure.png")
    assert "inf" in printed


def test_an_adapter_without_rotations_is_analysed_and_drawn(copy):
    def change(tensors):
        for name, tensor in tensors.items():
            if "lorsa_P" in name or "lorsa_Q" in name:
                tensors[name] = tensor[:, :0].copy()

    edit_tensors(copy, change)
    (found,) = document(copy)["runs"]
    assert found["modules"][0]["rotation_out"] == []
    assert set(found["modules"][0]["components"]["turn_in"]) == {0}
    lorsa(copy, "--plot", copy / "figure.pdf")


def test_the_figure_is_an_image_with_something_on_it(runs, tmp_path):
    for name in ("a.png", "b.svg", "c.PDF"):
        assert f"Figure: {tmp_path / name}" in lorsa(runs[0], runs[1], "--plot", tmp_path / name).replace("\n", "")
    image = matplotlib.image.imread(tmp_path / "a.png")
    assert min(image.shape[:2]) > 600
    assert len(np.unique(image.reshape(-1, image.shape[-1]), axis=0)) > 50
    assert xml.etree.ElementTree.parse(tmp_path / "b.svg").getroot().tag.endswith("svg")
    assert (tmp_path / "c.PDF").read_bytes().startswith(b"%PDF")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.svg", "c.PDF"]


def test_with_json_the_figure_is_drawn_and_nothing_else_is_printed(runs, tmp_path):
    assert document(runs[0], "--plot", tmp_path / "a.png")["runs"]
    assert (tmp_path / "a.png").stat().st_size > 10_000


def test_the_heat_map_shows_the_share_of_each_part_that_was_chosen(runs):
    analysis = read_run(runs[0])
    shares = np.asarray(draw([analysis]).axes[0].images[0].get_array())
    by_type = sorted(analysis.modules, key=lambda module: (module.type, module.layer))
    assert shares.shape == (24, 16)
    for column, module in enumerate(by_type):
        inside = [[i for i in range(128) if i * 24 // 128 == bin_] for bin_ in range(24)]
        chosen = set(module.movement.indices)
        assert shares[:, column] == pytest.approx([len(chosen & set(each)) / len(each) for each in inside])


def test_the_other_panels_show_how_far_the_components_moved(runs):
    analysis = read_run(runs[0])
    ratios, angles = draw([analysis]).axes[1:3]
    moves = [module.movement for module in sorted(analysis.modules, key=lambda module: (module.type, module.layer))]
    dots = [point for line in ratios.lines if line.get_marker() == "o" for point in line.get_xydata().tolist()]
    assert dots == [[i, pytest.approx(median(move.relative_d.tolist()))] for i, move in enumerate(moves)]
    bars = [bar.get_segments()[0][:, 1].tolist() for bar in ratios.collections]
    assert [top for _, top in bars] == [pytest.approx(move.relative_d.max().item()) for move in moves]
    for marker, side in (("o", "rotation_out"), ("^", "rotation_in")):
        (marks,) = [line for line in angles.lines if line.get_marker() == marker]
        assert marks.get_ydata() == pytest.approx([getattr(move, side).max().item() for move in moves])


@pytest.mark.parametrize("number", [1, 6])
def test_the_labels_of_the_figure_do_not_overlap(runs, number):
    figure = draw([read_run(runs[0])] * number)
    figure.canvas.draw()
    for axis in figure.axes[2 * number : 3 * number]:
        texts = [text for text in axis.get_xticklabels() if text.get_text()]
        if not axis.texts[0].get_rotation():  # slanted ones lie beside each other
            texts += axis.texts
        assert len(axis.texts) == 4
        boxes = [text.get_window_extent() for text in texts]
        assert not [1 for a, b in itertools.combinations(boxes, 2) if a.overlaps(b)]


def test_a_figure_that_cannot_be_written_leaves_the_old_one(runs, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    (tmp_path / "a.png").write_bytes(b"old")
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match=r"Cannot write the figure .*a\.png: No space left on device\."):
        lorsa(runs[0], "--plot", tmp_path / "a.png")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--plot", "a.jpg"], ["--plot a.jpg", ".png", ".svg", ".pdf"]),
        (["--plot", "figure"], ["--plot figure", ".png"]),
        (["--plot", "nowhere/a.png"], ["no folder nowhere"]),
        ([*["RUN"] * 6, "--plot", "a.png"], ["up to 6 runs", "not 7"]),
    ],
)
def test_a_figure_that_cannot_be_made_is_refused_before_anything_is_read(runs, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        lorsa("RUN", *arguments)
    for word in words:
        assert word in str(error.value)
    assert not list(tmp_path.iterdir())


def without_result(folder: Path) -> None:
    (folder / "result.json").unlink()
    (folder / "status.json").write_text('{"state": "interrupted"}')


def of_lora(folder: Path) -> None:
    edit_result(folder, method="lora", components=None)


def without_a_tensor(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors.pop(next(name for name in tensors if name.endswith("lorsa_V"))))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (shutil.rmtree, ["There is no run"]),
        (without_result, ["is not finished", "interrupted"]),
        (of_lora, ["method=lora", "only LoRSA"]),
        (lambda folder: (folder / "result.json").write_text("{"), ["result.json is damaged"]),
        (lambda folder: shutil.rmtree(folder / "adapter"), ["no adapter"]),
        (lambda folder: (folder / ADAPTER).unlink(), ["adapter", "is damaged", "No such file"]),
        (lambda folder: (folder / ADAPTER).write_bytes(b"\x08" + bytes(15)), ["adapter", "is damaged"]),
        (lambda folder: (folder / CONFIG).write_text("{}"), ["adapter", "is damaged", "'space'"]),
        (lambda folder: (folder / CONFIG).write_text("[]"), ["adapter", "is damaged"]),
        (without_a_tensor, ["adapter", "is damaged", "lorsa_V", "is missing"]),
    ],
)
def test_what_cannot_be_analysed_is_said_in_one_sentence(copy, damage, words):
    damage(copy)
    with pytest.raises(UserError) as error:
        lorsa(copy)
    sentence = str(error.value)
    assert "\n" not in sentence
    for word in [copy.name, *words]:
        assert word in sentence


def test_the_command_loads_nothing_heavy_before_it_runs():
    heavy = {"torch", "numpy", "matplotlib", "lorsa.methods"}
    code = f"import sys, lorsa.runner.commands.analyze; print({heavy} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
