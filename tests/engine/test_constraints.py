"""Grammars in the engine: a model without sense, at any temperature, beside others, says nothing but what it may."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonschema_rs
import numpy as np
import numpy.typing as npt
import pytest

import fermi
from fermi import _C
from fermi.engine.engine import Engine, EngineConfig
from fermi.engine.event import Event
from fermi.engine.sampling import Sampling
from fermi.engine.sequence import Request
from fermi.models import Model, random_model
from fermi.text.grammar import (
    Choice,
    GrammarCompiler,
    GrammarSpec,
    JsonSchema,
    Lark,
    Regex,
    ThinkingBudget,
    Thoughts,
    bounds,
)
from fermi.text.tokenizer import Tokenizer

VOCAB = 1600  # some more than the tokenizer has
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "kinds": {"type": "array", "items": {"enum": ["cat", "dog"]}, "maxItems": 3},
    },
    "required": ["name", "age", "kinds"],
    "additionalProperties": False,
}
PROMPT = [5, 9, 14, 20, 33]


@pytest.fixture(scope="module")
def model() -> Model:
    config = {
        "model_type": "llama",
        "vocab_size": VOCAB,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
    }
    return random_model(config, backend=_C.open_backend("cpu", threads=2), dtype="f32")


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    folder = Path(fermi.__file__).parent / "demo" / "model"
    return GrammarCompiler(Tokenizer.from_folder(folder), VOCAB)


def engine(model: Model, **config: Any) -> Engine:
    return Engine(model, EngineConfig(kv_cache_memory=config.pop("kv_cache_memory", 2**24), **config))


def request(
    compiler: GrammarCompiler, name: str, spec: GrammarSpec | None, prompt: Sequence[int] = PROMPT, **sampling: Any
) -> Request:
    options: dict[str, Any] = {"temperature": 1.5, "max_tokens": 300, "seed": 3, **sampling}
    return Request(
        id=name,
        prompt_token_ids=list(prompt),
        sampling=Sampling(**options),
        eos_token_ids=compiler.tokenizer.eos_token_ids,
        grammar=None if spec is None else compiler.compile(spec),
    )


def run(engine: Engine, *requests: Request) -> dict[tuple[str, int], list[Event]]:
    """The events of each sequence."""
    for each in requests:
        engine.add(each)
    events: dict[tuple[str, int], list[Event]] = {}
    while engine.has_work:
        for event in engine.step():
            events.setdefault((event.request_id, event.index), []).append(event)
    return events


def tokens_of(events: list[Event]) -> list[int]:
    return [token for event in events for token in event.token_ids]


def text_of(compiler: GrammarCompiler, events: list[Event]) -> str:
    """What a sequence said that came to its end."""
    assert (events[-1].finish_reason, events[-1].error) == ("stop", None)
    said = tokens_of(events)
    if events[-1].stop_token_id is not None:  # not needed where nothing could follow
        assert said.pop() in compiler.tokenizer.eos_token_ids
    return compiler.tokenizer.decode(said, skip_special_tokens=False)


@pytest.mark.parametrize("temperature", [0, 1, 2])
def test_the_reply_fits_the_schema(model: Model, compiler: GrammarCompiler, temperature: float) -> None:
    wanted = [
        request(compiler, f"r{seed}", JsonSchema(SCHEMA), [seed, 7, 8], temperature=temperature, seed=seed, n=2)
        for seed in range(5)
    ]
    for events in run(engine(model), *wanted).values():
        text = text_of(compiler, events)
        assert jsonschema_rs.is_valid(SCHEMA, json.loads(text)), text


def test_sequences_of_a_request_go_their_own_ways(model: Model, compiler: GrammarCompiler) -> None:
    events = run(engine(model), request(compiler, "r", JsonSchema(SCHEMA), n=4, temperature=2))
    texts = {text_of(compiler, each) for each in events.values()}
    assert len(texts) == 4
    assert all(jsonschema_rs.is_valid(SCHEMA, json.loads(text)) for text in texts)


def mixed(compiler: GrammarCompiler) -> list[Request]:
    specs: list[GrammarSpec | None] = [
        JsonSchema(SCHEMA),
        None,
        Regex("[ab]{5,40}!"),
        None,
        Choice(("yes", "no")),
        None,
    ]
    return [
        request(compiler, f"r{at}", spec, list(range(at + 3, at + 30)), max_tokens=120, seed=at)
        for at, spec in enumerate(specs)
    ]


def test_bounded_and_free_requests_run_together_as_each_alone(model: Model, compiler: GrammarCompiler) -> None:
    alone = {key: tokens_of(each) for one in mixed(compiler) for key, each in run(engine(model), one).items()}
    together = {key: tokens_of(each) for key, each in run(engine(model), *mixed(compiler)).items()}
    assert together == alone


def test_preemption_changes_nothing(model: Model, compiler: GrammarCompiler) -> None:
    roomy, tight = engine(model), engine(model, kv_cache_memory=5 * 2**15, block_size=4, max_model_len=160)
    expected = {key: tokens_of(each) for key, each in run(roomy, *mixed(compiler)).items()}
    found = {key: tokens_of(each) for key, each in run(tight, *mixed(compiler)).items()}
    assert tight.stats().preemptions > 0
    assert found == expected


def test_a_cached_prompt_changes_nothing(model: Model, compiler: GrammarCompiler) -> None:
    made, prompt = engine(model), list(range(100, 180))
    first = run(made, request(compiler, "a", JsonSchema(SCHEMA), prompt))["a", 0]
    second = run(made, request(compiler, "b", JsonSchema(SCHEMA), prompt))["b", 0]
    assert second[-1].cached_tokens > 0
    assert tokens_of(second) == tokens_of(first)


def test_a_complete_text_ends_whatever_else_is_asked_for(model: Model, compiler: GrammarCompiler) -> None:
    for sampling in ({"min_tokens": 50}, {"ignore_eos": True}, {"min_tokens": 50, "ignore_eos": True}):
        events = run(engine(model), request(compiler, "r", Choice(("yes", "no")), **sampling))["r", 0]
        assert text_of(compiler, events) in ("yes", "no")


def test_a_complete_text_needs_no_step_for_its_end(model: Model, compiler: GrammarCompiler) -> None:
    tokens = len(compiler.tokenizer.encode("yes", add_special_tokens=False))
    for more in (0, 5):
        wanted = request(compiler, "r", Choice(("yes",)), max_tokens=tokens + more, n=2)
        for events in run(engine(model), wanted).values():
            assert (text_of(compiler, events), len(tokens_of(events))) == ("yes", tokens)


def test_a_text_that_may_go_on_does_so_until_min_tokens(model: Model, compiler: GrammarCompiler) -> None:
    letters = Regex("[a-z]*")
    for least in (0, 1, 7, 30):
        events = run(engine(model), request(compiler, "r", letters, min_tokens=least, max_tokens=200))["r", 0]
        assert len(tokens_of(events)) >= least
    events = run(engine(model), request(compiler, "r", letters, ignore_eos=True, max_tokens=60))["r", 0]
    assert (len(tokens_of(events)), events[-1].finish_reason) == (60, "length")


def test_a_bias_does_not_help_what_may_not_come(model: Model, compiler: GrammarCompiler) -> None:
    needed = dict.fromkeys(compiler.tokenizer.encode("yes", add_special_tokens=False), -100.0)
    bias = {**dict.fromkeys(range(100, 140), 100.0), **needed}
    events = run(engine(model), request(compiler, "r", Choice(("yes",)), logit_bias=bias, temperature=0))["r", 0]
    assert text_of(compiler, events) == "yes"


def test_a_stop_token_ends_a_bounded_text(model: Model, compiler: GrammarCompiler) -> None:
    brace = compiler.tokenizer.token_id("}")
    assert brace is not None
    wanted = request(compiler, "r", Regex("[a-c]{3,5}}[a-z]{200}"), stop_token_ids=frozenset({brace}))
    events = run(engine(model), wanted)["r", 0]
    assert (events[-1].finish_reason, events[-1].stop_token_id) == ("stop", brace)
    assert re.fullmatch("[a-c]{3,5}}", compiler.tokenizer.decode(tokens_of(events)))


def test_log_probabilities_are_those_of_the_model(model: Model, compiler: GrammarCompiler) -> None:
    events = run(engine(model), request(compiler, "r", Choice(("yes",)), logprobs=1))["r", 0]
    first = (events[0].logprobs or [])[0]
    assert first.token_id == events[0].token_ids[0]
    assert first.logprob <= first.top[0][1]


def test_padded_tokens_never_come(model: Model, compiler: GrammarCompiler) -> None:
    events = run(
        engine(model), request(compiler, "r", Regex("(.|\n)*"), temperature=50, max_tokens=200, ignore_eos=True)
    )
    assert max(tokens_of(events["r", 0])) < compiler.tokenizer.vocab_size


def test_what_is_bounded_begins_behind_the_thoughts(model: Model, compiler: GrammarCompiler) -> None:
    closing = compiler.tokenizer.token_id("</think>")
    assert closing is not None
    spec, sampling = (
        JsonSchema(SCHEMA),
        Sampling(temperature=1.5, max_tokens=900, n=3, logit_bias={closing: 6.0}, seed=1),
    )
    grammar = bounds(compiler, spec, Thoughts(opened=True))
    wanted = Request(
        id="r",
        prompt_token_ids=PROMPT,
        sampling=sampling,
        eos_token_ids=compiler.tokenizer.eos_token_ids,
        grammar=grammar,
    )
    for events in run(engine(model), wanted).values():
        _, closed, answer = text_of(compiler, events).partition("</think>")
        assert closed
        assert jsonschema_rs.is_valid(SCHEMA, json.loads(answer))


@pytest.mark.parametrize("spec", [None, Choice(("yes", "no"))])
def test_a_budget_ends_the_thoughts(model: Model, compiler: GrammarCompiler, spec: GrammarSpec | None) -> None:
    budget = bounds(compiler, spec, Thoughts(opened=True), 12)
    assert isinstance(budget, ThinkingBudget)
    sampling = Sampling(temperature=1.0, max_tokens=40, n=3, seed=2, min_tokens=20)
    wanted = Request(id="r", prompt_token_ids=PROMPT, sampling=sampling, grammar=budget, eos_token_ids=frozenset({0}))
    for events in run(engine(model), wanted).values():
        said = tokens_of(events)
        text = compiler.tokenizer.decode(said, skip_special_tokens=False)
        assert "</think>" in compiler.tokenizer.decode(said[:12], skip_special_tokens=False)
        if spec is None:
            assert len(said) >= 20
        else:
            assert re.search(r"</think>\n{0,2}(yes|no)$", text), text


class Failing:
    """A grammar whose constraint fails after some tokens, in the words of its making."""

    free = False
    complete = False

    def __init__(self, left: int, where: str) -> None:
        self.left = left
        self.where = where

    def start(self) -> Failing:
        return Failing(self.left, self.where)

    def accept(self, token_id: int) -> None:
        self.left -= 1
        if self.where == "accept" and self.left < 0:
            raise ValueError("too much")

    @staticmethod
    def fill(constraints: Sequence[Failing], masks: npt.NDArray[np.uint32]) -> dict[int, str]:
        masks[:] = 2**32 - 1
        if any(each.where == "raise" and each.left < 0 for each in constraints):
            raise RuntimeError("too much")
        return {row: "too much" for row, each in enumerate(constraints) if each.where == "fill" and each.left < 0}


@pytest.mark.parametrize("where", ["fill", "accept", "raise"])
def test_a_grammar_that_fails_ends_its_own_request_only(model: Model, compiler: GrammarCompiler, where: str) -> None:
    bad = Request(id="bad", prompt_token_ids=PROMPT, sampling=Sampling(max_tokens=20), grammar=Failing(3, where))
    events = run(engine(model), bad, request(compiler, "good", JsonSchema(SCHEMA)), request(compiler, "free", None))
    last = events["bad", 0][-1]
    assert (last.finish_reason, last.error, last.refused) == ("error", "the grammar failed: too much", True)
    assert len(tokens_of(events["bad", 0])) in (3, 4)
    assert jsonschema_rs.is_valid(SCHEMA, json.loads(text_of(compiler, events["good", 0])))
    assert events["free", 0][-1].error is None


def test_a_grammar_that_becomes_too_large_fails_alone(model: Model, compiler: GrammarCompiler) -> None:
    rules = "\n".join(f'r{at}: "x" /[a-z]+/ "{at}"' for at in range(3000))
    spec = Lark("start: " + " | ".join(f"r{at}" for at in range(3000)) + "\n" + rules)
    events = run(engine(model), request(compiler, "r", spec), request(compiler, "good", Choice(("yes", "no"))))
    assert "the grammar failed" in (events["r", 0][-1].error or "")
    assert text_of(compiler, events["good", 0]) in ("yes", "no")


def test_free_requests_need_no_thread(model: Model, compiler: GrammarCompiler) -> None:
    made = engine(model)
    masks = made._runner._drawing._masks  # type: ignore[attr-defined]
    run(made, request(compiler, "free", None, max_tokens=5))
    assert masks._thread is None
    run(made, request(compiler, "r", Choice(("yes", "no"))))
    assert masks._thread is not None
