"""The embedded default: the demo data, and the tiny Llama that was pretrained on its language."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from lorsa.runner import demo
from lorsa.runner.demo.data import DEMO_TASKS, DEMO_VERSION, LABEL_NOISE, demo_corpus, demo_rows

COLUMNS = {
    "cola": ("sentence",),
    "sst2": ("sentence",),
    "mrpc": ("sentence1", "sentence2"),
    "stsb": ("sentence1", "sentence2"),
    "qqp": ("question1", "question2"),
    "mnli": ("premise", "hypothesis"),
    "qnli": ("question", "sentence"),
    "rte": ("sentence1", "sentence2"),
    "wnli": ("sentence1", "sentence2"),
    "ax": ("premise", "hypothesis"),
}
CLASSES = {task: 3 if task in ("mnli", "ax") else 2 for task in COLUMNS if task != "stsb"}
PAIR_TASKS = [task for task, columns in COLUMNS.items() if len(columns) == 2 and task != "ax"]
TINY_LLAMA = Path(demo.__file__).parent / "tiny_llama"


def texts_of(task: str, split: str) -> list[tuple[str, ...]]:
    return [tuple(str(row[column]) for column in COLUMNS[task]) for row in demo_rows(task)[split]]


def validation_split(task: str) -> str:
    return "validation_matched" if task == "mnli" else "validation"


def test_all_of_glue_is_there():
    assert set(DEMO_TASKS) == set(COLUMNS)
    assert isinstance(DEMO_VERSION, int)


def test_unknown_task_names_the_known_ones():
    with pytest.raises(ValueError, match=r"no demo data for task 'squad'.*cola.*wnli"):
        demo_rows("squad")


@pytest.mark.parametrize("task", COLUMNS)
def test_splits_sizes_and_columns_are_glues(task: str):
    rows = demo_rows(task)
    sizes = {split: len(split_rows) for split, split_rows in rows.items()}
    if task == "ax":
        assert sizes == {"test": 500}
    elif task == "mnli":
        held_out = ("validation_matched", "validation_mismatched", "test_matched", "test_mismatched")
        assert sizes == {"train": 2000, **dict.fromkeys(held_out, 500)}
    else:
        assert sizes == {"train": 2000, "validation": 500, "test": 500}
    for split_rows in rows.values():
        assert all(tuple(row) == (*COLUMNS[task], "label", "idx") for row in split_rows)
        assert [row["idx"] for row in split_rows] == list(range(len(split_rows)))


@pytest.mark.parametrize("task", CLASSES)
def test_labels_are_balanced_class_ids_and_hidden_in_test(task: str):
    for split, rows in demo_rows(task).items():
        counts = Counter(row["label"] for row in rows)
        if split.startswith("test") and task != "ax":
            assert set(counts) == {-1}
            continue
        assert set(counts) == set(range(CLASSES[task]))
        share = 1 / CLASSES[task]
        assert all(abs(count / len(rows) - share) < 0.08 for count in counts.values())


def test_stsb_scores_span_zero_to_five():
    rows = demo_rows("stsb")
    for split in ("train", "validation"):
        scores = [row["label"] for row in rows[split]]
        assert all(isinstance(score, float) and 0 <= score <= 5 for score in scores)
        assert min(scores) < 0.1 and max(scores) > 4.9
    assert {row["label"] for row in rows["test"]} == {-1.0}


@pytest.mark.parametrize("task", [task for task in COLUMNS if task != "ax"])
def test_noise_is_in_training_labels_alone(task: str):
    noisy, clean = demo_rows(task), demo_rows(task, label_noise=0.0)
    assert {split for split in noisy if noisy[split] != clean[split]} == {"train"}
    pairs = list(zip(noisy["train"], clean["train"], strict=True))
    assert all({**one, "label": None} == {**two, "label": None} for one, two in pairs)
    rate = sum(one["label"] != two["label"] for one, two in pairs) / len(pairs)
    assert abs(rate - LABEL_NOISE) < 0.015


@pytest.mark.parametrize("task", COLUMNS)
def test_no_row_occurs_twice(task: str):
    rows = [texts for split in demo_rows(task) for texts in texts_of(task, split)]
    assert len(set(rows)) == len(rows)
    assert all(len(set(texts)) == len(texts) for texts in rows)


def digest() -> str:
    return hashlib.sha256(json.dumps([demo_rows(task) for task in DEMO_TASKS]).encode()).hexdigest()


def test_rows_are_the_same_in_every_process():
    # A new process has new hash seeds, which is what would reorder a set or a dict of strings by accident.
    code = (
        "import hashlib, json; from lorsa.runner.demo.data import DEMO_TASKS, demo_rows;"
        "print(hashlib.sha256(json.dumps([demo_rows(task) for task in DEMO_TASKS]).encode()).hexdigest())"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == digest()


def test_generator_imports_neither_numpy_nor_torch():
    code = "import sys, lorsa.runner.demo.data; print({'numpy', 'torch'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def overlap(texts: tuple[str, ...]) -> list[float]:
    """How many words two texts share, and what share of all their words that is."""
    one, two = (set(text.lower().strip(".?").split()) for text in texts)
    return [float(len(one & two)), float(len(one ^ two)), len(one & two) / len(one | two)]


@pytest.mark.parametrize("task", [*(task for task in PAIR_TASKS if task != "stsb"), "cola", "sst2"])
def test_bag_of_words_does_not_solve_it(task: str):
    from scipy.sparse import csr_matrix, hstack
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    rows, held_out = demo_rows(task), validation_split(task)
    train, test = texts_of(task, "train"), texts_of(task, held_out)
    bags = [CountVectorizer(binary=True).fit(column) for column in zip(*train, strict=True)]

    def features(texts: list[tuple[str, ...]]) -> csr_matrix:
        columns = [bag.transform(column) for bag, column in zip(bags, zip(*texts, strict=True), strict=True)]
        if len(bags) == 2:
            columns.append(csr_matrix([overlap(pair) for pair in texts]))
        return hstack(columns).tocsr()

    labels = {split: [row["label"] for row in rows[split]] for split in ("train", held_out)}
    model = LogisticRegression(C=0.1, max_iter=1000).fit(features(train), labels["train"])
    accuracy = model.score(features(test), labels[held_out])
    assert accuracy < (0.52 if task == "mnli" else 0.66)


def test_corpus_is_deterministic_and_as_long_as_asked():
    one, again, other = (list(demo_corpus(300, seed)) for seed in (0, 0, 1))
    assert one == again != other
    assert 300 <= sum(len(document.splitlines()) for document in one) < 310
    assert all(line and line[-1] in ".?" for document in one for line in document.splitlines())


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(TINY_LLAMA)


def test_embedded_files_are_small_and_few():
    files = {path.name: path.stat().st_size for path in TINY_LLAMA.iterdir()}
    assert set(files) == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert sum(files.values()) <= 4_000_000


@pytest.mark.parametrize("task", COLUMNS)
def test_tokenizer_reads_all_demo_text(task: str, tokenizer):
    texts = [text for split in demo_rows(task) for row in texts_of(task, split) for text in row]
    ids = tokenizer(texts)["input_ids"]
    assert all(tokenizer.unk_token_id not in row for row in ids)
    assert tokenizer.batch_decode(ids, skip_special_tokens=True) == [text.lower() for text in texts]
    words = sum(len(text.split()) for text in texts)
    assert sum(map(len, ids)) - 2 * len(ids) < 2 * words


def test_tokenizer_reads_any_text(tokenizer):
    text = "naïve 漢字 € 🙂"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_tokenizer_separates_a_pair(tokenizer):
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    one, two = (tokenizer(text)["input_ids"] for text in ("The doctor slept.", "Who slept?"))
    assert one[0] == two[0] == bos and one[-1] == two[-1] == eos
    assert tokenizer("The doctor slept.", "Who slept?")["input_ids"] == [*one, *two[1:]]
    assert len({tokenizer.unk_token_id, bos, eos, tokenizer.pad_token_id}) == 4


@pytest.fixture(scope="module")
def language_model():
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(TINY_LLAMA).eval()


def test_model_is_a_llama_of_a_million_parameters(language_model, tokenizer):
    config = language_model.config
    assert config.model_type == "llama"
    assert 0.8e6 < language_model.num_parameters() < 1.1e6
    assert (config.vocab_size, config.pad_token_id) == (len(tokenizer), tokenizer.pad_token_id)
    linear = {name.rsplit(".", 1)[-1] for name, _ in language_model.model.named_modules() if name.endswith("_proj")}
    assert linear == {f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")}


def test_model_classifies_a_padded_batch(tokenizer):
    import torch
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(TINY_LLAMA, num_labels=3).eval()
    pairs = texts_of("mnli", "train")[:4]
    batch = tokenizer([a for a, _ in pairs], [b for _, b in pairs], padding=True, return_tensors="pt")
    alone = tokenizer(*pairs[0], return_tensors="pt")
    with torch.inference_mode():
        logits, one = model(**batch).logits, model(**alone).logits
    assert logits.shape == (4, 3)
    torch.testing.assert_close(logits[:1], one, atol=1e-4, rtol=1e-4)


def test_model_has_learnt_the_language(language_model, tokenizer):
    import torch

    losses = []
    # A seed that neither the tokenizer nor the model was trained on.
    for document in itertools.islice(demo_corpus(10_000, seed=99), 100):
        ids = [tokenizer.bos_token_id]
        for line in document.splitlines():
            ids += [*tokenizer.encode(line, add_special_tokens=False), tokenizer.eos_token_id]
        tokens = torch.tensor([ids])
        with torch.inference_mode():
            losses.append(language_model(input_ids=tokens, labels=tokens).loss.item())
    assert sum(losses) / len(losses) < 0.35 * math.log(len(tokenizer))
