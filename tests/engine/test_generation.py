"""The whole engine on real models: a request's result does not depend on what else runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fermi import _C
from fermi.engine import runner
from fermi.engine.engine import Engine, EngineConfig
from fermi.engine.event import Event, TokenLogprobs
from fermi.engine.sampling import Sampling
from fermi.engine.sequence import Request
from fermi.models import Model, load_model, random_model

VOCAB = 640
LENGTHS = [1, 5, 16, 17, 31, 48, 70, 33]


@pytest.fixture(scope="module")
def backend() -> _C.Backend:
    return _C.open_backend("cpu", threads=2)


def tiny(backend: _C.Backend, dtype: _C.DTypeName, **more: Any) -> Model:
    config = {
        "model_type": "llama",
        "vocab_size": VOCAB,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 160,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        **more,
    }
    return random_model(config, backend=backend, dtype=dtype)


@pytest.fixture(scope="module")
def model(backend: _C.Backend) -> Model:
    return tiny(backend, "f32")


def prompts() -> list[list[int]]:
    rng = np.random.default_rng(11)
    shared = rng.integers(0, VOCAB, 24).tolist()
    made = [rng.integers(0, VOCAB, length).tolist() for length in LENGTHS]
    made[4][:24] = made[6][:24] = shared
    return made


def engine(model: Model, **config: Any) -> Engine:
    """Over a cache full of NaN: a key that should not be seen would show."""
    made = Engine(model, EngineConfig(kv_cache_memory=config.pop("kv_cache_memory", 2**22), **config))
    for cache in made._runner._kv:  # type: ignore[attr-defined]
        for tensor in cache.tensors:
            numbers = tensor.numpy()
            numbers[:] = {np.dtype(np.uint16): 0x7FC0, np.dtype(np.int8): -128}.get(numbers.dtype, np.nan)
    return made


def requests(**sampling: Any) -> list[Request]:
    options: dict[str, Any] = {"temperature": 0, "max_tokens": 40, **sampling}
    return [
        Request(id=f"r{number}", prompt_token_ids=prompt, sampling=Sampling(**options))
        for number, prompt in enumerate(prompts())
    ]


def run(engine: Engine, items: list[Request], stagger: int = 0) -> dict[str, list[Event]]:
    """The events of each request; ``stagger`` steps pass between one and the next."""
    events: dict[str, list[Event]] = {item.id: [] for item in items}

    def step() -> None:
        for event in engine.step():
            assert event.error is None, event.error
            events[event.request_id].append(event)

    for item in items:
        engine.add(item)
        for _ in range(stagger):
            step()
    while engine.has_work:
        step()
    assert engine.stats().blocks.used == 0
    return events


def tokens(events: dict[str, list[Event]]) -> dict[str, list[int]]:
    return {name: [token for event in found for token in event.token_ids] for name, found in events.items()}


def logprobs(events: dict[str, list[Event]]) -> dict[str, list[TokenLogprobs]]:
    return {name: [entry for event in found for entry in event.logprobs or []] for name, found in events.items()}


def alone(model: Model, items: list[Request], **config: Any) -> dict[str, list[Event]]:
    found: dict[str, list[Event]] = {}
    for item in items:
        found |= run(engine(model, **config), [item])
    return found


def test_greedy_tokens_are_the_same_alone_batched_chunked_preempted_and_cached(model: Model) -> None:
    items = requests()
    expected = tokens(alone(model, items))
    assert all(len(found) == 40 for found in expected.values())

    batched = engine(model)
    assert tokens(run(batched, items)) == expected
    assert tokens(run(batched, [replace(item) for item in items])) == expected  # from the prefix cache
    assert batched.stats().blocks.hit_tokens > 100

    assert tokens(run(engine(model), items, stagger=3)) == expected
    assert tokens(run(engine(model, max_num_batched_tokens=9, max_num_seqs=8), items)) == expected
    assert tokens(run(engine(model, prefix_cache=False, block_size=4), items)) == expected

    tight = engine(model, kv_cache_memory=model.kv_spec.bytes_per_token * 176, max_model_len=150)
    assert tokens(run(tight, items)) == expected
    assert tight.stats().preemptions > 0


@pytest.mark.parametrize(("dtype", "cache"), [("f32", "auto"), ("bf16", "auto"), ("f16", "auto"), ("bf16", "i8")])
def test_batch_invariant_logits_are_bitwise_the_same(backend: _C.Backend, dtype: _C.DTypeName, cache: str) -> None:
    model = tiny(backend, dtype)
    items = requests(logprobs=8)
    options = {"batch_invariant": True, "kv_cache_dtype": cache}
    expected = alone(model, items, **options)

    def same(events: dict[str, list[Event]]) -> bool:
        return tokens(events) == tokens(expected) and logprobs(events) == logprobs(expected)

    batched = engine(model, **options)
    assert same(run(batched, items))
    assert same(run(batched, items))
    assert batched.stats().blocks.hit_tokens > 100
    assert same(run(engine(model, **options, max_num_batched_tokens=9, max_num_seqs=8), items, stagger=2))
    memory = batched.kv_spec.bytes_per_token * 176
    tight = engine(model, **options, kv_cache_memory=memory, max_model_len=150)
    assert same(run(tight, items))
    assert tight.stats().preemptions > 0


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "dynamic", "factor": 2.0},
        {
            "rope_type": "longrope",
            "short_factor": [1.0] * 8,
            "long_factor": [1.5 + place / 4 for place in range(8)],
            "original_max_position_embeddings": 40,
        },
    ],
    ids=["dynamic", "longrope"],
)
def test_lengths_that_rotary_frequencies_depend_on(backend: _C.Backend, scaling: dict[str, Any]) -> None:
    reach = {"max_position_embeddings": 40 if scaling["rope_type"] == "dynamic" else 160}
    model = tiny(backend, "f32", rope_scaling=scaling, **reach)
    items = [
        item for item in requests(max_tokens=20) if len(item.prompt_token_ids) + 20 < model.max_position_embeddings
    ]
    assert {len(item.prompt_token_ids) + 20 > 40 for item in items} == {True, False}  # on both sides of the switch
    expected = tokens(alone(model, items))
    batched = engine(model)
    assert tokens(run(batched, items)) == expected
    assert tokens(run(batched, items)) == expected
    assert tokens(run(engine(model, max_num_batched_tokens=9, max_num_seqs=8), items)) == expected


@pytest.mark.parametrize("architecture", _C.cpu_architectures())
def test_every_instruction_set_keeps_to_a_sequence_of_its_own(architecture: str) -> None:
    model = tiny(_C.open_backend("cpu", threads=2, architecture=architecture), "f32")
    items = requests(max_tokens=12)
    assert tokens(run(engine(model), items)) == tokens(alone(model, items))


def test_a_seed_reproduces_whatever_else_runs(model: Model) -> None:
    items = requests(temperature=0.9, top_p=0.95, seed=5, n=2, repetition_penalty=1.1)
    expected = tokens(alone(model, items))
    assert tokens(run(engine(model), items, stagger=1)) == expected


def test_n_greedy_sequences_are_one(model: Model) -> None:
    single = tokens(run(engine(model), requests()))
    many = run(engine(model), requests(n=3))
    for name, events in many.items():
        for index in range(3):
            assert [token for event in events if event.index == index for token in event.token_ids] == single[name]


def test_logits_agree_with_log_probabilities(model: Model) -> None:
    made = engine(model)
    prompt = prompts()[6]
    logits = made.logits(prompt).astype(np.float64)
    assert logits.shape == (70, VOCAB)
    exact = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    item = Request(id="r", prompt_token_ids=prompt, sampling=Sampling(max_tokens=0, prompt_logprobs=3))
    (event,) = run(made, [item])["r"]
    for place, entry in enumerate((event.prompt_logprobs or [])[1:]):
        assert entry is not None
        assert entry.logprob == pytest.approx(exact[place, prompt[place + 1]], abs=1e-5)
        assert [token for token, _ in entry.top] == np.argsort(-exact[place], kind="stable")[:3].tolist()


def test_the_context_can_be_filled(model: Model) -> None:
    made = engine(model)
    item = Request(id="r", prompt_token_ids=prompts()[6], sampling=Sampling(temperature=0, max_tokens=1000))
    (found,) = tokens(run(made, [item])).values()
    assert len(found) == made.max_model_len - 70


def test_recordings_hold_no_more_than_allowed(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    items = requests(max_tokens=12)
    expected = tokens(run(engine(model), items))
    for bound, decodes, mixed in (
        ("KEPT_DECODE_BYTES", 0, 24),
        ("KEPT_MIXED_BYTES", 64, 0),
        ("MOST_DECODES", 1, 24),
        ("MOST_MIXED", 64, 1),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(runner, bound, 1)
            made = engine(model)
            assert tokens(run(made, items, stagger=1)) == expected
            assert len(made._runner._decodes) <= decodes  # type: ignore[attr-defined]
            assert len(made._runner._mixed) <= mixed  # type: ignore[attr-defined]


def test_a_recording_of_a_shape_is_used_again(model: Model) -> None:
    rng = np.random.default_rng(3)
    items = [
        Request(
            id=f"r{number}",
            prompt_token_ids=rng.integers(0, VOCAB, 150).tolist(),
            sampling=Sampling(temperature=0, max_tokens=5),
        )
        for number in range(4)
    ]
    expected = tokens(alone(model, items, max_num_batched_tokens=512))
    made = engine(model, max_num_batched_tokens=32, max_num_seqs=8)
    found: dict[str, list[int]] = {}
    for item in items:
        found |= tokens(run(made, [item]))
    assert found == expected
    assert len(made._runner._mixed) == 2  # type: ignore[attr-defined]  # chunks of 32 tokens, and the last of 22


@st.composite
def samplings(draw: st.DrawFn) -> Sampling:
    max_tokens = draw(st.integers(0, 12))
    return Sampling(
        n=draw(st.integers(1, 3)),
        temperature=draw(st.sampled_from([0.0, 1e-30, 0.5, 1.0, 50.0])),
        top_k=draw(st.sampled_from([0, 1, 5, VOCAB, 10**9])),
        top_p=draw(st.sampled_from([1.0, 0.9, 1e-9])),
        min_p=draw(st.sampled_from([0.0, 0.1, 1.0])),
        repetition_penalty=draw(st.sampled_from([1.0, 1.3, 1e-3, 1e30])),
        presence_penalty=draw(st.sampled_from([0.0, 2.0, -1e38])),
        frequency_penalty=draw(st.sampled_from([0.0, -2.0, 1e38])),
        logit_bias=draw(
            st.dictionaries(st.integers(0, VOCAB - 1), st.sampled_from([-100.0, 100.0, 1e300]), max_size=3)
        ),
        seed=draw(st.one_of(st.none(), st.integers(-(2**70), 2**70))),
        logprobs=draw(st.sampled_from([None, 0, 20])),
        prompt_logprobs=draw(st.sampled_from([None, None, 0, 3])),
        stop_token_ids=draw(st.frozensets(st.integers(0, VOCAB - 1), max_size=50)),
        max_tokens=max_tokens,
        min_tokens=draw(st.integers(0, max_tokens)),
        ignore_eos=draw(st.booleans()),
    )


@settings(max_examples=60)
@given(
    asked=st.lists(st.tuples(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=60), samplings()), max_size=6),
    budget=st.integers(4, 40),
)
def test_whatever_is_asked_ends(model: Model, asked: list[tuple[list[int], Sampling]], budget: int) -> None:
    memory = model.kv_spec.bytes_per_token * 160
    made = engine(model, max_num_seqs=4, max_num_batched_tokens=budget, kv_cache_memory=memory, max_model_len=80)
    items = [
        Request(id=f"r{number}", prompt_token_ids=prompt, sampling=sampling, eos_token_ids=frozenset({3, 10**6}))
        for number, (prompt, sampling) in enumerate(asked)
    ]
    for name, events in run(made, items).items():
        sampling = items[int(name[1:])].sampling
        assert sum(event.finish_reason in ("stop", "length") for event in events) == sampling.n
        for event in events:
            assert event.logprobs is None or all(entry.logprob <= 0 for entry in event.logprobs)


def test_the_story_is_told_in_any_company(backend: _C.Backend, stories260k: Path) -> None:
    model = load_model(stories260k, backend=backend)
    story = Request(id="story", prompt_token_ids=[1], sampling=Sampling(temperature=0, max_tokens=200))
    expected = tokens(run(engine(model), [story]))["story"]
    others = [
        Request(id=f"o{number}", prompt_token_ids=[1, *range(5, 5 + 30 * number)], sampling=Sampling(max_tokens=90))
        for number in range(7)
    ]
    assert tokens(run(engine(model), [*others, story], stagger=2))["story"] == expected
