"""The compiled sampler against a NumPy reference of each feature, and its draws against the exact probabilities."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fermi.engine._sampler import Draws, Sampler, philox

Floats = npt.NDArray[np.float64]


def reference_logits(logits: npt.NDArray[np.float32], rules: dict[str, Any], output: list[int]) -> Floats:
    """Raw logits → penalized and biased logits, in float64."""
    row = logits.astype(np.float64)
    row[np.isnan(row)] = -np.inf
    allowed = rules.get("allowed")
    if allowed is not None:
        row[[token for token in range(row.size) if token not in allowed]] = -np.inf
    if len(output) < rules.get("min_tokens", 0):
        row[list(rules.get("stop_token_ids", ()))] = -np.inf
    repetition = rules.get("repetition_penalty", 1.0)
    for token in set(rules.get("prompt_token_ids", ())) | set(output):
        row[token] = row[token] / repetition if row[token] > 0 else row[token] * repetition
    for token in set(output):
        row[token] -= rules.get("presence_penalty", 0.0) + rules.get("frequency_penalty", 0.0) * output.count(token)
    for token, bias in rules.get("logit_bias", {}).items():
        row[token] += bias
    return row


def reference_probabilities(logits: npt.NDArray[np.float32], rules: dict[str, Any], output: list[int]) -> Floats:
    """The exact distribution of the next token."""
    row = reference_logits(logits, rules, output)
    order = sorted(range(row.size), key=lambda token: (-row[token], token))
    temperature = rules.get("temperature", 1.0)
    probabilities = np.zeros(row.size)
    if temperature == 0:
        probabilities[order[0]] = 1
        return probabilities
    probabilities = np.exp((row - row.max()) / temperature)
    probabilities[probabilities < rules.get("min_p", 0.0)] = 0
    if rules.get("top_k", 0):
        probabilities[order[rules["top_k"] :]] = 0
    probabilities /= probabilities.sum()
    above = 0.0
    for token in order:
        share = probabilities[token]
        if above >= rules.get("top_p", 1.0) - 1e-12:
            probabilities[token] = 0
        above += share
    return probabilities / probabilities.sum()


def draws_for(vocab: int, rules: dict[str, Any], output: list[int], **more: Any) -> Draws:
    parameters = {name: value for name, value in rules.items() if name != "allowed"}
    draws = Draws(vocab_size=vocab, **parameters, **more)
    for token in output:
        draws.accept(token)
    if rules.get("allowed") is not None:
        draws.allow(mask_of(vocab, rules["allowed"]))
    return draws


def mask_of(vocab: int, allowed: set[int]) -> npt.NDArray[np.uint32]:
    mask = np.zeros((vocab + 31) // 32, np.uint32)
    tokens = np.array(sorted(allowed), np.uint32)
    np.bitwise_or.at(mask, tokens // 32, np.uint32(1) << tokens % 32)
    return mask


def counts_of(logits: npt.NDArray[np.float32], rules: dict[str, Any], output: list[int], count: int) -> Floats:
    """How often each token comes in ``count`` draws with different streams of one seed."""
    vocab = logits.size
    sampler = Sampler(vocab)
    draws = [draws_for(vocab, rules, output, seed=12345, stream=stream) for stream in range(count)]
    tokens = sampler.sample(logits[None], [0] * count, draws)
    return np.bincount(tokens, minlength=vocab).astype(np.float64)


FEATURES: dict[str, dict[str, Any]] = {
    "plain": {},
    "temperature": {"temperature": 0.6},
    "hot": {"temperature": 1.9},
    "top_k": {"top_k": 7},
    "top_k of more than the maxima": {"top_k": 150},
    "top_p": {"top_p": 0.8},
    "top_p, wide": {"top_p": 0.995, "temperature": 2.0},
    "min_p": {"min_p": 0.08},
    "min_p and top_p": {"min_p": 0.02, "top_p": 0.7},
    "top_k and top_p": {"top_k": 20, "top_p": 0.85},
    "all of them": {"temperature": 0.9, "top_k": 30, "top_p": 0.9, "min_p": 0.01},
    "repetition": {"repetition_penalty": 1.7, "prompt_token_ids": [0, 1, 2, 3, 3, 200]},
    "presence": {"presence_penalty": 1.5},
    "frequency": {"frequency_penalty": 0.5},
    "penalties": {"repetition_penalty": 0.7, "presence_penalty": -0.5, "frequency_penalty": 0.3},
    "bias": {"logit_bias": {5: 4.0, 6: -100.0, 299: 100.0}},
    "min_tokens": {"min_tokens": 9, "stop_token_ids": [0, 17, 299]},
    "min_tokens reached": {"min_tokens": 3, "stop_token_ids": [0, 17, 299]},
    "mask": {"allowed": {1, 31, 32, 63, 64, 128, 298, 299}},
    "mask and top_p": {"allowed": set(range(0, 300, 3)), "top_p": 0.5},
}
OUTPUT = [4, 4, 4, 17, 150, 299]


def features_logits(vocab: int = 300) -> npt.NDArray[np.float32]:
    return (np.random.default_rng(7).standard_normal(vocab) * 2).astype(np.float32)


@pytest.mark.parametrize("name", FEATURES)
def test_draws_follow_the_exact_probabilities(name: str) -> None:
    logits, rules, count = features_logits(), FEATURES[name], 40_000
    expected = reference_probabilities(logits, rules, OUTPUT) * count
    counts = counts_of(logits, rules, OUTPUT, count)
    assert counts[expected == 0].sum() == 0  # support
    large = expected >= 5
    observed = np.append(counts[large], counts[~large].sum())
    wanted = np.append(expected[large], expected[~large].sum())
    observed, wanted = observed[wanted > 0], wanted[wanted > 0]
    if wanted.size > 1:
        chi_square = float(((observed - wanted) ** 2 / wanted).sum())
        freedom = wanted.size - 1
        # Wilson–Hilferty: the cube root of chi²/freedom is nearly normal.
        deviation = ((chi_square / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / (2 / (9 * freedom)) ** 0.5
        assert deviation < 3.5


@pytest.mark.parametrize("name", FEATURES)
def test_greedy_is_the_largest_adjusted_logit(name: str) -> None:
    logits = features_logits()
    rules = {**FEATURES[name], "temperature": 0.0}
    expected = int(np.argmax(reference_probabilities(logits, rules, OUTPUT)))
    assert Sampler(300).sample(logits[None], [0], [draws_for(300, rules, OUTPUT)]) == [expected]


@given(
    vocab=st.integers(1, 700),
    seed=st.integers(0, 2**32),
    temperature=st.sampled_from([0.0, 0.3, 1.0, 1.7]),
    top_k=st.integers(0, 40),
    top_p=st.sampled_from([1.0, 0.95, 0.5, 0.01]),
    min_p=st.sampled_from([0.0, 0.05, 0.5]),
    levels=st.sampled_from([0, 3]),
)
def test_a_draw_is_in_the_support(
    vocab: int, seed: int, temperature: float, top_k: int, top_p: float, min_p: float, levels: int
) -> None:
    logits = np.random.default_rng(seed).standard_normal(vocab).astype(np.float32)
    if levels:
        logits = np.round(logits * levels) / np.float32(levels)  # many ties
    rules = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    probabilities = reference_probabilities(logits, rules, [])
    tokens = Sampler(vocab).sample(
        logits[None], [0] * 20, [Draws(vocab_size=vocab, seed=seed, stream=i, **rules) for i in range(20)]
    )
    assert all(probabilities[token] > 0 for token in tokens)


WIDE: dict[str, dict[str, Any]] = {  # so many tokens can be drawn that they are not gathered
    "plain": {},
    "top_p": {"top_p": 0.9},
    "top_p of nearly all": {"top_p": 0.99999},
    "top_p of few": {"top_p": 0.0005},
    "top_k": {"top_k": 5000},
    "top_k of nearly all": {"top_k": 9999},
    "min_p": {"min_p": 0.01, "temperature": 2.0},
    "min_p and top_k": {"min_p": 0.002, "top_k": 6000},
    "min_p and top_p": {"min_p": 0.01, "top_p": 0.5, "temperature": 2.0},
    "top_k and top_p": {"top_k": 5000, "top_p": 0.7},
    "all of them": {"top_k": 5500, "top_p": 0.8, "min_p": 0.002},
    "hot": {"top_p": 0.6, "temperature": 1000.0},  # logits that differ by less than a bin
    "mask": {"top_p": 0.9, "allowed": set(range(1, 10_000, 2))},
    "penalties": {"top_k": 4500, "top_p": 0.99, "repetition_penalty": 1.5, "prompt_token_ids": list(range(200))},
}


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("name", WIDE)
def test_wide_draws_follow_the_exact_probabilities(name: str, ties: bool) -> None:
    logits, rules, count = features_logits(10_001) / 2, WIDE[name], 3000
    logits[[50, 7000, 10_000]] = -np.inf, np.nan, -np.inf
    if ties:
        logits = np.round(logits) / 2  # some thousands of each: more than are selected among at a time
    probabilities = reference_probabilities(logits, rules, OUTPUT)
    counts = counts_of(logits, rules, OUTPUT, count)
    # Sums in another order may move the border of a nucleus by a token.
    assert counts[probabilities == 0].sum() <= (1 if "top_p" in rules else 0)
    order = np.argsort(-probabilities, kind="stable")
    observed, wanted = counts[order].cumsum() / count, probabilities[order].cumsum()
    assert np.abs(observed - wanted).max() < 2.2 / np.sqrt(count)  # Kolmogorov–Smirnov, p < 1e-4


@pytest.mark.parametrize("k", [1, 3, 1000, 4999, 5000, 5001])
def test_wide_top_k_is_exact(k: int) -> None:
    logits = np.round(features_logits(5001) * 4) / 4
    sampler = Sampler(5001)
    kept = set(np.lexsort((np.arange(5001), -logits))[:k].tolist())
    rules = {"vocab_size": 5001, "top_k": k, "temperature": 50.0, "seed": 1}
    drawn = sampler.sample(logits[None], [0] * 20_000, [Draws(stream=i, **rules) for i in range(20_000)])
    assert set(drawn) <= kept
    assert k > 1000 or set(drawn) == kept


@pytest.mark.parametrize("threads", [2, 3, 64])
def test_threads_change_nothing(threads: int) -> None:
    vocab = 40_000  # 50 rows of which are worth four threads
    logits = np.random.default_rng(5).standard_normal((7, vocab)).astype(np.float32)
    rows = [i % 7 for i in range(50)]
    rules = [each for each in (*FEATURES.values(), *WIDE.values()) if max(each.get("allowed", (0,))) < vocab]
    alone, together = Sampler(vocab), Sampler(vocab, threads)
    for _ in range(2):
        draws = [draws_for(vocab, rules[i % len(rules)], OUTPUT, seed=i) for i in range(50)]
        assert together.sample(logits, rows, draws) == alone.sample(logits, rows, draws)
        ids = [37 * i % vocab for i in range(50)]
        for mine, theirs in zip(
            together.log_probabilities(logits, rows, ids, 4), alone.log_probabilities(logits, rows, ids, 4), strict=True
        ):
            np.testing.assert_array_equal(mine, theirs)
    with pytest.raises(ValueError, match="0 threads"):
        Sampler(vocab, 0)


def test_plus_infinity_is_the_largest_number() -> None:
    logits = features_logits(5001)
    logits[[7, 4000]] = np.inf
    for rules in ({}, {"top_p": 0.9}, {"top_k": 4500}, {"top_k": 2}, {"min_p": 0.1}):
        drawn = Sampler(5001).sample(
            logits[None], [0] * 50, [Draws(vocab_size=5001, seed=3, stream=i, **rules) for i in range(50)]
        )
        assert set(drawn) == {7, 4000}


def test_greedy_takes_the_lowest_of_equal_logits() -> None:
    logits = np.zeros((1, 1000), np.float32)
    logits[0, [300, 700, 999]] = 2.0
    assert Sampler(1000).sample(logits, [0], [Draws(vocab_size=1000, temperature=0)]) == [300]


def test_top_k_keeps_the_lower_ids_of_equal_logits() -> None:
    logits = np.zeros(500, np.float32)
    counts = counts_of(logits, {"top_k": 3}, [], 600)
    assert set(np.flatnonzero(counts)) == {0, 1, 2}


def test_a_draw_depends_on_seed_stream_and_index_alone() -> None:
    rng = np.random.default_rng(3)
    logits = rng.standard_normal((8, 500)).astype(np.float32)
    sampler = Sampler(500)

    def draws(row: int) -> Draws:
        return draws_for(500, {"temperature": 1.0, "top_p": 0.9}, [row] * row, seed=row)

    alone = [sampler.sample(logits, [row], [draws(row)])[0] for row in range(8)]
    together = sampler.sample(logits, list(range(8)), [draws(row) for row in range(8)])
    backwards = sampler.sample(logits, list(range(8))[::-1], [draws(row) for row in range(8)][::-1])
    assert alone == together == backwards[::-1]


def test_sampling_leaves_the_logits_alone() -> None:
    logits = features_logits()[None]
    before = logits.copy()
    for rules in FEATURES.values():
        Sampler(300).sample(logits, [0], [draws_for(300, rules, OUTPUT)])
    assert np.array_equal(logits, before)


@pytest.mark.parametrize("rules", [{"temperature": 0.0}, {}, {"top_k": 5}, {"top_p": 0.9}, {"min_p": 0.1}])
@pytest.mark.parametrize("bias", [{}, {3: 1.0}])
def test_numbers_that_are_none(rules: dict[str, Any], bias: dict[int, float]) -> None:
    def sample(row: list[float]) -> int:
        logits = np.array([row * 40], np.float32)
        return Sampler(160).sample(logits, [0], [Draws(vocab_size=160, logit_bias=bias, **rules)])[0]

    nan, inf = float("nan"), float("inf")
    assert sample([nan, nan, nan, nan]) == -1
    assert sample([-inf, -inf, nan, -inf]) == -1
    assert sample([nan, 1.0, -inf, nan]) % 4 == 1
    assert sample([nan, 1.0, inf, -inf]) % 4 == 2
    assert sample([-inf, 0.0, 3e38, -3e38]) % 4 == 2


def test_a_mask_that_allows_nothing_leaves_no_token() -> None:
    draws = Draws(vocab_size=100)
    draws.allow(np.zeros(4, np.uint32))
    assert Sampler(100).sample(np.zeros((1, 100), np.float32), [0], [draws]) == [-1]
    draws.allow(None)
    assert Sampler(100).sample(np.zeros((1, 100), np.float32), [0], [draws]) != [-1]


def test_log_probabilities_are_the_log_softmax() -> None:
    logits = (np.random.default_rng(5).standard_normal((6, 1000)) * 4).astype(np.float32)
    logits[3, 10] = np.nan
    logits[4, :] = np.round(logits[4, :])  # ties
    rows, tokens = [0, 1, 2, 3, 4, 5, 5], [3, 999, 0, 11, 500, 7, 8]
    values, ranks, top_ids, top_values = Sampler(1000).log_probabilities(logits, rows, tokens, 6)
    for place, (row, token) in enumerate(zip(rows, tokens, strict=True)):
        exact = logits[row].astype(np.float64)
        exact[np.isnan(exact)] = -np.inf
        exact -= np.log(np.exp(exact - exact.max()).sum()) + exact.max()
        order = sorted(range(1000), key=lambda other: (-exact[other], other))
        assert values[place] == pytest.approx(exact[token], abs=2e-6)
        assert ranks[place] == order.index(token) + 1
        assert top_ids[place].tolist() == order[:6]
        assert top_values[place] == pytest.approx(exact[order[:6]], abs=2e-6)


def test_the_same_logit_has_the_same_log_probability() -> None:
    logits = features_logits(300)[None]
    best = int(logits.argmax())
    values, _, top_ids, top_values = Sampler(300).log_probabilities(logits, [0], [best], 1)
    assert top_ids[0, 0] == best
    assert values[0] == top_values[0, 0]


def test_more_top_log_probabilities_than_tokens() -> None:
    logits = np.array([[1.0, -np.inf, 2.0]], np.float32)
    _, _, top_ids, top_values = Sampler(3).log_probabilities(logits, [0], [0], 5)
    assert top_ids.tolist() == [[2, 0, -1, -1, -1]]
    assert np.isneginf(top_values[0, 2:]).all()


def test_random_numbers_are_philox() -> None:
    """Known answers of Random123's kat_vectors for philox4x32-10."""
    full = 2**64 - 1
    assert philox(0, 0, 0) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    assert philox(full, full, full) == (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)
    words = philox(0x299F31D0A4093822, 0x0370734413198A2E, 0x85A308D3243F6A88)
    assert words == (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)


def test_arguments_are_checked() -> None:
    sampler, logits = Sampler(10), np.zeros((2, 10), np.float32)
    draws = Draws(vocab_size=10)
    with pytest.raises(ValueError, match="row 2"):
        sampler.sample(logits, [2], [draws])
    with pytest.raises(ValueError, match="vocabulary"):
        sampler.sample(logits, [0], [Draws(vocab_size=11)])
    with pytest.raises(ValueError, match="logits"):
        sampler.sample(np.zeros((2, 9), np.float32), [0], [draws])
    with pytest.raises(ValueError, match="token id 10"):
        draws.accept(10)
    with pytest.raises(ValueError, match="token id -1"):
        sampler.log_probabilities(logits, [0], [-1], 0)
    with pytest.raises(ValueError, match="mask"):
        draws.allow(np.zeros(2, np.uint32))
    with pytest.raises(TypeError):
        sampler.sample(logits, [0], [None])  # type: ignore[list-item]
