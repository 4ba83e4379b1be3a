"""Demo data with the columns, splits and label ids of the hub's GLUE, and unlabelled text of the same language.

Everything is a pure function of the task, the split and ``DEMO_VERSION``, so that a result on demo data can be
reproduced anywhere, without a download. Training labels carry noise; validation labels are clean, and test labels are
withheld as in GLUE. Only ``ax``, which has nothing but a test split, keeps its labels.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from lorsa.runner.demo import inference, pairs, single
from lorsa.runner.demo.corpus import demo_corpus

__all__ = ["DEMO_TASKS", "DEMO_VERSION", "LABEL_NOISE", "demo_corpus", "demo_rows"]

#: Raise this whenever any row changes: results on different versions are not comparable.
DEMO_VERSION: int = 1

#: The share of training labels that are replaced by a wrong one (``stsb``: by a random score).
LABEL_NOISE = 0.04

_TRAIN_ROWS = 2000
_HELD_OUT_ROWS = 500
_SPLITS = ("train", "validation", "test")
_MNLI_SPLITS = ("train", "validation_matched", "validation_mismatched", "test_matched", "test_mismatched")

_Texts = tuple[str, ...]
_Generator = Callable[[random.Random, int, str], _Texts]

#: For each task: its text columns, its number of classes, its splits, and what writes the texts for a class.
_TASKS: dict[str, tuple[_Texts, int, _Texts, _Generator]] = {
    "cola": (("sentence",), 2, _SPLITS, lambda rng, label, _: (single.cola(rng, label),)),
    "sst2": (("sentence",), 2, _SPLITS, lambda rng, label, _: (single.sst2(rng, label),)),
    "mrpc": (("sentence1", "sentence2"), 2, _SPLITS, lambda rng, label, _: pairs.mrpc(rng, label)),
    "stsb": (("sentence1", "sentence2"), 6, _SPLITS, lambda rng, label, _: pairs.stsb(rng, label)),
    "qqp": (("question1", "question2"), 2, _SPLITS, lambda rng, label, _: pairs.duplicate_questions(rng, label)),
    "mnli": (("premise", "hypothesis"), 3, _MNLI_SPLITS, inference.mnli),
    "qnli": (("question", "sentence"), 2, _SPLITS, lambda rng, label, _: pairs.qnli(rng, label)),
    "rte": (("sentence1", "sentence2"), 2, _SPLITS, lambda rng, label, _: inference.rte(rng, label)),
    "wnli": (("sentence1", "sentence2"), 2, _SPLITS, lambda rng, label, _: inference.wnli(rng, label)),
    "ax": (("premise", "hypothesis"), 3, ("test",), lambda rng, label, _: inference.ax(rng, label)),
}

DEMO_TASKS = tuple(_TASKS)


def demo_rows(task: str, label_noise: float = LABEL_NOISE) -> dict[str, list[dict[str, object]]]:
    """Return every split of a task as a list of rows, each a mapping from column to value.

    No two rows of a task have the same texts, so no split leaks into another. ``label_noise`` changes training labels
    only, never a text: with 0 the rows are the same ones with their true labels.
    """
    if task not in _TASKS:
        raise ValueError(f"no demo data for task {task!r}; there is: {', '.join(DEMO_TASKS)}")
    columns, classes, splits, generate = _TASKS[task]
    seen: set[_Texts] = set()
    rows: dict[str, list[dict[str, object]]] = {}
    for split in splits:
        rng = random.Random(f"demo {DEMO_VERSION} {task} {split}")
        noise = random.Random(f"demo {DEMO_VERSION} {task} {split} noise")
        rows[split] = []
        for idx in range(_TRAIN_ROWS if split == "train" else _HELD_OUT_ROWS):
            true = rng.randrange(classes)
            texts = generate(rng, true, split)
            while texts in seen or (len(texts) == 2 and texts[0] == texts[1]):
                texts = generate(rng, true, split)
            seen.add(texts)
            label = _published_label(noise, task, split, true, classes, label_noise)
            rows[split].append({**dict(zip(columns, texts, strict=True)), "label": label, "idx": idx})
    return rows


def _published_label(
    noise: random.Random, task: str, split: str, true: int, classes: int, label_noise: float
) -> int | float:
    """The label as the row shows it: noisy in training, hidden in test, a jittered score for ``stsb``."""
    if split.startswith("test") and task != "ax":
        return -1.0 if task == "stsb" else -1
    # Drawn for every row, so that the noise of one row does not depend on the rate.
    noisy = noise.random() < label_noise and split == "train"
    random_score, jitter, shift = noise.uniform(0, 5), noise.uniform(-0.3, 0.3), noise.randrange(1, classes)
    if task == "stsb":
        return round(random_score if noisy else min(5.0, max(0.0, true + jitter)), 2)
    return (true + shift) % classes if noisy else true
