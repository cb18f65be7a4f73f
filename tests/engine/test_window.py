"""Models that look through a window, in a KV cache too small for their sequences, against Transformers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import transformers

from engine.fake_runner import blocks_needed
from fermi import _C
from fermi.engine import layer_groups
from fermi.engine.engine import Engine, EngineConfig
from fermi.engine.layer_groups import LayerGroups
from fermi.engine.sampling import Sampling
from fermi.engine.sequence import Request
from fermi.errors import RequestError
from fermi.models import Model, load_model
from fermi.models.decoder import Decoder
from models.comparison import largest_error, reference_greedy, reference_logits
from models.drive import Driver
from models.tiny_checkpoints import GEMMA2, MIXED, VARIANTS, Variant, save

MODELS = {
    **{
        f"mistral {window}": Variant("Mistral", {"sliding_window": window}) for window in (2, 9, 21)
    },  # of 1 it makes all
    "gemma2": Variant("Gemma2", {**GEMMA2, "num_hidden_layers": 4}),
    "gemma3": Variant("Gemma3Text", {**GEMMA2, "sliding_window_pattern": 4, "num_hidden_layers": 9}),
    "qwen2": Variant("Qwen2", {**MIXED, "sliding_window": 21}),
    "smollm3": VARIANTS["smollm3 window"],
}
GROUPS = {"gemma2": (0, 9), "gemma3": (0, 9, 9, 9, 9), "qwen2": (0, 21, 21), "smollm3": (0, 0, 6)}
BLOCK_SIZE = 4
LENGTH = 130
NEW = 24


@pytest.fixture(scope="module", params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def reference(name: str) -> transformers.PreTrainedModel:
    return MODELS[name].reference()


@pytest.fixture(scope="module")
def model(reference: transformers.PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Decoder[Any]:
    return load_model(save(reference, tmp_path_factory.mktemp("model")), backend=_C.open_backend("cpu", threads=2))


def groups_of(model: Model) -> LayerGroups:
    return LayerGroups.of(model.windows, model.max_position_embeddings)


def engine(model: Model, blocks: int, **config: Any) -> Engine:
    """Over a cache full of NaN: a key that should not be seen would show."""
    memory = blocks * groups_of(model).block_bytes(model.kv_spec, BLOCK_SIZE)
    options = {"max_num_batched_tokens": 16, "max_num_seqs": 8, **config}
    made = Engine(model, EngineConfig(block_size=BLOCK_SIZE, kv_cache_memory=memory, **options))
    for tensor in made._runner._kv.tensors:  # type: ignore[attr-defined]
        if tensor.dtype == "f32":
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


def least_blocks(model: Model, length: int = LENGTH + NEW) -> int:
    """Those that a sequence of that length cannot do without."""
    return blocks_needed(length, groups_of(model).windows, BLOCK_SIZE)


def prompt_of(seed: int, length: int = LENGTH) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(0, 199, length)]


def test_layers_are_grouped_by_what_they_see(name: str, model: Model) -> None:
    assert groups_of(model).windows == GROUPS.get(name, model.windows[:1])


def test_a_sequence_needs_no_more_than_it_sees(model: Model, reference: transformers.PreTrainedModel) -> None:
    prompt = prompt_of(0)
    expected = reference_greedy(reference, prompt, NEW)
    for blocks in (least_blocks(model), least_blocks(model) + 5):
        for cache in (True, False):
            made = engine(model, blocks, prefix_cache=cache)
            assert made.max_model_len == 256 or 0 in groups_of(model).windows
            assert greedy(made, {"r": prompt})["r"] == [expected]
            assert greedy(made, {"r": prompt})["r"] == [expected]  # some of it from the prefix cache
            assert made.stats().preemptions == 0


def test_a_long_generation_gives_back_what_left_its_windows(
    model: Decoder[Any], reference: transformers.PreTrainedModel
) -> None:
    prompt, new = prompt_of(3, 8), 120
    expected = reference_greedy(reference, prompt, new)
    assert Driver(model).greedy(prompt, new) == expected  # which keeps every block
    made, tokens = engine(model, 400), list[int]()
    made.add(Request(id="r", prompt_token_ids=prompt, sampling=Sampling(temperature=0, max_tokens=new)))
    while made.has_work:
        tokens += [token for event in made.step() for token in event.token_ids]
        length = len(prompt) + len(tokens) - 1  # computed
        assert made.stats().blocks.used <= least_blocks(model, length)
    assert tokens == expected


def test_sequences_share_and_fight_for_blocks(model: Model, reference: transformers.PreTrainedModel) -> None:
    prompts = {f"r{seed}": prompt_of(seed, 50 + 40 * seed) for seed in range(3)}
    prompts["again"] = prompts["r2"][:90]
    expected = {name: [reference_greedy(reference, prompt, NEW)] * 3 for name, prompt in prompts.items()}
    tight = engine(model, least_blocks(model) + 8)
    assert greedy(tight, prompts, n=3) == expected
    assert model.windows == (2, 2, 2) or tight.stats().preemptions > 0
    roomy = engine(model, 1000)
    assert greedy(roomy, prompts, n=3) == expected
    assert greedy(roomy, prompts, n=3) == expected
    assert roomy.stats().blocks.hit_tokens > 0


def test_a_conversation_goes_on_from_the_prefix_cache(model: Model, reference: transformers.PreTrainedModel) -> None:
    made, prompt = engine(model, 400), prompt_of(4, 61)
    for _ in range(3):
        cached = -1
        reply = reference_greedy(reference, prompt, 20)
        made.add(Request(id="r", prompt_token_ids=prompt, sampling=Sampling(temperature=0, max_tokens=20)))
        tokens: list[int] = []
        while made.has_work:
            for event in made.step():
                tokens += event.token_ids
                cached = event.cached_tokens
        assert tokens == reply
        assert cached == (0 if len(prompt) == 61 else (len(prompt) - 6) // BLOCK_SIZE * BLOCK_SIZE)
        prompt = [*prompt, *reply, *prompt_of(5, 5)]


def test_every_logit(model: Model, reference: transformers.PreTrainedModel) -> None:
    prompt = prompt_of(0)
    made = engine(model, least_blocks(model) + 40 * len(groups_of(model).windows))
    logits = made.logits(prompt)
    assert largest_error(logits, reference_logits(reference, prompt)) <= 1e-4
    assert made.stats().blocks.used == 0


@pytest.mark.parametrize("dtype", ["auto", "bf16", "i8"])
def test_groups_change_no_bit(model: Model, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = prompt_of(0)
    parted = engine(model, 400, kv_cache_dtype=dtype)
    monkeypatch.setattr(layer_groups, "MOST_GROUPS", 1)
    joined = engine(model, 400, kv_cache_dtype=dtype)
    assert joined.layer_groups.windows == (max(model.windows) if min(model.windows) else 0,)
    np.testing.assert_array_equal(parted.logits(prompt), joined.logits(prompt))


def test_less_than_a_window_is_refused(model: Model) -> None:
    small = engine(model, least_blocks(model, LENGTH) - 1)
    with pytest.raises(RequestError, match="maximum context length"):
        small.check(Request(id="r", prompt_token_ids=prompt_of(0), sampling=Sampling()))
