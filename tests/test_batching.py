"""Continuous batching: whatever else runs beside a request, it is answered as if it were alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import psutil
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from service.demo_models import tiny
from service.engine import Delta, Finish, Sampling, WaitedTooLong, memory
from service.engine.cache import Budget, SlotCache
from service.engine.core import Core
from service.engine.detokenizer import Answer, Detokenizer, StopStrings
from service.engine.prompt import Prompt, Writer
from service.engine.runner import Runner
from service.engine.sampler import Choice
from service.engine.sequence import Event, Sequence
from service.engine.vision import Vision
from service.model.checkpoint import Checkpoint, load
from service.model.release import EngineSettings

LONGEST = 20  # tokens of an answer
COLUMNS = 224
many = partial(settings, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])


@dataclass
class Asked:
    """A request and what became of it."""

    sequence: Sequence
    events: list[Event] = field(default_factory=list)

    @property
    def tokens(self) -> list[int]:
        return self.sequence.tokens

    @property
    def end(self) -> Event | None:
        return self.events[-1] if self.events and not isinstance(self.events[-1], Delta) else None


class Workshop:
    """A checkpoint, prompts of many kinds, and what the library's own `generate` answers to each."""

    def __init__(self, checkpoint: Checkpoint, alone: Any) -> None:
        self.checkpoint = checkpoint
        self.writer = Writer(checkpoint.processor, checkpoint.model, COLUMNS - 1)
        self.vision = Vision(checkpoint.model, cache_bytes=1 << 20)
        self.prompts = [self.write(content) for content in _contents()]
        self.answers = [self._generate(alone, content) for content in _contents()]

    def write(self, content: Any) -> Prompt:
        return self.writer.write([{"role": "user", "content": content}], None)

    def core(self, *, rows: int = 4, chunk: int = 512, pad: bool = False) -> Core:
        cache = SlotCache(self.checkpoint.model, Budget(rows, COLUMNS))
        return Core(Runner(self.checkpoint.model, cache, pad=pad), self.checkpoint.processor.spell, chunk=chunk)

    def ask(self, number: int, *, limit: int = LONGEST, sampling: Sampling | None = None, **more: Any) -> Asked:
        prompt = self.prompts[number]
        sampling = sampling or Sampling(temperature=0)
        asked = Asked(
            Sequence(
                prompt,
                Choice.of(sampling, self.checkpoint.generation),
                Answer(Detokenizer(self.checkpoint.processor.text), StopStrings(sampling.stop), self.checkpoint.end),
                limit,
                features=self.vision.features(prompt.pictures),
                **more,
            )
        )
        asked.sequence.emit = asked.events.append
        return asked

    def _generate(self, alone: Any, content: Any) -> list[int]:
        inputs = self.checkpoint.processor.inputs([{"role": "user", "content": content}], None)
        ids = alone.generate(**inputs, do_sample=False, max_new_tokens=LONGEST)
        return list(ids[0, inputs["input_ids"].shape[1] :].tolist())


def _contents() -> list[Any]:
    """Questions from a word to a hundred, pictures small, large, wide, several, and the same one twice."""
    words = ["red", "blue", "sun", "moon", "tree", "house", "river", "stone", "bird", "cloud"]
    texts = [" ".join(words[(7 * n + k) % 10] for k in range(count)) for n, count in enumerate((1, 5, 17, 40, 90))]
    first = _picture((60, 60), "red")
    pictures = [[first], [_picture((180, 70), "blue")], [_picture((90, 140), "green"), first], [first]]
    return [
        *texts,
        *(
            [{"type": "image", "image": picture} for picture in several] + [{"type": "text", "text": texts[n]}]
            for n, several in enumerate(pictures)
        ),
    ]


def _picture(size: tuple[int, int], color: str) -> Image.Image:
    image = Image.new("RGB", size, "white")
    ImageDraw.Draw(image).ellipse((5, 5, size[0] - 9, size[1] - 20), fill=color)
    return image


KINDS = len(_contents())


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    from transformers import Glm4vForConditionalGeneration

    path = tmp_path_factory.mktemp("model")
    tiny.make(path, seed=7, dtype="float32")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = Glm4vForConditionalGeneration.from_pretrained(path, dtype=torch.float32).eval()
    yield Workshop(load(path, EngineSettings(dtype="float32", device="cpu"), lambda *_: None), alone)
    torch.set_num_threads(threads)


def run(core: Core, steps: int = 2000) -> None:
    """Step until nothing is left to do."""
    for _ in range(steps):
        if not core.step():
            return
    raise AssertionError("the engine does not come to an end")


joins = st.tuples(st.integers(0, KINDS - 1), st.integers(1, LONGEST), st.sampled_from(["interactive", "batch"]))
moves = st.lists(st.one_of(joins, st.integers(0, 9), st.none()), min_size=1, max_size=24)


