"""The three sources give the same rows; real GLUE in its two layouts is the reference."""

import os
import subprocess
import sys
from dataclasses import FrozenInstanceError

import datasets
import pytest
from omegaconf import OmegaConf

from lorsa.runner.demo.data import DEMO_TASKS
from lorsa.runner.errors import UserError
from lorsa.runner.glue import checks, tsv
from lorsa.runner.glue.layout import find_files
from lorsa.runner.glue.source import load_task
from lorsa.runner.schema import DataConfig

MNLI_SPLITS = ("validation_matched", "validation_mismatched", "test_matched", "test_mismatched")


def rows(table):
    return table.to_pylist()


def both_layouts(task, local, real_data, split):
    parquet = find_files(task, local(real_data / "glue")).splits[split]
    text = find_files(task, local(real_data / "glue_data")).splits[split]
    return (
        checks.checked(checks.read_parquet(parquet), task, "parquet", labelled=True),
        checks.checked(tsv.read_split(task, split, text), task, "tsv", labelled=True),
    )


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("name", ["sst2", "cola", "stsb"])
def test_layouts_agree_row_by_row(task, local, real_data, name, split):
    parquet, text = both_layouts(task(name), local, real_data, split)
    assert parquet.equals(text)


def test_layouts_agree_on_mrpc(task, local, real_data):
    """The split files number their rows afresh, and this copy of train.tsv has lost a row."""
    for split, lost in (("train", 1), ("validation", 0)):
        parquet, text = both_layouts(task("mrpc"), local, real_data, split)
        ours = {(row["sentence1"], row["sentence2"], row["label"]) for row in rows(text)}
        hub = {(row["sentence1"], row["sentence2"], row["label"]) for row in rows(parquet)}
        assert ours <= hub
        assert len(hub - ours) == lost


def test_raw_mrpc_corpus_equals_the_hub_with_its_numbering(task, local, real_data, tmp_path):
    (tmp_path / "MRPC").mkdir()
    for name in ("msr_paraphrase_train.txt", "dev_ids.tsv"):
        (tmp_path / "MRPC" / name).symlink_to(real_data / "glue_data" / "MRPC" / name)
    for split in ("train", "validation"):
        mrpc = task("mrpc")
        hub = checks.read_parquet(find_files(mrpc, local(real_data / "glue")).splits[split])
        raw = tsv.read_split(mrpc, split, find_files(mrpc, local(tmp_path)).splits[split])
        assert rows(raw) == rows(hub)


@pytest.mark.parametrize("layout", ["glue", "glue_data"])
def test_real_task_loads_with_the_published_sizes(task, local, real_data, layout):
    loaded = load_task(task("cola"), local(real_data / layout))
    assert (len(loaded.train) + len(loaded.dev), len(loaded.dev)) == (8551, 855)
    assert {split: len(part) for split, part in loaded.evaluation.items()} == {"validation": 1043}
    assert loaded.prediction == {}
    assert loaded.train.column_names == ["sentence", "label", "idx"]
    assert loaded.source.startswith("local:")


def test_both_layouts_train_on_the_same_rows(task, local, real_data):
    parquet, text = (load_task(task("cola"), local(real_data / folder)) for folder in ("glue", "glue_data"))
    assert parquet.train[:] == text.train[:]
    assert parquet.dev[:] == text.dev[:]


@pytest.mark.parametrize("name", DEMO_TASKS)
def test_demo_has_every_task(task, name):
    config = task(name)
    loaded = load_task(config, DataConfig(name="demo"))
    assert loaded.source == "demo v1"
    assert list(loaded.evaluation) == (list(config.eval_splits) or ["test"])
    assert list(loaded.prediction) == list(config.predict_splits)
    assert loaded.train.column_names == [*config.columns, "label", "idx"]
    assert loaded.train.features["label"].dtype == ("int64" if config.labels else "float32")


def test_dataclasses_and_omegaconf_configs_give_the_same(task):
    data = DataConfig(name="demo", train_rows=7)
    composed = load_task(task("rte"), OmegaConf.structured(data))
    plain = load_task(OmegaConf.to_object(task("rte")), data)
    assert composed.train[:] == plain.train[:]
    with pytest.raises(FrozenInstanceError):
        plain.source = "other"


def mnli_folder(root, write_parquet):
    columns = {"premise": ["a b"] * 10, "hypothesis": ["c"] * 10}
    write_parquet(root, "mnli", "train", **columns, label=[0, 1] * 5, idx=range(10))
    for split in MNLI_SPLITS:
        label = [-1] * 10 if split.startswith("test") else [2] * 10
        write_parquet(root, "mnli", split, **columns, label=label, idx=range(10))
    return columns


def test_mnli_is_evaluated_on_both_genres(task, local, tmp_path, write_parquet):
    mnli_folder(tmp_path, write_parquet)
    loaded = load_task(task("mnli"), local(tmp_path))
    assert list(loaded.evaluation) == ["validation_matched", "validation_mismatched"]
    assert list(loaded.prediction) == ["test_matched", "test_mismatched"]


@pytest.mark.parametrize(("label", "scored"), [(-1, []), (1, ["test"])])
def test_ax_trains_on_mnli_and_is_scored_where_it_has_labels(task, local, tmp_path, write_parquet, label, scored):
    columns = mnli_folder(tmp_path, write_parquet)
    write_parquet(tmp_path, "ax", "test", **columns, label=[label] * 10, idx=range(10))
    loaded = load_task(task("ax"), local(tmp_path))
    assert len(loaded.train) == 9
    assert list(loaded.evaluation) == scored
    assert list(loaded.prediction) == ["test"]


