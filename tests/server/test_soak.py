"""Thousands of requests of every kind, many of whose clients leave: in the end all is as it was before."""

from __future__ import annotations

import asyncio
import gc
import random
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import psutil
import pytest

from fermi.config import load_settings
from fermi.server.loading import load_served
from fermi.server.served import ServedModel
from server.raw_client import Answer, ask, request_of
from server.running import Running, serving
from server.toy import settings_with, toy_embedder

REQUESTS = 2000
CLIENTS = 24
#: The process's memory may differ by this much between a fifth of the requests and the end.
GROWTH = 24 * 2**20

SCHEMA = {
    "type": "object",
    "properties": {"mood": {"enum": ["good", "bad"]}, "sure": {"type": "boolean"}},
    "required": ["mood", "sure"],
    "additionalProperties": False,
}
TOOL = {"name": "note", "parameters": SCHEMA}
STORY = [{"role": "user", "content": "Tell me a story."}]
WORDS = "What is the sum of three and four, and where did the little dog go with the big cat".split()  # noqa: SIM905


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    """The demo model on the real engine, with few blocks so that requests are preempted, and a toy that embeds."""
    flags = {"engine.threads": 1, "cache.kv_cache_memory": "12MiB", "engine.max_num_seqs": 16}
    model = load_served("demo", load_settings(flags, environ={}, folder=Path("/nonexistent")))
    settings = settings_with(response_store=":memory:", response_store_max=50)
    with serving(model, toy_embedder(), settings=settings) as running:
        yield running


def port_of(server: Running) -> int:
    return int(server.url.rpartition(":")[2])


def text(chance: random.Random) -> str:
    return " ".join(chance.choices(WORDS, k=chance.randint(1, 30)))


def chat(chance: random.Random) -> tuple[str, dict[str, Any]]:
    messages = [{"role": "user", "content": text(chance)}]
    if chance.random() < 0.3:
        messages.insert(0, {"role": "system", "content": "You are careful. " * chance.randint(1, 8)})
    body: dict[str, Any] = {"messages": messages, "max_tokens": chance.randint(1, 24)}
    body |= chance.choice(
        [
            {},
            {"n": 3},
            {"temperature": 0},
            {"logprobs": True, "top_logprobs": 3},
            {"stop": ["e", "\n\n"]},
            {"thinking": "auto", "thinking_budget": 5},
            {"stream_options": {"include_usage": True}, "stream": True},
        ]
    )
    return "/v1/chat/completions", body


def bound(chance: random.Random) -> tuple[str, dict[str, Any]]:
    path, body = chat(chance)
    form = {"type": "json_schema", "json_schema": {"name": "mood", "schema": SCHEMA}}
    return path, {**body, "response_format": form, "thinking": "off", "max_tokens": 60}


def tools(chance: random.Random) -> tuple[str, dict[str, Any]]:
    path, body = chat(chance)
    choice = chance.choice(["auto", "required", "none"])
    tool = {"type": "function", "function": TOOL}
    return path, {**body, "tools": [tool], "tool_choice": choice, "thinking": "off", "max_tokens": 60}


def completions(chance: random.Random) -> tuple[str, dict[str, Any]]:
    body: dict[str, Any] = {"prompt": [text(chance) for _ in range(chance.randint(1, 3))]}
    body |= {"max_tokens": chance.randint(0, 20), "echo": chance.random() < 0.3, "n": chance.randint(1, 2)}
    if chance.random() < 0.3:
        body["logprobs"] = 2
    if not body["max_tokens"]:
        body["echo"] = True
    return "/v1/completions", body


def responses(chance: random.Random) -> tuple[str, dict[str, Any]]:
    return "/v1/responses", {"input": text(chance), "max_output_tokens": 20, "store": chance.random() < 0.5}


def messages(chance: random.Random) -> tuple[str, dict[str, Any]]:
    body = {"model": "demo", "max_tokens": chance.randint(1, 20)}
    return "/v1/messages", {**body, "messages": [{"role": "user", "content": text(chance)}]}


def embeddings(chance: random.Random) -> tuple[str, dict[str, Any]]:
    return "/v1/embeddings", {"input": [text(chance)[:40] for _ in range(chance.randint(1, 8))]}


def small(chance: random.Random) -> tuple[str, dict[str, Any]]:
    return chance.choice([("/tokenize", {"prompt": text(chance)}), ("/detokenize", {"tokens": [5, 6, 7]})])


def bad(chance: random.Random) -> tuple[str, Any]:
    path, body = chance.choice([chat, completions, responses, messages, embeddings])(chance)
    return path, chance.choice(
        [
            b'{"messages": [',
            {**body, "model": "nobody"},
            {**body, "max_tokens": "many", "max_output_tokens": "many", "input": 5},
            {**body, "messages": "x", "prompt": {}, "input": {}},
            {},
        ]
    )


KINDS = (
    (chat, 30),
    (bound, 8),
    (tools, 8),
    (completions, 14),
    (responses, 10),
    (messages, 10),
    (embeddings, 8),
    (small, 4),
    (bad, 8),
)


def planned(seed: int) -> Iterator[tuple[str, bytes, int | None]]:
    """What is asked, in order: of which kind, the request, and after how many bytes of the answer the client leaves."""
    chance = random.Random(seed)
    kinds, weights = zip(*KINDS, strict=True)
    for _ in range(REQUESTS):
        kind: Callable[[random.Random], tuple[str, Any]] = chance.choices(kinds, weights)[0]
        path, body = kind(chance)
        if isinstance(body, dict) and kind is not bad:
            streams = kind not in (embeddings, small) and chance.random() < 0.5
            body = {**body, "stream": True} if streams else body
        leaves = chance.random() < 0.3
        cut = chance.choice([0, 1, 300, 700, 1500, 3000]) if leaves else None
        yield kind.__name__, request_of(path, body), cut


