"""Phi-3 outgrowing LongRoPE's original context while it generates, against Transformers.

There `generate` gives up its cache as soon as the sequence is longer, and computes every token anew with the long
factors. The engine does the same with the KV blocks of the sequence.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from fermi import _C
from fermi.engine.engine import Engine, EngineConfig
from fermi.engine.sampling import Sampling
from fermi.engine.sequence import Request
from fermi.models import Model, load_model
from models.comparison import reference_greedy
from models.tiny_checkpoints import PHI3_LONG, Variant, save

ORIGINAL = 48
NEW = 40
BLOCK_SIZE = 4


@pytest.fixture(scope="module", params=[None, 20], ids=["all", "window"])
def reference(request: pytest.FixtureRequest) -> transformers.PreTrainedModel:
    options = {**PHI3_LONG, "original_max_position_embeddings": ORIGINAL, "sliding_window": request.param}
    return Variant("Phi3", options).reference()


@pytest.fixture(scope="module")
def model(reference: transformers.PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load_model(save(reference, tmp_path_factory.mktemp("phi3")), backend=_C.open_backend("cpu", threads=2))


def prompts() -> dict[str, list[int]]:
    """From well below the original context to beyond it."""
    lengths = (10, 30, ORIGINAL - 1, ORIGINAL, ORIGINAL + 1, 60)
    return {f"{length} tokens": Variant("Phi3", prompt=length).tokens(length) for length in lengths}


@pytest.fixture(scope="module")
def expected(reference: transformers.PreTrainedModel) -> dict[str, list[int]]:
    return {name: reference_greedy(reference, prompt, NEW) for name, prompt in prompts().items()}


def engine(model: Model, blocks: int, **options: Any) -> Engine:
    memory = blocks * BLOCK_SIZE * model.kv_spec.bytes_per_token
    config = EngineConfig(block_size=BLOCK_SIZE, kv_cache_memory=memory, **{"max_num_seqs": 8, **options})
    return Engine(model, config)


def greedy(engine: Engine, prompts: dict[str, list[int]], n: int = 1) -> dict[str, list[list[int]]]:
    found: dict[str, list[list[int]]] = {name: [[] for _ in range(n)] for name in prompts}
    for name, prompt in prompts.items():
        sampling = Sampling(temperature=0, max_tokens=NEW, n=n)
        engine.add(Request(id=name, prompt_token_ids=prompt, sampling=sampling))
    while engine.has_work:
        for event in engine.step():
            assert event.error is None, event.error
            found[event.request_id][event.index] += event.token_ids
    assert engine.stats().blocks.used == 0
    return found


def uncached(reference: transformers.PreTrainedModel, prompt: list[int], count: int) -> list[int]:
    """Every token by the whole sequence, computed anew."""
    tokens = list(prompt)
    with torch.no_grad():
        for _ in range(count):
            tokens.append(int(reference(torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


def test_transformers_computes_the_sequence_anew(
    reference: transformers.PreTrainedModel, expected: dict[str, list[int]]
) -> None:
    for name, prompt in prompts().items():
        assert expected[name] == uncached(reference, prompt, NEW)


def test_alone(model: Model, expected: dict[str, list[int]]) -> None:
    for name, prompt in prompts().items():
        made = engine(model, 60)
        assert greedy(made, {name: prompt})[name] == [expected[name]]
        assert made.stats().preemptions == 0


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("blocks", [30, 400])
@pytest.mark.parametrize("budget", [8, 512])
def test_together(model: Model, expected: dict[str, list[int]], cache: bool, blocks: int, budget: int) -> None:
    made = engine(model, blocks, prefix_cache=cache, max_num_batched_tokens=budget)
    twice = {name: [tokens, tokens] for name, tokens in expected.items()}
    assert greedy(made, prompts(), n=2) == twice
    assert greedy(made, prompts(), n=2) == twice


def test_long_sequences_share_blocks_with_long_ones_only(model: Model) -> None:
    made, prompt = engine(model, 400), prompts()["30 tokens"]
    [tokens] = greedy(made, {"r": prompt})["r"]
    grown = [*prompt, *tokens]
    cached = []
    for length in (len(grown), ORIGINAL + 1, ORIGINAL):
        made.add(Request(id="r", prompt_token_ids=grown[:length], sampling=Sampling(max_tokens=1)))
        while made.has_work:
            cached += [event.cached_tokens for event in made.step()]
    assert cached == [len(grown) - 2, ORIGINAL, ORIGINAL - 1]
