"""POST /v1/similarity."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from server.running import Running, serving
from server.test_embeddings import ask, refused, vector_of
from server.toy import toy_embedder, toy_model

PATH = "/v1/similarity"
TEXTS = ["a fox", "the quick brown fox", "b"]


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving(toy_model(), toy_embedder(), toy_embedder(name="cross", scores_pairs=True)) as running:
        yield running


def found(server: Running, **body: Any) -> list[Any]:
    document = ask(server, PATH, **body)
    assert document["object"] == "list"
    assert document["id"].startswith("similarity-")
    assert [each["index"] for each in document["data"]] == list(range(len(document["data"])))
    assert {each["object"] for each in document["data"]} == {"similarity"}
    assert document["usage"]["prompt_tokens"] > 0
    return [each["similarity"] for each in document["data"]]


def dot(left: str, right: str) -> float:
    return float(np.dot(vector_of(left), vector_of(right)))


def cosine(left: str, right: str) -> float:
    return dot(left, right) / np.sqrt(dot(left, left) * dot(right, right))


def test_one_with_several(server: Running) -> None:
    expected = [cosine("fox", text) for text in TEXTS]
    np.testing.assert_allclose(found(server, source_sentence="fox", sentences=TEXTS), expected, rtol=1e-5)
    np.testing.assert_allclose(found(server, text_1="fox", text_2=TEXTS), expected, rtol=1e-5)
    np.testing.assert_allclose(found(server, source_sentence=TEXTS, sentences="fox"), expected, rtol=1e-5)
    wrapped = {"source_sentence": "fox", "sentences": TEXTS}
    np.testing.assert_allclose(found(server, inputs=wrapped), expected, rtol=1e-5)
    assert found(server, source_sentence="fox", sentences="fox") == [pytest.approx(1)]


def test_each_with_its_own(server: Running) -> None:
    expected = [cosine(text, text + "!") for text in TEXTS]
    mine = [text + "!" for text in TEXTS]
    np.testing.assert_allclose(found(server, source_sentence=TEXTS, sentences=mine), expected, rtol=1e-5)


def test_all_with_all(server: Running) -> None:
    expected = [[cosine(left, right) for right in TEXTS] for left in TEXTS]
    np.testing.assert_allclose(found(server, input=TEXTS), expected, rtol=1e-5)


def test_metric_prompt_and_dimensions(server: Running) -> None:
    assert ask(server, PATH, input=["x"])["metric"] == "cosine"
    products = found(server, source_sentence="fox", sentences=TEXTS, metric="dot")
    np.testing.assert_allclose(products, [dot("fox", text) for text in TEXTS], rtol=1e-5)
    shouted = found(server, source_sentence="fox", sentences=["b"], prompt_name="shout", metric="dot")
    assert shouted == [pytest.approx(dot("!fox", "!b"))]
    first = found(server, source_sentence="fox", sentences=["b"], dimensions=1, metric="dot")
    assert first == [pytest.approx(vector_of("fox")[0] * vector_of("b")[0])]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "source_sentence"),
        ({"source_sentence": "x"}, "sentences"),
        ({"sentences": ["x"]}, "source_sentence"),
        ({"source_sentence": ["x", "y"], "sentences": ["x", "y", "z"]}, "sentences"),
        ({"source_sentence": "x", "sentences": ["y"], "input": ["z"]}, "input"),
        ({"inputs": {"source_sentence": "x", "sentences": ["y"]}, "input": ["z"]}, "input"),
        ({"inputs": {"source_sentence": "x"}}, "inputs.sentences"),
        ({"source_sentence": "x", "sentences": []}, "sentences"),
        ({"input": ["x"], "metric": "euclidean"}, "metric"),
        ({"input": ["x"], "dimensions": 5}, "dimensions"),
        ({"input": ["x"], "prompt_name": "nothing"}, "prompt_name"),
        ({"input": ["x" * 100]}, "input"),
        ({"source_sentence": "x", "sentences": ["x" * 100]}, "sentences"),
        ({"model": "toy", "input": ["x"]}, "model"),
        ({"model": "cross", "input": ["x"]}, "model"),
    ],
)
def test_refused_by_name(server: Running, body: dict[str, Any], param: str) -> None:
    assert refused(server, PATH, **body)["param"] == param


def test_long_texts_are_cut_where_that_is_asked_for(server: Running) -> None:
    assert found(server, source_sentence="x" * 100, sentences=["x" * 200], truncate_prompt_tokens=-1) == [
        pytest.approx(1)
    ]
