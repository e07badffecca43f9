"""Fields of chat requests and of completions: how tokens are chosen, how many choices there are, where they end."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from service.chat.engine_request import ClientRequest
from service.chat.request_model import Dropped, Items, RequestModel, combination_error
from service.engine import Sampling

__all__ = ["MAX_TOKENS", "SamplingFields", "StreamOptions"]

MAX_TOKENS = 2**31 - 1


class StreamOptions(RequestModel):
    """Options of a streamed response."""

    include_usage: bool | None = None
    include_obfuscation: Dropped = None
    continuous_usage_stats: bool | None = Field(default=None, description="every chunk has the usage so far")


def _wrap_string(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


StopString = Annotated[str, Field(min_length=1, max_length=1000)]


class SamplingFields(ClientRequest):
    """Fields that both kinds of requests have."""

    stream_options: StreamOptions | None = None
    n: int | None = Field(default=None, ge=1, description="number of choices; limited by the server's settings")
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=-1, le=MAX_TOKENS)
    min_p: float | None = Field(default=None, ge=0, le=1)
    repetition_penalty: float | None = Field(default=None, gt=0, le=10)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: Annotated[
        Items[StopString] | None, BeforeValidator(_wrap_string, json_schema_input_type=list[StopString] | str | None)
    ] = Field(default=None, max_length=4)

    @model_validator(mode="after")
    def _check_stream_options(self) -> SamplingFields:
        if self.stream_options is not None and not self.stream:
            raise combination_error("stream_options", "is only allowed when stream is true")
        return self

    def sampling(self, **more: Any) -> Sampling:
        """Return the sampling that these fields ask for, and what `more` says."""
        return Sampling(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            seed=self.seed,
            stop=tuple(self.stop or ()),
            **more,
        )