@many(max_examples=120)
@given(moves=moves, rows=st.integers(1, 5), chunk=st.sampled_from([1, 7, 16, 33, 64, 512]), pad=st.booleans())
def test_every_schedule_gives_the_tokens_of_generate(
    workshop: Workshop, moves: list[Any], rows: int, chunk: int, pad: bool
) -> None:
    """Joins and leaves at any step, chunks of any size, rows that move and are lost: the tokens stay generate's own."""
    core = workshop.core(rows=rows, chunk=chunk, pad=pad)
    everyone: list[tuple[int, Asked]] = []
    for move in moves:
        if isinstance(move, tuple):
            number, limit, priority = move
            asked = workshop.ask(number, limit=limit, priority=priority)
            everyone.append((number, asked))
            core.scheduler.add(asked.sequence)
        elif move is not None and everyone:
            everyone[move % len(everyone)][1].sequence.cancelled = True
        core.step()
    run(core)
    for number, asked in everyone:
        wanted = workshop.answers[number][: asked.sequence.limit]
        if asked.sequence.cancelled:
            assert asked.tokens == wanted[: len(asked.tokens)]
        else:
            assert asked.tokens == wanted
            assert asked.end == Finish("length", asked.sequence.prompt.tokens, len(wanted))
    assert core.scheduler.rows == []


@many(max_examples=60)
@given(
    beside=st.lists(joins, max_size=5),
    after=st.integers(0, 6),
    top_k=st.sampled_from([0, 1, 2, 40, 200]),
    top_p=st.sampled_from([0.3, 0.8, 1.0]),
    min_p=st.sampled_from([0.0, 0.1]),
    repetition=st.sampled_from([1.0, 1.3]),
    presence=st.sampled_from([0.0, 0.7]),
    frequency=st.sampled_from([0.0, -0.4]),
    seed=st.integers(-(2**63), 2**63 - 1),
)
def test_a_seeded_answer_does_not_depend_on_the_batch(
    workshop: Workshop, beside: list[Any], after: int, seed: int, repetition: float, presence: float,
    frequency: float, **chosen: Any,
) -> None:  # fmt: skip
    """With a seed a sampled answer is the same alone and among others, whatever these ask for and when they come."""
    sampling = Sampling(
        temperature=1.2, seed=seed, repetition_penalty=repetition, presence_penalty=presence,
        frequency_penalty=frequency, logprobs=2, **chosen,
    )  # fmt: skip
    alone, among = (workshop.ask(2, sampling=sampling) for _ in range(2))
    core = workshop.core(rows=1)
    core.scheduler.add(alone.sequence)
    run(core)
    core = workshop.core(rows=4, chunk=32)
    for number, limit, priority in beside:
        other = Sampling(temperature=limit / 10, top_k=number * 9, frequency_penalty=limit % 2 / 2)
        core.scheduler.add(workshop.ask(number, limit=limit, sampling=other, priority=priority).sequence)
    for _ in range(after):
        core.step()
    core.scheduler.add(among.sequence)
    run(core)
    assert among.tokens == alone.tokens
    assert len(alone.tokens) == LONGEST


def test_interactive_requests_take_the_rows_of_batch_requests(workshop: Workshop) -> None:
    """A batch request gives its row up at once to an interactive one, and ends with the tokens it would have had."""
    core = workshop.core(rows=2)
    low = [workshop.ask(number, priority="batch") for number in (0, 5)]
    for asked in low:
        core.scheduler.add(asked.sequence)
    for _ in range(6):
        core.step()
    assert [len(asked.tokens) for asked in low] == [6, 6]
    high = [workshop.ask(number) for number in (1, 2, 6)]
    for asked in high:
        core.scheduler.add(asked.sequence)
    core.step()
    assert [len(asked.tokens) for asked in high] == [1, 1, 0]
    assert [asked.sequence.row for asked in low] == [-1, -1]
    run(core)
    assert [asked.tokens for asked in low] == [workshop.answers[0], workshop.answers[5]]
    ends = [asked.sequence.number for asked in (*high, *low)]
    assert ends == sorted(ends, key=lambda n: n in {asked.sequence.number for asked in low})


