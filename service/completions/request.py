"""The body of POST /v1/completions."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from service.chat.engine_request import EngineRequest
from service.chat.known_fields import DroppedFields
from service.chat.request_model import Neutral, Unsupported, combination_error
from service.chat.sampling_fields import MAX_TOKENS, SamplingFields, StreamOptions
from service.completions.response import CompletionsFormat

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


class CompletionRequest(SamplingFields, DroppedFields):
    """The body of POST /v1/completions. Outside `prompt`, null selects the default."""

    prompt: Annotated[str, BeforeValidator(_one_text, json_schema_input_type=str | list[str])] = Field(
        min_length=1, description="a text, or a list of one; control tokens in it are what they say"
    )
    model: str | None = Field(default=None, description="ignored: a host serves one model, which the response names")
    best_of: int | None = Field(default=None, ge=1, description="must be n, if it is given")
    max_tokens: int | None = Field(default=None, ge=1, le=MAX_TOKENS, description="16 if it is missing")
    logprobs: int | None = Field(default=None, ge=0, le=20, description="most likely tokens beside each one")
    user: str | None = None
    echo: Annotated[None, Neutral((False,))] = None
    suffix: Annotated[None, Neutral(("",))] = None
    logit_bias: Unsupported = None

    @model_validator(mode="after")
    def _check_combinations(self) -> CompletionRequest:
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise combination_error("best_of", "must be the same as n: all choices are returned")
        return self

    def engine_request(self) -> EngineRequest:
        """See ClientRequest."""
        sampling = self.sampling(max_tokens=self.max_tokens or MAX_TOKENS_BY_DEFAULT, logprobs=self.logprobs)
        return EngineRequest(self.prompt, sampling, thinking=False, choices=self.n or 1, param="prompt")

    def answer_format(self) -> CompletionsFormat:
        """See ClientRequest."""
        options = self.stream_options or StreamOptions()
        return CompletionsFormat(bool(options.include_usage), bool(options.continuous_usage_stats))
