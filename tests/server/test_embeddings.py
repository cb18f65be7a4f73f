"""POST /v1/embeddings, with OpenAI's client where it has the call, and what several models in one server do."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from engine.toy_encoder import ToyEncoder
from fermi.server.served import ServedEmbedder
from server.running import Running, Serve, serving
from server.test_lifecycle import in_loop, raw_request
from server.toy import byte_tokenizer, settings_with, toy_embedder, toy_model

PATH = "/v1/embeddings"


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    """A model that generates and one that embeds, in one server."""
    with serving(toy_model(), toy_embedder()) as running:
        yield running


def ask(server: Running, path: str = PATH, *, status: int = 200, **body: Any) -> dict[str, Any]:
    with server.http() as http:
        reply = http.post(path, json=body)
    assert reply.status_code == status, reply.text
    document: dict[str, Any] = reply.json()
    return document


def refused(server: Running, path: str = PATH, *, status: int = 400, **body: Any) -> dict[str, Any]:
    error = ask(server, path, status=status, **body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return dict(error)


def vector_of(text: str) -> list[float]:
    """What the toy makes of a text."""
    token_ids = byte_tokenizer(None).encode(text)
    return [len(token_ids), sum(token_ids), 0, 1]


def test_openais_client_gets_numbers(server: Running) -> None:
    texts = ["Hello", "a", "world!"]
    reply = server.openai().embeddings.create(model="toy-embedder", input=texts)  # base64 on the wire
    assert [each.embedding for each in reply.data] == [vector_of(text) for text in texts]
    assert [each.index for each in reply.data] == [0, 1, 2]
    assert (reply.object, reply.data[0].object, reply.model) == ("list", "embedding", "toy-embedder")
    tokens = sum(map(len, texts))
    assert (reply.usage.prompt_tokens, reply.usage.total_tokens) == (tokens, tokens)
    [one] = server.openai().embeddings.create(model="toy-embedder", input="Hello", encoding_format="float").data
    assert one.embedding == vector_of("Hello")


def test_base64_is_little_endian_float32(server: Running) -> None:
    document = ask(server, model="toy-embedder", input="Hello", encoding_format="base64")
    raw = base64.b64decode(document["data"][0]["embedding"])
    assert np.frombuffer(raw, "<f4").tolist() == vector_of("Hello")


def test_token_ids_are_taken_as_they_are(server: Running) -> None:
    tokenizer = byte_tokenizer(None)
    ids = [tokenizer.encode(text) for text in ("Hello", "you")]
    client = server.openai()
    one = client.embeddings.create(model="toy-embedder", input=ids[0])
    assert one.data[0].embedding == vector_of("Hello")
    many = client.embeddings.create(model="toy-embedder", input=ids)
    assert [each.embedding for each in many.data] == [vector_of("Hello"), vector_of("you")]
    assert refused(server, model="toy-embedder", input=[1, 300])["param"] == "input"
    assert refused(server, model="toy-embedder", input=[[1], []])["param"] == "input"


def test_dimensions_cut_and_bring_to_unit_length(server: Running) -> None:
    expected = np.array(vector_of("Hello"))[:2]
    reply = server.openai().embeddings.create(model="toy-embedder", input="Hello", dimensions=2)
    np.testing.assert_allclose(reply.data[0].embedding, expected / np.linalg.norm(expected), rtol=1e-6)
    raw = ask(server, model="toy-embedder", input="Hello", dimensions=2, normalize=False)
    assert raw["data"][0]["embedding"] == expected.tolist()
    unit = ask(server, model="toy-embedder", input="Hello", normalize=True)["data"][0]["embedding"]
    assert np.linalg.norm(unit) == pytest.approx(1)
    for dimensions in (5, 0):
        assert refused(server, model="toy-embedder", input="Hello", dimensions=dimensions)["param"] == "dimensions"


def test_prompts_of_the_model(server: Running) -> None:
    document = ask(server, model="toy-embedder", input="Hello", prompt_name="shout")
    assert document["data"][0]["embedding"] == vector_of("!Hello")
    error = refused(server, model="toy-embedder", input="Hello", prompt_name="whisper")
    assert error["param"] == "prompt_name"
    assert "document, query, shout" in error["message"]


def test_what_is_too_long_is_refused_unless_it_is_to_be_cut(server: Running) -> None:
    long = "x" * 65
    with pytest.raises(openai.BadRequestError) as caught:
        server.openai().embeddings.create(model="toy-embedder", input=["short", long])
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.param == "input"
    assert "This model's maximum context length is 64 tokens. However, you requested 65" in str(caught.value)
    ids = byte_tokenizer(None).encode(long)
    assert refused(server, model="toy-embedder", input=ids)["code"] == "context_length_exceeded"
    for given in (long, ids):
        whole = ask(server, model="toy-embedder", input=given, truncate_prompt_tokens=-1)
        assert whole["data"][0]["embedding"] == vector_of("x" * 64)
        cut = ask(server, model="toy-embedder", input=given, truncate_prompt_tokens=3)
        assert cut["data"][0]["embedding"] == vector_of("xxx")
        assert cut["usage"]["prompt_tokens"] == 3


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input"),
        ({"input": {"text": "a"}}, "input"),
        ({"input": [1, "a"]}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ({"input": "a", "dimensions": "2"}, "dimensions"),
        ({"input": "a", "add_special_tokens": False}, "add_special_tokens"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_wrong_bodies_name_the_field(server: Running, body: dict[str, Any], param: str) -> None:
    assert refused(server, model="toy-embedder", **body)["param"].split(".")[0] == param


def test_too_many_inputs_are_counted(server: Running) -> None:
    assert "2049 inputs" in refused(server, model="toy-embedder", input=["a"] * 2049)["message"]


def test_2048_inputs(server: Running) -> None:
    texts = [f"{number:05d}"[: 1 + number % 5] for number in range(2048)]
    reply = server.openai().embeddings.create(model="toy-embedder", input=texts)
    assert [each.embedding for each in reply.data] == [vector_of(text) for text in texts]


def test_each_model_answers_on_its_own_endpoints(server: Running) -> None:
    client = server.openai()
    assert [model.id for model in client.models.list().data] == ["toy", "toy-embedder"]
    assert client.models.retrieve("toy-embedder").model_extra == {"max_model_len": 64, "state": "loaded"}
    error = refused(server, model="toy", input="Hello")
    assert (error["param"], error["code"]) == ("model", "unsupported_model")
    assert (
        "it answers on /v1/chat/completions, /v1/completions, /v1/responses, /v1/messages, not on /v1/embeddings"
        in error["message"]
    )
    message = [{"role": "user", "content": "Hi"}]
    for path, body in (("/v1/chat/completions", {"messages": message}), ("/v1/completions", {"prompt": "Hi"})):
        error = refused(server, path, model="toy-embedder", **body)
        assert error["param"] == "model"
        answers = "is an embedding model: it answers on /v1/embeddings, /v1/rerank, /v1/score, /v1/similarity, not"
        assert answers in error["message"]
    assert refused(server, status=404, model="other", input="Hello")["code"] == "model_not_found"


def test_a_request_that_names_no_model_gets_the_first_that_can(server: Running) -> None:
    assert ask(server, input="Hello")["model"] == "toy-embedder"
    assert ask(server, "/v1/completions", prompt="Hi")["model"] == "toy"


def test_the_tokenizer_of_an_embedder_is_there_too(server: Running) -> None:
    document = ask(server, "/tokenize", model="toy-embedder", prompt="ab")
    assert (document["count"], document["max_model_len"]) == (2, 64)
    with server.http() as http:
        assert http.get("/health").json()["cache_hit_rate"] == 0.25  # of the models that have a cache
        assert http.get("/tokenizer_info", params={"model": "toy-embedder"}).json()["max_model_len"] == 64


def test_clients_at_once_each_get_their_own(server: Running) -> None:
    client = server.openai()

    def call(number: int) -> None:
        texts = [f"{number} {place}" for place in range(number % 7 + 1)]
        if number % 3 == 0:
            reply = client.chat.completions.create(model="toy", messages=[{"role": "user", "content": "Hi"}])
            assert reply.choices[0].message.content == "Hello, world."
            return
        data = client.embeddings.create(model="toy-embedder", input=texts).data
        assert [each.embedding for each in data] == [vector_of(text) for text in texts]

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(call, range(48)))


@pytest.fixture
def held() -> tuple[ToyEncoder, ServedEmbedder]:
    """An embedder that computes nothing until it is told to, four tokens at a time."""
    model = ToyEncoder(vocab_size=300, max_seq_length=64, free=False)
    return model, toy_embedder(model)


def release(model: ToyEncoder) -> None:
    model.free = True
    model.permits.release(1000)


def test_a_client_that_leaves_drops_what_has_not_begun(serve: Serve, held: tuple[ToyEncoder, ServedEmbedder]) -> None:
    model, embedder = held
    server = serve(embedder)
    connection = raw_request(server, {"input": ["x" * 60] * 8}, PATH)
    model.entered.acquire()
    connection.close()

    def gone() -> bool:
        return embedder.service.open_requests == 0  # type: ignore[attr-defined]

    while not in_loop(server, gone):  # each look is a turn of the server's loop
        pass
    release(model)
    assert ask(server, input="Hello")["data"][0]["embedding"] == vector_of("Hello")
    assert model.lengths == [[60], [5]]


def test_a_deadline_ends_the_request(serve: Serve, held: tuple[ToyEncoder, ServedEmbedder]) -> None:
    model, embedder = held
    server = serve(embedder)
    error = refused(server, status=504, input=["x" * 60] * 8, timeout=0.01)
    assert error["code"] == "deadline_exceeded"
    release(model)
    ask(server, input="Hello")
    assert len(model.batches) <= 2


def test_a_full_queue_says_when_to_come_back(serve: Serve) -> None:
    model = ToyEncoder(vocab_size=300, max_seq_length=64, free=False)
    server = serve(toy_embedder(model, max_queued_requests=1))
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(ask, server, input="one")
        model.entered.acquire()
        second = pool.submit(ask, server, input="two")
        waiting = next(iter(server.listener.state.models)).service
        while not waiting.stats.waiting:  # type: ignore[attr-defined]
            pass
        with server.http() as http:
            reply = http.post(PATH, json={"input": "three"})
        assert reply.status_code == 429
        assert int(reply.headers["retry-after"]) >= 1
        release(model)
        assert first.result()["data"][0]["embedding"] == vector_of("one")
        assert second.result()["data"][0]["embedding"] == vector_of("two")


def test_a_failure_of_the_model_is_a_500_in_the_envelope(serve: Serve) -> None:
    model = ToyEncoder(vocab_size=300, max_seq_length=64)
    server = serve(toy_embedder(model))
    model.failure = ValueError("a bad batch")
    assert refused(server, status=500, input="Hello")["code"] == "engine_error"
    model.failure = None
    assert ask(server, input="Hello")["data"][0]["embedding"] == vector_of("Hello")


def test_a_dead_embedder_makes_the_server_not_ready(serve: Serve) -> None:
    model = ToyEncoder(vocab_size=300, max_seq_length=64)
    server = serve(toy_model(), toy_embedder(model))
    model.failure = SystemExit("gone")
    assert refused(server, status=500, input="Hello")["code"] == "engine_error"
    with server.http() as http:
        reply: httpx.Response = http.get("/ready")
    assert reply.status_code == 503


def test_keys_and_body_limits_hold_here_too(serve: Serve) -> None:
    server = serve(toy_embedder(), settings=settings_with(api_keys=["secret"], max_body_bytes=2000))
    assert refused(server, status=401, input="Hello")["code"] == "invalid_api_key"
    with server.http() as http:
        headers = {"x-api-key": "secret"}
        assert http.post(PATH, json={"input": "Hello"}, headers=headers).status_code == 200
        assert http.post(PATH, json={"input": "x" * 3000}, headers=headers).status_code == 413


def test_the_endpoints_are_documented(server: Running) -> None:
    with server.http() as http:
        document = http.get("/openapi.json").json()
    paths = document["paths"]
    assert {PATH, "/v1/rerank", "/v1/score"} <= set(paths)
    body = paths[PATH]["post"]["requestBody"]["content"]["application/json"]["schema"]
    schema = document["components"]["schemas"][body["$ref"].rpartition("/")[2]]
    assert "input" in schema["required"]
