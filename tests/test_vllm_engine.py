"""vLLM behind the engine's protocol, with a stand-in for vLLM's client; tests/test_vllm_rollout.py has the real one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from service.contract.engine_settings import parse
from service.demo_models import tiny
from service.engine import Delta, Finish, Grammar, Limits, PromptTooLong, QueueTimeout, Refused, Sampling
from service.engine.vllm.engine import VllmEngine
from service.fairness.client import Client
from service.model.checkpoint import read_companions
from service.model.processor import Processor
from service.model.release import Release, ReleaseError
from tests.fake_llm import CONTEXT, FakeBackend, Script

ROWS = 2
MEMORY = 1 << 30


async def until(condition: Callable[[], Any]) -> None:
    """Wait until something is so, in another thread."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release directory; shared, so tests must not write to it."""
    path = tmp_path_factory.mktemp("vllm")
    tiny.make(path / "model", seed=1)
    return path


@pytest.fixture(scope="session")
def processor(model: Path) -> Processor:
    return read_companions(model / "model").processor


def release_at(path: Path, **settings: Any) -> Release:
    return Release(path, "1.0.0", parse({"engine": "vllm", "rows": ROWS, "max_new_tokens": 20, **settings}), ())


class Bench:
    """An engine, and what it was given."""

    def __init__(self, model: Path, directory: Path, script: Script, **limits: Any) -> None:
        self.backend = FakeBackend(script)
        self.engine = VllmEngine.load(
            release_at(model),
            self.backend,
            limits=Limits(**limits),
            directory=directory,
            memory=MEMORY,
        )

    async def ask(self, messages: Any = "Hello", **sampling: Any) -> tuple[str, Finish]:
        """Return the text of an answer and its end."""
        text = ""
        async for item in self.engine.stream(user(messages), Sampling(**sampling)):
            if isinstance(item, Finish):
                return text, item
            text += item.text
        raise AssertionError("no end")

    def hold_at(self, place: int) -> asyncio.Event:
        """Let vLLM compute no further than this token until the event is set, which is cleared then."""
        llm = self.backend.llm
        held, script, reached = asyncio.Event(), llm.script, False

        def until_place(sequence: list[int], at: int) -> int:
            nonlocal reached
            if at == place and not reached:
                reached = True
                held.clear()
            return script(sequence, at)

        held.set()
        llm.held, llm.script = held, until_place
        return held

    async def idle(self) -> None:
        """Wait until no request runs."""
        await until(lambda: not (self.engine.usage().running))


@pytest.fixture
def bench(model: Path, tmp_path: Path, words: list[int]) -> Iterator[Bench]:
    """One whose answers go through all the words, again and again."""
    bench = Bench(model, tmp_path, in_turn(words))
    yield bench
    bench.engine.close()


@pytest.fixture(scope="session")
def words(processor: Processor) -> list[int]:
    return [
        processor.tokenizer.encode(f" {word}", add_special_tokens=False)[0] for word in ("day", "old", "his", "fly")
    ]


def in_turn(words: list[int]) -> Script:
    """A script in which each token follows from the one before, as with a model that is greedy."""
    after = dict(zip(words, [*words[1:], words[0]], strict=True))
    return lambda sequence, _: after.get(sequence[-1], words[0])


def user(content: Any) -> Any:
    return content if isinstance(content, list) and "role" in content[0] else [{"role": "user", "content": content}]


def picture(color: str = "red", size: tuple[int, int] = (90, 60)) -> dict[str, Any]:
    return {"type": "image", "image": Image.new("RGB", size, color)}


def test_an_answer_is_streamed_token_by_token(bench: Bench, processor: Processor, words: list[int]) -> None:
    """Each token is a Delta, and the usage counts prompt and output."""

    async def run() -> list[Delta | Finish]:
        return [item async for item in bench.engine.stream(user("Hello"), Sampling(max_tokens=6, temperature=0))]

    *deltas, end = asyncio.run(run())
    assert [delta.text for delta in deltas if isinstance(delta, Delta)] == [
        processor.text([word]) for word in (words * 2)[:6]
    ]
    assert isinstance(end, Finish)
    prompt = len(bench.backend.llm.prompts[0]["prompt_token_ids"])
    assert (end.reason, end.prompt_tokens, end.completion_tokens) == ("length", prompt, 6)
    assert {delta.prompt_tokens for delta in deltas if isinstance(delta, Delta)} == {prompt}


