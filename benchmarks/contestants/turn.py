"""One contestant's part in one case, and the figure that its repetitions come to."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from contestants.case import Case, digest
from contestants.contestant import NotSupportedError
from contestants.process import Process
from contestants.report import Row
from fermi.bench.probe import Repetition

__all__ = ["Turn", "figure_of"]


@dataclass
class Turn:
    """One contestant's part in one case: its prompts, and what it drew."""

    label: str
    process: Process
    case: Case
    tokens: int
    note: str = ""
    failure: str = ""
    drawn: dict[int, list[list[int]]] = field(default_factory=dict)

    def warm_up(self, vocabulary: int) -> None:
        """Does it once, untimed."""
        self.note = self.process.call("warm_up", prompts=self.case.prompts(vocabulary, -1), tokens=self.tokens)

    def run(self, vocabulary: int, repeat: int) -> float:
        """Tokens per second; not a number from where it failed on."""
        if self.failure:
            return math.nan
        try:
            return self._rate(vocabulary, repeat)
        except NotSupportedError as error:
            self.failure = str(error)
            return math.nan

    def _rate(self, vocabulary: int, repeat: int) -> float:
        prompts = self.case.prompts(vocabulary, repeat)
        if self.tokens:
            answer = self.process.call("decode", prompts=prompts, tokens=self.tokens)
        else:
            answer = self.process.call("prefill", prompt=prompts[0])
        self.drawn[repeat] = answer["token_ids"]
        return float(answer["tokens"] / answer["seconds"])

    def digest(self) -> str:
        """A hash of the tokens; decoding draws the same ones in every repetition."""
        if self.tokens:
            return digest(self.drawn[0])
        return digest([ids for repeat in sorted(self.drawn) for ids in self.drawn[repeat]])


def figure_of(kept: Sequence[Repetition]) -> Row:
    """The median of the repetitions that count, and what the machine was like."""
    return {
        "value": statistics.median(each.value for each in kept),
        "kept": len(kept),
        "undisturbed": all(each.undisturbed for each in kept),
        "read": statistics.median(each.read for each in kept),
    }
