"""The cases: what is timed, named so that any length and any number of sequences can be asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

__all__ = ["CASES", "QUICK", "Case", "digest", "parse"]

CASES = (
    "prefill_128,prefill_512,prefill_2048,prefill_4096,decode,decode_1024,decode_8192,batch_8,batch_16,"
    "load,memory,served_1,served_4,served_8,served_16"
)
QUICK = {
    "bf16": "prefill_512,decode,decode_1024,load,memory",
    "int8": "prefill_512,decode,decode_1024,batch_8",
    "int4": "prefill_512,decode,decode_1024",
}
SHORT = 16
"""Tokens of a prompt in a batch."""


class Case(NamedTuple):
    """One of CASES.

    Attributes:
        kind: prefill, decode, batch, load, memory or served.
        number: tokens of the prompt for prefill and decode, sequences for batch, clients for served.
    """

    kind: str
    number: int

    def __str__(self) -> str:
        return f"{self.kind}_{self.number}" if self.number else self.kind

    @property
    def sequences(self) -> int:
        return self.number if self.kind == "batch" else 1

    @property
    def reference(self) -> Case | None:
        """What fermi is also held against, by itself: one sequence for a batch, the empty context for a long one."""
        if self.kind == "batch":
            return Case("batch", 1)
        return Case("decode", 0) if self.kind == "decode" and self.number else None

    def context(self, tokens: int) -> int:
        """Tokens of a sequence with ``tokens`` drawn."""
        return max(256, (SHORT if self.kind == "batch" else self.number) + tokens + 8)

    def prompts(self, vocabulary: int, repeat: int) -> list[list[int]]:
        """Random token ids. A prefill's differ with the repetition, so that no prefix cache helps; others stay."""
        length = {"prefill": self.number, "decode": max(1, self.number)}.get(self.kind, SHORT)
        seed = [length, self.sequences, repeat + 1 if self.kind == "prefill" else 0]
        prompts: list[list[int]] = (
            np.random.default_rng(seed).integers(0, vocabulary, (self.sequences, length)).tolist()
        )
        return prompts


def parse(names: str) -> list[Case]:
    """Cases from their names, comma-separated. ValueError names one that is not known."""
    cases = []
    for name in names.split(","):
        kind, _, number = name.partition("_")
        counted = kind in ("prefill", "batch", "served") or (kind == "decode" and number)
        if not (number.isdigit() and int(number) if counted else name in ("decode", "load", "memory")):
            raise ValueError(f"there is no case {name}")
        cases.append(Case(kind, int(number or 0)))
    return cases


def digest(token_ids: Sequence[Sequence[int]]) -> str:
    """Eight hexadecimal digits that stand for the tokens."""
    return hashlib.sha256(repr([list(ids) for ids in token_ids]).encode()).hexdigest()[:8]