def test_a_long_prompt_does_not_hold_up_those_who_are_being_answered(workshop: Workshop) -> None:
    """While a prompt is taken in over many steps, every other request says one token in each of them."""
    core = workshop.core(chunk=8)
    talking = workshop.ask(0)
    core.scheduler.add(talking.sequence)
    while not talking.tokens:
        core.step()
    long = workshop.ask(4)
    core.scheduler.add(long.sequence)
    steps = -(-long.sequence.prompt.tokens // 8)
    assert steps > 10
    before = len(talking.tokens)
    for count in range(1, steps):
        core.step()
        assert len(talking.tokens) == min(before + count, LONGEST)
        assert long.tokens == []
    core.step()
    assert len(long.tokens) == 1


def test_a_cancelled_request_frees_its_row_within_two_steps(workshop: Workshop) -> None:
    """Who left, in prefill, while decoding or while waiting, has no row two steps later, and the next one has."""
    core = workshop.core(rows=2, chunk=8)
    asked = [workshop.ask(number) for number in (0, 4, 1, 2)]
    for one in asked:
        core.scheduler.add(one.sequence)
    for _ in range(6):
        core.step()
    assert [one.sequence.row for one in asked] == [0, 1, -1, -1]
    for one in asked[:3]:
        one.sequence.cancelled = True
    core.step()
    core.step()
    assert [one.sequence.row for one in asked] == [-1, -1, -1, 0]
    run(core)
    assert asked[3].tokens == workshop.answers[2]
    assert all(one.end is None for one in asked[:3])


def test_a_failing_step_takes_one_request_down(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a forward pass raises, out of memory or otherwise, the newest request fails and the others go on."""
    core = workshop.core(rows=3)
    asked = [workshop.ask(number) for number in (0, 5)]
    for one in asked:
        core.scheduler.add(one.sequence)
    core.step()
    forward = Runner.forward
    poison = workshop.ask(6)

    def fail(self: Runner, decoding: Any, chunks: Any) -> Any:
        if poison.sequence in [*decoding, *(sequence for sequence, _ in chunks)]:
            raise torch.OutOfMemoryError("no room")
        return forward(self, decoding, chunks)

    monkeypatch.setattr(Runner, "forward", fail)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    core.scheduler.add(poison.sequence)
    run(core)
    assert isinstance(poison.end, torch.OutOfMemoryError)
    assert [one.tokens for one in asked] == [workshop.answers[0], workshop.answers[5]]


def test_a_request_whose_text_fails_takes_only_itself_down(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure while a token becomes text ends that request alone."""
    core = workshop.core()
    good, bad = workshop.ask(0), workshop.ask(1)
    monkeypatch.setattr(bad.sequence.answer, "push", lambda *_: 1 / 0)
    for one in (good, bad):
        core.scheduler.add(one.sequence)
    run(core)
    assert isinstance(bad.end, ZeroDivisionError)
    assert good.tokens == workshop.answers[0]


def test_no_request_waits_or_runs_for_ever(workshop: Workshop) -> None:
    """Who waits for too long fails, who runs for too long ends with what it has; batch requests may wait."""
    core = workshop.core(rows=1)
    running, patient = workshop.ask(0, seconds=0.05, limit=150), workshop.ask(1, priority="batch")
    late = workshop.ask(2, wait_until=0.0)
    for one in (running, late, patient):
        core.scheduler.add(one.sequence)
    core.step()
    assert isinstance(late.end, WaitedTooLong)
    run(core)
    assert isinstance(running.end, Finish)
    assert running.end.reason == "length"
    assert 0 < len(running.tokens) < 150
    assert patient.tokens == workshop.answers[1]


def test_equal_pictures_are_looked_at_once(workshop: Workshop) -> None:
    """The features of a picture are computed once, and again only when the bounded cache has dropped them."""
    model = workshop.checkpoint.model
    red, blue = (workshop.prompts[number].pictures for number in (5, 6))
    size = 4 * model.config.text_config.hidden_size * max(red[0].tokens, blue[0].tokens)
    vision = Vision(model, cache_bytes=size)
    first = vision.features(red)
    assert torch.equal(vision.features(workshop.write(_contents()[8]).pictures), first)
    assert vision.computed == 1
    vision.features(blue)
    vision.features(red)
    assert vision.computed == 3
    assert vision.features(()) is None
    small = Vision(model, cache_bytes=size // 4)
    small.features(red)
    small.features(red)
    assert small.computed == 2


def test_the_budget_never_promises_more_than_there_is(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows and columns together stay within the budget or the memory that is free; too small a one is refused."""
    model = workshop.checkpoint.model
    for rows, tokens in ((64, 20_000), (8, 1000), (1, 300), (1024, 100_000)):
        budget = Budget.of(model, rows=rows, kv_tokens=tokens, context=131_072)
        assert budget.rows * budget.columns <= tokens
        assert budget.columns >= 256
    assert Budget.of(model, rows=4, kv_tokens=10**9, context=4096) == Budget(4, 4096)
    with pytest.raises(ValueError, match="too few"):
        Budget.of(model, rows=4, kv_tokens=100, context=4096)
    monkeypatch.setattr(memory, "free", lambda _device: 100 << 20)
    cache = SlotCache(model, Budget.of(model, rows=4, kv_tokens=0, context=10**9))
    assert 0.9 * 25 < sum(slab.nbytes for slab in [*cache._keys, *cache._values]) / (1 << 20) <= 25


def test_a_cache_takes_memory_only_as_it_is_used(workshop: Workshop) -> None:
    """The budget is a promise, not a cost: half a gigabyte of rows that hold a token each is hardly in memory."""
    process = psutil.Process()
    before = process.memory_info().rss
    cache = SlotCache(workshop.checkpoint.model, Budget(64, 16_384))
    assert sum(slab.nbytes for slab in [*cache._keys, *cache._values]) >= 1 << 29
    for slab in [*cache._keys, *cache._values]:
        slab[:, :, 0] = 1
    assert process.memory_info().rss - before < 50 << 20
    assert not cache._keys[0][5, 1, 100:110].any()
