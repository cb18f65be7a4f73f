"""POST /v1/rerank and /v1/score, by embeddings and by a cross-encoder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from engine.toy_encoder import ToyEncoder
from fermi.engine.embedder import TokenSequence
from server.running import Running, serving
from server.test_embeddings import ask, refused, vector_of
from server.toy import byte_tokenizer, toy_embedder, toy_model

DOCUMENTS = ["a fox", "the quick brown fox", "b", "zzzzzz"]


class ToyCrossEncoder(ToyEncoder):
    """Scores a pair by how many of its tokens are the letter of the last one."""

    def __init__(self, labels: int = 1) -> None:
        super().__init__(vocab_size=300, max_seq_length=64)
        self.dim = labels

    def encode(self, sequences: Sequence[TokenSequence]) -> npt.NDArray[np.float32]:
        counts = [list(token_ids).count(token_ids[-1]) for token_ids, _ in sequences]
        return np.array([[count * (1 + label) for label in range(self.dim)] for count in counts], np.float32)


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    models = [
        toy_model(),
        toy_embedder(),
        toy_embedder(ToyCrossEncoder(), name="cross", scores_pairs=True),
        toy_embedder(ToyCrossEncoder(3), name="labels", scores_pairs=True),
    ]
    with serving(*models) as running:
        yield running


def cosine(left: str, right: str) -> float:
    one, other = (np.array(vector_of(text)) for text in (left, right))
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


def test_rerank_by_embeddings_puts_the_nearest_first(server: Running) -> None:
    document = ask(server, "/v1/rerank", model="toy-embedder", query="fox", documents=DOCUMENTS)
    scores = [cosine("ask:fox", text) for text in DOCUMENTS]  # the query with the prompt of queries
    order = sorted(range(4), key=lambda place: -scores[place])
    assert [each["index"] for each in document["results"]] == order
    for each in document["results"]:
        assert each["relevance_score"] == pytest.approx(scores[each["index"]], rel=1e-5)
        assert each["document"] == {"text": DOCUMENTS[each["index"]]}
    assert document["model"] == "toy-embedder"
    tokens = len("ask:fox") + sum(map(len, DOCUMENTS))
    assert document["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}


@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank", "/v2/rerank"])
def test_rerank_by_a_cross_encoder(server: Running, path: str) -> None:
    documents = ["xyx", {"text": "fff"}, "ox"]
    document = ask(server, path, model="cross", query="fox fox", documents=documents)
    assert [(each["index"], each["relevance_score"]) for each in document["results"]] == [(1, 5), (0, 4), (2, 3)]
    best = ask(server, path, model="cross", query="fox fox", documents=documents, top_n=1, return_documents=False)
    assert best["results"] == [{"index": 1, "relevance_score": 5}]
    assert len(ask(server, path, model="cross", query="f", documents=documents, top_n=9)["results"]) == 3


def test_equal_scores_keep_the_order_of_the_documents(server: Running) -> None:
    document = ask(server, "/v1/rerank", model="cross", query="q", documents=["same"] * 5)
    assert [each["index"] for each in document["results"]] == [0, 1, 2, 3, 4]


def test_long_documents_are_cut_where_they_are_ranked(server: Running) -> None:
    document = ask(server, "/v1/rerank", model="cross", query="q", documents=["x" * 200])
    assert document["usage"]["prompt_tokens"] == 64
    assert document["results"][0]["relevance_score"] == 63
    cut = ask(server, "/v1/rerank", model="cross", query="q", documents=["x" * 200], truncate_prompt_tokens=11)
    assert cut["results"][0]["relevance_score"] == 10


def test_score_of_one_with_one_with_many_and_each_with_its_own(server: Running) -> None:
    def scores(**body: Any) -> list[float]:
        document = ask(server, "/v1/score", model="cross", **body)
        assert [each["index"] for each in document["data"]] == list(range(len(document["data"])))
        assert {each["object"] for each in document["data"]} == {"score"}
        assert document["object"] == "list"
        return [each["score"] for each in document["data"]]

    assert scores(text_1="xx", text_2="yx") == [3]
    assert scores(text_1="xx", text_2=["yx", "z", "xx"]) == [3, 1, 4]
    assert scores(text_1=["xx", "yy"], text_2=["yx", "xy"]) == [3, 3]
    assert scores(text_1=["xx", "yy"], text_2="y") == [1, 3]
    assert scores(queries="xx", documents=["yx"]) == [3]


def test_score_by_embeddings_is_the_cosine(server: Running) -> None:
    document = ask(server, "/v1/score", model="toy-embedder", text_1="fox", text_2=DOCUMENTS)
    found = [each["score"] for each in document["data"]]
    np.testing.assert_allclose(found, [cosine("ask:fox", text) for text in DOCUMENTS], rtol=1e-5)
    same = ask(server, "/v1/score", model="toy-embedder", text_1="fox", text_2="ask:fox")
    assert same["data"][0]["score"] == pytest.approx(1)


def test_a_model_of_several_labels_scores_and_does_not_rank(server: Running) -> None:
    document = ask(server, "/v1/score", model="labels", text_1="xx", text_2="yx")
    assert document["data"][0]["score"] == [3, 6, 9]
    error = refused(server, "/v1/rerank", model="labels", query="xx", documents=["yx"])
    assert (error["param"], error["code"]) == ("model", "unsupported_model")
    assert "3 labels" in error["message"]


def test_models_that_cannot_say_where_they_answer(server: Running) -> None:
    error = refused(server, "/v1/rerank", model="toy", query="a", documents=["b"])
    assert "not on /v1/rerank" in error["message"]
    error = refused(server, "/v1/embeddings", model="cross", input="a")
    assert "is a cross-encoder: it answers on /v1/rerank, /v1/score, not on /v1/embeddings" in error["message"]
    assert ask(server, "/v1/rerank", query="a", documents=["b"])["model"] == "toy-embedder"
    assert ask(server, "/v1/embeddings", input="a")["model"] == "toy-embedder"


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/rerank", {"documents": ["a"]}, "query"),
        ("/v1/rerank", {"query": "a"}, "documents"),
        ("/v1/rerank", {"query": "a", "documents": []}, "documents"),
        ("/v1/rerank", {"query": "a", "documents": [1]}, "documents"),
        ("/v1/rerank", {"query": "a", "documents": [{"title": "b"}]}, "documents"),
        ("/v1/rerank", {"query": "a" * 2**20, "documents": ["b"] * 16}, "documents"),  # 16 MiB of text of 1 MiB
        ("/v1/rerank", {"query": "a", "documents": ["b"], "top_n": 0}, "top_n"),
        ("/v1/rerank", {"query": "a", "documents": ["b"], "max_tokens_per_doc": 5}, "max_tokens_per_doc"),
        ("/v1/score", {"text_1": "a"}, "text_2"),
        ("/v1/score", {"text_2": "a"}, "text_1"),
        ("/v1/score", {"text_1": ["a", "b"], "text_2": ["a", "b", "c"]}, "text_2"),
        ("/v1/score", {"text_1": "a", "text_2": []}, "text_2"),
        ("/v1/score", {"text_1": "a", "text_2": "x" * 65}, "text_2"),
    ],
    ids=lambda value: str(value)[:80],
)
def test_wrong_bodies_name_the_field(server: Running, path: str, body: dict[str, Any], param: str) -> None:
    error = refused(server, path, model="cross", **body)
    assert error["param"].split(".")[0] == param


def test_pairs_of_the_toy_are_what_this_file_takes_them_for() -> None:
    tokenizer = byte_tokenizer(None)
    [pair] = tokenizer.encode_pairs([("ab", "c")])
    assert tokenizer.decode(pair.token_ids) == "abc"
