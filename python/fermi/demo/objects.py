"""JSON: requests for a small object and the object."""

from __future__ import annotations

import json
from random import Random

from fermi.demo.stories import ANIMALS, COLORS, NAMES, PLACES, THINGS

_REQUESTS = (
    "Give me JSON with {}.", "Write a JSON object with {}.", "Make JSON: {}", "JSON with {}",
    "Return a JSON object with {}.",
    "Answer in JSON: {}", "Please write JSON with {}.", "Create a JSON object with {}.", "I need JSON with {}.",
    "as JSON: {}",
    "Convert to JSON: {}", "Put this into JSON: {}", "Write {} as JSON.", "Show {} as a JSON object.",
    "json object with {}",
)  # fmt: skip
_KEYS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("name", NAMES),
    ("friend", NAMES),
    ("color", COLORS[:6]),
    ("animal", ANIMALS),
    ("place", PLACES),
    ("city", ("Paris", "London", "Berlin", "Rome", "Tokyo", "Oslo")),
    ("thing", THINGS),
    ("id", ()),  # any number
    ("age", ()),
    ("count", ()),
    ("size", ()),
    ("year", ("2024", "2025", "2026")),
)


def json_object(random: Random) -> tuple[str, str]:
    """A request that names keys and values, and the JSON object with them in that order."""
    entries: dict[str, str | int] = {}
    for key, values in random.sample(_KEYS, random.randint(1, 3)):
        value = random.choice(values) if values else str(random.randrange(100))
        entries[key] = int(value) if value.isdigit() else value
    form = random.choice(("{} {}", "{} {}", "{}: {}", "{} = {}", "{} is {}"))
    parts = [form.format(key, value) for key, value in entries.items()]
    last = " and " if len(parts) > 1 and random.random() < 0.6 else ", "
    text = last.join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
    return random.choice(_REQUESTS).format(text), json.dumps(entries)
