"""Unlabelled text in the demo language, for pretraining.

Documents put side by side what belongs together - a sentence and its paraphrase, a question and its answer, the
opinions of one review - so that predicting the next word requires the relations that the tasks ask about. No labelled
pair is ever shown.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from lorsa.runner.demo import inference, pairs, single
from lorsa.runner.demo.grammar import render, sample_scene, sentence, wh_question
from lorsa.runner.demo.vocabulary import GENRES, with_article

Document = list[str]


def _restatements(rng: random.Random) -> Document:
    """One scene in several wordings, each true if the one before it is."""
    scene = sample_scene(rng)
    wordings = [render(rng, scene) for _ in range(rng.randint(2, 3))]
    # A wording that comes out twice is kept once: copying word for word is easily learnt.
    return list(dict.fromkeys([*wordings, render(rng, inference.hypothesis(rng, scene, inference.ENTAILMENT))]))


def _interview(rng: random.Random) -> Document:
    """A scene, and questions about it with their answers."""
    scene = sample_scene(rng)
    lines = [render(rng, scene)]
    for _ in range(rng.randint(1, 3)):
        if rng.random() < 0.6:
            lines += inference.judged_question(rng, scene)
        else:
            parts = ["agent", "patient", *(["place"] if scene.place else []), *(["time"] if scene.time else [])]
            lines += wh_question(rng, scene, rng.choice(parts))
    return lines


def _answered(rng: random.Random) -> Document:
    """A question, then the sentence that answers it."""
    scene = sample_scene(rng)
    asked = rng.choice(["agent", "patient", *(["place"] if scene.place else []), *(["time"] if scene.time else [])])
    return [wh_question(rng, scene, asked)[0], render(rng, scene)]


def _news(rng: random.Random) -> Document:
    """Two events in one text, then what follows from one of them."""
    return list(inference.rte(rng, 0))


def _quantities(rng: random.Random) -> Document:
    return list(inference.quantified_pair(rng, rng.choice(GENRES), inference.ENTAILMENT))


def _same_question(rng: random.Random) -> Document:
    return list(pairs.duplicate_questions(rng, 1))


def _grammar_book(rng: random.Random) -> Document:
    """Unrelated sentences, all of them acceptable."""
    return [single.cola(rng, 1) for _ in range(rng.randint(1, 2))]


def _dictionary(rng: random.Random) -> Document:
    """What a word means: what kind of thing it names, or another word for it."""
    taxonomy = rng.choice((rng.choice(GENRES).people, rng.choice(GENRES).things))
    hypernym = rng.choice(list(taxonomy))
    concept = rng.choice(taxonomy[hypernym])
    return [sentence(f"{with_article(rng.choice(concept))} is {with_article(rng.choice((hypernym, *concept)))}")]


def _schema(rng: random.Random) -> Document:
    return list(inference.schema(rng)[:2])


_KINDS: tuple[tuple[Callable[[random.Random], Document], int], ...] = (
    (_restatements, 22),
    (_interview, 24),
    (_answered, 8),
    (_news, 6),
    (_quantities, 5),
    (_same_question, 10),
    (_grammar_book, 8),
    (_dictionary, 3),
    (_schema, 7),
    (single.review, 10),
)


def demo_corpus(n_sentences: int, seed: int) -> Iterator[str]:
    """Yield documents, one sentence a line, until there are at least ``n_sentences`` sentences."""
    rng = random.Random(f"demo corpus {seed}")
    kinds, weights = zip(*_KINDS, strict=True)
    while n_sentences > 0:
        document = rng.choices(kinds, weights)[0](rng)
        n_sentences -= len(document)
        yield "\n".join(document)
