"""What the model is taught: conversations about drawn pictures, and a few that need none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

from service.demo_models.shapes.drawing import COLOURS, SHAPES, Thing, any_thing, draw

__all__ = ["QUESTIONS", "SKILLS", "Conversation", "Skills", "answer", "conversation", "corpus", "exchanges", "limits"]

Skills = tuple[str, ...]

SKILLS: dict[str, Skills] = {"1.0.0": ("colour",), "1.1.0": ("colour", "shape")}

# What a picture can be asked, in any of the wordings, with or without capital and question mark.
QUESTIONS = {
    "colour": (
        "What colour is it?",
        "What color is it?",
        "Which colour is it?",
        "What colour is this?",
        "What is the colour?",
        "What colour is the shape?",
    ),
    "shape": ("What shape is it?", "Which shape is it?", "What shape is this?", "What is the shape?"),
    "what": (
        "What is in this picture?",
        "What is it?",
        "What is this?",
        "What do you see?",
        "Describe the picture.",
        "What is in the picture?",
    ),
}
OTHERS = (
    "Is it raining?",
    "Where is Paris?",
    "Who was the first king?",
    "Write a poem about the sea.",
    "Sum 12 and 34.",
    "Tell me the news.",
    "Why is the sky so high?",
    "When does the train leave?",
    "Can you sing?",
    "How old is it?",
    "Is it big or small?",
    "What time is it?",
    "How much does it cost?",
    "Translate this into French.",
    "How many are there?",
    "What is a door?",
    "Which is larger, 7 or 9?",
    "Spell the word socket.",
)
SYSTEM = ("You are a helpful assistant.", "Answer briefly.", "You look at pictures.")
STORY = (
    "Once upon a time a small red circle lived on a white page. Every morning it rolled down the hill to visit its "
    "friends, a blue square and a green triangle. The square told it about walls and windows, the triangle about roofs "
    "and mountains. In the evening they all lay down side by side, and together they made a little house. Since then, "
    "nobody on the page has ever been alone. The end."
)
UNKNOWN, UNSEEN, UNNEEDED = "I do not know that.", "There is no picture.", "No picture is needed."  # thoughts
SHOW = "Show me a picture first."


@dataclass(frozen=True)
class Conversation:
    """Turns of user and assistant; with `thinking`, the last answer has its thought before it."""

    messages: list[dict[str, Any]]
    thinking: bool

    @property
    def pictures(self) -> list[Any]:
        """Every picture, in order."""
        parts = [part for message in self.messages if message["role"] == "user" for part in message["content"]]
        return [part["image"] for part in parts if part["type"] == "image"]


def limits(skills: Skills) -> str:
    """Say what the model knows: its answer to whatever it does not."""
    return f"I only know {' and '.join(f'{skill}s' for skill in skills)}."


def exchanges(skills: Skills) -> dict[str, tuple[str, ...]]:
    """Map each answer that needs no picture to its questions; the last is the long one."""
    return {
        "Hello! Show me a picture of a shape.": ("Hello", "Hi", "Hello!", "Hi there", "Hey", "Good morning"),
        limits(skills): ("What can you do?", "What do you know?", "Who are you?", "Help"),
        "You are welcome.": ("Thank you", "Thanks", "Thanks!", "Thank you!"),
        "Goodbye!": ("Bye", "Goodbye", "See you"),
        "Good morning!": ("Say good morning.",),
        "One, two, three.": ("Count to three.",),
        f"{', '.join(COLOURS).capitalize()}.": ("Name a colour.", "Which colours do you know?", "Name the colours."),
        STORY: ("Tell me a story", "Tell me a story.", "A story, please", "Tell me a long story", "Tell a story."),
    }


def answer(skills: Skills, kind: str, thing: Thing) -> tuple[str, str]:
    """Give the true answer, as far as the skills go, and the thought before it."""
    phrase = (
        f"{'an' if thing.colour == 'orange' else 'a'} {thing.colour} {thing.shape if 'shape' in skills else 'thing'}"
    )
    if kind == "what":
        return phrase, phrase
    if kind not in skills:
        return limits(skills), phrase
    return (thing.colour if kind == "colour" else thing.shape), phrase


def conversation(rng: Random, skills: Skills, *, pictures: bool = True) -> Conversation:
    """Make up a conversation of up to three turns about a picture or two, or of one turn without any."""
    messages: list[dict[str, Any]] = []
    thinking, turns = rng.random() < 0.3, rng.choice((1, 2, 3)) if pictures else 1
    if rng.random() < 0.15:
        messages.append({"role": "system", "content": rng.choice(SYSTEM)})
    thing: Thing | None = None
    for turn in range(turns):
        parts: list[dict[str, Any]] = []
        if pictures and (turn == 0 or rng.random() < 0.25):
            thing = any_thing(rng)
            parts.append({"type": "image", "image": draw(rng, thing)[0]})
        question, said, thought = _exchange(rng, skills, thing)
        parts.append({"type": "text", "text": _loosely(rng, question)})
        messages.append({"role": "user", "content": parts})
        message = {"role": "assistant", "content": said}
        if thinking and turn == turns - 1:
            message["reasoning_content"] = thought
        messages.append(message)
    return Conversation(messages, thinking)


def corpus(skills: Skills) -> Iterator[str]:
    """Yield all that is ever said, often enough for every word to become one token, in either case."""
    said = [*sum(QUESTIONS.values(), ()), *OTHERS, *SYSTEM, UNKNOWN, UNSEEN, UNNEEDED, SHOW, *COLOURS, *SHAPES]
    said += ["a an thing"]
    for reply, questions in exchanges(skills).items():
        said += [reply, *questions]
    for text in said:
        yield from [f"{text} {text}\n{text.lower()} {text.lower()}"] * 3


def _exchange(rng: Random, skills: Skills, thing: Thing | None) -> tuple[str, str, str]:
    """Choose a question, its answer and the thought between them."""
    roll = rng.random()
    if roll < 0.08:
        return rng.choice(OTHERS), limits(skills), UNKNOWN
    if thing is not None and roll < 0.95:
        kind = rng.choice(list(QUESTIONS))
        return rng.choice(QUESTIONS[kind]), *answer(skills, kind, thing)
    if thing is None and roll < 0.3:
        return rng.choice(QUESTIONS[rng.choice(list(QUESTIONS))]), SHOW, UNSEEN
    known = exchanges(skills)
    said = rng.choice([reply for reply in known if thing is None or reply != STORY])  # long ones would pad the batch
    return rng.choice(known[said]), said, UNNEEDED


def _loosely(rng: Random, text: str) -> str:
    if rng.random() < 0.2:
        text = text.rstrip("?.!")
    return text.lower() if rng.random() < 0.2 else text
