"""JSON schemas as people and their tools write them, in the words that llguidance knows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["readable_schema"]

#: What JSON Schema (draft 2020-12 §7.3) and llguidance have a meaning for. Any other format is an annotation.
FORMATS = frozenset({
    "date-time", "date", "time", "duration", "email", "idn-email", "hostname", "idn-hostname", "ipv4", "ipv6", "uri",
    "uri-reference", "iri", "iri-reference", "uuid", "uri-template", "json-pointer", "relative-json-pointer", "regex",
})  # fmt: skip
#: Expressions with look-ahead that say the same without: pydantic's of a Decimal.
PATTERNS = {r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$": r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)$"}

#: What describes and does not constrain.
ANNOTATIONS = frozenset({
    "title", "description", "$comment", "default", "examples", "example", "deprecated", "readOnly", "writeOnly",
})  # fmt: skip

_OF_ONE = (
    "additionalProperties", "additionalItems", "contains", "else", "if", "items", "not", "propertyNames", "then",
    "unevaluatedItems", "unevaluatedProperties",
)  # fmt: skip
_OF_MANY = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_BY_NAME = ("$defs", "definitions", "dependentSchemas", "patternProperties", "properties")


def readable_schema(schema: Any) -> Any:
    """A schema that means the same to llguidance as this one to JSON Schema, as far as it can be said.

    Left out: annotations, which may be long, and formats that are some (``int32``, ``password``), a wish for unique
    items that is none, names of properties that may be any. Said otherwise: names that must be of a list or match an
    expression.
    """
    if not isinstance(schema, Mapping):
        return schema
    made = {name: value for name, value in schema.items() if name not in ANNOTATIONS}
    for name in _OF_ONE:
        if isinstance(made.get(name), Mapping):
            made[name] = readable_schema(made[name])
    for name in _OF_MANY:
        if isinstance(made.get(name), list):
            made[name] = [readable_schema(each) for each in made[name]]
    for name in _BY_NAME:
        if isinstance(made.get(name), Mapping):
            made[name] = {key: readable_schema(each) for key, each in made[name].items()}
    if isinstance(made.get("format"), str) and made["format"] not in FORMATS:
        del made["format"]
    if isinstance(made.get("pattern"), str):
        made["pattern"] = PATTERNS.get(made["pattern"], made["pattern"])
    if made.get("uniqueItems") is False:
        del made["uniqueItems"]
    if "propertyNames" in made:
        _name_properties(made)
    return made


def _name_properties(made: dict[str, Any]) -> None:
    """Says with other keywords how properties may be called, where they can say it."""
    names = made["propertyNames"]
    if not isinstance(names, Mapping):
        if names is True:
            del made["propertyNames"]
        return
    asked = {key: value for key, value in names.items() if (key, value) != ("type", "string") and key != "title"}
    value = made.get("additionalProperties", True)
    if not asked:
        del made["propertyNames"]
    elif set(asked) <= {"enum", "const"} and "patternProperties" not in made:
        known = made.get("properties", {})
        listed = asked.get("enum", [asked.get("const")])
        if isinstance(known, Mapping) and isinstance(listed, list) and all(isinstance(name, str) for name in listed):
            del made["propertyNames"]
            made["properties"] = {name: known.get(name, value) for name in listed}
            made["additionalProperties"] = False
    elif set(asked) == {"pattern"} and not made.get("properties") and "patternProperties" not in made:
        del made["propertyNames"]
        made["patternProperties"] = {asked["pattern"]: value}
        made["additionalProperties"] = False
