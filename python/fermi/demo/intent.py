"""Intent: one question in many wordings, with its one answer; read from the text files beside this one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Intent:
    """A topic, its answer, patterns of wordings to train on, and wordings that only the evaluation uses."""

    topic: str
    answer: str
    patterns: tuple[str, ...]
    held_out: tuple[str, ...]


def read_intents(name: str) -> tuple[Intent, ...]:
    """The intents of `<name>.txt`: blocks of `field: value` lines, separated by empty lines; `#` begins a comment.

    Fields: `topic` and `answer` once, `train` (a pattern, see phrasing.py) and `held out` (a wording) many times.
    """
    text = (Path(__file__).parent / f"{name}.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    blocks = "\n".join(lines).strip().split("\n\n")
    return tuple(_intent([line.split(": ", 1) for line in block.splitlines()]) for block in blocks)


def _intent(fields: list[list[str]]) -> Intent:
    values: dict[str, list[str]] = {"topic": [], "answer": [], "train": [], "held out": []}
    for name, value in fields:
        values[name].append(value)
    (topic,), (answer,) = values["topic"], values["answer"]
    return Intent(topic, answer, tuple(values["train"]), tuple(values["held out"]))
