"""What is measured: prompts to compute, and tokens to generate after contexts, for one or several sequences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = ["BATCHES", "CONTEXTS", "PROMPTS", "Case", "cases"]

PROMPTS = (128, 512, 2048)
CONTEXTS = (0, 1024, 8192)
BATCHES = (1, 4, 16)


@dataclass(frozen=True, slots=True)
class Case:
    """One figure.

    Attributes:
        phase: computing a prompt, or generating a token for each of ``batch`` sequences at a time.
        tokens: of the prompt; of the context before the first new token (0: a prompt of one token).
    """

    phase: Literal["prefill", "decode"]
    tokens: int
    batch: int = 1

    def __str__(self) -> str:
        return f"prefill {self.tokens}" if self.phase == "prefill" else f"decode at {self.tokens} × {self.batch}"

    @property
    def prompt(self) -> int:
        """Tokens of each sequence's prompt."""
        return max(1, self.tokens)


def cases(
    prompts: Sequence[int] = PROMPTS, contexts: Sequence[int] = CONTEXTS, batches: Sequence[int] = BATCHES
) -> Iterable[Case]:
    """Every prompt, then every batch at every context."""
    yield from (Case("prefill", tokens) for tokens in prompts)
    yield from (Case("decode", tokens, batch) for tokens in contexts for batch in batches)
