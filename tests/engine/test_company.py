"""The service over a real engine: clients that read, leave and run out of time leave nothing behind."""

from __future__ import annotations

import asyncio
import time

import numpy as np

from fermi import _C
from fermi.engine.engine import Engine, EngineConfig
from fermi.engine.sampling import Sampling
from fermi.engine.sequence import Request
from fermi.engine.service import Service
from fermi.models import random_model

CONFIG = {
    "model_type": "llama",
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
}


async def test_clients_of_every_kind_leave_nothing_behind() -> None:
    model = random_model(CONFIG, backend=_C.open_backend("cpu", threads=2), dtype="f32")
    memory = model.kv_spec.bytes_per_token * 16 * 20
    engine = Engine(model, EngineConfig(max_num_seqs=6, max_num_batched_tokens=24, kv_cache_memory=memory))
    service = Service(engine, max_running=6)
    service.start()
    rng = np.random.default_rng(2)
    prompts = [rng.integers(0, 300, rng.integers(1, 90)).tolist() for _ in range(48)]

    def ask(number: int, deadline: float | None = None) -> Request:
        sampling = Sampling(temperature=0, max_tokens=30, n=1 + number % 3)
        return Request(id=f"r{number}", prompt_token_ids=prompts[number], sampling=sampling, deadline=deadline)

    async def reads(number: int) -> dict[int, list[int]]:
        tokens: dict[int, list[int]] = {}
        async for event in service.submit(ask(number)):
            assert event.error is None
            tokens.setdefault(event.index, []).extend(event.token_ids)
        return tokens

    async def leaves(number: int) -> None:
        async with service.submit(ask(number)) as stream:
            for _ in range(number % 5):
                await anext(stream, None)  # a slow reader may find all of it in one event

    async def is_late(number: int) -> None:
        async for event in service.submit(ask(number, time.monotonic())):
            assert event.finish_reason == "deadline"

    kinds = [reads, leaves, is_late]
    results = await asyncio.gather(*(kinds[number % 3](number) for number in range(48)))
    again = await asyncio.gather(*(reads(number) for number in range(0, 48, 3)))
    assert results[::3] == again
    assert all(len(found) == 30 for tokens in again for found in (tokens or {}).values())
    assert service.open_requests <= 16  # those who left may not have been noticed yet
    await service.stop(drain_s=600)
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.blocks.used) == (0, 0, 0)
    assert stats.finished_requests == 64
    assert service.open_requests == 0
