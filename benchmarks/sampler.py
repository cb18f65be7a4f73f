"""How long the choice of one token takes, from logits of a vocabulary, on one thread. Medians, in microseconds.

python benchmarks/sampler.py [--vocabulary 151936] [--repeats 201]

Columns are distributions: flat logits (random weights) and peaked ones (a trained model's, by Zipf's law).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from fermi.engine._sampler import Draws, Sampler

CASES: Mapping[str, Mapping[str, float]] = {
    "greedy": {"temperature": 0.0},
    "greedy, repetition penalty": {"temperature": 0.0, "repetition_penalty": 1.1},
    "greedy, logit bias": {"temperature": 0.0},
    "temperature 1": {"temperature": 1.0},
    "top-k 20": {"top_k": 20},
    "top-k 50": {"top_k": 50},
    "top-k 1000": {"top_k": 1000},
    "top-p 0.95": {"top_p": 0.95},
    "top-p 0.5": {"top_p": 0.5},
    "min-p 0.05": {"min_p": 0.05},
    "top-k 20, top-p 0.95": {"temperature": 0.6, "top_k": 20, "top_p": 0.95},
    "top-p 0.9, min-p 0.01, temperature 0.7": {"temperature": 0.7, "top_p": 0.9, "min_p": 0.01},
    "top-p 0.95, min-p 0.01, temperature 1.5": {"temperature": 1.5, "top_p": 0.95, "min_p": 0.01},
    "top-p 0.2": {"top_p": 0.2},
    "top-p 0.95, all penalties": {
        "top_p": 0.95,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.5,
    },
    "top-k 1000, top-p 0.95": {"top_k": 1000, "top_p": 0.95},
    "temperature 1, all penalties": {"repetition_penalty": 1.1, "presence_penalty": 0.5, "frequency_penalty": 0.5},
    "temperature 1, grammar": {},
    "logprobs, 5 likeliest": {},
}
ROWS = 16


def distributions(vocabulary: int) -> Mapping[str, npt.NDArray[np.float32]]:
    """Logits [ROWS, vocabulary] by name."""
    random = np.random.default_rng(0)
    flat = random.standard_normal((ROWS, vocabulary), np.float32)
    peaked = np.empty_like(flat)
    for row in peaked:
        row[:] = -1.5 * np.log1p(random.permutation(vocabulary)) + 0.3 * random.standard_normal(vocabulary)
    return {"flat": flat, "peaked": peaked}


def measure(case: str, logits: npt.NDArray[np.float32], repeats: int) -> float:
    """Seconds for one token."""
    vocabulary = logits.shape[1]
    random = np.random.default_rng(1)
    bias = {int(token): 1.0 for token in random.integers(0, vocabulary, 50)} if "bias" in case else {}
    prompt = random.integers(0, vocabulary, 2000).tolist()
    draws = [
        Draws(vocab_size=vocabulary, seed=row, prompt_token_ids=prompt, logit_bias=bias, **CASES[case])  # type: ignore[arg-type]
        for row in range(ROWS)
    ]
    if "grammar" in case:
        mask = random.integers(0, 2**32, (vocabulary + 31) // 32, dtype=np.uint32)
        for each in draws:
            each.allow(mask)
    sampler = Sampler(vocabulary)
    times = []
    for repeat in range(repeats):
        row = repeat % ROWS
        start = time.perf_counter()
        if "logprobs" in case:
            sampler.log_probabilities(logits, [row], [7], 5)
        else:
            draws[row].accept(sampler.sample(logits, [row], [draws[row]])[0])
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=151936)
    parser.add_argument("--repeats", type=int, default=201)
    arguments = parser.parse_args()
    logits = distributions(arguments.vocabulary)
    print(f"{'µs per token':40}" + "".join(f"{name:>10}" for name in logits))
    for case in CASES:
        times = (measure(case, rows, arguments.repeats) for rows in logits.values())
        print(f"{case:40}" + "".join(f"{1e6 * seconds:10.1f}" for seconds in times))


if __name__ == "__main__":
    main()
