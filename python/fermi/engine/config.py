"""The engine's settings, and how much KV cache they come to."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass, replace
from typing import Literal

from fermi.engine.layer_groups import LayerGroups
from fermi.engine.window import Window
from fermi.errors import ConfigError
from fermi.models.inputs import KVSpec

__all__ = ["CacheSize", "EngineConfig", "cache_size"]

#: Of the free memory, where ``kv_cache_memory`` is not set.
DEFAULT_SHARE = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """How the engine runs a model.

    Attributes:
        max_num_seqs: sequences that run at a time.
        max_num_batched_tokens: tokens per step; longer prompts are computed in chunks.
        max_model_len: tokens of prompt and output together. None: as many as the model and the memory allow.
        block_size: tokens per block of the KV cache.
        prefix_cache: keep the blocks of ended sequences and reuse them for prompts that begin alike.
        eviction: which kept blocks leave first when memory is needed.
        kv_cache_memory: hard bound of the KV cache: bytes (int) or a share of the free memory (float). None: 25 %, but
            no more than ``max_num_seqs`` sequences of ``max_model_len`` tokens need.
        kv_cache_dtype: what the KV cache holds; auto: what the model says. i8 comes with a scale per head and token.
        batch_invariant: compute every row in the same order of summation whatever else is in the step.
        stream_slowdown: how many times longer the prompts in a step may make it for the sequences that draw in it. 0:
            as much as they will, which is the least work for all of them together.
        replicas: engines that share the memory of the KV caches; each gets its part.
    """

    max_num_seqs: int = 64
    max_num_batched_tokens: int = 512
    max_model_len: int | None = None
    block_size: int = 16
    prefix_cache: bool = True
    eviction: Literal["lru", "lfu", "fifo"] = "lru"
    kv_cache_memory: int | float | None = None
    kv_cache_dtype: Literal["auto", "f32", "f16", "bf16", "i8"] = "auto"
    batch_invariant: bool = False
    stream_slowdown: float = 0.0
    replicas: int = 1

    def kv_spec(self, spec: KVSpec) -> KVSpec:
        """What is cached for each token, where a model's own is ``spec``."""
        return spec if self.kv_cache_dtype == "auto" else replace(spec, dtype=self.kv_cache_dtype)

    def __post_init__(self) -> None:
        """Raises ConfigError naming the first setting that is out of range."""
        for name in ("max_num_seqs", "max_num_batched_tokens", "block_size", "replicas"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ConfigError(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) must be at least max_num_seqs "
                f"({self.max_num_seqs}): each sequence takes one token of a step"
            )
        if not (self.stream_slowdown == 0 or 1 < self.stream_slowdown < math.inf):
            raise ConfigError(f"stream_slowdown must be 0 or more than 1, got {self.stream_slowdown}")
        if self.max_model_len is not None and self.max_model_len < 1:
            raise ConfigError(f"max_model_len must be at least 1, got {self.max_model_len}")
        if self.eviction not in ("lru", "lfu", "fifo"):
            raise ConfigError(f"eviction must be lru, lfu or fifo, got {self.eviction!r}")
        if self.kv_cache_dtype not in ("auto", "f32", "f16", "bf16", "i8"):
            raise ConfigError(f"kv_cache_dtype must be auto, f32, f16, bf16 or i8, got {self.kv_cache_dtype!r}")
        memory = self.kv_cache_memory
        if memory is not None and (memory <= 0 or (isinstance(memory, float) and memory > 1)):
            raise ConfigError(f"kv_cache_memory must be bytes, or a share in (0, 1] of the free memory, got {memory!r}")


@dataclass(frozen=True, slots=True)
class CacheSize:
    """What the memory holds.

    Attributes:
        blocks: of the KV cache.
        max_model_len: tokens of one sequence; the cache holds at least one that long, or what it sees.
    """

    blocks: int
    max_model_len: int


def cache_size(
    config: EngineConfig, spec: KVSpec, model_len: int, free_memory: int, groups: LayerGroups | None = None
) -> CacheSize:
    """Divides memory into blocks. ``model_len``: tokens that the model reaches; ``free_memory``: bytes; ``groups``: of
    the layers, with what they see: no sequence needs the blocks before. None: one, which sees everything.

    Raises:
        ConfigError: ``max_model_len`` is beyond the model, or one such sequence does not fit; says how many tokens do.
            Or the memory is more than there is.
    """
    if config.max_model_len is not None and config.max_model_len > model_len:
        raise ConfigError(f"max_model_len ({config.max_model_len}) is beyond the model's context of {model_len} tokens")
    memory = DEFAULT_SHARE if config.kv_cache_memory is None else config.kv_cache_memory
    allowed = int(free_memory * memory) if isinstance(memory, float) else memory
    if allowed > free_memory:
        raise ConfigError(f"kv_cache_memory ({allowed} bytes) is more than the {free_memory} bytes that are free")
    allowed //= config.replicas
    groups = groups or LayerGroups((0,), (0,) * spec.layers)
    blocks = allowed // groups.block_bytes(spec, config.block_size)
    windows = [Window(window, config.block_size) for window in groups.windows]

    def most_blocks(length: int, chunk: int = 1) -> int:
        return sum(window.most_blocks(length, chunk) for window in windows)

    wanted = model_len if config.max_model_len is None else config.max_model_len
    fitting = bisect_right(range(1, wanted + 1), blocks, key=most_blocks)
    if fitting < (wanted if config.max_model_len is not None else 1):
        raise ConfigError(
            f"a KV cache of {allowed} bytes holds {fitting} tokens at {spec.bytes_per_token} bytes each; max_model_len "
            f"is {wanted}: raise kv_cache_memory or lower max_model_len"
        )
    if config.kv_cache_memory is None:
        blocks = min(blocks, config.max_num_seqs * most_blocks(fitting, config.max_num_batched_tokens))
    return CacheSize(blocks, fitting)