@pytest.mark.parametrize("thinking", [None, True, False])
@pytest.mark.parametrize(
    "messages",
    [
        user("Hello"),
        user("Pretend: <|user|> and <|image|> and <think>"),
        user([{"type": "text", "text": "Look"}, picture(), {"type": "text", "text": "and"}, picture(size=(200, 31))]),
        [*user("a"), {"role": "assistant", "content": "b", "reasoning_content": "c"}, *user([picture()])],
    ],
)
def test_a_prompt_is_that_of_the_native_engine(processor: Processor, messages: Any, thinking: bool | None) -> None:
    """With one token for each picture instead of all of its own; control tokens in texts stay text."""
    from service.engine.vllm.prompt import Prompts

    prompts = Prompts(processor, 10_000)
    try:
        prompt = prompts.build(messages, thinking, [])
    finally:
        prompts.close()
    native = processor.inputs(messages, thinking)["input_ids"][0].tolist()
    image = processor.image_token_id
    once = [token for token, before in zip(native, [None, *native], strict=False) if (token, before) != (image, image)]
    assert prompt.ids == once
    assert prompt.length == len(native)
    assert len(prompt.images) == once.count(image)


def test_pictures_reach_vllm_as_pil_images(bench: Bench) -> None:
    """In the order of the conversation, with their tokens in the usage."""
    contents = [picture("red"), {"type": "text", "text": "?"}, picture("blue")]
    _, end = asyncio.run(bench.ask(contents, max_tokens=2))
    given = bench.backend.llm.prompts[0]
    assert [image.getpixel((0, 0)) for image in given["multi_modal_data"]["image"]] == [(255, 0, 0), (0, 0, 255)]
    assert end.prompt_tokens > len(given["prompt_token_ids"])


def test_closing_a_stream_aborts_the_request(bench: Bench) -> None:
    """Its row is free then, and vLLM computes no more of it."""

    async def run() -> None:
        bench.hold_at(3)
        stream: Any = bench.engine.stream(user("Hello"), Sampling(max_tokens=400))
        async for _ in stream:
            break
        await stream.aclose()
        await bench.idle()

    asyncio.run(run())
    assert len(bench.backend.llm.aborted) == 1


def test_a_stop_string_ends_the_answer_and_the_request(bench: Bench, processor: Processor, words: list[int]) -> None:
    """It is not a part of the text; vLLM does not know it, so that the request is aborted."""
    text, end = asyncio.run(bench.ask(max_tokens=100, stop=(processor.text([words[2]]),)))
    assert (text, end.reason) == (processor.text(words[:2]), "stop")
    assert len(bench.backend.llm.aborted) == 1


def test_end_tokens_end_the_answer(model: Path, tmp_path: Path, words: list[int]) -> None:
    """They are counted, and are no text; vLLM is told all of them."""
    companions = read_companions(model / "model")
    last = max(companions.end_tokens)
    bench = Bench(model, tmp_path, lambda _, place: [words[0], words[1], last][place])
    try:
        text, end = asyncio.run(bench.ask(max_tokens=20))
        assert (text, end.reason, end.completion_tokens) == (companions.processor.text(words[:2]), "stop", 3)
        assert companions.end_tokens <= set(bench.backend.llm.params[0]["stop_token_ids"])
    finally:
        bench.engine.close()


def test_sampling_parameters_in_the_words_of_vllm(bench: Bench) -> None:
    """What the request leaves open comes from the checkpoint."""
    asyncio.run(
        bench.ask(
            temperature=0.5, top_p=0.7, top_k=-1, min_p=0.1, seed=-3, presence_penalty=0.2, frequency_penalty=0.3,
            repetition_penalty=1.1, logit_bias=((7, -2.0),), min_tokens=2, max_tokens=4, stop_token_ids=(5,),
        )
    )  # fmt: skip
    given = bench.backend.llm.params[0]
    expected = {
        "temperature": 0.5, "top_p": 0.7, "top_k": 0, "min_p": 0.1, "seed": 2**63 - 3, "presence_penalty": 0.2,
        "frequency_penalty": 0.3, "repetition_penalty": 1.1, "logit_bias": {7: -2.0}, "min_tokens": 2, "max_tokens": 4,
    }  # fmt: skip
    assert {name: given[name] for name in expected} == expected
    assert 5 in given["stop_token_ids"]


