"""One-sentence tasks: acceptability (CoLA) and sentiment (SST-2)."""

from __future__ import annotations

import random
from collections.abc import Callable

from lorsa.runner.demo.grammar import noun_phrase, sample_scene, sentence, word
from lorsa.runner.demo.vocabulary import (
    CITY,
    GENRES,
    HANDLING_VERBS,
    SOCIAL_VERBS,
    Taxonomy,
    past,
    plural,
    with_article,
    with_s,
)

MinimalPair = tuple[str, str]


def _noun(rng: random.Random, taxonomy: Taxonomy) -> str:
    return word(rng, rng.choice(rng.choice(list(taxonomy.values()))), 0.5)


def _person(rng: random.Random) -> str:
    return _noun(rng, rng.choice(GENRES).people)


def _thing(rng: random.Random) -> str:
    return _noun(rng, rng.choice(GENRES).things)


def _social(rng: random.Random) -> str:
    return word(rng, rng.choice(SOCIAL_VERBS)[0], 0.5)


def _handling(rng: random.Random) -> str:
    return word(rng, rng.choice(HANDLING_VERBS)[0], 0.5)


_STATES = ("rich", "old", "famous", "young", "tired", "ready", "late", "alone")
_INTRANSITIVES = ("slept", "arrived", "fainted", "laughed", "vanished", "coughed", "yawned", "sneezed")


def _copula_agreement(rng: random.Random) -> MinimalPair:
    """An attractor of either number stands between the subject and its verb."""
    many, verbs = rng.random() < 0.5, ("are", "is")
    subject, attractor = _person(rng), _person(rng)
    subject = plural(subject) if many else subject
    attractor = plural(attractor) if rng.random() < 0.6 else attractor
    link = rng.choice(("near", "behind", "with"))
    good, bad = verbs if many else verbs[::-1]
    frame = f"the {subject} {link} the {attractor} {{}} {rng.choice(_STATES)}"
    return frame.format(good), frame.format(bad)


def _verb_agreement(rng: random.Random) -> MinimalPair:
    many, base = rng.random() < 0.5, _social(rng)
    subject, attractor, patient = _person(rng), _person(rng), _person(rng)
    subject = plural(subject) if many else subject
    attractor = plural(attractor) if rng.random() < 0.5 else attractor
    good, bad = (base, with_s(base)) if many else (with_s(base), base)
    verb_in_clause = past(_social(rng))
    frame = f"the {subject} who {verb_in_clause} the {attractor} {{}} the {patient}"
    return frame.format(good), frame.format(bad)


def _reflexive(rng: random.Random) -> MinimalPair:
    many = rng.random() < 0.5
    subject, other = _person(rng), _person(rng)
    subject = plural(subject) if many else subject
    singular = rng.choice(("himself", "herself"))
    good, bad = ("themselves", singular) if many else (singular, "themselves")
    attractor = f" near the {plural(other) if rng.random() < 0.5 else other}"
    frame = f"the {subject}{attractor} {past(_social(rng))} {{}}"
    return frame.format(good), frame.format(bad)


def _determiner(rng: random.Random) -> MinimalPair:
    noun, many = _thing(rng), rng.random() < 0.5
    determiners = rng.choice((("this", "these"), ("that", "those")))
    good, bad = determiners[::-1] if many else determiners
    frame = f"the {_person(rng)} {past(_handling(rng))} {{}} {plural(noun) if many else noun}"
    return frame.format(good), frame.format(bad)


def _transitivity(rng: random.Random) -> MinimalPair:
    """An intransitive verb with an object, or a transitive one without."""
    subject, thing = _person(rng), _thing(rng)
    if rng.random() < 0.5:
        verb = rng.choice(_INTRANSITIVES)
        place = rng.choice(CITY.places)
        return f"the {subject} {verb} {place}", f"the {subject} {verb} the {thing} {place}"
    verb, place = past(_handling(rng)), rng.choice(CITY.places)
    return f"the {subject} {verb} the {thing} {place}", f"the {subject} {verb} {place}"


def _auxiliary(rng: random.Random) -> MinimalPair:
    base = _social(rng)
    frame = f"the {_person(rng)} {{}} the {_person(rng)}"
    auxiliary, good, bad = rng.choice(
        (
            ("did not", base, past(base)),
            ("will", base, past(base)),
            ("has", past(base), base),
            ("must", base, with_s(base)),
        )
    )
    return frame.format(f"{auxiliary} {good}"), frame.format(f"{auxiliary} {bad}")


def _word_order(rng: random.Random) -> MinimalPair:
    scene = sample_scene(rng, adjective=1.0)
    phrase = noun_phrase(rng, scene.agent)
    article, adjective, noun = phrase.split()
    rest = f"{past(word(rng, scene.verb[0], 0.5))} {noun_phrase(rng, scene.patient)}"
    return f"{phrase} {rest}", f"{article} {noun} {adjective} {rest}"


