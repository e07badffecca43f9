"""The body of POST /v1/completions."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from service.chat.engine_request import ClientRequest, EngineRequest
from service.chat.known_fields import DroppedFields
from service.chat.request import MAX_TOKENS, StopString, StreamOptions, wrap_string
from service.chat.request_model import Items, Neutral, Unsupported
from service.completions.response import CompletionsFormat
from service.engine import Sampling

__all__ = ["CompletionRequest"]

MAX_TOKENS_BY_DEFAULT = 16  # as OpenAI's API has it


def _one_text(value: Any) -> Any:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, str):
        raise PydanticCustomError(
            "prompt",
            "must be one text; send several prompts as several requests, and text in place of tokens",
        )
    return value


class CompletionRequest(ClientRequest, DroppedFields):
    """The body of POST /v1/completions. Outside `prompt`, null selects the default."""

    prompt: Annotated[str, BeforeValidator(_one_text, json_schema_input_type=str | list[str])] = Field(
        min_length=1, description="a text, or a list of one; control tokens in it are what they say"
    )
    model: str | None = Field(default=None, description="ignored: a host serves one model, which the response names")
    stream_options: StreamOptions | None = None
    n: int | None = Field(default=None, ge=1, description="number of choices; limited by the server's settings")
    best_of: int | None = Field(default=None, ge=1, description="must be n, if it is given")
    max_tokens: int | None = Field(default=None, ge=1, le=MAX_TOKENS, description="16 if it is missing")
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=-1, le=MAX_TOKENS)
    min_p: float | None = Field(default=None, ge=0, le=1)
    repetition_penalty: float | None = Field(default=None, gt=0, le=10)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: Annotated[
        Items[StopString] | None, BeforeValidator(wrap_string, json_schema_input_type=list[StopString] | str | None)
    ] = Field(default=None, max_length=4)
    logprobs: int | None = Field(default=None, ge=0, le=20, description="most likely tokens beside each one")
    user: str | None = None
    echo: Annotated[None, Neutral((False,))] = None
    suffix: Annotated[None, Neutral(("",))] = None
    logit_bias: Unsupported = None

    @model_validator(mode="after")
    def _check_combinations(self) -> CompletionRequest:
        if self.stream_options is not None and not self.stream:
            raise _combination_error("stream_options", "is only allowed when stream is true")
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise _combination_error("best_of", "must be the same as n: all choices are returned")
        return self

    def engine_request(self) -> EngineRequest:
        """See ClientRequest."""
        sampling = Sampling(
            max_tokens=self.max_tokens or MAX_TOKENS_BY_DEFAULT,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            seed=self.seed,
            stop=tuple(self.stop or ()),
            logprobs=self.logprobs,
        )
        return EngineRequest(self.prompt, sampling, thinking=False, choices=self.n or 1, param="prompt")

    def answer_format(self) -> CompletionsFormat:
        """See ClientRequest."""
        options = self.stream_options or StreamOptions()
        return CompletionsFormat(bool(options.include_usage), bool(options.continuous_usage_stats))


def _combination_error(param: str, reason: str) -> PydanticCustomError:
    return PydanticCustomError("combination", "{param} {reason}", {"param": param, "reason": reason})
