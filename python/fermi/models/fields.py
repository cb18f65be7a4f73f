"""Reading a model's config.json: every field is read by name, checked, and none is ignored."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from fermi.errors import CheckpointError, UnsupportedModelError
from fermi.models.json_file import read_json

__all__ = ["Fields"]

Value = TypeVar("Value")

#: A number that no model comes near, and that still fits the core's 32-bit integers.
LARGEST = 2**30


class Fields:
    """The fields of one JSON object. What is read is checked, and `refuse_rest` refuses what nobody read.

    Every error names the file and the field: CheckpointError for a malformed value, UnsupportedModelError for one that
    means something else than what fermi computes. A field that is null counts as absent.
    """

    def __init__(self, values: Mapping[str, object], file: Path, path: str = "") -> None:
        self.file = file
        self._values = values
        self._path = path
        self._read: set[str] = set()
        self._spelling: Mapping[str, str] = {}

    @classmethod
    def from_file(cls, file: Path) -> Fields:
        return cls(read_json(file), file)

    def spelled(self, names: Mapping[str, str]) -> Fields:
        """The same fields for a reader that knows some of them by other names: by its name, the file's.

        What is read of one counts as read of the other.
        """
        other = Fields(self._values, self.file, self._path)
        other._read = self._read
        other._spelling = {**self._spelling, **names}
        return other

    def __contains__(self, name: str) -> bool:
        return self._values.get(self._spelled(name)) is not None

    def malformed(self, name: str, problem: str) -> CheckpointError:
        """The error to raise for a value that makes no sense."""
        return CheckpointError(f"{self.file}: {self._path}{self._spelled(name)} {problem}")

    def unsupported(self, name: str, problem: str) -> UnsupportedModelError:
        """The error to raise for a value that fermi does not honour."""
        return UnsupportedModelError(f"{self.file}: {self._path}{self._spelled(name)} {problem}")

    def raw(self, name: str) -> object:
        """The value as it stands, or None."""
        name = self._spelled(name)
        self._read.add(name)
        return self._values.get(name)

    def integer(self, name: str, *, default: int | None = None, minimum: int = 1, maximum: int = LARGEST) -> int:
        value = self._value(name, default)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.malformed(name, f"must be an integer, not {_shown(value)}")
        if not minimum <= value <= maximum:
            raise self.malformed(name, f"must be from {minimum} to {maximum}, not {_shown(value)}")
        return value

    def optional_integer(self, name: str, *, absent: int | None = None) -> int | None:
        """A positive integer; None where the field is null; ``absent`` where it does not stand."""
        if self._spelled(name) not in self._values:
            return absent
        return None if self.raw(name) is None else self.integer(name)

    def number(self, name: str, *, default: float | None = None, above: float = 0.0) -> float:
        """A finite number greater than ``above``."""
        return self._number(name, self._value(name, default), above)

    def optional_number(self, name: str, *, above: float = 0.0, absent: float | None = None) -> float | None:
        """None where the field is null; ``absent`` where it does not stand."""
        if self._spelled(name) not in self._values:
            return absent
        return None if self.raw(name) is None else self.number(name, above=above)

    def numbers(self, name: str, *, above: float = 0.0) -> tuple[float, ...]:
        value = self._value(name, None)
        if not isinstance(value, list):
            raise self.malformed(name, f"must be a list of numbers, not {_shown(value)}")
        return tuple(self._number(f"{name}[{index}]", item, above) for index, item in enumerate(value))

    def flag(self, name: str, *, default: bool) -> bool:
        value = self._value(name, default)
        if not isinstance(value, bool):
            raise self.malformed(name, f"must be true or false, not {_shown(value)}")
        return value

    def text(self, name: str, *, default: str | None = None) -> str:
        value = self._value(name, default)
        if not isinstance(value, str):
            raise self.malformed(name, f"must be a string, not {_shown(value)}")
        return value

    def strings(self, name: str) -> tuple[str, ...]:
        """A list of strings; empty where the field is absent."""
        value = self.raw(name) or []
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.malformed(name, f"must be a list of strings, not {_shown(value)}")
        return tuple(value)

    def choice(self, name: str, choices: Mapping[str, Value], *, default: str | None = None) -> Value:
        value = self.text(name, default=default)
        if value not in choices:
            raise self.unsupported(name, f"is {_shown(value)}; supported: {', '.join(choices)}")
        return choices[value]

    def section(self, name: str) -> Fields | None:
        """A nested object, or None where it is absent or empty."""
        value = self.raw(name)
        if value is None or value == {}:
            return None
        if not isinstance(value, dict):
            raise self.malformed(name, f"must be an object, not {_shown(value)}")
        return Fields(value, self.file, f"{self._path}{self._spelled(name)}.")

    def expect(self, name: str, *values: object) -> None:
        """Refuses a field that asks for anything but ``values``, the only ones that the model's math knows."""
        value = self.raw(name)
        if value is not None and not any(type(value) is type(known) and value == known for known in values):
            raise self.unsupported(name, f"is {_shown(value)}, which is not supported for this architecture")

    def ignore(self, names: frozenset[str]) -> None:
        """Counts as read what cannot change the model's output."""
        self._read |= {self._spelled(name) for name in names}

    def refuse_rest(self) -> None:
        """Refuses fields that nobody has read."""
        rest = [name for name, value in self._values.items() if value is not None and name not in self._read]
        if rest:
            shown = ", ".join(f"{self._path}{name} = {_shown(self._values[name])}" for name in rest)
            raise UnsupportedModelError(f"{self.file}: not supported: {shown}")

    def _spelled(self, name: str) -> str:
        """The name as the file writes it."""
        return self._spelling.get(name, name)

    def _value(self, name: str, default: object) -> object:
        value = self.raw(name)
        if value is None:
            value = default
        if value is None:
            raise self.malformed(name, "is missing")
        return value

    def _number(self, name: str, value: object, above: float) -> float:
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise self.malformed(name, f"must be a number, not {_shown(value)}")
        if abs(value) > 1e30 or not math.isfinite(value) or value <= above:
            raise self.malformed(name, f"must be a finite number greater than {above:g}, not {_shown(value)}")
        return float(value)


def _shown(value: object) -> str:
    """A value in a few characters."""
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return f"an object of {len(value)}"
    if isinstance(value, int) and abs(value) >= 10**40:
        return "a huge integer"
    shown = repr(value[:60] if isinstance(value, str) else value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
