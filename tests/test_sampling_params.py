"""What callers may ask of generation, and how what they may not is refused."""

from __future__ import annotations

from typing import Any

import pytest

from fermi import SamplingParams
from fermi.errors import RequestError


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 0),
        ("n", 1.5),
        ("n", True),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", "hot"),
        ("top_k", -2),
        ("top_p", 0),
        ("top_p", 1.01),
        ("min_p", 2),
        ("repetition_penalty", 0),
        ("presence_penalty", 2.5),
        ("frequency_penalty", float("inf")),
        ("logit_bias", [1, 2]),
        ("logit_bias", {1: 101}),
        ("logit_bias", {"1": 1}),
        ("logit_bias", {-1: 1}),
        ("seed", 0.5),
        ("stop", [""]),
        ("stop", ["a"] * 17),
        ("stop", {"a": 1}),
        ("stop_token_ids", [-1]),
        ("stop_token_ids", 3),
        ("max_tokens", -1),
        ("min_tokens", -1),
        ("min_tokens", 17),
        ("ignore_eos", 1),
        ("logprobs", 21),
        ("prompt_logprobs", -1),
    ],
)
def test_a_bad_value_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(RequestError, match=name) as refused:
        SamplingParams(**{name: value})
    assert refused.value.param == name
    assert isinstance(refused.value, ValueError)


def test_an_unknown_name_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match="temprature"):
        SamplingParams(temprature=0)  # type: ignore[call-arg]


def test_values_come_in_the_forms_that_callers_know() -> None:
    params = SamplingParams(stop="END", top_k=-1, stop_token_ids=[1, 2], max_tokens=None)
    assert params.stop_strings == ("END",)
    assert params.top_k == 0
    sampling = params.sampling(max_tokens=99)
    assert sampling.stop_token_ids == {1, 2}
    assert sampling.max_tokens == 99
    assert SamplingParams(max_tokens=3).sampling(max_tokens=99).max_tokens == 3


def test_a_copy_with_other_values_is_checked_too() -> None:
    params = SamplingParams(temperature=0.5).replace(top_p=0.9)
    assert (params.temperature, params.top_p) == (0.5, 0.9)
    with pytest.raises(RequestError, match="top_p"):
        params.replace(top_p=2)