def _filled_gap(rng: random.Random) -> MinimalPair:
    verb, subject, thing = _handling(rng), _person(rng), _thing(rng)
    if rng.random() < 0.5:
        return f"what did the {subject} {verb}?", f"what did the {subject} {verb} the {thing}?"
    return f"who {past(verb)} the {thing}?", f"who did {verb} {past(verb)} the {thing}?"


def _comparative(rng: random.Random) -> MinimalPair:
    degrees = (("{0}er than", "more {0}er than"), ("{0}er than", "{0} than"), ("as {0} as", "as {0}er as"))
    adjective = rng.choice(("rich", "old", "young", "tall", "smart", "weak", "quick", "calm"))
    good, bad = (degree.format(adjective) for degree in rng.choice(degrees))
    frame = f"the {_person(rng)} is {{}} the {_person(rng)}"
    return frame.format(good), frame.format(bad)


def _polarity_item(rng: random.Random) -> MinimalPair:
    """ "Ever" wants a negation above it, not one inside the subject's relative clause."""
    one, two = _person(rng), _person(rng)
    rest = f"has ever {past(_social(rng))} the {_person(rng)}"
    return f"no {one} who met the {two} {rest}", f"the {one} who met no {two} {rest}"


_PHENOMENA: tuple[Callable[[random.Random], MinimalPair], ...] = (
    _copula_agreement,
    _verb_agreement,
    _reflexive,
    _determiner,
    _transitivity,
    _auxiliary,
    _word_order,
    _filled_gap,
    _comparative,
    _polarity_item,
)


def cola(rng: random.Random, label: int) -> str:
    """A sentence; label 1 is acceptable. Both sides of each minimal pair are equally frequent, whatever their words."""
    good, bad = rng.choice(_PHENOMENA)(rng)
    return sentence(good if label else bad)


_ASPECTS = (
    *("acting", "plot", "script", "music", "dialogue", "ending"),
    *("story", "direction", "humor", "cast", "pacing", "camera work"),
)
_FILMS = ("film", "movie", "comedy", "drama", "thriller", "sequel")
_DENIALS = ("anything but", "never", "hardly", "far from")
_INTENSIFIERS = ("very", "really", "truly", "remarkably", "quite", "so")


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


#: Index 0 is negative and 1 positive, as in the labels.
_ADJECTIVES = (
    _words(
        "dull bland clumsy tedious lifeless weak shallow silly ugly boring stale predictable messy awful dreadful "
        "painful grating forgettable hollow lazy sloppy tasteless pointless dreary"
    ),
    _words(
        "funny moving brilliant charming clever fresh warm gripping witty elegant tender lovely superb graceful "
        "touching rich subtle engaging delightful sharp honest inspired memorable thrilling"
    ),
)
_VERBS = (("hated", "regretted", "disliked", "loathed", "despised"), ("loved", "enjoyed", "admired", "adored", "liked"))
_BASES = (("hate", "regret", "dislike", "loathe", "despise"), ("love", "enjoy", "admire", "adore", "like"))


def plain_opinion(rng: random.Random, polarity: int) -> str:
    """One clause whose own words have the given polarity."""
    aspect, words = f"the {rng.choice(_ASPECTS)}", _ADJECTIVES[polarity]
    return rng.choice(
        (
            f"{aspect} is {_degree(rng)}{rng.choice(words)}",
            f"I {rng.choice(_VERBS[polarity])} {aspect}",
            f"this is {with_article(rng.choice(words) + ' ' + rng.choice(_FILMS))}",
            f"{aspect} is {rng.choice(words)} and {rng.choice(words)}",
        )
    )


def _denied_opinion(rng: random.Random, polarity: int) -> str:
    """One clause that takes the given side by denying the opposite."""
    aspect, opposite = f"the {rng.choice(_ASPECTS)}", 1 - polarity
    return rng.choice(
        (
            f"{aspect} is not {_degree(rng)}{rng.choice(_ADJECTIVES[opposite])}",
            f"{aspect} is {rng.choice(_DENIALS)} {rng.choice(_ADJECTIVES[opposite])}",
            f"nobody could {rng.choice(_BASES[opposite])} {aspect}",
            f"I did not {rng.choice(_BASES[opposite])} {aspect}",
        )
    )


def _degree(rng: random.Random) -> str:
    return f"{rng.choice(_INTENSIFIERS)} " if rng.random() < 0.4 else ""


def opinion(rng: random.Random, polarity: int) -> str:
    """One clause with the given polarity, said plainly or by denying the opposite."""
    return (plain_opinion if rng.random() < 0.5 else _denied_opinion)(rng, polarity)


def sst2(rng: random.Random, label: int) -> str:
    """A remark on a film; where two opinions disagree, the main clause or the one after "but" decides."""
    main = opinion(rng, label)
    shape = rng.random()
    if shape < 0.25:
        return sentence(main)
    if shape < 0.4:
        return sentence(f"{main} and {opinion(rng, label)}")
    against = opinion(rng, 1 - label)
    return sentence(
        rng.choice(
            (
                f"{against}, but {main}",
                f"although {against}, {main}",
                f"{main}, even though {against}",
                f"{main}, although {against}",
            )
        )
    )