def test_ignored_end_tokens_are_never_sampled(bench: Bench) -> None:
    """VLLM masks its stop tokens before min_tokens; its ignore_eos would let them occur in the text."""
    asyncio.run(bench.ask(ignore_eos=True, max_tokens=4))
    given = bench.backend.llm.params[0]
    assert (given["min_tokens"], given["max_tokens"]) == (4, 4)
    assert "ignore_eos" not in given


@pytest.mark.parametrize(("field", "value"), [("stop_token_ids", (99_999,)), ("logit_bias", ((99_999, 1.0),))])
def test_tokens_that_do_not_exist_are_refused(bench: Bench, field: str, value: Any) -> None:
    """Before anything is begun."""
    with pytest.raises(Refused, match=field):
        asyncio.run(bench.ask(**{field: value}))
    assert bench.backend.llm.prompts == []


def test_log_probabilities(bench: Bench, processor: Processor, words: list[int]) -> None:
    """Those of the token, and of the most likely ones in order; no more than were asked for."""

    async def run() -> list[Any]:
        stream = bench.engine.stream(user("Hello"), Sampling(max_tokens=1, logprobs=2))
        return [one async for item in stream if isinstance(item, Delta) for one in item.logprobs]

    (found,) = asyncio.run(run())
    spell = processor.token_bytes
    assert found.data == spell(words[0])
    assert found.top == ((spell(words[0]), 0.0), (spell(words[0] + 1), -1.0))


def test_batches_come_after_interactive_requests(bench: Bench) -> None:
    """In the queue for rows, and in vLLM when it runs out of memory."""
    order: list[str] = []

    async def one(name: str, priority: Any) -> None:
        async for _ in bench.engine.stream(user(name), Sampling(max_tokens=3), priority=priority):
            if name not in order:
                order.append(name)

    async def run() -> None:
        bench.backend.llm.held = asyncio.Event()
        first = [asyncio.create_task(one(f"first {number}", "interactive")) for number in range(ROWS)]
        await until(lambda: not (bench.engine.usage().running < ROWS))
        batch = asyncio.create_task(one("batch", "batch"))
        await until(lambda: not (bench.engine.usage().waiting < 1))
        late = [asyncio.create_task(one(f"late {number}", "interactive")) for number in range(3)]
        await until(lambda: not (bench.engine.usage().waiting < 4))
        bench.backend.llm.held.set()
        await asyncio.gather(*first, batch, *late)

    asyncio.run(run())
    assert order[-1] == "batch"
    assert bench.backend.llm.priorities[-1] == 1
    assert set(bench.backend.llm.priorities[:-1]) == {0}


def test_rows_are_given_to_clients_in_turn(bench: Bench) -> None:
    """A client with many requests does not hold up another with one."""
    order: list[str] = []

    async def one(address: str) -> None:
        async for _ in bench.engine.stream(user("x"), Sampling(max_tokens=2), client=Client(address)):
            pass
        order.append(address)

    async def run() -> None:
        bench.backend.llm.held = asyncio.Event()
        many = [asyncio.create_task(one("greedy")) for _ in range(6)]
        await until(lambda: not (bench.engine.usage().waiting < 4))
        modest = asyncio.create_task(one("modest"))
        await until(lambda: not (bench.engine.usage().waiting < 5))
        bench.backend.llm.held.set()
        await asyncio.gather(*many, modest)

    asyncio.run(run())
    assert order.index("modest") <= ROWS


def test_the_wait_for_a_row_is_limited(model: Path, tmp_path: Path, words: list[int]) -> None:
    """QueueTimeout, and nothing is begun."""
    bench = Bench(model, tmp_path, in_turn(words), max_wait=0.05)

    async def run() -> None:
        bench.backend.llm.held = asyncio.Event()
        running = [asyncio.create_task(bench.ask()) for _ in range(ROWS)]
        await until(lambda: not (bench.engine.usage().running < ROWS))
        with pytest.raises(QueueTimeout):
            await bench.ask()
        bench.backend.llm.held.set()
        await asyncio.gather(*running)

    try:
        asyncio.run(run())
        assert len(bench.backend.llm.prompts) == ROWS
    finally:
        bench.engine.close()


