"""Formats of the content: JSON, a regular expression or one of several texts, by OpenAI's name or those of vLLM."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from service.chat.bounded_json import JsonBudget, TooComplex, require_json
from service.chat.grammar_rules import choice_rule, regex_rule
from service.chat.json_schema import prepared
from service.chat.request_model import Dropped, Items, Neutral, RequestModel, Unsupported
from service.engine.protocol import Grammar, json_rule

__all__ = ["ContentFormat", "FormatFields"]

MAX_CHOICES = 1000
MAX_TEXT = 1 << 16  # characters; the engine's limit for a grammar, GLM_MAX_SCHEMA, is as high by default


class ContentFormat(NamedTuple):
    """What the content must be; `field` is the path of the field that asks for it."""

    kind: Literal["JSON schema", "regular expression", "list of choices"]
    value: Any
    field: str

    def rule(self, name: str) -> str:
        """Return the rule of a grammar; raises UnsupportedSchema."""
        match self.kind:
            case "regular expression":
                return regex_rule(name, self.value)
            case "list of choices":
                return choice_rule(name, self.value)
        return json_rule(name, prepared(self.value))

    def grammar(self) -> Grammar:
        """Return the grammar of this content alone; raises UnsupportedSchema."""
        return Grammar(f"start: document\n{self.rule('document')}", self.field, self.kind)


class TextFormat(RequestModel):
    """Unconstrained text."""

    type: Literal["text"]


class JsonObjectFormat(RequestModel):
    """Any JSON object."""

    type: Literal["json_object"]


class JsonSchema(RequestModel):
    """A JSON schema for the content. Name and description are not shown to the model."""

    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: Dropped = None  # the content always conforms

    @field_validator("schema_")
    @classmethod
    def _check_schema(cls, value: dict[str, Any]) -> dict[str, Any]:
        require_json(value)
        return value


class JsonSchemaFormat(RequestModel):
    """JSON that conforms to a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


Format = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


def _parse_schema(value: Any, info: ValidationInfo) -> Any:
    """Parse a schema that is given as text. The validation's context is its JsonBudget."""
    if isinstance(value, str):
        budget: JsonBudget = info.context  # type: ignore[assignment]  # parse_request passes it
        try:
            value = budget.parse(value)
        except TooComplex as error:
            raise PydanticCustomError("schema_size", "is too complex: {reason}", {"reason": str(error)}) from None
        except ValueError:
            raise PydanticCustomError("schema_json", "is not valid JSON") from None
    if not isinstance(value, dict | None):
        raise PydanticCustomError("schema_type", "must be a JSON schema, an object")
    require_json(value)
    return value


def _check_regex(value: str) -> str:
    try:
        regex_rule("", value)
    except ValueError as error:
        raise PydanticCustomError("regex", "{reason}", {"reason": str(error)}) from None
    return value


Schema = Annotated[dict[str, Any], BeforeValidator(_parse_schema, json_schema_input_type=dict[str, Any] | str)]
Regex = Annotated[str, Field(max_length=MAX_TEXT), AfterValidator(_check_regex)]
Choices = Annotated[
    Items[Annotated[str, Field(min_length=1, max_length=MAX_TEXT)]], Field(min_length=1, max_length=MAX_CHOICES)
]


class StructuredOutputs(RequestModel):
    """One of several formats for the content, as vLLM calls them."""

    json_: Schema | None = Field(default=None, alias="json")
    regex: Regex | None = None
    choice: Choices | None = None
    json_object: bool | None = None
    grammar: Unsupported = None
    structural_tag: Unsupported = None
    whitespace_pattern: Unsupported = None
    disable_any_whitespace: Dropped = None  # there is none between the parts of a document
    disable_fallback: Dropped = None
    disable_additional_properties: Annotated[None, Neutral((False,))] = None
    backend: Dropped = None


class FormatFields(RequestModel):
    """The fields of a request that ask for a format of the content; one of them at most."""

    response_format: Format | None = Field(
        default=None, description="the format applies to the content, after any reasoning; it does not end reasoning"
    )
    structured_outputs: StructuredOutputs | None = None
    guided_json: Schema | None = None
    guided_regex: Regex | None = None
    guided_choice: Choices | None = None

    @model_validator(mode="after")
    def _check_formats(self) -> FormatFields:
        found = self._formats()
        if len(found) > 1:
            fields = {"param": found[1].field, "other": found[0].field}
            raise PydanticCustomError("formats", "{param} and {other} both ask for a format; send one of them", fields)
        return self

    @property
    def content_format(self) -> ContentFormat | None:
        """What the content must be; None if it may be any text."""
        return next(iter(self._formats()), None)

    def _formats(self) -> list[ContentFormat]:
        form, outputs = self.response_format, self.structured_outputs or StructuredOutputs()
        schemas = {
            "response_format": form.json_schema.schema_ if isinstance(form, JsonSchemaFormat) else None,
            "structured_outputs.json": outputs.json_,
            "guided_json": self.guided_json,
        }
        objects = {
            "response_format": isinstance(form, JsonObjectFormat),
            "structured_outputs.json_object": outputs.json_object,
        }
        regexes = {"structured_outputs.regex": outputs.regex, "guided_regex": self.guided_regex}
        choices = {"structured_outputs.choice": outputs.choice, "guided_choice": self.guided_choice}
        return [
            *(ContentFormat("JSON schema", one, field) for field, one in schemas.items() if one is not None),
            *(ContentFormat("JSON schema", {"type": "object"}, field) for field, one in objects.items() if one),
            *(ContentFormat("regular expression", one, field) for field, one in regexes.items() if one is not None),
            *(ContentFormat("list of choices", one, field) for field, one in choices.items() if one is not None),
        ]
