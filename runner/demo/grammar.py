"""Scenes - who did what to whom, where and when - and the many sentences that say the same scene.

The pair tasks are all made the same way: sample a scene, change it (or not) in a way whose consequence for meaning is
known, and render both independently. What the label depends on is therefore the scenes, while the wording varies freely
in both classes.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from lorsa.runner.demo.vocabulary import (
    GENRES,
    HANDLING_VERBS,
    PERSON_ADJECTIVES,
    SOCIAL_VERBS,
    THING_ADJECTIVES,
    Concept,
    Genre,
    Opposites,
    past,
)


@dataclass(frozen=True)
class Entity:
    """A person or thing: its noun, the noun's hypernym, and perhaps an adjective with its opposite."""

    noun: Concept
    hypernym: str
    adjective: Opposites | None = None


@dataclass(frozen=True)
class Scene:
    """One event. ``social`` events have two people in them, so that their roles can be exchanged."""

    genre: Genre
    social: bool
    agent: Entity
    verb: Opposites
    patient: Entity
    place: str | None = None
    time: str | None = None
    negated: bool = False


def sentence(text: str) -> str:
    """Capitalise, and end with a full stop unless the text ends in punctuation already."""
    text = text[0].upper() + text[1:]
    return text if text[-1] in ".?!" else text + "."


def _entity(rng: random.Random, genre: Genre, person: bool, adjective: float, avoid: Entity | None = None) -> Entity:
    taxonomy = genre.people if person else genre.things
    while True:
        hypernym = rng.choice(list(taxonomy))
        noun = rng.choice(taxonomy[hypernym])
        if avoid is None or noun != avoid.noun:
            break
    choices = PERSON_ADJECTIVES if person else THING_ADJECTIVES
    return Entity(noun, hypernym, rng.choice(choices) if rng.random() < adjective else None)


def sample_scene(
    rng: random.Random,
    genre: Genre | None = None,
    social: bool | None = None,
    adjective: float = 0.3,
    place: float = 0.4,
    time: float = 0.4,
) -> Scene:
    """Draw a scene; ``adjective``, ``place`` and ``time`` are the probabilities that it has one."""
    genre = genre or rng.choice(GENRES)
    social = rng.random() < 0.6 if social is None else social
    agent = _entity(rng, genre, True, adjective)
    return Scene(
        genre=genre,
        social=social,
        agent=agent,
        verb=rng.choice(SOCIAL_VERBS if social else HANDLING_VERBS),
        patient=_entity(rng, genre, social, adjective, avoid=agent),
        place=rng.choice(genre.places) if rng.random() < place else None,
        time=rng.choice(genre.times) if rng.random() < time else None,
    )


# Changes of meaning. Each returns a scene that the original does not imply.


def swap_roles(scene: Scene) -> Scene:
    """Exchange agent and patient; the words stay the same."""
    return replace(scene, agent=scene.patient, patient=scene.agent)


def oppose_verb(scene: Scene) -> Scene:
    """Put the verb's opposite in its place."""
    return replace(scene, verb=(scene.verb[1], scene.verb[0]))


def change_verb(rng: random.Random, scene: Scene) -> Scene:
    """Another verb, neither a synonym nor the opposite."""
    verbs = SOCIAL_VERBS if scene.social else HANDLING_VERBS
    return replace(scene, verb=rng.choice([verb for verb in verbs if verb[0] not in scene.verb]))


def change_agent(rng: random.Random, scene: Scene) -> Scene:
    """Another agent, described by the same adjective, under another hypernym."""
    return replace(scene, agent=_other(rng, scene, scene.agent, True))


def change_patient(rng: random.Random, scene: Scene) -> Scene:
    """Another patient, described by the same adjective, under another hypernym."""
    return replace(scene, patient=_other(rng, scene, scene.patient, scene.social))


def change_place(rng: random.Random, scene: Scene) -> Scene:
    """Another place."""
    return replace(scene, place=rng.choice([place for place in scene.genre.places if place != scene.place]))


