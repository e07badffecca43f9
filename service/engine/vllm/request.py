"""One request: prepared in any thread, and computed by vLLM until its output has ended, with whatever core is there."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Literal

from service.engine.detokenizer import Detokenizer, OutputProcessor, StopStrings
from service.engine.grammar import Grammars
from service.engine.protocol import Conversation, Finish, Limits, Priority, Refused, Sampling, TokenLogprob
from service.engine.sequence import Event
from service.engine.vllm import grammar, sampling
from service.engine.vllm.core import Core
from service.engine.vllm.llm import AsyncLLM, Backend, Logprob
from service.engine.vllm.prompt import Prompt, Prompts
from service.fairness.client import NOBODY, Client
from service.model.checkpoint import Companions
from service.model.checkpoint_files import first_line

__all__ = ["Answer", "Request", "Requests"]

_DEATHS = 2  # of the core, after which an answer fails that may be what ends it
_numbers = itertools.count()


@dataclass(frozen=True, eq=False)
class Request:
    """A request that was prepared."""

    prompt: Prompt
    sampling: Sampling
    max_tokens: int
    grammar: str | None
    priority: Priority
    client: Client


class Requests:
    """Prepares the requests of one release.

    `context`: tokens that prompt and output have together at most; `vocabulary`: the number of logits.
    """

    def __init__(
        self,
        backend: Backend,
        companions: Companions,
        limits: Limits,
        *,
        context: int,
        vocabulary: int,
        max_new_tokens: int,
    ) -> None:
        self.context = context
        self.end = companions.end_tokens
        self.processor = companions.processor
        self._backend, self._defaults = backend, companions.generation_config
        self._vocabulary, self._max_new_tokens = vocabulary, max_new_tokens
        self.prompts = Prompts(companions.processor, min(limits.max_prompt_tokens, context - 1))
        self._grammars = Grammars(
            companions.processor.tokenizer, vocabulary, companions.end_tokens, max_schema=limits.max_schema
        )

    def prepare(
        self,
        messages: Conversation,
        wanted: Sampling,
        thinking: bool | None,
        tools: Sequence[dict[str, Any]],
        priority: Priority,
        client: Client = NOBODY,
    ) -> Request:
        """Prepare a request; may be called in any thread. Raises Refused."""
        if wanted.grammar:
            self._grammars.check(wanted.grammar)  # first: to render a prompt takes longer than to refuse it
        prompt = self.prompts.build(messages, thinking, tools)
        max_tokens = min(wanted.max_tokens or self._max_new_tokens, self.context - prompt.length)
        if wanted.min_tokens > max_tokens:
            raise Refused(
                f"min_tokens is {wanted.min_tokens}; the output can have at most {max_tokens} tokens", "min_tokens"
            )
        text = None
        if wanted.grammar:
            may_think = prompt.may_think and thinking is not False
            text = grammar.complete(wanted.grammar, thinking=may_think, is_open=prompt.think_open)
        request = Request(prompt, wanted, max_tokens, text, priority, client)
        self.params(request, 0)  # raises Refused for tokens that do not exist
        return request

    def params(self, request: Request, generated: int) -> Any:
        """Return vLLM's SamplingParams for the rest of an output whose first `generated` tokens are in the prompt."""
        arguments = sampling.params(
            request.sampling,
            self._defaults,
            vocabulary=self._vocabulary,
            end=self.end,
            max_tokens=request.max_tokens,
            generated=generated,
        )
        return self._backend.params(arguments, request.grammar)

    def close(self) -> None:
        """End the processes that check requests."""
        self._grammars.close()
        self.prompts.close()


class Answer:
    """The output of one request. `put` is called with its events; `waited`: seconds until it had a row."""

    def __init__(
        self, request: Request, core: Core, requests: Requests, put: Callable[[Event], None], waited: float
    ) -> None:
        self._request, self._core, self._requests, self._put, self._waited = request, core, requests, put, waited
        self._tokens: list[int] = []
        wanted = request.sampling
        end = requests.end.union(wanted.stop_token_ids)
        self._output = OutputProcessor(
            Detokenizer(requests.processor.text),
            StopStrings(wanted.stop),
            end,
            min_tokens=wanted.min_tokens,
            prompt_tokens=request.prompt.length,
        )

    @property
    def length(self) -> int:
        """Tokens of prompt and output so far."""
        return self._request.prompt.length + len(self._tokens)

    async def compute(self, seconds: float) -> None:
        """Compute it to its end, which is `length` after `seconds`; raises what ends it otherwise."""
        reason: Literal["stop", "length"] = "length"
        llm, deaths = self._core.llm, 0
        try:
            async with asyncio.timeout(seconds) as limit:
                while True:
                    try:
                        reason = await self._run(llm)
                        break
                    except Exception as error:
                        if isinstance(error, ValueError) and not llm.errored and not self._tokens:
                            raise Refused(f"the engine refuses the request: {first_line(error)}") from error
                        if not llm.errored:
                            raise
                        deaths += 1
                        if deaths == _DEATHS or (self._request.grammar and self._tokens):
                            raise RuntimeError("vLLM's core process died while it computed this answer") from error
                        llm = await self._core.successor(llm)
                        if self._output.ended or len(self._tokens) >= self._request.max_tokens:
                            break
        except TimeoutError:
            if not limit.expired():
                raise
        if delta := self._output.flush():
            self._put(delta)
        self._put(Finish(reason, self._request.prompt.length, len(self._tokens), self._waited))

    async def _run(self, llm: AsyncLLM) -> Literal["stop", "length"]:
        """Let one core compute what is missing; returns why the output has ended."""
        request = self._request
        outputs = llm.generate(
            request.prompt.then(self._tokens),
            self._requests.params(request, len(self._tokens)),
            f"{next(_numbers)}-{time.monotonic_ns()}",
            priority=0 if request.priority == "interactive" else 1,
        )
        async with aclosing(outputs):  # what is left of it is aborted
            async for output in outputs:
                completion = output.outputs[0]
                for place, token in enumerate(completion.token_ids):
                    self._push(token, completion.logprobs[place] if completion.logprobs else None)
                    if self._output.ended:
                        return "stop"
                if output.finished:
                    return _reason(completion.finish_reason)
        raise RuntimeError("vLLM ended the output without a reason")

    def _push(self, token: int, found: Mapping[int, Logprob] | None) -> None:
        self._tokens.append(token)
        logprob = self._logprob(token, found) if found is not None else None
        if delta := self._output.push(token, logprob):
            self._put(delta)

    def _logprob(self, token: int, found: Mapping[int, Logprob]) -> TokenLogprob:
        spell = self._requests.processor.token_bytes
        count = self._request.sampling.logprobs or 0
        ranked = sorted(
            ((other.rank, number, other.logprob) for number, other in found.items() if other.rank is not None)
        )
        top = tuple((spell(number), value) for rank, number, value in ranked if rank <= count)
        return TokenLogprob(spell(token), found[token].logprob, top)


def _reason(finish: str | None) -> Literal["stop", "length"]:
    if finish == "length":
        return "length"
    if finish == "stop":
        return "stop"
    raise RuntimeError(f"vLLM ended the output: {finish}")
