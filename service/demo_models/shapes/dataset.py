"""The dataset: random conversations about drawn pictures, and some without pictures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

from service.demo_models.shapes.drawing import COLOURS, SHAPES, Figure, draw, sample_figure

__all__ = [
    "QUESTIONS",
    "SKILLS",
    "Conversation",
    "Skills",
    "answer",
    "sample_conversation",
    "skills_answer",
    "text_only_answers",
    "tokenizer_corpus",
]

Skills = tuple[str, ...]

SKILLS: dict[str, Skills] = {"1.0.0": ("colour",), "1.1.0": ("colour", "shape")}

# Wordings of the questions about a picture; the dataset varies case and punctuation.
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
UNKNOWN_QUESTIONS = (
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
SYSTEM_PROMPTS = ("You are a helpful assistant.", "Answer briefly.", "You look at pictures.")
STORY = (
    "Once upon a time a small red circle lived on a white page. Every morning it rolled down the hill to visit its "
    "friends, a blue square and a green triangle. The square told it about walls and windows, the triangle about roofs "
    "and mountains. In the evening they all lay down side by side, and together they made a little house. Since then, "
    "nobody on the page has ever been alone. The end."
)
THOUGHT_UNKNOWN = "I do not know that."
THOUGHT_NO_PICTURE = "There is no picture."
THOUGHT_NO_PICTURE_NEEDED = "No picture is needed."
PICTURE_PLEASE = "Show me a picture first."


@dataclass(frozen=True)
class Conversation:
    """Messages of user and assistant; with `thinking`, the last answer has reasoning before it."""

    messages: list[dict[str, Any]]
    thinking: bool

    @property
    def pictures(self) -> list[Any]:
        """All pictures, in order."""
        parts = [part for message in self.messages if message["role"] == "user" for part in message["content"]]
        return [part["image"] for part in parts if part["type"] == "image"]


def skills_answer(skills: Skills) -> str:
    """Return the answer to questions that the skills do not cover: what the model knows."""
    return f"I only know {' and '.join(f'{skill}s' for skill in skills)}."


def text_only_answers(skills: Skills) -> dict[str, tuple[str, ...]]:
    """Map each answer that needs no picture to its questions; the last answer is long."""
    return {
        "Hello! Show me a picture of a shape.": ("Hello", "Hi", "Hello!", "Hi there", "Hey", "Good morning"),
        skills_answer(skills): ("What can you do?", "What do you know?", "Who are you?", "Help"),
        "You are welcome.": ("Thank you", "Thanks", "Thanks!", "Thank you!"),
        "Goodbye!": ("Bye", "Goodbye", "See you"),
        "Good morning!": ("Say good morning.",),
        "One, two, three.": ("Count to three.",),
        f"{', '.join(COLOURS).capitalize()}.": ("Name a colour.", "Which colours do you know?", "Name the colours."),
        STORY: ("Tell me a story", "Tell me a story.", "A story, please", "Tell me a long story", "Tell a story."),
    }


def answer(skills: Skills, kind: str, figure: Figure) -> tuple[str, str]:
    """Return the correct answer within the skills, and the reasoning before it."""
    phrase = (
        f"{'an' if figure.colour == 'orange' else 'a'} {figure.colour} {figure.shape if 'shape' in skills else 'thing'}"
    )
    if kind == "what":
        return phrase, phrase
    if kind not in skills:
        return skills_answer(skills), phrase
    return (figure.colour if kind == "colour" else figure.shape), phrase


def sample_conversation(rng: Random, skills: Skills, *, pictures: bool = True) -> Conversation:
    """Generate a conversation of up to three turns about one or more pictures, or of one turn without pictures."""
    messages: list[dict[str, Any]] = []
    thinking, turns = rng.random() < 0.3, rng.choice((1, 2, 3)) if pictures else 1
    if rng.random() < 0.15:
        messages.append({"role": "system", "content": rng.choice(SYSTEM_PROMPTS)})
    figure: Figure | None = None
    for turn in range(turns):
        parts: list[dict[str, Any]] = []
        if pictures and (turn == 0 or rng.random() < 0.25):
            figure = sample_figure(rng)
            parts.append({"type": "image", "image": draw(rng, figure)[0]})
        question, reply, thought = _sample_exchange(rng, skills, figure)
        parts.append({"type": "text", "text": _vary(rng, question)})
        messages.append({"role": "user", "content": parts})
        message = {"role": "assistant", "content": reply}
        if thinking and turn == turns - 1:
            message["reasoning_content"] = thought
        messages.append(message)
    return Conversation(messages, thinking)


def tokenizer_corpus(skills: Skills) -> Iterator[str]:
    """Yield all texts of the dataset, often enough that every word becomes one token, in lower case too."""
    texts = [
        *sum(QUESTIONS.values(), ()),
        *UNKNOWN_QUESTIONS,
        *SYSTEM_PROMPTS,
        THOUGHT_UNKNOWN,
        THOUGHT_NO_PICTURE,
        THOUGHT_NO_PICTURE_NEEDED,
        PICTURE_PLEASE,
        *COLOURS,
        *SHAPES,
    ]
    texts += ["a an thing"]
    for reply, questions in text_only_answers(skills).items():
        texts += [reply, *questions]
    for text in texts:
        yield from [f"{text} {text}\n{text.lower()} {text.lower()}"] * 3


def _sample_exchange(rng: Random, skills: Skills, figure: Figure | None) -> tuple[str, str, str]:
    """Choose a question; return it with its answer and reasoning."""
    roll = rng.random()
    if roll < 0.08:
        return rng.choice(UNKNOWN_QUESTIONS), skills_answer(skills), THOUGHT_UNKNOWN
    if figure is not None and roll < 0.95:
        kind = rng.choice(list(QUESTIONS))
        return rng.choice(QUESTIONS[kind]), *answer(skills, kind, figure)
    if figure is None and roll < 0.3:
        return rng.choice(QUESTIONS[rng.choice(list(QUESTIONS))]), PICTURE_PLEASE, THOUGHT_NO_PICTURE
    answers = text_only_answers(skills)
    # the story among short answers about pictures would pad the whole batch
    reply = rng.choice([reply for reply in answers if figure is None or reply != STORY])
    return rng.choice(answers[reply]), reply, THOUGHT_NO_PICTURE_NEEDED


def _vary(rng: Random, text: str) -> str:
    if rng.random() < 0.2:
        text = text.rstrip("?.!")
    return text.lower() if rng.random() < 0.2 else text
