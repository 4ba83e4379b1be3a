"""Paraphrase, duplicate questions, answers and graded similarity."""

from __future__ import annotations

import random
from dataclasses import replace

from lorsa.runner.demo.grammar import (
    Scene,
    change_agent,
    change_patient,
    change_place,
    change_time,
    change_verb,
    oppose_verb,
    render,
    sample_scene,
    sentence,
    swap_roles,
    wh_question,
)
from lorsa.runner.demo.vocabulary import CITY, NEWS, Concept, concepts, with_article


def _distorted(rng: random.Random, scene: Scene) -> Scene:
    """The scene with one change of meaning, from what is easily noticed to what takes a careful reader."""
    chance = rng.random()
    if chance < 0.6:
        return oppose_verb(scene)
    if chance < 0.75 and scene.social:
        return swap_roles(scene)
    return rng.choice([change_agent(rng, scene), change_patient(rng, scene), change_verb(rng, scene)])


def mrpc(rng: random.Random, label: int) -> tuple[str, str]:
    """Two sentences; label 1 says the same scene twice."""
    scene = sample_scene(rng, NEWS if rng.random() < 0.7 else CITY)
    # Synonyms are more frequent in paraphrases than in distortions, so that both classes share as many words.
    if label:
        return render(rng, scene, 0.6), render(rng, scene, 0.6)
    return render(rng, scene, 0.35), render(rng, _distorted(rng, scene), 0.35)


def stsb(rng: random.Random, score: int) -> tuple[str, str]:
    """Two sentences that agree in ``score`` of five parts: agent, verb, patient, place and time."""
    scene = sample_scene(rng, adjective=0.0, place=1.0, time=1.0)
    changed = scene
    for part in rng.sample(range(5), 5 - score):
        if part == 0:
            changed = change_agent(rng, changed)
        elif part == 1:
            changed = change_verb(rng, changed)
        elif part == 2:
            changed = change_patient(rng, changed)
        elif part == 3:
            changed = change_place(rng, changed)
        else:
            changed = change_time(rng, changed)
    return render(rng, scene), render(rng, changed)


def qnli(rng: random.Random, label: int) -> tuple[str, str]:
    """A question and a sentence; label 0 answers it, label 1 speaks of the same things without doing so."""
    scene = sample_scene(rng, rng.choice((CITY, NEWS)), place=0.5, time=0.5)
    asked = rng.choice(["agent", "patient", *(["place"] if scene.place else []), *(["time"] if scene.time else [])])
    question, _ = wh_question(rng, scene, asked)
    if label == 0:
        return question, render(rng, scene)
    if rng.random() < 0.6:
        return question, render(rng, oppose_verb(scene))
    # A change to the very part asked for would leave an answer, if another one.
    changes = [change_verb(rng, scene)]
    if asked != "agent":
        changes.append(change_agent(rng, scene))
    if asked != "patient":
        changes.append(change_patient(rng, scene))
    if scene.social:
        changes += [swap_roles(scene)] * 2
    if asked == "place":
        changes += [replace(scene, place=None, time=rng.choice(scene.genre.times))] * 3
    if asked == "time":
        changes += [replace(scene, time=None, place=rng.choice(scene.genre.places))] * 3
    return question, render(rng, rng.choice(changes))


#: Ways to ask for one thing, by what the question is about. Within a kind, any two intents can be confused.
_INTENTS: dict[str, dict[str, tuple[str, ...]]] = {
    "thing": {
        "price": ("how much does {0} cost?", "what is the price of {0}?", "how expensive is {0}?"),
        "weight": ("how much does {0} weigh?", "what is the weight of {0}?", "how heavy is {0}?"),
        "length": ("how long is {0}?", "what is the length of {0}?", "how many metres does {0} measure?"),
        "age": ("how old is {0}?", "what is the age of {0}?", "when was {0} made?"),
        "repair": ("how do I repair {0}?", "what is the best way to fix {0}?", "how can {0} be mended?"),
        "sell": ("how do I sell {0}?", "what is the best way to sell {0}?", "how can I find a buyer for {0}?"),
    },
    "skill": {
        "learn": ("how can I learn {0} quickly?", "what is the fastest way to learn {0}?", "how does one pick up {0}?"),
        "teach": ("how can I teach {0} well?", "what is the best way to teach {0}?", "how does one explain {0}?"),
        "origin": ("where does {0} come from?", "what is the origin of {0}?", "who invented {0}?"),
        "worth": ("is {0} worth learning?", "should I learn {0}?", "does it pay to study {0}?"),
        "hard": ("is {0} difficult to learn?", "how hard is {0}?", "why is {0} so difficult?"),
    },
    "journey": {
        "train": ("how do I get from {0} to {1} by train?", "is there a train to {1} from {0}?"),
        "time": ("how long does it take to get from {0} to {1}?", "how many hours is it to {1} from {0}?"),
        "fare": ("how much is a ticket from {0} to {1}?", "what does the trip to {1} from {0} cost?"),
        "distance": (
            "how far is {1} from {0}?",
            "what is the distance to {1} from {0}?",
            "is it a long way from {0} to {1}?",
        ),
    },
}
_TOPICS: dict[str, tuple[Concept, ...]] = {
    "thing": tuple(
        tuple(with_article(word) for word in concept)
        for group in (*CITY.things.values(), *NEWS.things.values())
        for concept in group
    ),
    "skill": concepts(
        "chess English Latin maths/mathematics football/soccer cooking coding/programming sailing poetry/verse law"
    ),
    "journey": concepts("London Paris Rome Berlin Madrid Vienna Prague Athens Dublin Oslo"),
}


def duplicate_questions(rng: random.Random, label: int) -> tuple[str, str]:
    """Two questions; label 1 asks the same thing twice, label 0 changes the topic, the intent or the direction."""
    kind = rng.choice(list(_INTENTS))
    intent, other_intent = rng.sample(list(_INTENTS[kind]), 2)
    topics = rng.sample(_TOPICS[kind], 3)
    frames = _INTENTS[kind][intent]
    asked, asked_again = topics[:2], topics[:2]
    one, two = rng.sample(frames, 2)
    if not label:
        change = rng.random()
        if kind == "journey" and change < 0.3:
            asked_again = asked[::-1]
        elif change < 0.75:
            two = rng.choice(_INTENTS[kind][other_intent])
        else:
            asked_again = [topics[2], topics[1]]
            # Half the time the frame stays, so that a shared frame does not mean a duplicate.
            two = rng.choice(frames)

    def ask(frame: str, about: list[Concept]) -> str:
        return sentence(frame.format(*(rng.choice(concept) for concept in about)))

    return ask(one, asked), ask(two, asked_again)
