"""The tools of a chat request and the choice among them, in OpenAI's format."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from service.chat.bounded_json import require_json
from service.chat.request_model import Dropped, RequestModel

__all__ = ["NamedTool", "Tool", "ToolChoice"]


class Function(RequestModel):
    """The definition of a function; `parameters` is the JSON schema of its arguments, an object."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = Field(default=None, description="true: the arguments of a call conform to the schema")


class Tool(RequestModel):
    """A tool that the model may call."""

    type: Literal["function"]
    function: Function
    cache_control: Dropped = None

    @model_validator(mode="after")
    def _check_parameters(self) -> Tool:
        require_json(self.function.parameters)
        return self

    def definition(self) -> dict[str, Any]:
        """Return the tool as chat templates expect it."""
        return self.model_dump(exclude_none=True)


class NamedFunction(RequestModel):
    """The function that the model must call."""

    name: str


class NamedTool(RequestModel):
    """The tool that the model must call."""

    type: Literal["function"]
    function: NamedFunction


def _check_tool_choice(value: Any) -> Any:
    if isinstance(value, dict) or value in ("none", "auto", "required", None):
        return value
    raise PydanticCustomError("tool_choice", 'must be "none", "auto", "required" or a function')


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"] | None, Tag("mode")] | Annotated[NamedTool, Tag("named")],
    Discriminator(lambda value: "named" if isinstance(value, dict) else "mode"),
    BeforeValidator(_check_tool_choice),
]
