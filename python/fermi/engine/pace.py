"""How much of prompts a step computes while other sequences stream, so that their tokens keep coming."""

from __future__ import annotations

from collections import deque

__all__ = ["Pace"]

#: Steps as short as this never make a stream stutter: 50 tokens a second.
UNNOTICED_S = 0.02
#: Tokens of prompts in a step, at the least: fewer cost nearly as much, as each step reads all keys and values before.
LEAST = 64
#: Every so manieth step leaves prompts aside, so that the time of one that only draws is known as of now.
ALONE_EVERY = 16
#: Prompts wait for no more steps than this, whatever a step with them took.
LONGEST_WAIT = 16
#: The weight of the newest time of a prompt's token.
WEIGHT = 0.25
#: Of so many steps that only drew the shortest tells their time: what held up the others is not theirs.
REMEMBERED = 4


class Pace:
    """Bounds the tokens of prompts in the steps that also draw, by what earlier steps took.

    Each step leaves prompts some time, in proportion to that of a step that only draws. Where it is enough for a chunk
    the chunk is as long as it allows. Where even a short chunk takes longer, as the end of a long prompt does, a chunk
    is computed and steps without one make up for it: streams slow down by no more than they should on average.
    """

    def __init__(self, slowdown: float) -> None:
        """``slowdown``: how many times longer prompts may make the steps of those that draw; 0: as much as they
        will."""
        self._slowdown = slowdown
        self._alone: deque[float] = deque(maxlen=REMEMBERED)  # seconds of steps that only drew
        self._token_s = 0.0  # what each token of a prompt adds to it; 0: not known
        self._owed_s = 0.0  # taken from those that draw, beyond what they leave
        self._mixed = 0  # steps since one that only drew

    def budget(self, drawing: int, most: int) -> int:
        """How many tokens of prompts to compute beside so many sequences that draw; ``most`` is the step's room."""
        if not (self._slowdown and drawing):
            return most
        if not self._alone or self._mixed >= ALONE_EVERY or self._owed_s > 0:
            return 0
        tokens = int(min(most, self._spare_s() / self._token_s)) if self._token_s else LEAST
        if tokens < most:
            tokens -= tokens % (1 << max(0, tokens.bit_length() - 3))  # so that the shapes of steps recur
        return min(most, max(LEAST, tokens))

    def learn(self, drawing: int, prompt_tokens: int, seconds: float) -> None:
        """Takes in how long a step took."""
        if not (self._slowdown and drawing):
            return
        if not prompt_tokens:
            self._mixed = 0
            self._alone.append(seconds)
            self._owed_s = max(0.0, self._owed_s - self._spare_s())
        elif self._alone:
            self._mixed += 1
            extra_s = max(0.0, seconds - min(self._alone))
            token_s = extra_s / prompt_tokens
            self._token_s += (WEIGHT if self._token_s else 1.0) * (token_s - self._token_s)
            owed_s = self._owed_s + extra_s - self._spare_s()
            self._owed_s = min(max(0.0, owed_s), LONGEST_WAIT * self._spare_s())

    def _spare_s(self) -> float:
        """What a step leaves prompts."""
        alone_s = min(self._alone)
        return max(self._slowdown * alone_s, UNNOTICED_S) - alone_s
