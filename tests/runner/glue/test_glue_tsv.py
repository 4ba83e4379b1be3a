"""Every quirk of the official files, in files that exhibit it; the hub's columns are what comes out."""

import logging

import pytest

from lorsa.runner.errors import UserError
from lorsa.runner.glue.layout import find_files
from lorsa.runner.glue.tsv import read_split


@pytest.fixture
def read(task, write, tmp_path):
    """Read `text` as one split of a task."""

    def read_text(name, text, split="train"):
        return read_split(task(name), split, [write(tmp_path / f"{split}.tsv", text)])

    return read_text


def test_cola_training_set_has_no_header(read):
    table = read("cola", "gj04\t1\t\tThey won.\ngj04\t0\t*\tThey winned.\n")
    assert table.to_pydict() == {"sentence": ["They won.", "They winned."], "label": [1, 0], "idx": [0, 1]}


def test_cola_test_set_has_a_header_and_no_labels(read):
    table = read("cola", "index\tsentence\n0\tThey won.\n", split="test")
    assert table.to_pydict() == {"sentence": ["They won."], "label": [-1], "idx": [0]}


def test_mrpc_byte_order_mark_and_bare_quotes(read):
    text = '\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n1\t10\t11\t" Yes , he said .\tHe "agreed" .\r\n'
    assert read("mrpc", text).to_pylist() == [
        {"sentence1": '" Yes , he said .', "sentence2": 'He "agreed" .', "label": 1, "idx": 0}
    ]


def test_mrpc_raw_corpus_is_cut_by_the_dev_ids(task, local, write, tmp_path):
    corpus = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t1\t2\ta\tb\n0\t3\t4\tc\td\n1\t5\t6\te\tf\n"
    write(tmp_path / "MRPC/msr_paraphrase_train.txt", corpus)
    write(tmp_path / "MRPC/dev_ids.tsv", "3\t4\n")
    files = find_files(task("mrpc"), local(tmp_path)).splits
    train, dev = (read_split(task("mrpc"), split, files[split]) for split in ("train", "validation"))
    assert train.to_pydict() == {"sentence1": ["a", "e"], "sentence2": ["b", "f"], "label": [1, 1], "idx": [0, 2]}
    assert dev.to_pydict() == {"sentence1": ["c"], "sentence2": ["d"], "label": [0], "idx": [1]}


def test_qqp_broken_rows_are_skipped_and_counted(read, caplog):
    header = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
    with caplog.at_level(logging.WARNING):
        table = read("qqp", header + "1\t2\t3\tWhy?\tHow?\t0\n4\t5\t6\tWhat\n rest?\n7\t8\t9\tWho?\tWhom?\t1\n")
    assert table.to_pydict() == {
        "question1": ["Why?", "Who?"],
        "question2": ["How?", "Whom?"],
        "label": [0, 1],
        "idx": [0, 3],
    }
    assert "skipped 2 broken row(s)" in caplog.text


def test_whole_files_warn_of_nothing(read, caplog):
    read("sst2", "sentence\tlabel\nfine \t1\n\n")
    assert caplog.text == ""


def test_mnli_takes_the_gold_label_by_name_and_skips_rows_without_consensus(read):
    header = "index\tgenre\tsentence1_parse\tsentence1\tsentence2\tlabel1\tgold_label\n"
    body = (
        "0\tfiction\t( a )\ta\tb\tneutral\tcontradiction\n"
        "1\tfiction\t( c )\tc\td\tneutral\t-\n"
        "2\tfiction\t( e )\te\tf\tneutral\tentailment\n"
    )
    table = read("mnli", header + body, split="validation_matched")
    assert table.to_pydict() == {"premise": ["a", "e"], "hypothesis": ["b", "f"], "label": [2, 0], "idx": [0, 2]}


def test_mnli_files_are_found_by_genre(task, local, write, tmp_path):
    for name in ("train", "dev_matched", "dev_mismatched", "test_mismatched"):
        write(tmp_path / f"MNLI/{name}.tsv", "")
    files = find_files(task("mnli"), local(tmp_path)).splits
    assert {split: paths[0].name for split, paths in files.items()} == {
        "train": "train.tsv",
        "validation_matched": "dev_matched.tsv",
        "validation_mismatched": "dev_mismatched.tsv",
        "test_mismatched": "test_mismatched.tsv",
    }


@pytest.mark.parametrize("name", ["qnli", "rte"])
def test_labels_as_words(read, task, name):
    first, second = task(name).columns
    table = read(name, f"index\t{first}\t{second}\tlabel\n0\ta\tb\tnot_entailment\n1\tc\td\tentailment\n")
    assert table["label"].to_pylist() == [1, 0]
    assert table[first].to_pylist() == ["a", "c"]


def test_wnli_labels_as_numbers(read):
    table = read("wnli", "index\tsentence1\tsentence2\tlabel\n0\ta\tb\t1\n1\tc\td\t0\n")
    assert table["label"].to_pylist() == [1, 0]


def test_stsb_scores(read):
    table = read("stsb", "index\tsource1\tsentence1\tsentence2\tscore\n0\tnone\ta\tb\t2.500\n1\tnone\tc\td\t5.000\n")
    assert table["label"].to_pylist() == [2.5, 5.0]
    test = read("stsb", "index\tsentence1\tsentence2\n0\ta\tb\n", split="test")
    assert test["label"].to_pylist() == [-1.0]


def test_sst2_keeps_the_space_at_the_end_as_the_hub_does(read):
    assert read("sst2", "sentence\tlabel\nso good \t1\n")["sentence"].to_pylist() == ["so good "]


def test_unknown_word_names_row_and_choices(read):
    with pytest.raises(
        UserError, match=r"Label 'maybe' in row 0 of .*train\.tsv is not valid .*entailment, not_entailment, or 0 to 1"
    ):
        read("rte", "sentence1\tsentence2\tlabel\na\tb\tmaybe\n")
    with pytest.raises(UserError, match=r"Label 'high' in row 0 .*valid: a number"):
        read("stsb", "sentence1\tsentence2\tscore\na\tb\thigh\n")


def test_missing_column_lists_those_present(read):
    with pytest.raises(UserError, match=r"train\.tsv has no column 'sentence2' or '#2 String'; .*: sentence1, label"):
        read("rte", "sentence1\tlabel\na\t0\n")
    with pytest.raises(UserError, match=r"has no column 'label' or 'gold_label' .*: sentence"):
        read("sst2", "sentence\nfine\n")


def test_file_that_is_not_utf8(task, tmp_path):
    (tmp_path / "train.tsv").write_bytes("sentence\tlabel\ncaf\xe9\t1\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"train\.tsv is not UTF-8 text \(byte 0xe9"):
        read_split(task("sst2"), "train", [tmp_path / "train.tsv"])


def test_file_that_is_not_a_table(read):
    with pytest.raises(UserError, match=r"train\.tsv is not a tab-separated file: field larger"):
        read("sst2", "sentence\tlabel\n" + "x" * 200_000)


def test_file_that_is_gone(task, tmp_path):
    with pytest.raises(UserError, match=r"gone\.tsv cannot be read: No such file"):
        read_split(task("sst2"), "train", [tmp_path / "gone.tsv"])
