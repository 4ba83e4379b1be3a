"""Each way in which a data set can be bad ends in one sentence that says where and what would be valid."""

import logging

import pyarrow as pa
import pytest

from lorsa.runner.errors import UserError
from lorsa.runner.glue.checks import checked, read_parquet
from lorsa.runner.glue.source import load_task
from lorsa.runner.schema import DataConfig


def pairs(**changes):
    return pa.table({"sentence1": ["a", "b"], "sentence2": ["c", "d"], "label": [0, 1], "idx": [0, 1], **changes})


def refused(task, table, message, labelled=True):
    with pytest.raises(UserError, match=message) as error:
        checked(table, task, "split 'train' (train.tsv)", labelled)
    assert "split 'train' (train.tsv)" in str(error.value)
    assert "\n" not in str(error.value)


def test_sound_rows_come_back_in_the_common_types(task):
    table = pairs(label=pa.array([0, 1], pa.int8()), idx=pa.array([4, 5], pa.int32()), extra=["x", "y"])
    result = checked(table, task("mrpc"), "here", labelled=True)
    assert result.schema == pa.schema(
        {"sentence1": pa.string(), "sentence2": pa.string(), "label": pa.int64(), "idx": pa.int64()}
    )


def test_missing_columns(task):
    refused(
        task("mrpc"), pairs().drop_columns(["sentence2", "label"]), "lacks .* sentence2, label .* it has: sentence1"
    )


def test_empty_split(task):
    refused(task("mrpc"), pairs().slice(0, 0), "is empty; task 'mrpc' needs at least one row")


def test_null_text(task):
    refused(task("mrpc"), pairs(sentence2=["c", None]), "column 'sentence2' of .* is null in row 1;")


def test_empty_text(task):
    refused(task("mrpc"), pairs(sentence1=[" ", ""]), "column 'sentence1' of .* is empty in row 0 and 1 more")


def test_text_of_another_type(task):
    refused(task("mrpc"), pairs(sentence1=[1, 2]), "column 'sentence1' of .* holds int64, not text")


def test_a_trace_of_empty_texts_is_kept_in_pairs_only(task, caplog):
    """QQP as published has some."""
    texts = ["text"] * 1999 + [""]
    table = pa.table({"question1": texts, "question2": ["b"] * 2000, "label": [0] * 2000})
    with caplog.at_level(logging.WARNING):
        assert checked(table, task("qqp"), "here", labelled=True).num_rows == 2000
    assert "is empty in row 1999" in caplog.text
    single = pa.table({"sentence": texts, "label": [0] * 2000})
    refused(task("sst2"), single, "column 'sentence' of .* is empty in row 1999;")


@pytest.mark.parametrize("label", [-1, 2])
def test_class_out_of_range(task, label):
    message = rf"Label {label} in row 1 of .* labels from 0 to 1 \(not_equivalent, equivalent\)"
    refused(task("mrpc"), pairs(label=[0, label]), message)


@pytest.mark.parametrize("label", [-0.1, 5.1, float("nan"), float("inf")])
def test_score_out_of_range(task, label):
    refused(task("stsb"), pairs(label=[5.0, label]), rf"Label {label} in row 1 of .* labels from 0 to 5\.")


def test_null_label(task):
    refused(task("mrpc"), pairs(label=[None, 1]), "Column 'label' of .* is null in row 0")


@pytest.mark.parametrize("label", [["yes", "no"], [0.0, 1.0]])
def test_label_of_another_type(task, label):
    refused(task("mrpc"), pairs(label=label), "Column 'label' of .* task 'mrpc' has whole numbers as labels")


@pytest.mark.parametrize(("name", "bad"), [("mrpc", 2), ("stsb", 5.5)])
def test_hidden_labels_are_fine_where_nothing_is_scored(task, name, bad):
    assert checked(pairs(label=[-1, 1]), task(name), "here", labelled=False)["label"].to_pylist() == [-1, 1]
    without = checked(pairs().drop_columns("label"), task(name), "here", labelled=False)
    assert without["label"].to_pylist() == [-1, -1]
    refused(task(name), pairs(label=[0, bad]), "out of range", labelled=False)


