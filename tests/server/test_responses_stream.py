"""The events of /v1/responses, each held against the openai package's own types."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from itertools import islice
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.responses import Response

from fermi.engine.event import Event
from fermi.errors import DeadlineError, EngineError
from fermi.server.chat_run import ChatNews
from fermi.server.chat_text import CallDelta, ChatDelta
from fermi.server.errors import failure_of
from fermi.server.generation import Usage
from fermi.server.responses.events import Growing
from fermi.server.responses.reply import Background, Follower
from server.live import Paced, wait_for
from server.responses_oracle import check_event, check_response, events_of, rebuilt
from server.running import Running, Serve
from server.toy import ScriptedStream, byte_tokenizer, service_of, settings_with, toy_model

CALCULATOR = {"type": "function", "name": "calculator", "parameters": {"type": "object"}}
CALL = '<tool_call>\n{"name": "calculator", "arguments": {"expression": "2 * 3"}}\n</tool_call>'
THOUGHT = "<think>\nHmm.\n</think>\n\nYes."
PATH = "/v1/responses"


def stream_of(server: Running, **body: object) -> list[dict[str, Any]]:
    """The events, which must make up the output of the last of them."""
    with server.http() as http:
        events = events_of(http.post(PATH, json={"input": "Hi", "stream": True, **body}))
    assert events[0]["sequence_number"] == 0
    assert rebuilt(events) == events[-1]["response"]["output"]
    return events


def kinds_of(events: list[dict[str, Any]]) -> list[str]:
    """The types without "response.", runs of deltas as one."""
    kinds = [event["type"].removeprefix("response.") for event in events]
    return [kind for at, kind in enumerate(kinds) if not (at and kind.endswith(".delta") and kind == kinds[at - 1])]


ANSWER = [
    "output_item.added",
    "content_part.added",
    "output_text.delta",
    "output_text.done",
    "content_part.done",
    "output_item.done",
]
REASONING = [
    "output_item.added",
    "content_part.added",
    "reasoning_text.delta",
    "reasoning_text.done",
    "content_part.done",
    "output_item.done",
]
CALLED = [
    "output_item.added",
    "function_call_arguments.delta",
    "function_call_arguments.done",
    "output_item.done",
]


def test_text(toy_server: Running) -> None:
    events = stream_of(toy_server)
    assert kinds_of(events) == ["created", "in_progress", *ANSWER, "completed"]
    created, done = events[0]["response"], events[-1]["response"]
    assert (created["status"], created["output"]) == ("in_progress", [])
    assert "usage" not in created
    assert created["id"] == done["id"]
    assert created["id"].startswith("resp_")
    [item] = done["output"]
    assert item["id"].startswith("msg_")
    assert item["content"] == [{"type": "output_text", "text": "Hello, world.", "annotations": [], "logprobs": []}]
    assert (item["role"], item["status"], done["status"]) == ("assistant", "completed", "completed")
    assert done["usage"]["output_tokens"] == len("Hello, world.") + 1
    assert done["performance"]["prefill_ms"] == 2.0
    assert all(event["delta"] for event in events if event["type"].endswith(".delta"))


def test_thoughts(serve: Serve) -> None:
    events = stream_of(serve(toy_model(THOUGHT)), reasoning={"effort": "low"})
    assert kinds_of(events) == ["created", "in_progress", *REASONING, *ANSWER, "completed"]
    thoughts, answer = events[-1]["response"]["output"]
    assert thoughts["id"].startswith("rs_")
    assert thoughts["summary"] == []
    assert thoughts["content"] == [{"type": "reasoning_text", "text": "Hmm."}]
    assert answer["content"][0]["text"] == "Yes."
    usage = events[-1]["response"]["usage"]
    assert usage["output_tokens_details"]["reasoning_tokens"] == len("<think>\nHmm.\n</think>\n\n")


def test_calls(serve: Serve) -> None:
    events = stream_of(serve(toy_model(f"Let me see.\n{CALL}\n{CALL}")), tools=[CALCULATOR])
    assert kinds_of(events) == ["created", "in_progress", *ANSWER, *CALLED, *CALLED, "completed"]
    answer, first, second = events[-1]["response"]["output"]
    assert answer["content"][0]["text"].strip() == "Let me see."
    assert first["id"].startswith("fc_")
    assert first["id"] != second["id"]
    assert first["call_id"] != second["call_id"]
    assert (first["name"], json.loads(first["arguments"])) == ("calculator", {"expression": "2 * 3"})
    assert [event["output_index"] for event in events if event["type"] == "response.output_item.done"] == [0, 1, 2]
    added = [event["item"] for event in events if event["type"] == "response.output_item.added"]
    assert [item.get("arguments") for item in added] == [None, "", ""]


def test_nothing_said_is_an_empty_message(serve: Serve) -> None:
    events = stream_of(serve(toy_model("")))
    assert kinds_of(events) == [
        "created",
        "in_progress",
        *[kind for kind in ANSWER if "delta" not in kind],
        "completed",
    ]


@pytest.mark.parametrize(("limit", "kinds", "statuses"), [(3, [], ["incomplete"]), (40, REASONING, ["completed"] * 2)])
def test_cut_off(serve: Serve, limit: int, kinds: list[str], statuses: list[str]) -> None:
    text = f"<think>\nHmm.\n</think>\n\n{'Yes. ' * 9}"
    if limit == 3:
        text, kinds = "Hello", ANSWER
    else:
        kinds, statuses = [*REASONING, *ANSWER], ["completed", "incomplete"]
    events = stream_of(serve(toy_model(text)), max_output_tokens=limit, reasoning={"effort": "low"})
    assert kinds_of(events) == ["created", "in_progress", *kinds, "incomplete"]
    response = events[-1]["response"]
    assert (response["status"], response["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert response["completed_at"] is None
    assert [item["status"] for item in response["output"]] == statuses


def test_cut_off_while_it_thinks(serve: Serve) -> None:
    events = stream_of(serve(toy_model("<think>\nHmmmmmm.")), max_output_tokens=12, reasoning={"effort": "low"})
    assert kinds_of(events) == ["created", "in_progress", *REASONING, "incomplete"]
    [thoughts] = events[-1]["response"]["output"]
    assert (thoughts["type"], thoughts["status"]) == ("reasoning", "incomplete")


@pytest.mark.parametrize("text", ["<tool_call>nonsense</tool_call>", '<tool_call>{"name": 3}</tool_call>', "<tool_"])
def test_malformed_calls_are_text(serve: Serve, text: str) -> None:
    events = stream_of(serve(toy_model(text)), tools=[CALCULATOR])
    [answer] = events[-1]["response"]["output"]
    assert answer["content"][0]["text"] == text


def test_one_call_at_a_time(serve: Serve) -> None:
    events = stream_of(serve(toy_model(CALL + CALL)), tools=[CALCULATOR], parallel_tool_calls=False)
    assert [item["type"] for item in events[-1]["response"]["output"]] == ["function_call"]


@pytest.mark.parametrize("together", [1, 3, 100])
def test_logprobs(serve: Serve, together: int) -> None:
    model = toy_model("<think>\nHmm.\n</think>\n\nné 🎉!", tokens_per_event=together)
    body = {"include": ["message.output_text.logprobs"], "top_logprobs": 2, "reasoning": {"effort": "low"}}
    events = stream_of(serve(model), **body)
    logprobs = events[-1]["response"]["output"][1]["content"][0]["logprobs"]
    assert bytes(byte for entry in logprobs for byte in entry["bytes"]).decode() == "né 🎉!"
    assert all(len(entry["top_logprobs"]) == 2 for entry in logprobs)
    done = next(event for event in events if event["type"] == "response.output_text.done")
    assert done["logprobs"] == logprobs


@pytest.mark.parametrize("together", [1, 2, 3, 100])
def test_logprobs_are_of_the_answer_alone(serve: Serve, together: int) -> None:
    model = toy_model(f"<think>\nHmm.\n</think>\n\nSee é.{CALL}", tokens_per_event=together)
    body = {"include": ["message.output_text.logprobs"], "tools": [CALCULATOR], "reasoning": {"effort": "low"}}
    _, answer, call = stream_of(serve(model), **body)[-1]["response"]["output"]
    assert call["type"] == "function_call"
    [part] = answer["content"]
    assert bytes(byte for entry in part["logprobs"] for byte in entry["bytes"]).decode() == part["text"] == "See é."


def test_sealed_thoughts(serve: Serve) -> None:
    body = {"include": ["reasoning.encrypted_content"], "reasoning": {"effort": "low"}, "store": False}
    model = toy_model(THOUGHT)
    server = serve(model)
    thoughts, answer = stream_of(server, **body)[-1]["response"]["output"]
    bare = {"type": "reasoning", "summary": [], "encrypted_content": thoughts["encrypted_content"]}
    with server.http() as http:
        again = http.post(PATH, json={"input": [bare, answer, {"role": "user", "content": "And?"}]})
        assert again.status_code == 200
        listed = http.post(PATH, json={"input": [{**bare, "encrypted_content": "gAAAA"}, answer]})
    assert listed.status_code == 400
    assert listed.json()["error"]["param"] == "input.0.encrypted_content"


def test_obfuscation(toy_server: Running) -> None:
    events = stream_of(toy_server, stream_options={"include_obfuscation": True})
    deltas = [event for event in events if event["type"].endswith(".delta")]
    assert {(len(event["delta"]) + len(event["obfuscation"])) % 32 for event in deltas} == {0}
    assert len({event["obfuscation"] for event in deltas}) == len(deltas)
    assert not any("obfuscation" in event for event in stream_of(toy_server))


@pytest.mark.parametrize("background", [False, True])
def test_cut_at_every_event(serve: Serve, background: bool) -> None:
    """A client that leaves, after whichever event, leaves nothing behind; what is in the background goes on."""
    paced = Paced()
    server = serve(paced.served(), settings=settings_with(response_store=":memory:"))
    body = {"input": "Hi", "stream": True, "max_output_tokens": 8, "ignore_eos": True, "background": background}
    for cut in range(1, 18):  # there are at most so many
        with server.http() as http, http.stream("POST", PATH, json=body) as reply:
            lines = (line for line in reply.iter_lines() if line.startswith("data: "))
            events = [json.loads(line[6:]) for line in islice(lines, cut)]
        wait_for(lambda: paced.idle)
        if background:
            with server.http() as http:
                followed = events_of(http.get(f"{PATH}/{events[0]['response']['id']}?stream=true"))
            assert followed[-1]["type"] == "response.incomplete"
            assert followed[:cut] == events
    wait_for(lambda: not server.listener.state.running)


def test_many_at_once_and_half_of_them_leave(serve: Serve) -> None:
    paced = Paced()
    server = serve(paced.served(), settings=settings_with(response_store=":memory:"))
    body = {"input": "Hi", "stream": True, "max_output_tokens": 30, "ignore_eos": True}

    async def client(http: httpx.AsyncClient, number: int) -> str:
        async with http.stream("POST", PATH, json={**body, "background": number % 4 == 0}) as reply:
            assert reply.status_code == 200
            kind = ""
            async for line in reply.aiter_lines():
                kind = line[7:] if line.startswith("event: ") else kind
                if number % 2 and kind.endswith(".delta"):
                    break
            return kind

    async def all_of_them() -> list[str]:
        limits = httpx.Limits(max_connections=100)
        async with httpx.AsyncClient(base_url=server.url, timeout=60, limits=limits) as http:
            return await asyncio.gather(*(client(http, number) for number in range(100)))

    ends = asyncio.run(all_of_them())
    assert set(ends[::2]) == {"response.incomplete"}
    assert set(ends[1::2]) == {"response.output_text.delta"}
    wait_for(lambda: paced.idle)
    wait_for(lambda: not server.listener.state.running)


def _says_then(error: BaseException) -> Any:
    def script(stream: ScriptedStream) -> None:
        stream.put(Event(stream.request.id, 0, [72, 105], cached_tokens=0))
        stream.put(error)

    return script


def test_failure_behind_the_first_event(serve: Serve) -> None:
    model = toy_model(script=_says_then(EngineError("The engine stopped.")))
    server = serve(model)
    with server.http() as http:
        events = events_of(http.post(PATH, json={"input": "Hi", "stream": True}))
        response = events[-1]["response"]
        assert [event["type"] for event in events[-2:]] == ["error", "response.failed"]
        assert (events[-2]["code"], events[-2]["message"]) == ("engine_error", "The engine stopped.")
        assert (response["status"], response["error"]) == (
            "failed",
            {"code": "server_error", "message": "The engine stopped."},
        )
        assert [item["status"] for item in response["output"]] == ["incomplete"]
        assert http.get(f"{PATH}/{response['id']}").json() == response
        whole = http.post(PATH, json={"input": "Hi"})
    assert (whole.status_code, whole.json()["error"]["code"]) == (500, "engine_error")


def test_deadline_before_the_first_token(serve: Serve) -> None:
    server = serve(toy_model(script=lambda stream: stream.put(DeadlineError("Too late."))))
    with server.http() as http:
        events = events_of(http.post(PATH, json={"input": "Hi", "stream": True}))
        assert [event["type"] for event in events][-1] == "response.failed"
        assert http.post(PATH, json={"input": "Hi"}).status_code == 504


def test_a_client_that_leaves_ends_the_work(serve: Serve) -> None:
    model = toy_model(hold=True)
    left = threading.Event()
    service_of(model).on_cancel = left.set
    server = serve(model)
    with server.http() as http, http.stream("POST", PATH, json={"input": "Hi", "stream": True}) as reply:
        lines = reply.iter_lines()
        assert next(lines) == "event: response.created"
        created = json.loads(next(lines).removeprefix("data: "))["response"]
    assert left.wait(10)
    with server.http() as http:
        assert http.get(f"{PATH}/{created['id']}").status_code == 404


SAID = st.one_of(
    st.builds(lambda text: ("reasoning", text), st.text("ab", min_size=1, max_size=3)),
    st.builds(lambda text: ("content", text), st.text("cd é🎉", min_size=1, max_size=3)),
    st.just(("call", "")),
    st.builds(lambda text: ("arguments", text), st.text('{"}', min_size=1, max_size=3)),
    st.just(("nothing", "")),
)


def news_of(said: list[tuple[str, str]], reason: str) -> list[ChatNews]:
    """What a chat might tell; arguments without a call before them are left out."""
    news, calls = [], 0
    for kind, text in said:
        delta = ChatDelta()
        if kind == "call":
            delta = ChatDelta(calls=(CallDelta(calls, f"call_{calls}", "f"),))
            calls += 1
        elif kind == "arguments":
            delta = ChatDelta(calls=(CallDelta(calls - 1, arguments=text),)) if calls else delta
        elif kind != "nothing":
            delta = ChatDelta(**{kind: text})
        news.append(ChatNews(0, delta, []))
    return [*news, ChatNews(0, ChatDelta(), [], reason)]


@settings(max_examples=150, deadline=None)
@given(st.lists(SAID, max_size=12), st.sampled_from(["stop", "length", "tool_calls", "failure"]))
def test_any_news_makes_events_that_fit_together(said: list[tuple[str, str]], reason: str) -> None:
    document = {"id": "resp_1", "object": "response", "created_at": 1, "status": "in_progress", "model": "toy"}
    document |= {"parallel_tool_calls": True, "tool_choice": "auto", "tools": [], "metadata": {}}
    growing = Growing(document, Usage(), byte_tokenizer(None), top_logprobs=None)
    events = [growing.told("response.created"), growing.told("response.in_progress")]
    for news in news_of(said, reason):
        events += growing.push(news)
    end = growing.fail(failure_of(EngineError("Over."))) if reason == "failure" else growing.finish(reason)
    events += end
    for event in events:
        check_event(event)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    output = events[-1]["response"]["output"]
    assert rebuilt(events) == output
    assert events[-1]["response"] == growing.response()
    parts = [part for item in output if item["type"] != "function_call" for part in item["content"]]
    for kind, told in (("reasoning", "reasoning_text"), ("content", "output_text")):
        assert "".join(part["text"] for part in parts if part["type"] == told) == "".join(
            text for each, text in said if each == kind
        )
    called = [item for item in output if item["type"] == "function_call"]
    began = next((at for at, (kind, _) in enumerate(said) if kind == "call"), len(said))
    asked = "".join(text for kind, text in said[began:] if kind == "arguments")
    assert "".join(item["arguments"] for item in called) == asked


class TestClients:
    def test_stream_helper(self, serve: Serve) -> None:
        server = serve(toy_model(f"<think>\nHmm.\n</think>\n\nSee.{CALL}"))
        tools = [CALCULATOR]
        with server.openai().responses.stream(  # type: ignore[call-overload]
            model="toy", input="Hi", tools=tools, reasoning={"effort": "low"}
        ) as stream:
            snapshots = [event.snapshot for event in stream if event.type == "response.output_text.delta"]
            response = stream.get_final_response()
        assert snapshots[-1] == response.output_text == "See."
        assert [item.type for item in response.output] == ["reasoning", "message", "function_call"]

    def test_create_stream(self, toy_server: Running) -> None:
        stream = toy_server.openai().responses.create(model="toy", input="Hi", stream=True)
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        assert text == "Hello, world."

    async def test_async(self, toy_server: Running) -> None:
        async with toy_server.async_openai() as client:
            stream = await client.responses.create(model="toy", input="Hi", stream=True)
            deltas = [event.delta async for event in stream if event.type == "response.output_text.delta"]
            assert "".join(deltas) == "Hello, world."
            async with client.responses.stream(model="toy", input="Hi") as helper:
                response = await helper.get_final_response()
            assert response.output_text == "Hello, world."


class TestBackground:
    def test_polled(self, serve: Serve) -> None:
        model = toy_model(hold=True)
        service = service_of(model)
        server = serve(model)
        client = server.openai()
        response = client.responses.create(model="toy", input="Hi", background=True)
        assert (response.status, response.background, response.output) == ("queued", True, [])
        assert client.responses.retrieve(response.id).status == "queued"
        server.call(lambda: service.streams[0].put(Event(service.last.id, 0, [72, 105], cached_tokens=0)))
        self.poll(server, response.id, "in_progress")
        server.call(lambda: service.release(service.streams[0], "there"))
        done = self.poll(server, response.id, "completed")
        assert done.output_text.endswith("there")
        follow_up = client.responses.create(
            model="toy", input="And?", previous_response_id=response.id, background=True, timeout=9
        )
        assert client.responses.cancel(follow_up.id).status == "cancelled"

    def poll(self, server: Running, response_id: str, status: str) -> Response:
        with server.http() as http:
            for _ in range(2000):
                document = http.get(f"{PATH}/{response_id}").json()
                if document["status"] == status:
                    return check_response(document)
        raise AssertionError(f"it stays {document['status']}")

    def test_cancelled(self, serve: Serve) -> None:
        model = toy_model(hold=True)
        client = serve(model).openai()
        response = client.responses.create(model="toy", input="Hi", background=True)
        assert client.responses.cancel(response.id).status == "cancelled"
        assert service_of(model).streams[0].cancelled == {0}
        assert client.responses.retrieve(response.id).status == "cancelled"
        assert client.responses.cancel(response.id).status == "cancelled"

    def test_only_these_are_cancelled(self, toy_server: Running) -> None:
        response = toy_server.openai().responses.create(model="toy", input="Hi")
        with toy_server.http() as http:
            refused = http.post(f"{PATH}/{response.id}/cancel")
            assert (refused.status_code, set(refused.json()["error"])) == (400, {"message", "type", "param", "code"})
            assert http.post(f"{PATH}/resp_unknown/cancel").status_code == 404

    def test_deleted_while_it_runs(self, serve: Serve) -> None:
        model = toy_model(hold=True)
        server = serve(model)
        client = server.openai()
        response = client.responses.create(model="toy", input="Hi", background=True)
        client.responses.delete(response.id)
        assert service_of(model).streams[0].cancelled == {0}
        with server.http() as http:
            assert http.get(f"{PATH}/{response.id}").status_code == 404

    def test_failed(self, serve: Serve) -> None:
        server = serve(toy_model(script=_says_then(EngineError("The engine stopped."))))
        response = server.openai().responses.create(model="toy", input="Hi", background=True)
        failed = self.poll(server, response.id, "failed")
        assert failed.error is not None
        assert failed.error.message == "The engine stopped."

    def test_events(self, serve: Serve) -> None:
        events = stream_of(serve(toy_model(THOUGHT)), background=True, reasoning={"effort": "low"})
        assert kinds_of(events) == ["created", "queued", "in_progress", *REASONING, *ANSWER, "completed"]
        assert [events[at]["response"]["status"] for at in range(3)] == ["queued", "queued", "in_progress"]

    def test_goes_on_without_its_client_and_is_followed(self, serve: Serve) -> None:
        model = toy_model(hold=True)
        service = service_of(model)
        server = serve(model)
        body = {"input": "Hi", "stream": True, "background": True}
        with server.http() as http, http.stream("POST", PATH, json=body) as reply:
            lines = reply.iter_lines()
            next(lines)
            created = json.loads(next(lines).removeprefix("data: "))["response"]
        server.call(lambda: service.release(service.streams[0], "Hello"))
        with server.http() as http:
            whole = events_of(http.get(f"{PATH}/{created['id']}?stream=true"))
            assert rebuilt(whole) == whole[-1]["response"]["output"]
            assert (whole[0]["type"], whole[-1]["type"]) == ("response.created", "response.completed")
            rest = events_of(http.get(f"{PATH}/{created['id']}?stream=true&starting_after=4"))
            assert rest == whole[5:]
            number = whole[-1]["sequence_number"]
            assert http.get(f"{PATH}/{created['id']}?stream=true&starting_after={number}").text == ": ping\n\n"
        assert not service.streams[0].cancelled
        with server.openai().responses.stream(response_id=created["id"], starting_after=4) as stream:
            assert next(iter(stream)).sequence_number == 5
            assert stream.get_final_response().output_text == "Hello"

    async def test_followers_miss_nothing(self) -> None:
        """Neither what comes while an event is sent, nor what comes while they wait."""
        told: asyncio.Queue[str] = asyncio.Queue()

        async def failing() -> AsyncIterator[dict[str, Any]]:
            while (kind := await told.get()) != "end":
                yield {"type": kind}

        growing = SimpleNamespace(status="in_progress", told=lambda kind, status=None: {"type": kind})
        reply = SimpleNamespace(body=SimpleNamespace(stream=True, previous_response_id=None), growing=growing, owner="")
        reply.failing, reply.record = failing, lambda: None
        background = Background(reply, AsyncMock(), SimpleNamespace(running=0, ended=lambda: None))  # type: ignore[arg-type]
        await background.start()

        async def settle() -> None:
            for _ in range(9):
                await asyncio.sleep(0)

        follower = Follower()
        stream = background.follow(follower)
        got = [await stream.__anext__()]  # the first of two; now more come
        for kind in "ab":
            told.put_nowait(kind)
        await settle()
        got += [await asyncio.wait_for(stream.__anext__(), 10) for _ in range(3)]
        waiting = asyncio.ensure_future(stream.__anext__())
        await settle()
        told.put_nowait("c")
        got.append(await waiting)
        waiting = asyncio.ensure_future(stream.__anext__())
        await settle()
        told.put_nowait("end")
        assert await waiting == b": ping\n\n"
        kinds = [event.split(b"\n")[0].decode().removeprefix("event: ") for event in got]
        assert kinds == ["response.created", "response.queued", "a", "b", "c"]

    async def test_a_follower_that_leaves_while_it_waits(self, serve: Serve) -> None:
        model = toy_model(hold=True)
        server = serve(model)
        stream = await server.async_openai().responses.create(model="toy", input="Hi", stream=True, background=True)
        response = (await stream.__anext__()).response  # type: ignore[union-attr]
        await stream.close()
        wait_for(lambda: server.listener.state.running == 1)  # the response's own
        cancelled = await server.async_openai().responses.cancel(response.id)
        assert cancelled.status == "cancelled"
        wait_for(lambda: not server.listener.state.running)

    def test_only_streams_are_followed(self, serve: Serve) -> None:
        server = serve(toy_model())
        for body in ({"background": True}, {"stream": False}):
            response = server.openai().responses.create(model="toy", input="Hi", **body)  # type: ignore[call-overload]
            with server.http() as http:
                refused = http.get(f"{PATH}/{response.id}?stream=true")
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, "stream")

    def test_must_be_stored(self, serve: Serve) -> None:
        with serve(toy_model()).http() as http:
            refused = http.post(PATH, json={"input": "Hi", "background": True, "store": False})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "background")

    def test_a_server_that_drains_waits_for_it(self, serve: Serve) -> None:
        model = toy_model(hold=True)
        service = service_of(model)
        server = serve(model, settings=settings_with(drain_ms=60_000))
        server.openai().responses.create(model="toy", input="Hi", background=True)

        async def drain() -> bool:
            server.listener.drain()
            waits = not server.listener.state.drained.is_set()
            service.release(service.streams[0], "Hello")
            return waits

        assert asyncio.run_coroutine_threadsafe(drain(), server.loop).result(10)
        server.thread.join(30)
        assert not server.thread.is_alive()
