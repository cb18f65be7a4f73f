"""Arguments that a model wrote as plain text or in Python, made into JSON."""

from __future__ import annotations

import ast
import json
import re

__all__ = ["from_python", "from_text", "inside_string"]

_NO_ESCAPE = re.compile(r"\\(?![\\'\"abfnrtvxuUN0-7\n])")  # of these Python warns
_NAMES = {"true": True, "false": False, "null": None}


def from_text(text: str, types: frozenset[str]) -> str:
    """The JSON text of a value written without quotes, in one of the types that it may have if that can be.

    A text that is JSON of such a type is it, also one in Python's spelling; else it is a string, also where the
    schema wants something else: what is wrong with it is for the function to say.
    """
    if types == {"string"}:
        return _dumped(text)
    for read in (_json, _literal):
        try:
            value = read(text)
            if _is_a(value, types):
                return text.strip() if read is _json else _dumped(value)
        except (ValueError, RecursionError, MemoryError):
            continue
    lowered = text.strip().lower()
    if "boolean" in types and lowered in ("true", "false"):
        return lowered
    return _dumped(text)


def from_python(text: str) -> str | None:
    """The JSON text of a Python literal (JSON's own ``true``, ``false``, ``null`` included); None if it is none."""
    try:
        return _dumped(_literal(text))
    except (ValueError, RecursionError, MemoryError):
        return None


def inside_string(text: str) -> str:
    """A text as it stands between the quotes of JSON."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _json(text: str) -> object:
    return json.loads(text, parse_constant=_refuse)


def _refuse(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


def _literal(text: str) -> object:
    """ValueError if it is none."""
    try:
        return _value(ast.parse(_NO_ESCAPE.sub(r"\\\\", text.strip()), mode="eval").body)
    except SyntaxError as error:
        raise ValueError(str(error)) from error


def _value(node: ast.expr) -> object:
    if isinstance(node, ast.Constant) and isinstance(node.value, (str, int, float, type(None))):
        return node.value
    if isinstance(node, (ast.List, ast.Tuple, ast.Set)):
        return [_value(each) for each in node.elts]
    if isinstance(node, ast.Dict) and None not in node.keys:
        return {_name(key): _value(value) for key, value in zip(node.keys, node.values, strict=True) if key is not None}
    if isinstance(node, ast.Name) and node.id in _NAMES:
        return _NAMES[node.id]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        value = _value(node.operand)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return -value if isinstance(node.op, ast.USub) else value
    raise ValueError(f"{type(node).__name__} is no literal")


def _name(node: ast.expr) -> str:
    value = _value(node)
    return value if isinstance(value, str) else _dumped(value)


def _is_a(value: object, types: frozenset[str]) -> bool:
    if value is None or isinstance(value, bool):
        return ("null" if value is None else "boolean") in types
    if isinstance(value, (int, float)):
        return "number" in types or ("integer" in types and float(value).is_integer())
    name = "string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"
    return name in types


def _dumped(value: object) -> str:
    """JSON text; ValueError for infinities and for integers beyond what its readers take."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # half a character, which only an escape can write
        text = json.dumps(value)
    return text
