"""The embedded model with other KV caches: what it says changes little, and integers take less memory."""

from __future__ import annotations

import numpy as np
import pytest

from fermi import LLM, SamplingParams
from fermi.errors import ConfigError

QUESTIONS = [
    "What is 12 + 30?",
    "What is the capital of France?",
    "Tell me a story about a fox.",
    "Who are you?",
    "Repeat after me: the quick brown fox jumps over the lazy dog.",
    "How many days does a week have?",
]


@pytest.fixture(scope="module")
def exact() -> LLM:
    return LLM("demo", kv_cache_memory="64MiB", kv_cache_dtype="float32")


def replies(llm: LLM) -> list[list[int]]:
    conversations = [[{"role": "user", "content": question}] for question in QUESTIONS]
    params = SamplingParams(temperature=0.0, max_tokens=60)
    return [output.outputs[0].token_ids for output in llm.chat(conversations, params, use_tqdm=False)]


@pytest.mark.parametrize("dtype", ["int8", "bfloat16", "float16"])
def test_greedy_tokens_and_logits_stay(exact: LLM, dtype: str) -> None:
    llm = LLM("demo", kv_cache_memory="64MiB", kv_cache_dtype=dtype)
    expected, found = replies(exact), replies(llm)
    same = [first == second for first, second in zip(expected, found, strict=True)]
    assert sum(same) >= len(same) - 1  # where two tokens are nearly as likely, a reply goes on in another way
    chosen = []
    for reply in expected:
        first, second = exact.logits(reply), llm.logits(reply)
        assert np.any(first != second), "another cache than was asked for"
        cosines = np.sum(first * second, axis=1) / (np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1))
        assert cosines.min() >= 0.999
        chosen += (first.argmax(axis=1) == second.argmax(axis=1)).tolist()
    assert np.mean(chosen) >= 0.98


def test_integers_take_less_memory(exact: LLM) -> None:
    llm = LLM("demo", kv_cache_memory="64MiB", kv_cache_dtype="int8")
    spec = llm.engine.kv_spec
    assert spec.bytes_per_token == 2 * spec.layers * spec.kv_heads * (spec.head_dim + 4)
    assert spec.bytes_per_token < exact.engine.kv_spec.bytes_per_token / 3
    assert llm.engine.stats().blocks.total > 3 * exact.engine.stats().blocks.total


def test_an_unknown_type_is_refused() -> None:
    with pytest.raises(ConfigError, match="kv_cache_dtype"):
        LLM("demo", kv_cache_dtype="int4")
