"""How memory becomes KV blocks, and which settings are refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fermi.engine.config import EngineConfig, cache_size
from fermi.engine.layer_groups import LayerGroups
from fermi.errors import ConfigError
from fermi.models.inputs import KVSpec

SPEC = KVSpec(layers=2, kv_heads=2, head_dim=4, dtype="f32")  # 128 bytes per token


def test_bytes_are_a_hard_bound() -> None:
    size = cache_size(EngineConfig(kv_cache_memory=128 * 16 * 10 + 1, max_model_len=100), SPEC, 1000, 10**9)
    assert (size.blocks, size.max_model_len) == (10, 100)


def test_integers_count_with_their_scales() -> None:
    assert KVSpec(layers=2, kv_heads=2, head_dim=4, dtype="bf16").bytes_per_token == 64
    assert KVSpec(layers=2, kv_heads=2, head_dim=4, dtype="i8").bytes_per_token == 2 * 2 * 2 * (4 + 4)


def test_more_than_is_free_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"kv_cache_memory \(4611686018427387904 bytes\) is more than the 1000 bytes"):
        cache_size(EngineConfig(kv_cache_memory=2**62), SPEC, 1000, 1000)


def test_a_share_is_of_the_free_memory() -> None:
    size = cache_size(EngineConfig(kv_cache_memory=0.5, max_model_len=100), SPEC, 1000, 2 * 128 * 16 * 10)
    assert size.blocks == 10


def test_by_default_no_more_than_can_be_used() -> None:
    size = cache_size(EngineConfig(max_num_seqs=3), SPEC, 100, 10**9)
    assert (size.blocks, size.max_model_len) == (3 * 7, 100)


def test_by_default_a_quarter_of_the_free_memory() -> None:
    size = cache_size(EngineConfig(), SPEC, 10**6, 4 * 128 * 16 * 500)
    assert (size.blocks, size.max_model_len) == (500, 8000)


def test_the_context_shrinks_to_the_memory_unless_it_was_asked_for() -> None:
    memory = 128 * 16 * 10
    assert cache_size(EngineConfig(kv_cache_memory=memory), SPEC, 1000, 10**9).max_model_len == 160
    with pytest.raises(ConfigError, match="holds 160 tokens"):
        cache_size(EngineConfig(kv_cache_memory=memory, max_model_len=161), SPEC, 1000, 10**9)


def test_memory_for_nothing_is_an_error() -> None:
    with pytest.raises(ConfigError, match="holds 0 tokens"):
        cache_size(EngineConfig(kv_cache_memory=128), SPEC, 1000, 10**9)


def test_the_model_bounds_the_context() -> None:
    with pytest.raises(ConfigError, match="1000"):
        cache_size(EngineConfig(max_model_len=1001), SPEC, 1000, 10**9)


@pytest.mark.parametrize(
    "settings",
    [
        {"max_num_seqs": 0},
        {"block_size": 0},
        {"max_num_batched_tokens": 0},
        {"max_num_seqs": 65, "max_num_batched_tokens": 64},
        {"max_model_len": 0},
        {"eviction": "random"},
        {"kv_cache_memory": 0},
        {"kv_cache_dtype": "int8"},
        {"kv_cache_memory": 1.5},
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        EngineConfig(**settings)


def test_a_window_lets_sequences_outgrow_the_cache() -> None:
    memory = 128 * 16 * 10
    config = EngineConfig(kv_cache_memory=memory, max_num_batched_tokens=64)

    def all_slide(window: int) -> LayerGroups:
        return LayerGroups((window,), (0, 0))

    assert cache_size(config, SPEC, 1000, 10**9, all_slide(100)).max_model_len == 1000
    assert cache_size(config, SPEC, 1000, 10**9, all_slide(145)).max_model_len == 1000
    assert cache_size(config, SPEC, 1000, 10**9, all_slide(146)).max_model_len == 160  # may lie in 11 blocks
    with pytest.raises(ConfigError, match="holds 160 tokens"):
        cache_size(replace(config, max_model_len=161), SPEC, 1000, 10**9, all_slide(146))
    size = cache_size(EngineConfig(max_num_seqs=3, max_num_batched_tokens=64), SPEC, 1000, 10**9, all_slide(100))
    assert (size.blocks, size.max_model_len) == (3 * 12, 1000)


def test_a_window_in_half_of_the_layers_lets_the_context_be_longer() -> None:
    groups = LayerGroups((0, 64), (0, 1))
    config = EngineConfig(kv_cache_memory=128 * 16 * 10, max_num_seqs=3, max_num_batched_tokens=32)
    size = cache_size(config, SPEC, 1000, 10**9, groups)
    assert (size.blocks, size.max_model_len) == (20, 15 * 16)  # of one layer each; 5 hold the window
    with pytest.raises(ConfigError, match="holds 240 tokens"):
        cache_size(replace(config, max_model_len=241), SPEC, 1000, 10**9, groups)
    by_default = cache_size(replace(config, kv_cache_memory=None), SPEC, 1000, 10**9, groups)
    assert (by_default.blocks, by_default.max_model_len) == (3 * (63 + 7), 1000)
