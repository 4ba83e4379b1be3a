"""The same content has the same fingerprint, other content another, and nothing heavy is imported for it."""

import os
import subprocess
import sys
import time

import pytest

from lorsa.runner.errors import UserError
from lorsa.runner.glue import fingerprint
from lorsa.runner.glue.fingerprint import content_fingerprint, data_fingerprint
from lorsa.runner.schema import DataConfig


@pytest.fixture
def folder(tmp_path, write):
    write(tmp_path / "model/weights.bin", "12345")
    write(tmp_path / "model/sub/config.json", "{}")
    return tmp_path / "model"


def test_depends_on_content_alone(folder, tmp_path):
    before = content_fingerprint(folder)
    (folder / "weights.bin").touch()
    moved = folder.rename(tmp_path / "elsewhere")
    assert content_fingerprint(moved) == before
    assert len(before) == 16
    assert int(before, 16) >= 0


@pytest.mark.parametrize("change", ["edit", "rename", "add", "remove", "move bytes"])
def test_any_change_of_content_shows(folder, write, change):
    before = content_fingerprint(folder)
    match change:
        case "edit":
            write(folder / "weights.bin", "12346")
        case "rename":
            (folder / "weights.bin").rename(folder / "weights2.bin")
        case "add":
            write(folder / "empty", "")
        case "remove":
            (folder / "sub/config.json").unlink()
        case "move bytes":
            write(folder / "weights.bin", "1234")
            write(folder / "sub/config.json", "5{}")
    assert content_fingerprint(folder) != before


def test_files_that_stay_as_they_are_are_read_once_and_others_again(folder, write, monkeypatch):
    read = []
    add_file = fingerprint._add_file
    monkeypatch.setattr(fingerprint, "_add_file", lambda *arguments: (read.append(arguments[2]), add_file(*arguments)))
    weights, hour = folder / "weights.bin", 3600 * 10**9

    def age(hours):
        for file in (weights, folder / "sub/config.json"):
            os.utime(file, ns=(file.stat().st_atime_ns, time.time_ns() - hours * hour))

    age(2)
    first = content_fingerprint(folder)
    assert content_fingerprint(folder) == first and len(read) == 2
    write(weights, "12346")
    assert content_fingerprint(folder) not in (first, content_fingerprint(folder / "sub"))
    age(1)
    changed = content_fingerprint(folder)
    assert changed != first and content_fingerprint(folder) == changed
    assert len(read) == 2 + 3 + 2


def test_hidden_files_do_not_count(folder, write):
    before = content_fingerprint(folder)
    write(folder / ".cache/huggingface/weights.bin.metadata", "downloaded today")
    assert content_fingerprint(folder) == before


def test_links_count_as_what_they_point_to(folder, tmp_path):
    """The hub's cache is a folder of links."""
    snapshot = tmp_path / "snapshot"
    (snapshot / "sub").mkdir(parents=True)
    for name in ("weights.bin", "sub/config.json"):
        (snapshot / name).symlink_to(folder / name)
    assert content_fingerprint(snapshot) == content_fingerprint(folder)


def test_name_of_a_single_file_does_not_count(folder):
    before = content_fingerprint(folder / "weights.bin")
    assert content_fingerprint((folder / "weights.bin").rename(folder / "renamed")) == before


@pytest.mark.parametrize("place", [0, 1 << 20, 100 << 20, (200 << 20) - 1])
def test_large_file_is_sampled_from_end_to_end(tmp_path, place):
    """A sparse file of 200 MiB; 4 MiB that change are more than lie between two samples."""
    file = tmp_path / "weights"
    with file.open("wb") as stream:
        stream.truncate(200 << 20)
    before = content_fingerprint(file)
    with file.open("r+b") as stream:
        stream.seek(max(0, place - (4 << 20)))
        stream.write(b"x" * min(4 << 20, place + 1))
    assert content_fingerprint(file) != before


def test_nothing_there(tmp_path):
    with pytest.raises(UserError, match=r"no file or folder at .*nowhere"):
        content_fingerprint(tmp_path / "nowhere")


def test_data_covers_the_files_of_its_task_only(task, local, tmp_path, write_parquet):
    for name in ("sst2", "cola"):
        for split in ("train", "validation"):
            write_parquet(tmp_path, name, split, sentence=["a"], label=[0])
    before = data_fingerprint(task("cola"), local(tmp_path))
    write_parquet(tmp_path, "sst2", "train", sentence=["b"], label=[0])
    assert data_fingerprint(task("cola"), local(tmp_path)) == before
    write_parquet(tmp_path, "cola", "validation", sentence=["b"], label=[0])
    assert data_fingerprint(task("cola"), local(tmp_path)) != before


def test_data_of_ax_covers_mnli(task, local, tmp_path, write_parquet):
    write_parquet(tmp_path, "mnli", "train", premise=["a"], hypothesis=["b"], label=[0])
    before = data_fingerprint(task("ax"), local(tmp_path))
    write_parquet(tmp_path, "mnli", "train", premise=["a"], hypothesis=["b"], label=[1])
    assert data_fingerprint(task("ax"), local(tmp_path)) != before


def test_data_from_elsewhere_is_named(task):
    cola = task("cola")
    assert data_fingerprint(cola, DataConfig(name="demo")) == "demo v1"
    assert data_fingerprint(cola, DataConfig(name="glue", revision="abc")) == "nyu-mll/glue@abc"
    assert data_fingerprint(cola, DataConfig(name="glue", path="me/glue")) == "me/glue@main"


def test_imports_nothing_heavy():
    script = (
        "import sys\n"
        "from lorsa.runner.glue import fingerprint\n"
        "from lorsa.runner.schema import DataConfig, TaskConfig\n"
        "fingerprint.data_fingerprint(TaskConfig(name='cola'), DataConfig(name='demo'))\n"
        "print([name for name in ('datasets', 'pandas', 'pyarrow', 'numpy', 'torch') if name in sys.modules])\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