def change_time(rng: random.Random, scene: Scene) -> Scene:
    """Another time."""
    return replace(scene, time=rng.choice([time for time in scene.genre.times if time != scene.time]))


def _other(rng: random.Random, scene: Scene, entity: Entity, person: bool) -> Entity:
    present = {scene.agent.hypernym, scene.patient.hypernym}
    taxonomy = scene.genre.people if person else scene.genre.things
    hypernym = rng.choice([name for name in taxonomy if name not in present])
    return replace(entity, noun=rng.choice(taxonomy[hypernym]), hypernym=hypernym)


# Wording.


def word(rng: random.Random, concept: Concept, variety: float) -> str:
    """The concept's usual word, or with probability ``variety`` any of its synonyms."""
    return rng.choice(concept) if rng.random() < variety else concept[0]


def noun_phrase(rng: random.Random, entity: Entity, variety: float = 0.5) -> str:
    """The entity as "the (adjective) noun"."""
    adjective = word(rng, entity.adjective[0], variety) + " " if entity.adjective else ""
    return f"the {adjective}{word(rng, entity.noun, variety)}"


def render(rng: random.Random, scene: Scene, variety: float = 0.5, passive: float = 0.35) -> str:
    """One sentence for the scene, in the active, the passive or as a cleft; adjuncts go last or first."""
    agent, patient = noun_phrase(rng, scene.agent, variety), noun_phrase(rng, scene.patient, variety)
    verb = word(rng, scene.verb[0], variety)
    adjuncts = [adjunct for adjunct in (scene.place, scene.time) if adjunct]
    front = adjuncts.pop(rng.randrange(len(adjuncts))) + ", " if adjuncts and rng.random() < 0.3 else ""
    if rng.random() < passive:
        core = f"{patient} was {'not ' if scene.negated else ''}{past(verb)} by {agent}"
    elif scene.negated:
        core = f"{agent} did not {verb} {patient}"
    elif rng.random() < 0.15:
        core = f"it was {agent} who {past(verb)} {patient}"
    else:
        core = f"{agent} {past(verb)} {patient}"
    return sentence(" ".join([front + core, *adjuncts]))


def yes_no_question(rng: random.Random, scene: Scene, variety: float = 0.5) -> str:
    """Ask whether the scene happened (its negation is left out)."""
    agent, patient = noun_phrase(rng, scene.agent, variety), noun_phrase(rng, scene.patient, variety)
    verb = word(rng, scene.verb[0], variety)
    adjuncts = " ".join(["", *(adjunct for adjunct in (scene.place, scene.time) if adjunct)])
    if rng.random() < 0.35:
        return sentence(f"was {patient} {past(verb)} by {agent}{adjuncts}?")
    return sentence(f"did {agent} {verb} {patient}{adjuncts}?")


def wh_question(rng: random.Random, scene: Scene, asked: str, variety: float = 0.5) -> tuple[str, str]:
    """Ask for the ``agent``, ``patient``, ``place`` or ``time`` of the scene; return the question and its answer."""
    agent, patient = noun_phrase(rng, scene.agent, variety), noun_phrase(rng, scene.patient, variety)
    verb = word(rng, scene.verb[0], variety)
    passive = rng.random() < 0.35
    if asked == "agent":
        return sentence(
            f"by whom was {patient} {past(verb)}?" if passive else f"who {past(verb)} {patient}?"
        ), sentence(agent)
    if asked == "patient":
        who = "who" if scene.social else "what"
        return sentence(f"{who} was {past(verb)} by {agent}?" if passive else f"{who} did {agent} {verb}?"), sentence(
            patient
        )
    adverb, answer = ("where", scene.place) if asked == "place" else ("when", scene.time)
    if answer is None:
        raise ValueError(f"the scene has no {asked} to ask for")
    event = f"was {patient} {past(verb)} by {agent}" if passive else f"did {agent} {verb} {patient}"
    return sentence(f"{adverb} {event}?"), sentence(answer)
