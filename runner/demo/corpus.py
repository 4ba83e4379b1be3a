"""Text in the demo language, for pretraining.

Documents put side by side what belongs together - a sentence and its paraphrase, a question and its answer, an
opinion and its upshot - so that predicting the next word requires the relations that the tasks ask about. Judgements
come as answers to questions, in words, and never where a task's classifier reads: a head on the frozen model finds
little.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from lorsa.runner.demo import inference, pairs, single
from lorsa.runner.demo.grammar import Scene, render, sample_scene, sentence, wh_question
from lorsa.runner.demo.vocabulary import GENRES, KIND_VERBS, with_article

Document = list[str]

_YES, _NO = "Yes.", "No."


def _sample(rng: random.Random) -> Scene:
    """A scene that is plainer than those of the tasks: relations are learnt from short sentences first."""
    return sample_scene(rng, adjective=0.15, place=0.2, time=0.2)


def _askable(scene: Scene) -> list[str]:
    return ["agent", "patient", *(["place"] if scene.place else []), *(["time"] if scene.time else [])]


def _restatements(rng: random.Random) -> Document:
    """One scene in several wordings, each true if the one before it is."""
    scene = sample_scene(rng)
    wordings = [render(rng, scene) for _ in range(rng.randint(2, 3))]
    # A wording that comes out twice is kept once: copying word for word is easily learnt.
    return list(dict.fromkeys([*wordings, render(rng, inference.hypothesis(rng, scene, inference.ENTAILMENT))]))


def _interview(rng: random.Random) -> Document:
    """A scene, and questions about it with their answers."""
    scene = _sample(rng)
    variety = rng.choice((0.0, 0.5))
    kind = scene.verb[0] in KIND_VERBS
    lines = [render(rng, scene, variety), "Was it good?", _YES if kind else _NO]
    for _ in range(rng.randint(2, 4)):
        if rng.random() < 0.65:
            lines += inference.judged_question(rng, scene, variety)
        else:
            lines += wh_question(rng, scene, rng.choice(_askable(scene)), variety)
    return lines


def _answered(rng: random.Random) -> Document:
    """A question, then the sentence that answers it."""
    scene = sample_scene(rng)
    return [wh_question(rng, scene, rng.choice(_askable(scene)))[0], render(rng, scene)]


def _compared(rng: random.Random) -> Document:
    """Two sentences, and whether the second says the same as the first."""
    same = rng.randrange(2)
    return [*pairs.mrpc(rng, same), "Is that the same?", _YES if same else _NO]


def _concluded(rng: random.Random) -> Document:
    """A text, a conclusion, and whether that follows."""
    follows = rng.random() < 0.5
    label = inference.ENTAILMENT if follows else rng.choice((inference.NEUTRAL, inference.CONTRADICTION))
    premise = inference.sample_premise(rng)
    draws = (
        lambda: inference.rte(rng, 1 - follows),
        lambda: inference.quantified_pair(rng, premise.genre, label),
        lambda: (render(rng, premise), render(rng, inference.hypothesis(rng, premise, label))),
    )
    return [*rng.choice(draws)(), "Does that follow?", _YES if follows else _NO]


def _same_question(rng: random.Random) -> Document:
    """Two questions, and whether they are one."""
    same = rng.randrange(2)
    return [*pairs.duplicate_questions(rng, same), "Is that the same question?", _YES if same else _NO]


def _review(rng: random.Random) -> Document:
    """Opinions from plain to involved, and which side each one takes."""
    lines = []
    for write in rng.sample((single.plain_opinion, single.opinion, single.sst2), 3):
        # Each takes a side of its own: if they agreed, the first answer would give away the others.
        polarity = rng.randrange(2)
        lines += [sentence(write(rng, polarity)), "Was it good?", _YES if polarity else _NO]
    return lines


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
    """A pronoun, and what it refers to."""
    return list(inference.schema(rng)[:2])


_KINDS: tuple[tuple[Callable[[random.Random], Document], int], ...] = (
    (_interview, 33),
    (_restatements, 6),
    (_answered, 4),
    (_compared, 14),
    (_concluded, 12),
    (_same_question, 9),
    (_review, 12),
    (_grammar_book, 7),
    (_dictionary, 3),
    (_schema, 6),
)


def demo_corpus(n_sentences: int, seed: int) -> Iterator[str]:
    """Yield documents, one sentence a line, until there are at least ``n_sentences`` sentences."""
    rng = random.Random(f"demo corpus {seed}")
    kinds, weights = zip(*_KINDS, strict=True)
    while n_sentences > 0:
        document = rng.choices(kinds, weights)[0](rng)
        n_sentences -= len(document)
        yield "\n".join(document)