def test_a_prompt_that_is_too_long_is_refused_before_anything_is_begun(bench: Bench) -> None:
    """With both numbers."""
    with pytest.raises(PromptTooLong, match=str(CONTEXT - 1)):
        asyncio.run(bench.ask("day old " * 400))
    assert bench.backend.llm.prompts == []


def test_an_answer_ends_at_its_time_limit(model: Path, tmp_path: Path, words: list[int]) -> None:
    """With finish_reason length; vLLM stops computing it."""
    bench = Bench(model, tmp_path, in_turn(words), max_seconds=0.05)

    async def run() -> Finish:
        bench.backend.llm.held = asyncio.Event()
        return (await bench.ask(max_tokens=50))[1]

    try:
        assert asyncio.run(run()).reason == "length"
        assert len(bench.backend.llm.aborted) == 1
    finally:
        bench.engine.close()


GRAMMAR = Grammar('start: "yes" | "no"')


@pytest.mark.parametrize(
    ("grammar", "thinking", "begin"),
    [
        (GRAMMAR, False, 'start: "yes"'),
        (GRAMMAR, None, 'start: constrained_part | "\\n"? <think> free_text </think> constrained_part'),
        (
            Grammar('start: "yes"', after="<tool_call>"),
            None,
            "start: free_text | free_text <tool_call> constrained_part",
        ),
    ],
)
def test_what_may_precede_a_grammar_is_a_part_of_it(
    bench: Bench, grammar: Grammar, thinking: bool | None, begin: str
) -> None:
    """Reasoning, and the text before a call: vLLM applies a grammar from the begin."""

    async def run() -> None:
        async for _ in bench.engine.stream(user("?"), Sampling(grammar=grammar, max_tokens=1), thinking=thinking):
            pass

    asyncio.run(run())
    given = bench.backend.llm.params[0]["grammar"]
    assert given.startswith(begin)
    from service.engine.grammar_compiler import GrammarCompiler

    prepared: Any = bench.engine._requests._grammars._setup()
    GrammarCompiler(**prepared).compile(given)  # raises ValueError for what is no grammar


def test_a_grammar_is_tried_before_vllm_has_it(bench: Bench) -> None:
    """One that cannot be compiled is refused, with the name of its field."""
    with pytest.raises(Refused, match="JSON schema"):
        asyncio.run(bench.ask(grammar=Grammar("start: missing_rule")))
    assert bench.backend.llm.prompts == []


@pytest.mark.parametrize("count", [1, ROWS])
def test_answers_go_on_when_the_core_dies(bench: Bench, words: list[int], processor: Processor, count: int) -> None:
    """Another core gets the output so far as a part of the prompt; the client sees every token once."""

    async def run() -> list[tuple[str, Finish]]:
        llm, held = bench.backend.llm, bench.hold_at(2)
        running = [asyncio.create_task(bench.ask(max_tokens=8, min_tokens=7)) for _ in range(count)]
        await until(lambda: not held.is_set())
        llm.errored = True
        return await asyncio.gather(*running)

    found = asyncio.run(run())
    whole = processor.text((words * 2)[:8])
    assert [(text, end.completion_tokens) for text, end in found] == [(whole, 8)] * count
    assert len(bench.backend.started) == 2
    again = bench.backend.llm.params[-1]
    assert again["max_tokens"] + len(bench.backend.llm.prompts[-1]["prompt_token_ids"]) == 8 + len(
        bench.backend.started[0].prompts[-1]["prompt_token_ids"]
    )
    assert again["max_tokens"] - again["min_tokens"] == 1


def test_an_idle_core_that_dies_is_replaced(bench: Bench) -> None:
    """Before the next request, which notices nothing."""

    async def run() -> str:
        bench.backend.llm.errored = True
        await until(lambda: not (len(bench.backend.started) < 2))
        return (await bench.ask(max_tokens=1))[0]

    assert asyncio.run(run())
    assert bench.engine.answering()


def test_a_request_that_ends_two_cores_fails(model: Path, tmp_path: Path, words: list[int]) -> None:
    """Alone: else it would end every core."""
    bench: Bench

    def script(sequence: list[int], place: int) -> int:
        if len(bench.backend.llm.prompts) and bench.backend.llm.params[0]["seed"] == 666:
            bench.backend.llm.errored = True
        return in_turn(words)(sequence, place)

    bench = Bench(model, tmp_path, script)
    try:
        with pytest.raises(RuntimeError, match="core process died"):
            asyncio.run(bench.ask(seed=666, max_tokens=9))
        assert asyncio.run(bench.ask(max_tokens=1))[0]
    finally:
        bench.engine.close()


