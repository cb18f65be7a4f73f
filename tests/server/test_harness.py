"""lm-evaluation-harness's scores by the server are those computed in process.

The first test sends the requests that the harness sends; the others drive the harness itself where it is installed
(``pip install lm_eval``; it brings much that fermi's other tests do not need).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fermi.config import load_settings
from fermi.loader import LoadedModel, load_generator
from fermi.server.loading import load_served
from server.running import Running, serving

CASES = (
    ("Once upon a time", " there was a little dog."),
    ("What is 3 + 4?", " 7"),
    ("The cat", " and the dog went to the park. They were happy, and it was a big day."),
    ("", "Tell me"),
    ("A", " b"),
)
FLAGS = {"engine.threads": 1, "cache.kv_cache_memory": "64MiB", "engine.batch_invariant": True}


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    """The demo model without a server."""
    return load_generator("demo", load_settings(FLAGS, environ={}, folder=Path("/nonexistent")))


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving(load_served("demo", load_settings(FLAGS, environ={}, folder=Path("/nonexistent")))) as running:
        yield running


def likelihood(model: LoadedModel, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    """The log-probability of a continuation, and whether it is what greedy decoding says; from the model's logits."""
    ids = [*context, *continuation]
    logits = model.engine.logits(ids)[len(context) - 1 : -1].astype(np.float64)
    logits -= logits.max(1, keepdims=True)
    scores = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    of_each = scores[np.arange(len(continuation)), continuation]
    return float(of_each.sum()), bool((scores.argmax(1) == continuation).all())


def encoded(model: LoadedModel, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """As the harness encodes: both together, cut where the context ends alone; a context of nothing is one token."""
    tokenizer = model.tokenizer
    whole = tokenizer.encode(context + continuation, add_special_tokens=False)
    begin = tokenizer.encode(context, add_special_tokens=False)
    if not begin:
        return [min(tokenizer.eos_token_ids)], whole
    return whole[: len(begin)], whole[len(begin) :]


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_requests_of_a_harness(server: Running, model: LoadedModel, max_tokens: int) -> None:
    """Token ids in a batch, echoed with their scores; the last token of 1 is not the harness's."""
    cases = [encoded(model, *case) for case in CASES]
    body: dict[str, Any] = {
        "model": "demo",
        "prompt": [[*context, *continuation] for context, continuation in cases],
        "temperature": 0,
        "max_tokens": max_tokens,
        "logprobs": 1,
        "seed": 1234,
        "echo": True,
    }
    with server.http() as http:
        reply = http.post("/v1/completions", json=body)
    assert reply.status_code == 200, reply.text
    choices = sorted(reply.json()["choices"], key=lambda choice: choice["index"])
    for choice, (context, continuation) in zip(choices, cases, strict=True):
        end = len(context) + len(continuation)
        assert len(choice["logprobs"]["tokens"]) == end + max_tokens, "a token that ends the text counts, too"
        scores = choice["logprobs"]["token_logprobs"][len(context) : end]
        tops = choice["logprobs"]["top_logprobs"][len(context) : end]
        expected, greedy = likelihood(model, context, continuation)
        assert sum(scores) == pytest.approx(expected, abs=1e-4)
        assert all(score == max(top.values()) for score, top in zip(scores, tops, strict=True)) == greedy


@pytest.mark.parametrize("tokenized", [True, False])
def test_the_harness_itself(server: Running, model: LoadedModel, tokenized: bool) -> None:
    completions = pytest.importorskip("lm_eval.models.openai_completions", reason="lm_eval is not installed")
    instance = pytest.importorskip("lm_eval.api.instance")
    api = completions.LocalCompletionsAPI(
        base_url=f"{server.url}/v1/completions",
        model="demo",
        tokenizer_backend="remote",
        tokenized_requests=tokenized,
        batch_size=3,
        max_length=512,
    )
    requests = [
        instance.Instance(request_type="loglikelihood", doc={}, arguments=case, idx=number)
        for number, case in enumerate(CASES)
        if case[0]
    ]
    found = api.loglikelihood(requests, disable_tqdm=True)
    for (score, greedy), case in zip(found, [case for case in CASES if case[0]], strict=True):
        expected, is_greedy = likelihood(model, *encoded(model, *case))
        assert score == pytest.approx(expected, abs=1e-4)
        assert greedy == is_greedy


def test_the_harness_generates(server: Running, model: LoadedModel) -> None:
    completions = pytest.importorskip("lm_eval.models.openai_completions", reason="lm_eval is not installed")
    instance = pytest.importorskip("lm_eval.api.instance")
    url = f"{server.url}/v1/completions"
    api = completions.LocalCompletionsAPI(base_url=url, model="demo", tokenizer_backend="remote", max_length=512)
    options = {"until": ["\n\n"], "max_gen_toks": 12, "temperature": 0}
    arguments = ("Once upon a time", options)
    request = instance.Instance(request_type="generate_until", doc={}, arguments=arguments, idx=0)
    [text] = api.generate_until([request], disable_tqdm=True)
    whole = server.openai().completions.create(model="demo", prompt="Once upon a time", max_tokens=12, temperature=0)
    assert text == whole.choices[0].text.split("\n\n")[0]