@pytest.mark.parametrize("content", [b"", b"not parquet", b"PAR1" + bytes(40) + b"PAR1"])
def test_corrupt_parquet(tmp_path, content):
    file = tmp_path / "train-0.parquet"
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"train-0\.parquet cannot be read as Parquet \(.*\); download it again\."):
        read_parquet([file])


def test_truncated_parquet(tmp_path, write_parquet):
    write_parquet(tmp_path, "sst2", "train", sentence=["a"] * 100, label=[0] * 100)
    (file,) = (tmp_path / "sst2").iterdir()
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        read_parquet([file])


def test_parquet_with_text_that_is_not_utf8(tmp_path, write_parquet):
    text = pa.array([b"caf\xe9"]).view(pa.string())
    write_parquet(tmp_path, "sst2", "train", sentence=text, label=[0])
    with pytest.raises(UserError, match=r"cannot be read as Parquet \(.*UTF8"):
        read_parquet(list((tmp_path / "sst2").iterdir()))


def test_shards_with_different_columns(tmp_path, write_parquet):
    write_parquet(tmp_path, "sst2", "train", "0", sentence=["a"], label=[0])
    write_parquet(tmp_path, "sst2", "train", "1", text=["a"], label=[0])
    with pytest.raises(
        UserError, match=r"train-1\.parquet has the columns text, label, but train-0\.parquet .* sentence"
    ):
        read_parquet(sorted((tmp_path / "sst2").iterdir()))


def test_path_not_given(task):
    with pytest.raises(UserError, match=r"data=local needs data\.path=<folder>"):
        load_task(task("cola"), DataConfig(name="local"))


def test_path_that_is_no_folder(task, local, tmp_path):
    with pytest.raises(UserError, match=r"data\.path=.*nowhere is not a folder"):
        load_task(task("cola"), local(tmp_path / "nowhere"))


def test_folder_without_the_task_lists_those_it_has(task, local, tmp_path, write, write_parquet):
    with pytest.raises(UserError, match=r"expected cola/train-\*\.parquet or CoLA/train\.tsv\. .*: none\."):
        load_task(task("cola"), local(tmp_path))
    write_parquet(tmp_path, "sst2", "train", sentence=["a"], label=[0])
    write(tmp_path / "RTE/train.tsv", "")
    (tmp_path / "notes").mkdir()
    with pytest.raises(UserError, match=r"no files of task 'cola': .* Tasks in that folder: RTE, sst2\."):
        load_task(task("cola"), local(tmp_path))


def test_missing_split_names_the_file(task, local, tmp_path, write):
    write(tmp_path / "CoLA/train.tsv", "x\t1\t\tThey won.\n")
    with pytest.raises(UserError, match=r"'cola' without its validation split: expected CoLA/dev\.tsv"):
        load_task(task("cola"), local(tmp_path))
    write(tmp_path / "AX/AX.tsv", "index\tsentence1\tsentence2\n")
    with pytest.raises(UserError, match=r"'ax' without its train split: expected MNLI/train\.tsv"):
        load_task(task("ax"), local(tmp_path))


def test_empty_file_names_the_file(task, local, tmp_path, write):
    write(tmp_path / "SST-2/train.tsv", "sentence\tlabel\n")
    write(tmp_path / "SST-2/dev.tsv", "sentence\tlabel\nfine\t1\n")
    with pytest.raises(UserError, match=r"split 'train' \(.*SST-2/train\.tsv\) is empty"):
        load_task(task("sst2"), local(tmp_path))


def test_unknown_source(task):
    with pytest.raises(UserError, match="data=superglue is unknown; valid: demo, glue, local"):
        load_task(task("sst2"), DataConfig(name="superglue"))
