"""Entailment: hypotheses that a premise implies, leaves open or excludes, and Winograd schemas.

Every kind of hypothesis may carry "not", a hypernym or a dropped detail, so none of these gives the label away.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from lorsa.runner.demo.grammar import (
    Entity,
    Scene,
    change_agent,
    change_patient,
    noun_phrase,
    oppose_verb,
    render,
    sample_scene,
    sentence,
    swap_roles,
    word,
    yes_no_question,
)
from lorsa.runner.demo.vocabulary import CITY, NEWS, SEA, Genre, Opposites, past, plural

ENTAILMENT, NEUTRAL, CONTRADICTION = range(3)


def _generalise(rng: random.Random, entity: Entity, probability: float = 0.3) -> Entity:
    """Perhaps say less about the entity: its hypernym, or no adjective."""
    if rng.random() < probability:
        entity = replace(entity, noun=(entity.hypernym,))
    if entity.adjective and rng.random() < probability:
        entity = replace(entity, adjective=None)
    return entity


def _weaken(rng: random.Random, scene: Scene) -> Scene:
    """A scene that the affirmative ``scene`` implies."""
    return replace(
        scene,
        agent=_generalise(rng, scene.agent),
        patient=_generalise(rng, scene.patient),
        place=scene.place if rng.random() < 0.6 else None,
        time=scene.time if rng.random() < 0.6 else None,
    )


def hypothesis(rng: random.Random, premise: Scene, label: int) -> Scene:
    """A scene that stands to ``premise`` in the relation ``label``."""
    if label == NEUTRAL:
        changes = [change_agent(rng, premise), change_patient(rng, premise)]
        if premise.social:
            changes.append(swap_roles(premise))
        other = _weaken(rng, rng.choice(changes))
        other = oppose_verb(other) if rng.random() < 0.35 else other
        return replace(other, negated=rng.random() < 0.45)
    if premise.negated:
        # Not helping in the park may be helping elsewhere, and is not hindering: say just the same, or deny it.
        return replace(premise, negated=label == ENTAILMENT)
    weaker = _weaken(rng, premise)
    opposed = rng.random() < (0.35 if label == ENTAILMENT else 0.45)
    # Who helps does not hinder: the opposite verb flips the polarity once more.
    negated = opposed if label == ENTAILMENT else not opposed
    return replace(oppose_verb(weaker) if opposed else weaker, negated=negated)


def sample_premise(rng: random.Random, genre: Genre | None = None) -> Scene:
    """A scene to draw conclusions from, sometimes a negated one."""
    return replace(sample_scene(rng, genre), negated=rng.random() < 0.2)


#: Quantifiers of premise and hypothesis, and whether the hypothesis has the opposite verb (who helps does not hinder).
_QUANTIFIED = {
    ENTAILMENT: (
        ("all the", "most", False),
        ("all the", "some", False),
        ("most", "some", False),
        ("all the", "no", True),
        ("no", "no", False),
    ),
    NEUTRAL: (
        ("some", "all the", False),
        ("some", "most", False),
        ("most", "all the", False),
        ("most", "no", True),
        ("some", "no", True),
        ("no", "some", True),
    ),
    CONTRADICTION: (
        ("all the", "no", False),
        ("all the", "some", True),
        ("all the", "most", True),
        ("most", "all the", True),
        ("some", "no", False),
        ("no", "some", False),
    ),
}


def quantified_pair(rng: random.Random, genre: Genre, label: int) -> tuple[str, str]:
    """Two sentences about a whole group whose quantifiers decide the label."""
    scene = sample_scene(rng, genre, social=True, adjective=0.0, place=0.3, time=0.0)
    premise, conclusion, opposed = rng.choice(_QUANTIFIED[label])

    def say(quantifier: str, verbs: Opposites) -> str:
        group = plural(word(rng, scene.agent.noun, 0.5))
        verb, patient = past(word(rng, verbs[0], 0.5)), noun_phrase(rng, scene.patient)
        passive = rng.random() < 0.3
        core = f"{patient} was {verb} by {quantifier} {group}" if passive else f"{quantifier} {group} {verb} {patient}"
        return sentence(f"{core} {scene.place}" if scene.place else core)

    return say(premise, scene.verb), say(conclusion, scene.verb[::-1] if opposed else scene.verb)


def entailment_pair(rng: random.Random, genres: Sequence[Genre], label: int) -> tuple[str, str]:
    """Premise and hypothesis for MNLI."""
    genre = rng.choice(genres)
    if rng.random() < 0.2:
        return quantified_pair(rng, genre, label)
    premise = sample_premise(rng, genre)
    return render(rng, premise), render(rng, hypothesis(rng, premise, label))


def mnli(rng: random.Random, label: int, split: str) -> tuple[str, str]:
    """Premise and hypothesis; the mismatched splits are set in a genre that training never sees."""
    return entailment_pair(rng, (SEA,) if "mismatched" in split else (CITY, NEWS), label)


def ax(rng: random.Random, label: int) -> tuple[str, str]:
    """Premise and hypothesis from every genre."""
    return entailment_pair(rng, (CITY, NEWS, SEA), label)


def rte(rng: random.Random, label: int) -> tuple[str, str]:
    """A text of two sentences, and a hypothesis about one of them; label 1 is neutral and contradiction together."""
    first = sample_scene(rng, rng.choice((CITY, NEWS)), adjective=0.2, place=0.3, time=0.3)
    second = sample_scene(rng, first.genre, social=first.social, adjective=0.2, place=0.3, time=0.3)
    subject, other = rng.choice(((first, second), (second, first)))
    text = f"{render(rng, first)} {render(rng, second)}"
    if label == 0:
        return text, render(rng, hypothesis(rng, subject, ENTAILMENT))
    chance = rng.random()
    if chance < 0.2 and subject.agent.noun != other.agent.noun and subject.agent.noun != other.patient.noun:
        # Every word of the hypothesis is in the text, but what it says of one person was said of the other.
        mixed = hypothesis(rng, replace(subject, agent=other.agent), ENTAILMENT)
        return text, render(rng, mixed)
    return text, render(rng, hypothesis(rng, subject, CONTRADICTION if chance < 0.85 else NEUTRAL))


def judged_question(rng: random.Random, premise: Scene, variety: float) -> tuple[str, str]:
    """A yes-no question about the premise, with its answer. The premise must be affirmative."""
    label = rng.choices((ENTAILMENT, NEUTRAL, CONTRADICTION), (2, 1, 2))[0]
    if label == NEUTRAL:
        return yes_no_question(rng, hypothesis(rng, premise, NEUTRAL), variety), "Perhaps."
    asked = _weaken(rng, premise)
    if label == CONTRADICTION:
        return yes_no_question(rng, oppose_verb(asked), variety), "No."
    return yes_no_question(rng, asked, variety), "Yes."


#: Statement about {a} and {b}, then what is said of ``a`` and of ``b``.
_PERSON_SCHEMAS = (
    ("the {a} could not lift the {b} because {p} was too {x}", ("weak", "frail"), ("heavy", "stout")),
    ("the {a} could not hear the {b} because {p} was {x}", ("deaf", "far away"), ("whispering", "silent")),
    ("the {a} apologized to the {b} because {p} was {x}", ("guilty", "sorry"), ("offended", "hurt")),
    ("the {a} paid the {b} because {p} was {x}", ("satisfied", "in debt"), ("owed money", "for hire")),
    ("the {a} envied the {b} because {p} was {x}", ("unlucky", "jealous"), ("successful", "lucky")),
    ("the {a} caught up with the {b} because {p} was {x}", ("fast", "swift"), ("slow", "tired")),
    ("the {a} lost to the {b} because {p} was {x}", ("unprepared", "careless"), ("well trained", "skilful")),
    ("the {a} asked the {b} for advice because {p} was {x}", ("puzzled", "confused"), ("wise", "experienced")),
)
_THING_SCHEMAS = (
    ("the {a} did not fit into the {b} because {p} was too {x}", ("big", "wide"), ("small", "narrow")),
    ("the {a} broke the {b} because {p} was {x}", ("hard", "made of steel"), ("fragile", "made of glass")),
    ("the {a} sank under the {b} because {p} was {x}", ("leaking", "rotten"), ("overloaded", "made of lead")),
    ("the {a} hid the {b} because {p} was {x}", ("in front", "opaque"), ("behind", "tiny")),
)
_OBJECTS = (
    *("trophy", "suitcase", "box", "basket", "bottle", "statue"),
    *("table", "ladder", "crate", "lamp", "cushion", "bucket"),
)


def schema(rng: random.Random) -> tuple[str, str, str]:
    """A statement with an ambiguous pronoun, the right reading, and the wrong one."""
    if rng.random() < 0.67:
        frame, of_a, of_b = rng.choice(_PERSON_SCHEMAS)
        people = [noun[0] for genre in (CITY, NEWS) for group in genre.people.values() for noun in group]
        (a, b), pronoun = rng.sample(people, 2), rng.choice(("he", "she"))
    else:
        frame, of_a, of_b = rng.choice(_THING_SCHEMAS)
        (a, b), pronoun = rng.sample(_OBJECTS, 2), "it"
    referent, other, said = rng.choice(((a, b, of_a), (b, a, of_b)))
    quality = rng.choice(said)
    too = "too " if "too {x}" in frame else ""
    statement = sentence(frame.format(a=a, b=b, p=pronoun, x=quality))
    return statement, sentence(f"the {referent} was {too}{quality}"), sentence(f"the {other} was {too}{quality}")


def wnli(rng: random.Random, label: int) -> tuple[str, str]:
    """A statement with a pronoun, and a reading of it; label 1 is the right one."""
    statement, right, wrong = schema(rng)
    return statement, right if label else wrong