def test_ax_from_the_official_download(task, local, tmp_path, write):
    write(tmp_path / "MNLI/train.tsv", "index\tsentence1\tsentence2\tgold_label\n" + "0\ta\tb\tneutral\n" * 4)
    ax = tmp_path / "diagnostic"
    write(ax / "diagnostic.tsv", "index\tsentence1\tsentence2\n0\ta\tb\n")
    unlabelled = load_task(task("ax"), local(tmp_path))
    assert (unlabelled.evaluation, unlabelled.prediction["test"]["label"][:]) == ({}, [-1])
    write(ax / "diagnostic-full.tsv", "Logic\tPremise\tHypothesis\tLabel\n\ta\tb\tcontradiction\n")
    assert load_task(task("ax"), local(tmp_path)).evaluation["test"]["label"][:] == [2]


def test_labelled_test_set_of_a_task_with_validation_is_not_scored(task, local, tmp_path, write_parquet):
    """MRPC's test labels are public; counting them in would change what its score means."""
    for split in ("train", "validation", "test"):
        write_parquet(tmp_path, "mrpc", split, sentence1=["a"] * 4, sentence2=["b"] * 4, label=[0, 1] * 2)
    loaded = load_task(task("mrpc"), local(tmp_path))
    assert list(loaded.evaluation) == ["validation"]
    assert loaded.prediction["test"]["label"][:] == [0, 1, 0, 1]
    assert loaded.prediction["test"]["idx"][:] == [0, 1, 2, 3]


def test_shards_are_read_in_order(task, local, tmp_path, write_parquet):
    write_parquet(tmp_path, "sst2", "train", "00000-of-00002", sentence=["a", "b"], label=[0, 1], idx=[0, 1])
    write_parquet(tmp_path, "sst2", "train", "00001-of-00002", sentence=["c"], label=[0], idx=[2])
    write_parquet(tmp_path, "sst2", "validation", sentence=["d"], label=[0], idx=[0])
    files = find_files(task("sst2"), local(tmp_path)).splits["train"]
    assert rows(checks.read_parquet(files)) == [
        {"sentence": text, "label": label, "idx": idx} for text, label, idx in (("a", 0, 0), ("b", 1, 1), ("c", 0, 2))
    ]


def hub_repository(root, *names):
    """A README as nyu-mll/glue has it: one configuration for each task, one file for each split."""
    lines = ["---", "configs:"]
    for name in names:
        lines += [f"- config_name: {name}", "  data_files:"]
        splits = sorted({file.name.split("-")[0] for file in (root / name).glob("*.parquet")})
        lines += [f"  - split: {split}\n    path: {name}/{split}-*" for split in splits]
    (root / "README.md").write_text("\n".join([*lines, "---", ""]))


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def test_hub_through_load_dataset_equals_the_local_folder(task, local, tmp_path, write_parquet, hub_cache):
    root = tmp_path / "glue"
    columns = mnli_folder(root, write_parquet)
    write_parquet(root, "ax", "test", **columns, label=[-1] * 10, idx=range(10))
    hub_repository(root, "mnli", "ax")
    for name in ("mnli", "ax"):
        hub = load_task(task(name), DataConfig(name="glue", path=str(root), revision="abc"))
        folder = load_task(task(name), local(root))
        assert hub.source == f"{root}@abc"
        assert hub.train.features == folder.train.features
        assert hub.train[:] == folder.train[:]
        assert list(hub.evaluation) == list(folder.evaluation)
        assert {k: v[:] for k, v in hub.prediction.items()} == {k: v[:] for k, v in folder.prediction.items()}


def test_hub_without_the_task_says_so(task, tmp_path, write_parquet, hub_cache):
    write_parquet(tmp_path / "glue", "mnli", "train", premise=["a"], hypothesis=["b"], label=[0])
    hub_repository(tmp_path / "glue", "mnli")
    with pytest.raises(UserError, match=r"cannot be loaded as configuration 'cola': .*mnli"):
        load_task(task("cola"), DataConfig(name="glue", path=str(tmp_path / "glue")))
    with pytest.raises(UserError, match="has no split validation_matched or validation_mismatched; it has: train"):
        load_task(task("mnli"), DataConfig(name="glue", path=str(tmp_path / "glue")))


def test_unreachable_hub_says_how_to_use_a_folder(tmp_path):
    script = (
        "from lorsa.runner.glue.source import load_task\n"
        "from lorsa.runner.schema import DataConfig, TaskConfig\n"
        "task = TaskConfig(name='cola', folder='CoLA', train_from='cola', columns=['sentence'], labels=['a', 'b'])\n"
        "load_task(task, DataConfig(name='glue'))\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    error = run.stderr.splitlines()[-1]
    assert error.startswith(
        "lorsa.runner.errors.UserError: nyu-mll/glue is not in the cache and the hub cannot be reached"
    )
    assert "data=local data.path=" in error


def test_loading_leaves_nothing_in_the_cache(task, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    load_task(task("sst2"), DataConfig(name="demo"))
    assert list(tmp_path.iterdir()) == []
