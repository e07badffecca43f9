"""The base of all parts of a request, and the types of fields that are not simply obeyed.

No field is ignored in silence. One that would change the answer is obeyed or refused by its name; one that cannot
change it is listed in a model as `Dropped`; any other name is refused, with the known name that is spelled most like
it.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from typing import Annotated, Any, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

__all__ = ["Dropped", "Items", "Neutral", "RequestModel", "Unsupported", "combination_error"]

T = TypeVar("T")

Items = Annotated[list[T], Field(fail_fast=True)]
"""A list whose validation ends at the first error: the others would be collected, each larger than the item."""

LONGEST_NAME = 64  # characters of an unknown name that are quoted and compared with known ones


class RequestModel(BaseModel):
    """Base of all parts of a request: known fields are validated strictly, unknown ones must be null."""

    model_config = ConfigDict(
        strict=True,
        frozen=True,
        extra="ignore",
        allow_inf_nan=False,
        json_schema_extra={"additionalProperties": {"type": "null"}},
    )

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, value: Any) -> Any:
        """Raise an error of type `unknown_field`, whose context has the name as `field`."""
        if isinstance(value, dict):
            known = _field_names(cls)
            if not value.keys() <= known:
                for name in value:
                    if name not in known and value[name] is not None:
                        raise PydanticCustomError("unknown_field", "{reason}", _unknown(name, known))
        return value


@cache
def _field_names(model: type[BaseModel]) -> frozenset[str]:
    return frozenset(field.alias or name for name, field in model.model_fields.items())


def _unknown(name: str, known: frozenset[str]) -> dict[str, str]:
    similar = get_close_matches(name[:LONGEST_NAME], sorted(known), 1)
    hint = f"; did you mean {similar[0]}?" if similar else "; remove it"
    return {"field": name[:LONGEST_NAME], "reason": f"is not a known field{hint}"}


@dataclass(frozen=True, eq=False)  # typing would take Neutral((1,)) and Neutral((True,)) for one
class Neutral:
    """Annotation of a field that is not supported: null and these values, at which it changes nothing, are taken."""

    values: tuple[Any, ...]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._check)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {
            "description": "not supported; another value is refused, because to ignore it would change the answer",
            "enum": [*self.values, None],
        }

    def _check(self, value: Any) -> None:
        if value is not None and not any(_equal(value, one) for one in self.values):
            raise PydanticCustomError("unsupported", "is not supported; remove it")


def _equal(one: Any, other: Any) -> bool:
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


Unsupported = Annotated[None, Neutral(([], {}, False))]
"""A field that is not supported, and whose value has no use but to ask for something."""

Dropped = Annotated[
    None,
    BeforeValidator(lambda _: None, json_schema_input_type=Any),
    Field(description="accepted without effect: it does not change the answer"),
]
"""A field that does not change the answer, whatever its value."""


def combination_error(param: str, reason: str) -> PydanticCustomError:
    """Return the error of a field that is valid by itself, and not beside the others."""
    return PydanticCustomError("combination", "{param} {reason}", {"param": param, "reason": reason})
