"""What every contestant can be asked: to open a model, to compute a prompt, to go on from it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

__all__ = ["Adapter", "Contestant", "NotSupportedError", "Run", "Setting"]


class NotSupportedError(Exception):
    """A contestant cannot do what is asked; the message is the reason that is printed."""


class Run(NamedTuple):
    """One measurement.

    Attributes:
        seconds: to the first token for a prompt; from the first tokens of all sequences on for decoding.
        tokens: computed in that time.
        token_ids: drawn greedily, of each sequence: the first ones included.
    """

    seconds: float
    tokens: int
    token_ids: list[list[int]]


class Setting(NamedTuple):
    """What a contestant is opened for.

    Attributes:
        threads: that it may use.
        context: tokens of a sequence at most.
        sequences: at a time at most.
    """

    threads: int
    context: int
    sequences: int = 1


class Contestant(ABC):
    """An opened model. Greedy; one call at a time."""

    @abstractmethod
    def prefill(self, prompt: Sequence[int]) -> Run:
        """Computes a prompt that shares nothing with earlier ones, up to its first token."""

    @abstractmethod
    def decode(self, prompts: Sequence[Sequence[int]], tokens: int) -> Run:
        """Draws ``tokens`` after each prompt, all sequences together; the prompts' own time is not counted.

        Called again with the same prompts it may keep what it computed for them.
        """

    def warm_up(self, prompts: Sequence[Sequence[int]], tokens: int) -> str:
        """Does once what will be timed (``tokens`` 0: a prefill), and picks its best way to do it; says which."""
        if tokens:
            self.decode(prompts, tokens)
        else:
            self.prefill(prompts[0])
        return ""

    def decode_bytes(self, context: int) -> int:
        """What one token must read after ``context`` others: weights and keys and values. 0 where it does not say."""
        return 0


class Adapter(Protocol):
    """The module of a contestant.

    Attributes:
        VARIANTS: by format (bf16, int8, int4), the variants in which it takes part.
    """

    VARIANTS: Mapping[str, Sequence[str]]

    def prepare(self, checkpoint: Path, variant: str) -> Path:
        """What ``open`` takes: the bf16 checkpoint converted, once, beside it. Slow the first time."""

    def version(self) -> str:
        """Of the package; ImportError where it is not installed."""

    def open(self, path: Path, variant: str, setting: Setting) -> Contestant:
        """Opens what ``prepare`` made. NotSupportedError says why it cannot."""
