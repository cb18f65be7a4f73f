"""The whole way from OpenAI's client to the kernels and back, on the demo model and on stories260K."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fermi.config import load_settings
from fermi.engine.event import Event
from fermi.server.loading import load_served
from fermi.server.served import ServedModel
from server.running import Running, serving

QUESTION = [{"role": "user", "content": "What is 3 + 4?"}]


def load(name: str, **flags: object) -> ServedModel:
    """A model on one thread with a small cache."""
    flags = {"engine.threads": 1, "cache.kv_cache_memory": "64MiB", **flags}
    return load_served(name, load_settings(flags, environ={}, folder=Path("/nonexistent")))


@pytest.fixture(scope="module")
def demo() -> Iterator[Running]:
    with serving(load("demo")) as running:
        yield running


@pytest.fixture(scope="module")
def stories(stories260k: Path) -> Iterator[Running]:
    with serving(load(f"stories={stories260k}", **{"engine.dtype": "float32"})) as running:
        yield running


def used_blocks(server: Running) -> int:
    [model] = server.listener.state.models
    return model.service.stats.blocks.used


def test_the_known_story(stories: Running, stories260k: Path) -> None:
    expected = (stories260k / "expected.txt").read_text()
    with stories.http() as http:
        info = http.get("/tokenizer_info").json()
    body = {"model": "stories", "prompt": [info["bos_token_id"]], "max_tokens": 200, "temperature": 0}
    reply = stories.openai().completions.create(**body)  # type: ignore[call-overload]
    assert reply.choices[0].text == expected
    assert reply.usage.completion_tokens == 200
    chunks = stories.openai().completions.create(stream=True, **body)  # type: ignore[call-overload]
    assert "".join(chunk.choices[0].text for chunk in chunks) == reply.choices[0].text


def test_a_batch_equals_each_alone(stories: Running) -> None:
    prompts = [
        "Once",
        "Once upon a time",
        "The dog and the cat",
        "Lily",
        "One day a boy named Tim went",
        "A",
        "It",
        "Mom",
    ]
    client = stories.openai()
    body = {"model": "stories", "max_tokens": 24, "temperature": 0}
    together = client.completions.create(prompt=prompts, **body)  # type: ignore[call-overload]
    for prompt, choice in zip(prompts, together.choices, strict=True):
        assert client.completions.create(prompt=prompt, **body).choices[0].text == choice.text  # type: ignore[call-overload]


def test_a_harness_scores_what_was_generated(stories: Running) -> None:
    """Echoed log-probabilities of a greedy text: each token is the likeliest, by float equality."""
    client = stories.openai()
    text = (
        client.completions.create(model="stories", prompt="Once upon a time", max_tokens=20, temperature=0)
        .choices[0]
        .text
    )
    with stories.http() as http:
        ids = http.post("/tokenize", json={"prompt": "Once upon a time" + text}).json()["tokens"]
        begin = len(http.post("/tokenize", json={"prompt": "Once upon a time"}).json()["tokens"])
    body = {"model": "stories", "prompt": [ids], "echo": True, "max_tokens": 1, "logprobs": 1, "temperature": 0}
    logprobs = client.completions.create(**body).choices[0].logprobs  # type: ignore[call-overload]
    assert len(logprobs.tokens) == len(ids) + 1
    for score, top in zip(logprobs.token_logprobs[begin:], logprobs.top_logprobs[begin:], strict=True):
        assert score == max(top.values())


def test_same_seed_same_text(stories: Running) -> None:
    body = {"model": "stories", "prompt": "Once", "max_tokens": 30, "temperature": 1.0, "seed": 7}
    client = stories.openai()
    texts = {client.completions.create(**body).choices[0].text for _ in range(3)}  # type: ignore[call-overload]
    others = client.completions.create(**{**body, "n": 4, "seed": 8})  # type: ignore[call-overload]
    assert len(texts) == 1
    assert len({choice.text for choice in others.choices}) > 1


def test_demo_answers(demo: Running) -> None:
    reply = demo.openai().chat.completions.create(model="demo", messages=QUESTION, temperature=0)  # type: ignore[arg-type]
    assert "7" in (reply.choices[0].message.content or "")
    assert reply.choices[0].finish_reason == "stop"


def test_demo_second_question_comes_from_the_cache(demo: Running) -> None:
    messages = [{"role": "system", "content": "You are a calculator. " * 8}, *QUESTION]
    body = {"model": "demo", "messages": messages, "max_tokens": 2}
    client = demo.openai()
    client.chat.completions.create(**body)  # type: ignore[call-overload]
    usage = client.chat.completions.create(**body).usage  # type: ignore[call-overload]
    assert usage.prompt_tokens_details.cached_tokens >= 32


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_a_client_that_leaves_frees_its_blocks(
    demo: Running, stream: bool, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    [model] = demo.listener.state.models
    freed = threading.Event()
    begun = threading.Event()
    steps_after_cancel: list[int] = []
    engine = model.service._engine  # type: ignore[attr-defined]
    step, abort = engine.step, engine.abort

    def watched_abort(request_id: str, index: int | None = None) -> None:
        abort(request_id, index)
        steps_after_cancel.append(0)

    def watched_step() -> list[Event]:
        events: list[Event] = step()
        begun.set()
        if steps_after_cancel:
            steps_after_cancel.append(engine.stats().blocks.used)
            freed.set()
        return events

    monkeypatch.setattr(engine, "step", watched_step)
    monkeypatch.setattr(engine, "abort", watched_abort)
    body = {"messages": QUESTION, "prompt": "Once", "max_tokens": 2000, "ignore_eos": True, "stream": stream}
    content = json.dumps(body).encode()
    host, port = demo.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=30)
    connection.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content)
    assert begun.wait(30)
    if stream:
        assert connection.recv(1024)
    assert used_blocks(demo) > 0
    connection.close()
    assert freed.wait(30)
    assert steps_after_cancel[1] == 0, "the step after the cancel still held blocks"


def test_many_clients_at_once(demo: Running) -> None:
    def ask(number: int) -> str:
        with demo.http() as http:
            body = {"messages": QUESTION, "temperature": 0, "stream": number % 2 == 0, "max_tokens": 1 + number % 7}
            return http.post("/v1/chat/completions", json=body).text

    with ThreadPoolExecutor(16) as pool:
        replies = list(pool.map(ask, range(48)))
    assert all('"finish_reason":' in reply for reply in replies)
    assert used_blocks(demo) == 0


def test_stop_frees_the_rest_of_the_choices(demo: Running) -> None:
    reply = demo.openai().chat.completions.create(  # type: ignore[call-overload]
        model="demo", messages=QUESTION, temperature=0, n=2, stop=["="], extra_body={"ignore_eos": True}, max_tokens=500
    )
    assert [choice.finish_reason for choice in reply.choices] == ["stop", "stop"]
    assert reply.usage.completion_tokens < 100


def test_timeout(demo: Running) -> None:
    body = {"messages": QUESTION, "ignore_eos": True, "max_tokens": 2000, "timeout": 0.2}
    with demo.http() as http:
        reply = http.post("/v1/chat/completions", json=body).json()
    assert reply["choices"][0]["finish_reason"] == "length"
    assert reply["performance"].get("deadline") is True or reply["usage"]["completion_tokens"] == 2000


def test_context_is_refused_before_anything_is_sent(demo: Running) -> None:
    with demo.http() as http:
        reply = http.post("/v1/completions", json={"prompt": "word " * 5000, "stream": True})
    assert reply.status_code == 400
    assert reply.json()["error"]["code"] == "context_length_exceeded"


def test_token_that_does_not_exist(demo: Running) -> None:
    with demo.http() as http:
        for body, param in [
            ({"prompt": [999_999]}, "prompt"),
            ({"prompt": [5, 999_999, 6]}, "prompt"),
            ({"prompt": [[5], [999_999]]}, "prompt"),
            ({"prompt": "x", "logit_bias": {"999999": 1}}, "logit_bias"),
            ({"prompt": "x", "stop_token_ids": [999_999]}, "stop_token_ids"),
        ]:
            reply = http.post("/v1/completions", json=body)
            assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)
            assert f"{param}: token id 999999 is not in the vocabulary" in reply.json()["error"]["message"]
        for token_id in (-1, 2**31, 2**80):
            reply = http.post("/v1/completions", json={"prompt": [5, token_id]})
            assert (reply.status_code, reply.json()["error"]["param"]) == (400, "prompt")
            assert f"token id {token_id} is not in the vocabulary" in reply.json()["error"]["message"]


def test_tool_call(demo: Running) -> None:
    """The demo model calls the calculator; what comes is a call or, from a toy, content — never a broken reply."""
    parameters = {"type": "object", "properties": {"expression": {"type": "string"}}, "required": ["expression"]}
    tool = {
        "type": "function",
        "function": {"name": "calculator", "description": "A calculator.", "parameters": parameters},
    }
    messages = [{"role": "user", "content": "Use the calculator: 12 * 7"}]
    reply = demo.openai().chat.completions.create(model="demo", messages=messages, tools=[tool], temperature=0)  # type: ignore[call-overload]
    choice = reply.choices[0]
    if choice.finish_reason == "tool_calls":
        assert json.loads(choice.message.tool_calls[0].function.arguments)
    else:
        assert choice.message.content