def test_a_constrained_answer_that_has_begun_fails_with_its_core(bench: Bench) -> None:
    """A grammar cannot begin in its middle; one that has no token yet begins again."""

    async def run(*, begun: bool) -> Any:
        llm, held = bench.backend.llm, bench.hold_at(1)
        if not begun:
            held.clear()
        asking = asyncio.create_task(bench.ask(grammar=GRAMMAR, max_tokens=3))
        await until(lambda: llm.prompts and not held.is_set())
        llm.errored = True
        return await asking

    assert asyncio.run(run(begun=False))[1].completion_tokens == 3
    with pytest.raises(RuntimeError, match="core process died"):
        asyncio.run(run(begun=True))


def test_a_worker_whose_core_cannot_be_replaced_does_not_answer(bench: Bench) -> None:
    """Gunicorn replaces the worker then."""

    async def run() -> None:
        bench.backend.llm.held = asyncio.Event()
        asking = asyncio.create_task(bench.ask())
        await until(lambda: bench.engine.usage().running)
        bench.backend.fails = True
        bench.backend.llm.errored = True
        with pytest.raises(RuntimeError, match="another one cannot be started"):
            await asking

    asyncio.run(run())
    assert not bench.engine.answering()


def test_a_core_that_hangs_is_noticed(model: Path, tmp_path: Path, words: list[int]) -> None:
    """While a request runs and has no token for too long; not while there is nothing to do."""
    bench = Bench(model, tmp_path, in_turn(words), stall=0.1)

    async def run() -> None:
        await asyncio.sleep(0.15)
        assert bench.engine.answering()
        bench.backend.llm.held = asyncio.Event()
        asking = asyncio.create_task(bench.ask())
        await until(lambda: not (bench.engine.answering()))
        bench.backend.llm.held.set()
        await asking
        assert bench.engine.answering()

    try:
        asyncio.run(run())
    finally:
        bench.engine.close()


def test_weights_are_replaced_between_requests(bench: Bench, model: Path) -> None:
    """Paused, read again, without anything cached of the old ones; another core would load the new ones."""

    async def run() -> None:
        new = bench.engine.read_weights(Release(model, "1.1.0", release_at(model).engine, ()), lambda *_: None)
        bench.backend.llm.held = asyncio.Event()
        asking = asyncio.create_task(bench.ask(max_tokens=2))
        await until(lambda: bench.engine.usage().running)
        replacing = asyncio.create_task(bench.engine.replace_weights(new))
        await asyncio.sleep(0.02)
        assert bench.backend.llm.calls == []
        bench.backend.llm.held.set()
        await asyncio.gather(asking, replacing)

    asyncio.run(run())
    assert bench.backend.llm.calls == [
        ("pause", "wait", True),
        ("reload_weights", {"weights_path": str(model / "model")}),
        "reset prefixes",
        "reset pictures",
        "reset encoder",
        "resume",
    ]
    assert bench.engine.version == "1.1.0"


def test_an_engine_sleeps_between_requests(bench: Bench) -> None:
    """Its weights stay in memory (level 1), nothing cached does, and what comes meanwhile waits for a row."""

    async def run() -> tuple[int, str]:
        bench.backend.llm.held = asyncio.Event()
        first = asyncio.create_task(bench.ask(max_tokens=2))
        await until(lambda: bench.engine.usage().running)
        sleeping = asyncio.create_task(bench.engine.sleep())
        await asyncio.sleep(0.02)
        assert bench.backend.llm.calls == []
        bench.backend.llm.held.set()
        await asyncio.gather(first, sleeping)
        memory = bench.engine.memory
        second = asyncio.create_task(bench.ask(max_tokens=1))
        await until(lambda: bench.engine.usage().waiting)
        assert bench.engine.answering()
        await bench.engine.wake_up()
        return memory, (await second)[0]

    assert bench.engine.can_sleep
    assert bench.engine.memory == MEMORY
    assert asyncio.run(run()) == (0, asyncio.run(bench.ask(max_tokens=1))[0])
    assert bench.backend.llm.calls == ["reset encoder", ("sleep", 1, "wait"), "wake up"]
    assert bench.engine.memory == MEMORY


