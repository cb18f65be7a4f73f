"""What one step computes, and what comes of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from fermi.engine.event import TokenLogprobs
from fermi.engine.sequence import Sequence

__all__ = ["Plan", "StepOutput", "Work"]


@dataclass(slots=True)
class Work:
    """Tokens ``start`` … ``start + length - 1`` of one sequence, in one step.

    Attributes:
        draws: the sequences that draw a token from the last position's logits: the sequence itself and those that share
            its prompt; none while the prompt is not complete.
        scored: the first position whose logits are needed for prompt log-probabilities.
        scores: how many of them, from ``scored`` on.
    """

    sequence: Sequence
    start: int
    length: int
    draws: list[Sequence] = field(default_factory=list)
    scored: int = 0
    scores: int = 0


@dataclass(slots=True)
class Plan:
    """The parts of one step.

    Attributes:
        work: at most one part for each sequence.
        copies: blocks (from, to) to copy before anything is computed, in this order.
    """

    work: list[Work] = field(default_factory=list)
    copies: list[tuple[int, int]] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """Tokens computed."""
        return sum(work.length for work in self.work)

    def drawing(self) -> Iterator[Sequence]:
        """The sequences that draw a token, in the order of the step's output."""
        for work in self.work:
            yield from work.draws


@dataclass(slots=True)
class StepOutput:
    """What a step gives, by place in the order of ``Plan.drawing``.

    Attributes:
        token_ids: the tokens drawn; -1 where none could be.
        logprobs: of those tokens, where asked for.
        errors: why none could be drawn, for reasons of the request: its grammar could not go on.
        complete: where the token drawn completes what the grammar bounds: nothing can follow.
        prompt_logprobs: by place in ``Plan.work``, one for each position scored.
    """

    token_ids: list[int] = field(default_factory=list)
    logprobs: dict[int, TokenLogprobs] = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)
    complete: set[int] = field(default_factory=set)
    prompt_logprobs: dict[int, list[TokenLogprobs]] = field(default_factory=dict)
