"""Models that look through a window, in a KV cache too small for their sequences, against Transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers

from fermi import _C
from fermi.engine.engine import Engine, EngineConfig
from fermi.engine.sampling import Sampling
from fermi.engine.sequence import Request
from fermi.errors import RequestError
from fermi.models import Model, load_model
from models.comparison import largest_error, reference_greedy, reference_logits
from models.tiny_checkpoints import Variant, save

WINDOWS = [2, 9, 21]  # of one token alone Transformers makes a window of all
BLOCK_SIZE = 4
LENGTH = 130
NEW = 24


@pytest.fixture(scope="module", params=WINDOWS)
def reference(request: pytest.FixtureRequest) -> transformers.PreTrainedModel:
    return Variant("Mistral", {"sliding_window": request.param}).reference()


@pytest.fixture(scope="module")
def model(reference: transformers.PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load_model(save(reference, tmp_path_factory.mktemp("mistral")), backend=_C.open_backend("cpu", threads=2))


def engine(model: Model, blocks: int, **config: Any) -> Engine:
    """Over a cache full of NaN: a key that should not be seen would show."""
    memory = blocks * BLOCK_SIZE * model.kv_spec.bytes_per_token
    options = {"max_num_batched_tokens": 16, "max_num_seqs": 8, **config}
    made = Engine(model, EngineConfig(block_size=BLOCK_SIZE, kv_cache_memory=memory, **options))
    for cache in made._runner._kv:  # type: ignore[attr-defined]
        for tensor in cache.tensors:
            tensor.numpy()[:] = np.nan
    return made


def greedy(engine: Engine, prompts: dict[str, list[int]], **sampling: Any) -> dict[str, list[list[int]]]:
    """The tokens of each sequence of each request."""
    options = Sampling(temperature=0, max_tokens=NEW, **sampling)
    found: dict[str, list[list[int]]] = {name: [[] for _ in range(options.n)] for name in prompts}
    for name, prompt in prompts.items():
        engine.add(Request(id=name, prompt_token_ids=prompt, sampling=options))
    while engine.has_work:
        for event in engine.step():
            assert event.error is None, event.error
            found[event.request_id][event.index] += event.token_ids
    assert engine.stats().blocks.used == 0
    return found


def blocks_of_a_window(model: Model) -> int:
    return (model.windows[0] + 2 * BLOCK_SIZE - 2) // BLOCK_SIZE


def prompt_of(seed: int, length: int = LENGTH) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(0, 199, length)]


def test_a_sequence_outgrows_the_cache(model: Model, reference: transformers.PreTrainedModel) -> None:
    prompt = prompt_of(0)
    expected = reference_greedy(reference, prompt, NEW)
    for blocks in (blocks_of_a_window(model), blocks_of_a_window(model) + 5):
        for cache in (True, False):
            made = engine(model, blocks, prefix_cache=cache)
            assert made.max_model_len == 256
            assert greedy(made, {"r": prompt})["r"] == [expected]
            assert greedy(made, {"r": prompt})["r"] == [expected]  # some of it from the prefix cache
            assert made.stats().preemptions == 0


def test_sequences_share_and_fight_for_blocks(model: Model, reference: transformers.PreTrainedModel) -> None:
    prompts = {f"r{seed}": prompt_of(seed, 50 + 40 * seed) for seed in range(3)}
    prompts["again"] = prompts["r2"][:90]
    expected = {name: [reference_greedy(reference, prompt, NEW)] * 3 for name, prompt in prompts.items()}
    tight = engine(model, blocks_of_a_window(model) + 8)
    assert greedy(tight, prompts, n=3) == expected
    assert model.windows[0] < 9 or tight.stats().preemptions > 0
    roomy = engine(model, 200)
    assert greedy(roomy, prompts, n=3) == expected
    assert greedy(roomy, prompts, n=3) == expected
    assert roomy.stats().blocks.hit_tokens > 0


def test_every_logit(model: Model, reference: transformers.PreTrainedModel) -> None:
    prompt = prompt_of(0)
    made = engine(model, blocks_of_a_window(model) + 40)
    logits = made.logits(prompt)
    assert largest_error(logits, reference_logits(reference, prompt)) <= 1e-4
    assert made.stats().blocks.used == 0


def test_less_than_a_window_is_refused(model: Model) -> None:
    small = engine(model, blocks_of_a_window(model) - 1)
    with pytest.raises(RequestError, match="maximum context length"):
        small.check(Request(id="r", prompt_token_ids=prompt_of(0), sampling=Sampling()))


def test_a_layer_that_sees_everything_keeps_every_block(tmp_path: Path) -> None:
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    variant = Variant("Qwen2", {"use_sliding_window": True, "sliding_window": 9, "layer_types": kinds})
    reference = variant.reference()
    mixed = load_model(save(reference, tmp_path), backend=_C.open_backend("cpu", threads=2))
    assert mixed.windows == (9, 0, 9)
    prompt = prompt_of(0)
    made = engine(mixed, 60)
    assert made.max_model_len == 60 * BLOCK_SIZE
    assert greedy(made, {"r": prompt})["r"] == [reference_greedy(reference, prompt, NEW)]
