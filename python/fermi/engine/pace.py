"""How much of prompts a step computes while other sequences stream, so that their tokens keep coming evenly."""

from __future__ import annotations

__all__ = ["Pace"]

#: Steps as short as this never make a stream stutter: 50 tokens a second.
UNNOTICED_S = 0.02
#: Every so manieth step leaves prompts aside, so that the time of one that only draws is known as of now.
ALONE_EVERY = 16
#: Tokens of prompts in a step while nothing is known of what one takes.
FIRST = 16
#: The weight of the newest time.
WEIGHT = 0.25


class Pace:
    """Bounds the tokens of prompts in a step that also draws, by what earlier steps took.

    Two times are learnt: that of a step that only draws, and what each token of a prompt adds to it. The second grows
    with the context, so that the chunks of a long prompt become shorter.
    """

    def __init__(self, slowdown: float) -> None:
        """``slowdown``: how many times longer prompts may make a step that draws; 0: as much as they will."""
        self._slowdown = slowdown
        self._alone_s: float | None = None
        self._token_s: float | None = None
        self._mixed = 0  # steps since one that only drew

    def budget(self, drawing: int, most: int) -> int:
        """How many tokens of prompts to compute beside so many sequences that draw; ``most`` is the step's room."""
        if not (self._slowdown and drawing):
            return most
        if self._alone_s is None or self._mixed >= ALONE_EVERY:
            return 0
        if self._token_s is None:
            return min(most, FIRST)
        spare = max(self._slowdown * self._alone_s, UNNOTICED_S) - self._alone_s
        tokens = int(min(most, spare / self._token_s)) if self._token_s > 0 else most
        tokens -= tokens % (1 << max(0, tokens.bit_length() - 3)) if tokens < most else 0  # shapes recur
        return max(1, tokens)

    def learn(self, drawing: int, prompt_tokens: int, seconds: float) -> None:
        """Takes in how long a step took."""
        if not drawing:
            return
        if not prompt_tokens:
            self._mixed = 0
            known = seconds if self._alone_s is None else self._alone_s
            self._alone_s = known + WEIGHT * (min(seconds, 2 * known) - known)  # one that was held up tells little
            return
        self._mixed += 1
        token_s = max(0.0, seconds - (self._alone_s or 0.0)) / prompt_tokens
        known = token_s if self._token_s is None else self._token_s
        self._token_s = known + WEIGHT * (token_s - known)
