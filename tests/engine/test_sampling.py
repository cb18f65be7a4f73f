"""Sampling refuses what cannot be meant, by name."""

from __future__ import annotations

from typing import Any

import pytest

from fermi.engine.sampling import Sampling
from fermi.errors import RequestError

NAN, INFINITY = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 0),
        ("temperature", -0.1),
        ("temperature", NAN),
        ("temperature", INFINITY),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_p", NAN),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", INFINITY),
        ("presence_penalty", NAN),
        ("frequency_penalty", INFINITY),
        ("logit_bias", {1: NAN}),
        ("logprobs", -1),
        ("prompt_logprobs", -1),
        ("max_tokens", -1),
        ("min_tokens", -1),
        ("min_tokens", 17),
    ],
)
def test_bad_values_are_named(name: str, value: Any) -> None:
    with pytest.raises(RequestError, match=name) as caught:
        Sampling(**{name: value})
    assert caught.value.param == name


def test_the_edges_are_allowed() -> None:
    Sampling(temperature=0, top_p=1.0, min_p=0, top_k=0, max_tokens=0, min_tokens=0, logprobs=0, prompt_logprobs=0)
    Sampling(min_p=1, repetition_penalty=0.1, max_tokens=3, min_tokens=3, logit_bias={0: -100.0})
