"""The functions that a request offers, as parsers and grammars look at them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Function", "Functions", "json_types"]

TYPES = frozenset({"string", "number", "integer", "boolean", "object", "array", "null"})
_DEEPEST = 32  # references and branches within each other


@dataclass(frozen=True, slots=True)
class Function:
    """One function; ``parameters`` is a JSON schema. ``strict``: its arguments must match the schema."""

    name: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    strict: bool = False

    @property
    def properties(self) -> Mapping[str, Any]:
        """The schemas of its parameters by name."""
        properties = self.parameters.get("properties")
        return properties if isinstance(properties, Mapping) else {}

    @property
    def required(self) -> frozenset[str]:
        """The parameters that every call has."""
        required = self.parameters.get("required")
        return frozenset(map(str, required)) if isinstance(required, list) else frozenset()

    def types(self, parameter: str) -> frozenset[str]:
        """The JSON types that a parameter may have."""
        return json_types(self.properties.get(parameter, {}), self.parameters)


class Functions:
    """Functions by name."""

    def __init__(self, functions: Iterable[Function]) -> None:
        self._by_name = {function.name: function for function in functions}

    @classmethod
    def of(cls, tools: Sequence[Mapping[str, Any]]) -> Functions:
        """The functions of a request's ``tools``: ``{"type": "function", "function": {"name", "parameters", …}}``."""
        inner = [tool.get("function", tool) for tool in tools]
        return cls(Function(each["name"], each.get("parameters") or {}, bool(each.get("strict"))) for each in inner)

    def __iter__(self) -> Iterator[Function]:
        return iter(self._by_name.values())

    def knows(self, name: str) -> bool:
        """Whether it is the name of one of them."""
        return name in self._by_name

    def get(self, name: str) -> Function:
        """The function of that name; one of which nothing is known where there is none."""
        return self._by_name.get(name) or Function(name)


def json_types(schema: object, root: Mapping[str, Any]) -> frozenset[str]:
    """The JSON types that a schema allows, all where it does not say; ``root`` is what its references refer to."""
    return _types(schema, root, {}, _DEEPEST)


def _types(schema: object, root: Mapping[str, Any], known: dict[int, frozenset[str]], left: int) -> frozenset[str]:
    """``known``: what was found for schemas by identity, so that each is looked at once."""
    if not isinstance(schema, Mapping) or not left:
        return TYPES
    if id(schema) in known:
        return known[id(schema)]
    known[id(schema)] = allowed = TYPES
    named = schema.get("type")
    if isinstance(named, (str, list)):
        allowed &= {named} if isinstance(named, str) else {each for each in named if isinstance(each, str)}
    if isinstance(schema.get("enum"), list):
        allowed &= {_type_of(value) for value in schema["enum"]}
    if "const" in schema:
        allowed &= {_type_of(schema["const"])}
    if isinstance(schema.get("$ref"), str):
        allowed &= _types(_resolved(schema["$ref"], root), root, known, left - 1)
    for name in ("anyOf", "oneOf"):
        if isinstance(schema.get(name), list) and schema[name]:
            branches = [_types(branch, root, known, left - 1) for branch in schema[name]]
            allowed &= frozenset().union(*branches)
    for branch in schema["allOf"] if isinstance(schema.get("allOf"), list) else ():
        allowed &= _types(branch, root, known, left - 1)
    known[id(schema)] = allowed = allowed or TYPES
    return allowed


def _resolved(reference: str, root: object) -> object:
    """What a local reference such as ``#/$defs/point`` refers to, None where there is nothing."""
    if not reference.startswith("#"):
        return None
    for part in reference[1:].split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        root = root.get(key) if isinstance(root, Mapping) else None
    return root


def _type_of(value: object) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else "boolean"
    kinds = ((str, "string"), (int, "integer"), (float, "number"), (list, "array"))
    return next((name for kind, name in kinds if isinstance(value, kind)), "object")