def test_a_core_that_dies_asleep_is_replaced_when_it_is_to_wake_up(bench: Bench) -> None:
    """Not before: another version has the device."""

    async def run() -> str:
        await bench.engine.sleep()
        bench.backend.llm.errored = True
        await asyncio.sleep(0.6)  # twice as long as between two looks at the core
        assert len(bench.backend.started) == 1
        await bench.engine.wake_up()
        assert len(bench.backend.started) == 2
        return (await bench.ask(max_tokens=1))[0]

    assert asyncio.run(run())
    assert bench.engine.memory == MEMORY


@pytest.mark.parametrize("call", ["sleep", "wake up"])
def test_a_core_that_does_not_sleep_or_wake_up_is_an_error(bench: Bench, call: str) -> None:
    """The worker ends then, and another one takes its place."""

    async def run() -> None:
        bench.backend.llm.fails = call
        if call == "wake up":
            await bench.engine.sleep()
        with pytest.raises(RuntimeError, match=call):
            await (bench.engine.sleep() if call == "sleep" else bench.engine.wake_up())

    asyncio.run(run())


def test_a_core_that_hangs_asleep_is_an_error(model: Path, tmp_path: Path, words: list[int]) -> None:
    """After the time in which a core has to compute a token."""
    bench = Bench(model, tmp_path, in_turn(words), stall=0.05)

    async def run() -> None:
        await bench.engine.sleep()
        bench.backend.llm.held = asyncio.Event()
        with pytest.raises(TimeoutError):
            await bench.engine.wake_up()

    try:
        asyncio.run(run())
    finally:
        bench.engine.close()


def test_weights_that_cannot_be_loaded_leave_the_engine_usable(bench: Bench, model: Path) -> None:
    """The error is raised, generation goes on; the caller restores the old weights."""

    async def run() -> str:
        async def fail(*_: Any, **__: Any) -> None:
            raise ValueError("shape")

        bench.backend.llm.collective_rpc = fail  # type: ignore[method-assign]
        with pytest.raises(ValueError, match="shape"):
            await bench.engine.replace_weights({"model": model / "model", "version": "1.1.0"})
        return (await bench.ask(max_tokens=1))[0]

    assert asyncio.run(run())
    assert bench.backend.llm.calls[-1] == "resume"
    assert bench.engine.version == "1.0.0"


def test_closing_ends_unfinished_streams(bench: Bench) -> None:
    """With RuntimeError, and no request is accepted any more."""

    async def run() -> None:
        bench.backend.llm.held = asyncio.Event()
        asking = asyncio.create_task(bench.ask())
        await until(lambda: bench.engine.usage().running)
        await asyncio.to_thread(bench.engine.close)
        with pytest.raises(RuntimeError, match="closed"):
            await asking
        with pytest.raises(RuntimeError, match="closed"):
            await bench.ask()

    asyncio.run(run())
    assert bench.engine.closed


def test_the_load_is_the_usage(bench: Bench) -> None:
    """Rows, tokens of prompts and outputs, and the size of vLLM's cache."""

    async def run() -> None:
        bench.backend.llm.held = asyncio.Event()
        asking = asyncio.create_task(bench.ask(max_tokens=1))
        await until(lambda: bench.engine.usage().running)
        used = bench.engine.usage()
        assert (used.running, used.waiting, used.kv_capacity) == (1, 0, 1024)
        assert used.kv_tokens > 0
        bench.backend.llm.held.set()
        await asking
        await bench.idle()

    asyncio.run(run())
    assert bench.engine.usage().kv_tokens == 0


def test_the_warm_up_has_a_picture(bench: Bench) -> None:
    """A model that cannot see does not become ready."""
    shares: list[float] = []
    bench.engine.warm_up(lambda _, share: shares.append(share))
    assert ["multi_modal_data" in prompt for prompt in bench.backend.llm.prompts] == [False, True]
    assert shares[-1] == 1.0
    assert shares == sorted(shares)


def test_a_warm_up_that_fails_keeps_the_release_from_becoming_ready(model: Path, tmp_path: Path) -> None:
    """ReleaseError with the reason."""

    def script(*_: Any) -> int:
        raise TypeError("no kernel")

    bench = Bench(model, tmp_path, script)
    try:
        with pytest.raises(ReleaseError, match="no kernel"):
            bench.engine.warm_up(lambda *_: None)
    finally:
        bench.engine.close()