async def asked(port: int, plan: Iterator[tuple[str, bytes, int | None]], count: int) -> Counter[tuple[str, str]]:
    """So many requests of the plan, by several clients at once. How each ended, by kind."""
    ends: Counter[tuple[str, str]] = Counter()
    left = count

    async def client() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            kind, request, cut = next(plan)
            answer = await asyncio.wait_for(ask(port, request, cut=cut), 120)
            ends[kind, "left" if cut is not None else verdict(answer)] += 1

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return ends


def verdict(answer: Answer) -> str:
    """How an answer that was read to its end ended."""
    if answer.status != 200:
        return str(answer.status) if b'"error"' in answer.body else "no envelope"
    if b"data: " not in answer.body:
        return "whole" if answer.body.rstrip().endswith(b"}") else "torn"
    ended = (b"[DONE]", b"message_stop", b"response.completed", b"response.incomplete")
    if b'"error":{' in answer.body:
        return "error within"
    return "stream" if any(end in answer.body[-20_000:] for end in ended) else "torn"


def in_loop(server: Running, function: Callable[[], Any]) -> Any:
    future: Future[Any] = Future()
    server.call(lambda: future.set_result(function()))
    return future.result(30)


def tasks(server: Running) -> int:
    return int(in_loop(server, lambda: len(asyncio.all_tasks(server.loop))))


def quiet(server: Running) -> None:
    """Until nothing runs in the server or its engines; AssertionError where that never comes."""
    services = [model.service for model in server.listener.state.models]
    with server.http() as http:
        for _ in range(3000):
            http.get("/ping")
            if not server.listener.state.running and not any(each.open_requests for each in services):  # type: ignore[attr-defined]
                break
        else:
            raise AssertionError("requests are left")


def generator(server: Running) -> ServedModel:
    return next(model for model in server.listener.state.models if isinstance(model, ServedModel))


def nothing_is_held(server: Running) -> None:
    """Every block is free, or kept for the prefix cache alone; nothing runs or waits."""
    quiet(server)
    with server.http() as http:  # the engine counts anew with its next step
        http.post("/v1/completions", json={"prompt": "x", "max_tokens": 1})
    quiet(server)
    stats = generator(server).service.stats
    assert (stats.running, stats.waiting, stats.waiting_tokens) == (0, 0, 0)
    assert stats.blocks.used == 0


async def test_soak(server: Running) -> None:
    port, plan = port_of(server), planned(2026)
    before = tasks(server)
    ends = await asked(port, plan, REQUESTS // 5)
    nothing_is_held(server)
    gc.collect()
    memory = psutil.Process().memory_info().rss
    ends += await asked(port, plan, REQUESTS - REQUESTS // 5)
    nothing_is_held(server)
    gc.collect()
    assert sum(ends.values()) == REQUESTS
    wrong = {key: count for key, count in ends.items() if key[1] in ("no envelope", "torn", "error within")}
    assert not wrong
    statuses = {key for key in ends if key[1].isdigit()}
    assert statuses <= {("bad", "400"), ("bad", "404")}, ends
    assert {kind.__name__ for kind, _ in KINDS} == {kind for kind, _ in ends}
    assert ends["chat", "left"] > 100
    assert tasks(server) == before
    assert psutil.Process().memory_info().rss - memory < GROWTH


async def test_two_hundred_clients_half_of_whom_leave(server: Running) -> None:
    """Those who stay get all of their answer."""
    port = port_of(server)
    before = tasks(server)
    body = {"messages": [{"role": "user", "content": "Hi"}], "stream": True, "ignore_eos": True}

    async def client(number: int) -> Answer:
        leaves = number % 2 == 1
        request = request_of("/v1/chat/completions", {**body, "max_tokens": 1000 if leaves else 20})
        return await ask(port, request, cut_events=2 if leaves else None)

    answers = await asyncio.wait_for(asyncio.gather(*(client(number) for number in range(200))), 120)
    assert all(answer.status == 200 for answer in answers)
    assert all(b"[DONE]" in answer.body for answer in answers[::2])
    assert all(b"[DONE]" not in answer.body for answer in answers[1::2])
    nothing_is_held(server)
    assert tasks(server) == before


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"])
async def test_a_stream_cut_at_every_event(server: Running, path: str) -> None:
    port = port_of(server)
    given: dict[str, dict[str, Any]] = {
        "/v1/chat/completions": {"messages": STORY, "max_tokens": 200, "ignore_eos": True},
        "/v1/completions": {"prompt": "Once", "max_tokens": 200, "ignore_eos": True},
        "/v1/responses": {"input": STORY, "max_output_tokens": 200},
        "/v1/messages": {"messages": STORY, "max_tokens": 200},
    }
    body = {"model": "demo", "stream": True, **given[path]}
    cut_short = 0
    for cut in range(16):
        answer = await ask(port, request_of(path, body), cut_events=cut)
        assert answer.body.count(b"data: ") >= cut or verdict(answer) == "stream"  # tokens may come together
        cut_short += verdict(answer) != "stream"
    assert cut_short
    assert verdict(await ask(port, request_of(path, body))) == "stream"
    nothing_is_held(server)


async def test_a_request_cut_at_every_byte(server: Running) -> None:
    """A client that leaves while it still asks."""
    port = port_of(server)
    before = tasks(server)
    request = request_of("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1})
    for end in range(0, len(request), 7):
        await ask(port, request[:end], cut=0)
    assert (await ask(port, request)).status == 200
    nothing_is_held(server)
    assert tasks(server) == before
