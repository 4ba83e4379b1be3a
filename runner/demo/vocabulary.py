"""The words of the demo language, grouped by the relations that the tasks test.

A *concept* is a tuple of synonyms. Concepts come in opposites (verbs, adjectives) or in groups that share a hypernym
(nouns), and every verb's past tense is also its participle, so that a passive never gives itself away by its form.
"""

from __future__ import annotations

from dataclasses import dataclass

Concept = tuple[str, ...]
Opposites = tuple[Concept, Concept]
Taxonomy = dict[str, tuple[Concept, ...]]


def concepts(text: str) -> tuple[Concept, ...]:
    """Split ``"doctor/physician nurse"`` into ``(("doctor", "physician"), ("nurse",))``."""
    return tuple(tuple(concept.split("/")) for concept in text.split())


def _taxonomy(**groups: str) -> Taxonomy:
    return {hypernym: concepts(members) for hypernym, members in groups.items()}


def _opposites(text: str) -> tuple[Opposites, ...]:
    """Parse ``"big/large:small/little ..."``: both sides of each pair, so that every concept has a row of its own."""
    pairs = [pair.split(":") for pair in text.split()]
    rows: list[Opposites] = []
    for left, right in pairs:
        one, two = tuple(left.split("/")), tuple(right.split("/"))
        rows += [(one, two), (two, one)]
    return tuple(rows)


@dataclass(frozen=True)
class Genre:
    """What people, things, places and times a text may speak of."""

    people: Taxonomy
    things: Taxonomy
    places: tuple[str, ...]
    times: tuple[str, ...]


CITY = Genre(
    people=_taxonomy(
        musician="violinist/fiddler pianist singer/vocalist drummer",
        scientist="chemist biologist physicist astronomer",
        medic="doctor/physician nurse surgeon dentist",
        athlete="runner swimmer boxer/fighter skier",
        artist="painter sculptor poet novelist/author",
    ),
    things=_taxonomy(
        vehicle="car/automobile truck/lorry bus van",
        furniture="chair table sofa/couch desk",
        tool="hammer saw drill ladder",
        building="house/home school hotel/inn church",
    ),
    places=("in the park", "at the station", "near the river", "behind the theatre", "in the kitchen", "at the market"),
    times=("on Monday", "on Friday", "last week", "yesterday", "in the morning", "at midnight"),
)

NEWS = Genre(
    people=_taxonomy(
        official="minister mayor senator governor",
        lawyer="judge attorney/counsel prosecutor notary",
        manager="director/head chairman banker/financier broker",
        reporter="editor columnist/commentator critic presenter",
    ),
    things=_taxonomy(
        business="bank shop/store factory/plant airline",
        document="report contract/agreement letter bill",
        building="prison/jail museum hospital/clinic library",
    ),
    places=("in the capital", "at the border", "in parliament", "near the harbour", "in the north", "at the airport"),
    times=("on Tuesday", "on Thursday", "last month", "in April", "on Sunday", "in October"),
)

SEA = Genre(
    people=_taxonomy(
        sailor="captain/skipper pirate/buccaneer cook helmsman",
        noble="king/monarch queen prince duke",
        soldier="knight archer guard/sentry spy",
    ),
    things=_taxonomy(
        ship="galley ferry yacht raft",
        weapon="sword/blade spear cannon dagger",
        treasure="crown pearl ring/band necklace",
    ),
    places=("on the island", "in the castle", "beneath the cliff", "in the cave", "on the deck", "at the lighthouse"),
    times=("at dawn", "at dusk", "long ago", "in winter", "during the storm", "in summer"),
)

GENRES = (CITY, NEWS, SEA)

#: What one person does to another, and to a thing.
SOCIAL_VERBS = _opposites(
    "help/assist/aid:hinder/obstruct praise/commend:criticize/blame hire/employ:dismiss/fire "
    "admire/respect:despise/scorn welcome/greet:ignore/avoid defend/protect:attack/assault "
    "love/adore:hate/loathe calm/soothe:annoy/irritate"
)
HANDLING_VERBS = _opposites(
    "repair/fix/mend:destroy/wreck improve/enhance:spoil/ruin find/locate:lose/misplace restore/renovate:burn/scorch "
    "build/construct:demolish clean/wash:stain/soil"
)

#: The verbs for what is good for the patient; their opposites are bad for it.
KIND_VERBS = frozenset(verb for verbs in (SOCIAL_VERBS, HANDLING_VERBS) for verb, _ in verbs[::2])

#: What can be said of a person, and of a thing.
PERSON_ADJECTIVES = _opposites(
    "young/youthful:old/elderly rich/wealthy:poor/needy happy/cheerful:sad/gloomy clever/smart:foolish/silly "
    "famous/renowned:unknown/obscure polite/courteous:rude/impolite"
)
THING_ADJECTIVES = _opposites(
    "big/large:small/little new/modern:ancient/antique cheap/inexpensive:expensive/costly clean:dirty/filthy"
)

IRREGULAR_PASTS = {
    "find": "found",
    "lose": "lost",
    "build": "built",
}


def past(verb: str) -> str:
    """The past tense, which is also the participle."""
    if verb in IRREGULAR_PASTS:
        return IRREGULAR_PASTS[verb]
    if verb.endswith("y") and verb[-2] not in "aeo":
        return verb[:-1] + "ied"
    return verb + ("d" if verb.endswith("e") else "ed")


def with_s(word: str) -> str:
    """A noun's plural or a verb's third person singular."""
    if word.endswith("y") and word[-2] not in "aeo":
        return word[:-1] + "ies"
    return word + ("es" if word.endswith(("s", "sh", "ch", "x")) else "s")


def plural(noun: str) -> str:
    """A noun's plural."""
    return noun[:-3] + "men" if noun.endswith("man") else with_s(noun)


def with_article(phrase: str) -> str:
    """The phrase behind "a" or "an"."""
    return ("an " if phrase[0] in "aeio" or phrase.startswith(("unk", "umb")) else "a ") + phrase
