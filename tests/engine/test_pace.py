"""How much of prompts steps compute while others draw, on a machine whose times are known."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from fermi.engine.pace import ALONE_EVERY, LEAST, Pace

ROOM = 504


def steps(
    pace: Pace, count: int, alone_s: float, chunk_s: Callable[[int], float], drawing: int = 8
) -> list[tuple[int, float]]:
    """Tokens of prompts and seconds of each step, where there are always prompts; ``chunk_s``: what a chunk adds."""
    taken = []
    for _ in range(count):
        tokens = pace.budget(drawing, ROOM)
        seconds = alone_s + (chunk_s(tokens) if tokens else 0.0)
        pace.learn(drawing, tokens, seconds)
        taken.append((tokens, seconds))
    return taken


def mean(taken: list[tuple[int, float]]) -> float:
    return sum(seconds for _, seconds in taken) / len(taken)


def test_off_it_bounds_nothing() -> None:
    assert {tokens for tokens, _ in steps(Pace(0.0), 50, 0.1, lambda tokens: tokens * 0.01)} == {ROOM}


def test_nobody_waits_for_a_token_where_nobody_draws() -> None:
    assert {tokens for tokens, _ in steps(Pace(2.0), 50, 0.1, lambda tokens: tokens * 0.01, drawing=0)} == {ROOM}


def test_chunks_as_long_as_the_time_that_a_step_leaves() -> None:
    """100 ms alone and 1 ms for a token: 80 tokens make a step 1.8 times as long."""
    taken = steps(Pace(1.8), 200, 0.1, lambda tokens: tokens * 0.001)[20:]
    assert max(tokens for tokens, _ in taken) == 80
    assert max(seconds for _, seconds in taken) <= 0.18 + 1e-9
    assert mean(taken) > 0.17, "prompts must get what they may have"


@pytest.mark.parametrize("chunk_s", [0.05, 0.3, 1.0])
def test_where_a_short_chunk_takes_too_long_others_make_up_for_it(chunk_s: float) -> None:
    """As at the end of a long prompt: whatever the chunk's length, all keys before it are read."""
    taken = steps(Pace(1.8), 400, 0.1, lambda tokens: chunk_s)[20:]
    assert mean(taken) <= 0.18 * 1.02
    assert all(tokens in (0, LEAST) or tokens > LEAST for tokens, _ in taken)
    waits = [len(list(group)) for tokens, group in itertools.groupby(tokens for tokens, _ in taken) if not tokens]
    assert max(waits) <= 14, "1 s is the spare time of 12.5 steps"


def test_prompts_never_starve() -> None:
    """A step that was held up for a minute does not stop them for longer than some steps."""
    pace = Pace(1.5)
    steps(pace, 20, 0.1, lambda tokens: 0.05)
    while not (tokens := pace.budget(8, ROOM)):
        pace.learn(8, 0, 0.1)
    pace.learn(8, tokens, 60.0)
    after = steps(pace, 40, 0.1, lambda tokens: 0.05)
    assert any(tokens for tokens, _ in after[:17])
    assert after[-1][0] or after[-2][0] or after[-3][0]


def test_what_a_step_alone_takes_is_measured_ever_again() -> None:
    """Texts grow and with them the steps that only draw: what prompts may add grows, too."""
    pace = Pace(2.0)
    early = steps(pace, 60, 0.1, lambda tokens: tokens * 0.001)
    late = steps(pace, 8 * ALONE_EVERY, 0.4, lambda tokens: tokens * 0.001)
    assert max(tokens for tokens, _ in early) == 96
    assert late[-1][0] in (0, 384)
    assert max(tokens for tokens, _ in late[-ALONE_EVERY:]) == 384


def test_steps_that_nobody_notices_are_not_cut() -> None:
    """A small model: 1 ms a step, 10 µs a token."""
    assert max(tokens for tokens, _ in steps(Pace(1.5), 50, 0.001, lambda tokens: tokens * 1e-5)) == ROOM


def test_without_room_there_is_nothing() -> None:
    pace = Pace(2.0)
    steps(pace, 5, 0.1, lambda tokens: tokens * 0.002)
    assert pace.budget(8, 3) <= 3
