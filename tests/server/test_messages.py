"""POST /v1/messages through Anthropic's own client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import pytest
from anthropic.types import Message, ToolParam

from fermi.defaults import Defaults
from fermi.engine.event import Event
from server.running import Running, Serve
from server.test_lifecycle import raw_request, watch
from server.toy import ScriptedStream, service_of, settings_with, toy_model

HELLO: list[Any] = [{"role": "user", "content": "Hi"}]
CALCULATOR: ToolParam = {
    "name": "calculator",
    "description": "Computes.",
    "input_schema": {"type": "object", "properties": {"expression": {"type": "string"}}},
}
CALL = '<tool_call>\n{"name": "calculator", "arguments": {"expression": "2 * 3"}}\n</tool_call>'
THOUGHT = "<think>\nHmm.\n</think>\n\nYes."
PATH = "/v1/messages"


def client_of(server: Running, **options: Any) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0, **options)


def ask(server: Running, **body: Any) -> Message:
    body = {"model": "toy", "max_tokens": 100, "messages": HELLO, **body}
    return client_of(server).messages.create(**body)  # type: ignore[no-any-return]


def events_of(server: Running, **body: Any) -> list[dict[str, Any]]:
    """The events as they stand on the wire."""
    body = {"model": "toy", "max_tokens": 100, "messages": HELLO, "stream": True, **body}
    with server.http() as http:
        text = http.post(PATH, json=body).text
    events = []
    for block in text.strip().split("\n\n"):
        name, data = block.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


def refused(server: Running, status: int = 400, path: str = PATH, **body: Any) -> str:
    """The message of a refusal."""
    body = {"model": "toy", "max_tokens": 100, "messages": HELLO, **body}
    with server.http() as http:
        reply = http.post(path, json={name: value for name, value in body.items() if value is not ...})
    assert reply.status_code == status, reply.text
    document = reply.json()
    assert set(document) == {"type", "error"}
    assert document["type"] == "error"
    assert set(document["error"]) == {"type", "message"}
    return str(document["error"]["message"])


def prompt_of(serve: Serve, answer: str = "Hello, world.", **body: Any) -> str:
    """What the model is given."""
    model = toy_model(answer)
    ask(serve(model), **body)
    return service_of(model).prompt(service_of(model).last)


def test_whole_message(toy_server: Running) -> None:
    message = ask(toy_server)
    assert message.id.startswith("msg_")
    assert (message.type, message.role, message.model) == ("message", "assistant", "toy")
    [block] = message.content
    assert (block.type, block.text) == ("text", "Hello, world.")  # type: ignore[union-attr]
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
    usage = message.usage
    assert usage.cache_read_input_tokens == 3
    assert usage.cache_creation_input_tokens == 0
    assert usage.input_tokens + 3 == len("<s>") - 2 + len("[user]Hi[assistant]<think>\n\n</think>\n\n")
    assert usage.output_tokens == len("Hello, world.") + 1
    assert message._request_id


def test_events_of_a_text(toy_server: Running) -> None:
    events = events_of(toy_server)
    kinds = [event["type"] for event in events]
    assert kinds[:3] == ["message_start", "ping", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(kinds[3:-3]) == {"content_block_delta"}
    start = events[0]["message"]
    assert (start["content"], start["stop_reason"], start["role"]) == ([], None, "assistant")
    assert start["usage"]["input_tokens"] > 0
    assert start["usage"]["cache_read_input_tokens"] == 3
    assert events[2] == {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    assert "".join(event["delta"]["text"] for event in events[3:-3]) == "Hello, world."
    assert {event["index"] for event in events[2:-2]} == {0}
    assert events[-2]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert events[-2]["usage"]["output_tokens"] == len("Hello, world.") + 1


@pytest.mark.parametrize("together", [1, 3, 100])
def test_the_clients_own_accumulation(serve: Serve, together: int) -> None:
    """Text, thoughts and calls as `.stream()` puts them together are those of the whole message."""
    for answer, extra in (
        ("Hello, world.", {}),
        (THOUGHT, {"thinking": {"type": "adaptive"}}),
        (f"I compute.\n{CALL}\n{CALL}", {"tools": [CALCULATOR]}),
        (THOUGHT + CALL, {"thinking": {"type": "adaptive"}, "tools": [CALCULATOR]}),
    ):
        server = serve(toy_model(answer, tokens_per_event=together))
        whole = ask(server, **extra)
        body: dict[str, Any] = {"model": "toy", "max_tokens": 100, "messages": HELLO, **extra}
        with client_of(server).messages.stream(**body) as stream:
            kinds = {event.type for event in stream}
            message = stream.get_final_message()
        names = {"id", "content"}
        assert message.model_dump(exclude=names) | {"stop_details": None} == whole.model_dump(exclude=names) | {
            "stop_details": None
        }
        for streamed, block in zip(message.content, whole.content, strict=True):
            assert streamed.model_dump(exclude={"id", "parsed_output"}) == block.model_dump(exclude={"id"})
        assert {"message_start", "content_block_stop", "message_stop"} <= kinds


def test_thoughts(serve: Serve) -> None:
    server = serve(toy_model(THOUGHT))
    thinking = {"type": "enabled", "budget_tokens": 50}
    thought, text = ask(server, thinking=thinking).content
    assert (thought.type, thought.thinking) == ("thinking", "Hmm.")  # type: ignore[union-attr]
    assert thought.signature  # type: ignore[union-attr]
    assert text.text == "Yes."  # type: ignore[union-attr]
    details = ask(server, thinking=thinking).usage.output_tokens_details
    assert details is not None
    assert details.thinking_tokens == len("<think>\nHmm.\n</think>\n\n")
    kinds = [
        event["delta"]["type"]
        for event in events_of(server, thinking=thinking)
        if "index" in event and "delta" in event
    ]
    assert [kind for at, kind in enumerate(kinds) if at == 0 or kinds[at - 1] != kind] == [
        "thinking_delta",
        "signature_delta",
        "text_delta",
    ]
    omitted, text = ask(server, thinking={"type": "adaptive", "display": "omitted"}).content
    assert (omitted.type, omitted.thinking) == ("thinking", "")  # type: ignore[union-attr]


def test_no_thoughts_where_none_are_asked_for(serve: Serve) -> None:
    for body in ({}, {"thinking": {"type": "disabled"}}):
        [block] = ask(serve(toy_model(THOUGHT)), **body).content
        assert block.text == "Yes."  # type: ignore[union-attr]


def test_tool_use(serve: Serve) -> None:
    model = toy_model(f"I compute.\n{CALL}")
    message = ask(serve(model), tools=[CALCULATOR])
    text, call = message.content
    assert text.text.strip() == "I compute."  # type: ignore[union-attr]
    assert (call.type, call.name, call.input) == ("tool_use", "calculator", {"expression": "2 * 3"})  # type: ignore[union-attr]
    assert call.id.startswith("toolu_")  # type: ignore[union-attr]
    assert message.stop_reason == "tool_use"
    offered = service_of(model).prompt(service_of(model).last)
    assert '"parameters": {"type": "object"' in offered
    assert "Computes." in offered


def test_tool_use_in_events(serve: Serve) -> None:
    events = events_of(serve(toy_model(CALL)), tools=[CALCULATOR])
    [start] = [event for event in events if event["type"] == "content_block_start"]
    assert start["content_block"]["input"] == {}
    assert (start["content_block"]["name"], start["index"]) == ("calculator", 0)
    pieces = [event["delta"]["partial_json"] for event in events if event["type"] == "content_block_delta"]
    assert json.loads("".join(pieces)) == {"expression": "2 * 3"}
    assert events[-2]["delta"]["stop_reason"] == "tool_use"


def test_a_call_that_is_cut_off_keeps_what_there_is(serve: Serve) -> None:
    message = ask(serve(toy_model(CALL)), tools=[CALCULATOR], max_tokens=CALL.index("3"))
    assert message.stop_reason == "max_tokens"
    for block in message.content:
        assert block.type in ("tool_use", "text")


def test_the_conversation(serve: Serve) -> None:
    messages = [
        {"role": "user", "content": "What is 2 * 3?"},
        {"role": "user", "content": [{"type": "text", "text": "Say!", "cache_control": {"type": "ephemeral"}}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Let me see.", "signature": "x"},
                {"type": "text", "text": "I compute."},
                {"type": "tool_use", "id": "toolu_1", "name": "calculator", "input": {"expression": "2 * 3"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "6"}]},
                {"type": "tool_result", "tool_use_id": "toolu_2", "content": "bad", "is_error": True},
                {"type": "text", "text": "Well?"},
            ],
        },
    ]
    system = [{"type": "text", "text": "Be brief."}, {"type": "text", "text": "Be kind."}]
    prompt = prompt_of(serve, messages=messages, system=system)
    assert prompt.startswith(
        "<s>[system]Be brief.\nBe kind.[user]What is 2 * 3?\nSay![assistant]I compute."
        '<tool_call>{"name": "calculator", "arguments": {"expression": "2 * 3"}}</tool_call>'
        "[tool]6[tool]Error: bad[user]Well?[assistant]"
    )
    assert prompt_of(serve, system="Be brief.").startswith("<s>[system]Be brief.[user]Hi")


def test_the_last_assistant_message_is_continued(serve: Serve) -> None:
    messages = [*HELLO, {"role": "assistant", "content": "The answer is"}]
    assert prompt_of(serve, " 6.", messages=messages).endswith("[assistant]The answer is")
    [block] = ask(serve(toy_model(" 6.")), messages=messages).content
    assert block.text == " 6."  # type: ignore[union-attr]


def test_sampling_reaches_the_engine(serve: Serve) -> None:
    model = toy_model()
    ask(
        serve(model),
        max_tokens=9,
        metadata={"user_id": "someone"},
        service_tier="auto",
        extra_body={"temperature": 0.5, "top_p": 0.25, "top_k": 7, "seed": 3, "min_p": 0.125, "priority": 2},
    )
    request = service_of(model).last
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.max_tokens) == (0.5, 0.25, 7, 9)
    assert (sampling.seed, sampling.min_p, request.priority) == (3, 0.125, 2)


def test_how_it_ended(serve: Serve) -> None:
    server = serve(toy_model("One, two, three."))
    message = ask(server, stop_sequences=["nowhere", ", three"])
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", ", three")
    assert message.content[0].text == "One, two"  # type: ignore[union-attr]
    assert events_of(server, stop_sequences=[", three"])[-2]["delta"] == {
        "stop_reason": "stop_sequence",
        "stop_sequence": ", three",
    }
    assert ask(server, max_tokens=3).stop_reason == "max_tokens"


def test_more_tokens_than_there_is_room_for(serve: Serve) -> None:
    """Clients ask for tens of thousands of tokens whatever the model."""
    model = toy_model("x" * 1000, "Hello.")
    server = serve(model)
    message = ask(server, max_tokens=20000)
    assert message.stop_reason == "model_context_window_exceeded"
    assert message.usage.output_tokens == service_of(model).last.sampling.max_tokens < 512
    assert ask(server, max_tokens=20000).stop_reason == "end_turn"
    few = Defaults(max_tokens_cap=5)
    assert ask(serve(toy_model(defaults=few)), max_tokens=20000).stop_reason == "max_tokens"


def test_thoughts_of_earlier_turns_are_left_out(serve: Serve) -> None:
    template = "{% for each in messages %}<{{ each.reasoning_content }}>{{ each.content }}{% endfor %}"

    def shown(**body: Any) -> str:
        model = toy_model(template=template)
        turns: list[Any] = []
        for name in "ab":
            thought = {"type": "thinking", "thinking": name, "signature": ""}
            turns += [*HELLO, {"role": "assistant", "content": [thought, {"type": "text", "text": "Yes."}]}]
        with serve(model).http() as http:
            json = {"model": "toy", "max_tokens": 9, "messages": [*turns, *HELLO], **body}
            assert http.post(PATH, json=json).status_code == 200
        return service_of(model).prompt(service_of(model).last)

    def edited(**edit: Any) -> str:
        return shown(context_management={"edits": [{"type": "clear_thinking_20251015", **edit}]})

    assert shown() == edited(keep="all") == "<>Hi<a>Yes.<>Hi<b>Yes.<>Hi"
    assert edited() == "<>Hi<>Yes.<>Hi<b>Yes.<>Hi"
    assert edited(keep={"type": "thinking_turns", "value": 0}) == "<>Hi<>Yes.<>Hi<>Yes.<>Hi"


def test_an_empty_answer_has_a_block(serve: Serve) -> None:
    [block] = ask(serve(toy_model(""))).content
    assert (block.type, block.text) == ("text", "")  # type: ignore[union-attr]


def test_tool_choice(serve: Serve) -> None:
    assert "[tools]" in prompt_of(serve, tools=[CALCULATOR], tool_choice={"type": "auto"})
    assert "[tools]" not in prompt_of(serve, tools=[CALCULATOR], tool_choice={"type": "none"})
    alone = {"type": "auto", "disable_parallel_tool_use": True}
    message = ask(serve(toy_model(CALL + "\n" + CALL)), tools=[CALCULATOR], tool_choice=alone)
    assert [block.type for block in message.content] == ["tool_use"]


def test_count_tokens(serve: Serve) -> None:
    model = toy_model()
    server = serve(model)
    body: dict[str, Any] = {"model": "toy", "messages": HELLO, "system": "Be brief.", "tools": [CALCULATOR]}
    counted = client_of(server).messages.count_tokens(**body).input_tokens
    assert service_of(model).requests == []
    usage = ask(server, **body).usage
    assert counted == usage.input_tokens + (usage.cache_read_input_tokens or 0)


async def test_async_client(toy_server: Running) -> None:
    async with anthropic.AsyncAnthropic(base_url=toy_server.url, api_key="none", max_retries=0) as client:
        body: dict[str, Any] = {"model": "toy", "max_tokens": 100, "messages": HELLO}
        message = await client.messages.create(**body)
        assert message.content[0].text == "Hello, world."
        async with client.messages.stream(**body) as stream:
            assert "".join([text async for text in stream.text_stream]) == "Hello, world."
        assert (await client.messages.count_tokens(model="toy", messages=HELLO)).input_tokens > 0


def test_models(toy_server: Running) -> None:
    client = client_of(toy_server)
    [model] = client.models.list()
    assert (model.id, model.type, model.display_name) == ("toy", "model", "toy")
    assert client.models.retrieve("toy").created_at == model.created_at
    with toy_server.http() as http:
        assert "type" not in http.get("/v1/models/toy").json()


def test_a_note_that_changes_with_every_request_is_not_shown(serve: Serve) -> None:
    note = {"type": "text", "text": "x-anthropic-billing-header: cc_version=2; cch=1f3;"}
    prompt = prompt_of(serve, system=[note, {"type": "text", "text": "Be brief."}])
    assert prompt.startswith("<s>[system]Be brief.[user]Hi")
    assert prompt_of(serve, system=[note]).startswith("<s>[user]Hi")


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves(serve: Serve, stream: bool) -> None:
    model = toy_model(hold=True)
    submitted, left = watch(model)
    server = serve(model)
    connection = raw_request(server, {"model": "toy", "max_tokens": 9, "messages": HELLO, "stream": stream}, PATH)
    assert submitted.wait(30)
    connection.close()
    assert left.wait(30)


def test_a_deadline(serve: Serve) -> None:
    model = toy_model(hold=True)
    service_of(model).script = lambda stream: stream.put(
        Event(stream.request.id, 0, finish_reason="deadline", error="late")
    )
    with pytest.raises(anthropic.APIStatusError) as late:
        ask(serve(model))
    assert (late.value.status_code, late.value.body["error"]["type"]) == (504, "timeout_error")  # type: ignore[index]


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": ""}}


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"max_tokens": ...}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"model": ...}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": []}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, "messages.0.content.0: blocks of type 'image'"),
        ({"messages": [{"role": "user", "content": [{"type": "document"}]}]}, "'document'"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content.0.text"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_use"}]}]}, "'tool_use'"),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "x", "content": [IMAGE]}]}
                ]
            },
            "messages.0.content.0.content.0: blocks of type 'image'",
        ),
        (
            {
                "messages": [
                    *HELLO,
                    {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "b", "input": {}}]},
                ]
            },
            "tool_result",
        ),
        ({"system": [IMAGE]}, "system.0"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools.0: tools of type 'web_search"),
        ({"tools": [{"name": "x"}]}, "tools.0.input_schema"),
        ({"tools": [{**CALCULATOR, "defer_loading": True}]}, "tools.0.defer_loading"),
        ({"tool_choice": {"type": "any"}}, "tool_choice needs tools"),
        ({"tools": [CALCULATOR], "tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "enabled", "budget_tokens": 100}}, "max_tokens must be greater"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"temperature": 3.0}, "temperature"),
        ({"container": "x"}, "container"),
        ({"mcp_servers": [{}]}, "mcp_servers"),
        ({"n": 2}, "n is not supported"),
        ({"min_p": 7.0}, "min_p"),
        ({"beam": 1, "use_beam_search": True}, "use_beam_search"),
        ({"messages": [{"role": "user", "content": "x" * 600}]}, "prompt is too long: 637 tokens > 512 maximum"),
        ({"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}}, "context_management.edits.0.type"),
    ],
)
def test_refused_by_name(toy_server: Running, body: dict[str, Any], named: str) -> None:
    assert named in refused(toy_server, **body)


def test_errors_in_anthropics_envelope(serve: Serve) -> None:
    server = serve(toy_model(), settings=settings_with(api_keys=("secret",), max_body_bytes=2000))
    client = client_of(server)
    body: dict[str, Any] = {"model": "toy", "max_tokens": 100, "messages": HELLO}
    with pytest.raises(anthropic.AuthenticationError) as unknown:
        client.messages.create(**body)
    assert unknown.value.body["error"]["type"] == "authentication_error"  # type: ignore[index]
    client = client.with_options(api_key="secret")
    assert client.messages.create(**body).content
    with pytest.raises(anthropic.NotFoundError) as missing:
        client.messages.create(**{**body, "model": "nobody"})
    assert missing.value.body["error"]["type"] == "not_found_error"  # type: ignore[index]
    with pytest.raises(anthropic.RequestTooLargeError) as large:
        client.messages.create(**{**body, "system": "x" * 3000})
    assert large.value.body["error"]["type"] == "request_too_large"  # type: ignore[index]
    with server.http() as http:
        headers = {"x-api-key": "secret"}
        for path, status in ((PATH, 400), (f"{PATH}/nothing", 404)):
            reply = http.post(path, content=b"{", headers=headers)
            assert (reply.status_code, reply.json()["type"]) == (status, "error")
            assert reply.headers["request-id"] == reply.headers["x-request-id"]
        wrong = http.get(PATH, headers=headers)
        assert (wrong.status_code, wrong.json()["error"]["type"]) == (405, "invalid_request_error")
        assert set(http.post("/v1/chat/completions", content=b"{", headers=headers).json()) == {"error"}


def test_too_many_requests(serve: Serve) -> None:
    server = serve(toy_model(), settings=settings_with(requests_per_minute=1))
    ask(server)
    with pytest.raises(anthropic.RateLimitError) as limited:
        ask(server)
    assert limited.value.body["error"]["type"] == "rate_limit_error"  # type: ignore[index]
    assert "retry-after" in limited.value.response.headers


def test_loading_is_overloaded(serve: Serve) -> None:
    with pytest.raises(anthropic.APIStatusError) as loading:
        ask(serve())
    assert (loading.value.status_code, loading.value.body["error"]["type"]) == (503, "overloaded_error")  # type: ignore[index]


@pytest.fixture
def failing(serve: Serve) -> Running:
    """A server whose engine fails after the first token."""
    model = toy_model(hold=True)

    def script(stream: ScriptedStream) -> None:
        stream.put(Event(stream.request.id, 0, [65]))
        stream.put(Event(stream.request.id, 0, finish_reason="error", error="the device is gone"))

    service_of(model).script = script
    return serve(model)


def test_failure_within_a_stream(failing: Running) -> None:
    events = events_of(failing)
    assert events[-1]["type"] == "error"
    assert events[-1]["error"]["type"] == "api_error"
    body: dict[str, Any] = {"model": "toy", "max_tokens": 100, "messages": HELLO}
    with pytest.raises(anthropic.APIStatusError), client_of(failing).messages.stream(**body) as stream:
        stream.until_done()
    with pytest.raises(anthropic.InternalServerError):
        ask(failing)


def test_pings_in_silence(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fermi.server.sse.PING_S", 0.01)
    model = toy_model(hold=True)
    server = serve(model)
    body = {"model": "toy", "max_tokens": 100, "messages": HELLO, "stream": True}
    received = ""
    with server.http() as http, http.stream("POST", PATH, json=body) as reply:
        lines: Iterator[str] = reply.iter_text()
        while received.count('event: ping\ndata: {"type":"ping"}\n\n') < 2:
            received += next(lines)
        stream = service_of(model).streams[0]
        server.call(lambda: service_of(model).release(stream, "Late."))
        received += "".join(lines)
    assert received.rstrip().endswith('{"type":"message_stop"}')
    assert isinstance(reply, httpx.Response)
