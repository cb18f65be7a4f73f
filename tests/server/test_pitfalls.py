"""What broke for users of other servers: each of the 25 cases of the contract, in its order and with its number."""

from __future__ import annotations

import json
import socket
import threading
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from fermi.config import load_settings
from fermi.engine.event import Event
from fermi.server.loading import load_served
from server.running import Running, Serve, serving
from server.toy import service_of, settings_with, toy_embedder, toy_model

HELLO = [{"role": "user", "content": "Hi"}]
CHAT = "/v1/chat/completions"
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 2, "text": "é"}}\n</tool_call>'
ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {
            "type": "object",
            "properties": {"sign": {"enum": ["plus", "minus"]}},
            "required": ["sign"],
            "additionalProperties": False,
        },
    },
}
NEGATE = {"type": "function", "function": {"name": "negate", "parameters": {"type": "object", "properties": {}}}}
MOOD = {
    "type": "object",
    "properties": {"mood": {"enum": ["good", "bad"]}, "sure": {"type": "boolean"}},
    "required": ["mood", "sure"],
    "additionalProperties": False,
}
FOUR_KEYS = {"message", "type", "param", "code"}


@pytest.fixture(scope="module")
def demo() -> Iterator[Running]:
    """A real engine with the demo model, whose template thinks."""
    flags = {"engine.threads": 1, "cache.kv_cache_memory": "64MiB"}
    with serving(load_served("demo", load_settings(flags, environ={}, folder=Path("/nonexistent")))) as running:
        yield running


def ask(server: Running, path: str = CHAT, **body: Any) -> httpx.Response:
    """Where nothing else is said, about HELLO."""
    if path in (CHAT, "/v1/messages"):
        body = {"messages": HELLO, **body}
    with server.http() as http:
        return http.post(path, json=body)


def choice_of(server: Running, **body: Any) -> dict[str, Any]:
    """The first choice of a whole reply."""
    reply = ask(server, **body)
    assert reply.status_code == 200, reply.text
    choice: dict[str, Any] = reply.json()["choices"][0]
    return choice


def chunks_of(server: Running, **body: Any) -> list[dict[str, Any]]:
    """The chunks of a stream as they stand on the wire."""
    reply = ask(server, stream=True, **body)
    assert reply.status_code == 200, reply.text
    *events, done, rest = reply.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in events if not event.startswith(":")]


def deltas_of(server: Running, **body: Any) -> list[dict[str, Any]]:
    return [chunk["choices"][0]["delta"] for chunk in chunks_of(server, **body) if chunk["choices"]]


def test_01_each_delta_of_a_call_has_its_index_and_the_first_its_id(serve: Serve) -> None:
    deltas = deltas_of(serve(toy_model(CALL + CALL)), tools=[ADD])
    calls = [call for delta in deltas for call in delta.get("tool_calls", [])]
    assert sorted({call["index"] for call in calls}) == [0, 1]
    for index in (0, 1):
        first, *rest = [call for call in calls if call["index"] == index]
        assert first["id"]
        assert (first["type"], first["function"]) == ("function", {"name": "add", "arguments": ""})
        assert all(set(call) == {"index", "function"} and set(call["function"]) == {"arguments"} for call in rest)
        assert json.loads("".join(call["function"]["arguments"] for call in rest)) == {"a": 2, "text": "é"}
    assert len({call["id"] for call in calls if "id" in call}) == 2


@pytest.mark.parametrize("reply", ["Hello.", CALL])
def test_02_finish_reason_is_null_until_the_last_chunk(serve: Serve, reply: str) -> None:
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks_of(serve(toy_model(reply)), tools=[ADD])]
    assert reasons[:-1] == [None] * (len(reasons) - 1)
    assert reasons[-1] == ("tool_calls" if reply == CALL else "stop")


@pytest.mark.parametrize("limit", [1, 5, 50])
def test_03_the_last_text_has_a_chunk_of_its_own(serve: Serve, limit: int) -> None:
    *before, last = deltas_of(serve(toy_model("Hello.")), max_tokens=limit)
    assert last == {}
    assert "".join(delta.get("content") or "" for delta in before) == "Hello."[:limit]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("before", ["", "Let me see. "])
def test_04_a_reply_that_calls_ends_for_tool_calls(serve: Serve, stream: bool, before: str) -> None:
    server = serve(toy_model(before + CALL))
    end = chunks_of(server, tools=[ADD])[-1]["choices"][0] if stream else choice_of(server, tools=[ADD])
    assert end["finish_reason"] == "tool_calls"


def test_05_neither_role_nor_content_is_null_while_it_thinks(serve: Serve) -> None:
    server = serve(toy_model("<think>\nHmm.\n</think>\n\nYes."))
    first, *rest = deltas_of(server, thinking="auto")
    assert first == {"role": "assistant", "content": ""}
    assert all(None not in delta.values() for delta in rest)
    assert all("role" not in delta for delta in rest)
    assert isinstance(choice_of(server, thinking="auto")["message"]["content"], str)


def test_06_thoughts_come_under_both_names_and_are_taken_under_both(serve: Serve) -> None:
    model = toy_model("<think>\nHmm.\n</think>\n\nYes.")
    server = serve(model)
    message = choice_of(server, thinking="auto")["message"]
    assert (message["reasoning_content"], message["reasoning"], message["content"]) == ("Hmm.", "Hmm.", "Yes.")
    thoughts = [delta for delta in deltas_of(server, thinking="auto") if "reasoning" in delta]
    assert all(delta["reasoning"] == delta["reasoning_content"] for delta in thoughts)
    assert "".join(delta["reasoning"] for delta in thoughts) == "Hmm."
    for name in ("reasoning_content", "reasoning"):
        said = {"role": "assistant", "content": "Yes.", name: "Hmm."}
        assert ask(server, messages=[*HELLO, said, *HELLO]).status_code == 200


def test_07_usage_comes_when_asked_for_and_only_then(serve: Serve) -> None:
    server = serve(toy_model())
    assert all("usage" not in chunk for chunk in chunks_of(server))
    *others, last = chunks_of(server, stream_options={"include_usage": True})
    assert all(chunk["usage"] is None for chunk in others)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == len("Hello, world.") + 1
    each = chunks_of(server, stream_options={"include_usage": True, "continuous_usage_stats": True})
    assert [chunk["usage"]["completion_tokens"] for chunk in each][-1] == len("Hello, world.") + 1
    assert all(chunk["usage"]["total_tokens"] for chunk in each)


BAD: list[tuple[str, object]] = [
    (CHAT, b"{"),
    (CHAT, b"[]"),
    (CHAT, b"\xff"),
    (CHAT, {"messages": "Hi"}),
    (CHAT, {"messages": []}),
    (CHAT, {"messages": [{"role": "nobody", "content": "x"}]}),
    (CHAT, {"messages": HELLO, "n": 0}),
    (CHAT, {"messages": HELLO, "logit_bias": {"x": 1}}),
    (CHAT, {"messages": HELLO, "tools": [{}]}),
    (CHAT, {"messages": HELLO, "tool_choice": "required"}),
    (CHAT, {"messages": HELLO, "response_format": {"type": "json_schema"}}),
    ("/v1/completions", {"prompt": [[]]}),
    ("/v1/completions", {"prompt": "x", "suffix": "y"}),
    ("/v1/responses", {"input": 5}),
    ("/v1/embeddings", {"input": []}),
    ("/tokenize", {}),
]


@pytest.mark.parametrize(("path", "body"), BAD)
def test_08_a_bad_request_is_a_400_in_the_envelope(toy_server: Running, path: str, body: object) -> None:
    with toy_server.http() as http:
        reply = http.post(path, content=body if isinstance(body, bytes) else json.dumps(body))
    assert reply.status_code in (400, 404)
    assert set(reply.json()) == {"error"}
    assert set(reply.json()["error"]) == FOUR_KEYS
    assert reply.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("body", [{"model": "gone"}, {"temperature": 9}, {"max_tokens": 10**9}, {"top_logprobs": 99}])
def test_09_an_error_is_never_a_200(toy_server: Running, stream: bool, body: dict[str, object]) -> None:
    reply = ask(toy_server, stream=stream, **body)
    assert reply.status_code >= 400
    assert reply.headers["content-type"] == "application/json"
    assert set(reply.json()["error"]) == FOUR_KEYS


def test_10_embeddings_in_base64(serve: Serve) -> None:
    server = serve(toy_embedder())
    [row] = ask(server, "/v1/embeddings", input="abc", encoding_format="base64").json()["data"]
    [same] = ask(server, "/v1/embeddings", input="abc").json()["data"]
    np.testing.assert_array_equal(np.frombuffer(b64decode(row["embedding"]), "<f4"), np.float32(same["embedding"]))
    assert server.openai().embeddings.create(model="toy-embedder", input="abc").data[0].embedding == same["embedding"]


def test_11_embeddings_of_token_ids(serve: Serve) -> None:
    server = serve(toy_embedder())
    ids = ask(server, "/tokenize", prompt="abc").json()["tokens"]
    rows = {}
    for name, given in (("text", "abc"), ("ids", ids), ("list of ids", [ids])):
        [row] = ask(server, "/v1/embeddings", input=given).json()["data"]
        rows[name] = row["embedding"]
    assert rows["text"] == rows["ids"] == rows["list of ids"]


def test_12_max_completion_tokens(serve: Serve) -> None:
    server = serve(toy_model("Hello, world."))
    for fields in ({"max_completion_tokens": 3}, {"max_completion_tokens": 3, "max_tokens": 9}):
        choice = choice_of(server, **fields)
        assert (choice["message"]["content"], choice["finish_reason"]) == ("Hel", "length")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("stream", [False, True])
def test_13_tool_choice_is_obeyed(demo: Running, seed: int, stream: bool) -> None:
    """By a model that would rather say something else, at a temperature where it says anything."""
    options: dict[str, Any] = {"tools": [ADD, NEGATE], "temperature": 1.5, "seed": seed, "max_tokens": 300}
    options |= {"thinking": "off", "parallel_tool_calls": False}

    def called(tool_choice: object) -> list[str]:
        if not stream:
            choice = choice_of(demo, tool_choice=tool_choice, **options)
            return [call["function"]["name"] for call in choice["message"].get("tool_calls", [])]
        deltas = deltas_of(demo, tool_choice=tool_choice, **options)
        calls = [call for delta in deltas for call in delta.get("tool_calls", [])]
        return [call["function"]["name"] for call in calls if "id" in call]

    assert called("none") == []
    assert called({"type": "function", "function": {"name": "negate"}}) == ["negate"]
    assert called({"type": "function", "function": {"name": "add"}}) == ["add"]
    [name] = called("required")
    assert name in ("add", "negate")


@pytest.mark.parametrize("seed", range(4))
def test_14_a_response_format_is_enforced(demo: Running, seed: int) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "mood", "schema": MOOD, "strict": True}}
    options: dict[str, Any] = {"temperature": 1.5, "seed": seed, "max_tokens": 300, "thinking": "off"}
    choice = choice_of(demo, response_format=schema, **options)
    value = json.loads(choice["message"]["content"])
    assert set(value) == {"mood", "sure"}
    assert (value["mood"] in ("good", "bad"), type(value["sure"])) == (True, bool)
    text = "".join(delta.get("content") or "" for delta in deltas_of(demo, response_format=schema, **options))
    assert text == choice["message"]["content"]
    anything = choice_of(demo, response_format={"type": "json_object"}, **options)
    assert anything["message"]["content"].lstrip().startswith("{")
    if anything["finish_reason"] == "stop":
        assert isinstance(json.loads(anything["message"]["content"]), dict)


@pytest.mark.parametrize("seed", range(3))
def test_15_a_schema_begins_behind_the_thoughts(demo: Running, seed: int) -> None:
    """The thoughts are free, and end in time; what follows is bound."""
    schema = {"type": "json_schema", "json_schema": {"name": "mood", "schema": MOOD, "strict": True}}
    question = [{"role": "user", "content": "What is 12 * 7 + 30?"}]
    options = {"response_format": schema, "temperature": 0.7, "seed": seed, "max_tokens": 400, "thinking": "auto"}
    choice = choice_of(demo, messages=question, thinking_budget=60, **options)
    assert set(json.loads(choice["message"]["content"])) == {"mood", "sure"}
    thoughts = choice["message"].get("reasoning_content", "")
    assert not thoughts.lstrip().startswith("{")
    greedy = choice_of(demo, messages=question, thinking="auto", temperature=0, max_tokens=400)
    bound = choice_of(demo, messages=question, **{**options, "temperature": 0})
    assert bound["message"].get("reasoning_content") == greedy["message"].get("reasoning_content")


BROKEN = [
    '<tool_call>\n{"name": "add", "arguments": {"a": 2\n</tool_call>',
    '<tool_call>\n{"name": "add", "arguments": ',
    "<tool_call>\nadd(2)\n</tool_call>",
    '<tool_call>{"arguments": {}}</tool_call>',
    "</tool_call><tool_call>",
    '<tool_call>\n{"name": 5, "arguments": {}}\n</tool_call> and on',
]


@pytest.mark.parametrize("broken", BROKEN)
def test_16_a_call_that_breaks_off_harms_nothing(serve: Serve, broken: str) -> None:
    server = serve(toy_model(broken))
    message = choice_of(server, tools=[ADD])["message"]
    for call in message.get("tool_calls", []):
        json.loads(call["function"]["arguments"])
    said = "".join(delta.get("content") or "" for delta in deltas_of(server, tools=[ADD]))
    assert said == (message["content"] or "")
    answers = [{"role": "tool", "tool_call_id": call["id"], "content": "?"} for call in message.get("tool_calls", [])]
    again = ask(server, messages=[*HELLO, message, *answers, *HELLO], tools=[ADD])
    assert again.status_code == 200, again.text


def called(arguments: object, content: str | None = None) -> list[dict[str, Any]]:
    """A conversation in which a tool was called."""
    function = {"name": "add", "arguments": arguments}
    call = {"id": "call_1", "type": "function", "function": function}
    answer = {"role": "tool", "tool_call_id": "call_1", "content": "5"}
    return [*HELLO, {"role": "assistant", "content": content, "tool_calls": [call]}, answer]


def test_17_null_content_beside_calls_is_legal(serve: Serve) -> None:
    server = serve(toy_model())
    assert ask(server, messages=called('{"a": 2}'), tools=[ADD]).status_code == 200
    without = [{key: value for key, value in message.items() if value is not None} for message in called("{}")]
    assert ask(server, messages=without, tools=[ADD]).status_code == 200


@pytest.mark.parametrize("arguments", ['{"a": 2}', {"a": 2}])
def test_18_a_template_gets_arguments_as_an_object(serve: Serve, arguments: object) -> None:
    model = toy_model()
    assert ask(serve(model), messages=called(arguments), tools=[ADD]).status_code == 200
    service = service_of(model)
    assert '"arguments": {"a": 2}' in service.prompt(service.last)


def test_19_a_system_message_may_stand_anywhere(serve: Serve) -> None:
    """The toy's template wants it first, as many do: there it goes. What a template still refuses is a 400."""
    model = toy_model()
    late = {"role": "system", "content": "Late."}
    assert ask(serve(model), messages=[{"role": "system", "content": "First."}, *HELLO, late]).status_code == 200
    assert service_of(model).prompt(service_of(model).last).startswith("<s>[system]First.\n\nLate.[user]")
    reply = ask(serve(toy_model(template="{{ raise_exception('not today') }}")), messages=[*HELLO, late])
    assert reply.status_code == 400
    assert (reply.json()["error"]["type"], reply.json()["error"]["param"]) == ("invalid_request_error", "messages")
    assert "not today" in reply.json()["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_20_nothing_is_cut_silently(demo: Running, stream: bool) -> None:
    long = "word " * 20_000
    for path, body in (
        (CHAT, {"messages": [{"role": "user", "content": long}]}),
        ("/v1/completions", {"prompt": long}),
    ):
        reply = ask(demo, path, stream=stream, **body)
        assert (reply.status_code, reply.json()["error"]["code"]) == (400, "context_length_exceeded")
        assert reply.json()["error"]["message"].startswith("This model's maximum context length is ")


@pytest.mark.parametrize("tokens", [1, 2, 3])
def test_21_no_character_is_split(serve: Serve, tokens: int) -> None:
    text = "naïve 東京 👩‍👩‍👧‍👦 é 🏴󠁧󠁢󠁥󠁮󠁧󠁿."
    server = serve(toy_model(text, tokens_per_event=tokens))
    pieces = [delta.get("content") or "" for delta in deltas_of(server)]
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)
    for limit in range(1, 14):  # and none is left over where a reply ends within one
        assert text.startswith(choice_of(server, max_tokens=limit)["message"]["content"].rstrip("\ufffd"))


def test_22_a_silent_prefill_shows_signs_of_life(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fermi.server.sse.PING_S", 0.01)
    model = toy_model(hold=True)
    with serve(model).http() as http, http.stream("POST", CHAT, json={"messages": HELLO, "stream": True}) as reply:
        lines = reply.iter_lines()
        assert reply.status_code == 200
        assert next(lines) == ": ping"
        stream = service_of(model).streams[0]
        stream.put(Event(stream.request.id, 0, [65], finish_reason="length"))
        assert [line for line in lines if line.startswith("data")][-1] == "data: [DONE]"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/v1/responses", "/v1/messages"])
def test_23_a_client_that_leaves_ends_its_request(serve: Serve, path: str, stream: bool) -> None:
    model = toy_model(hold=True)
    submitted, left = threading.Event(), threading.Event()
    service = service_of(model)
    service.on_submit, service.on_cancel = submitted.set, left.set
    server = serve(model, settings=settings_with(response_store="off"))
    host, port = server.url.removeprefix("http://").split(":")
    given: dict[str, object] = {"/v1/completions": {"prompt": "x"}, "/v1/responses": {"input": "x"}}.get(path, {})
    body = {"model": "toy", "stream": stream, **(given or {"messages": HELLO, "max_tokens": 9})}
    content = json.dumps(body).encode()
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n"
        connection.sendall(head.encode() + content)
        assert submitted.wait(30)
    assert left.wait(30)


def test_24_events_of_responses_have_their_indices(serve: Serve) -> None:
    server = serve(toy_model("<think>\nHmm.\n</think>\n\nYes." + CALL), settings=settings_with(response_store="off"))
    tool = {"type": "function", **ADD["function"]}  # type: ignore[dict-item]
    with server.http() as http:
        reply = http.post(
            "/v1/responses", json={"input": "x", "stream": True, "tools": [tool], "reasoning": {"effort": "low"}}
        )
    events = [json.loads(part.split("data: ", 1)[1]) for part in reply.text.split("\n\n") if "data: {" in part]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    for event in events:
        kind = event["type"]
        if ".output_item." in kind:
            assert isinstance(event["output_index"], int)
        elif ".output_text." in kind or ".content_part." in kind or ".reasoning_text." in kind:
            assert isinstance(event["output_index"], int)
            assert isinstance(event["content_index"], int)
            assert event["item_id"]
        elif ".function_call_arguments." in kind:
            assert isinstance(event["output_index"], int)
            assert event["item_id"]
    assert {"response.output_item.added", "response.output_text.delta", "response.function_call_arguments.done"} <= {
        event["type"] for event in events
    }


def test_25_a_line_that_changes_each_time_does_not_spoil_the_prefix_cache(demo: Running) -> None:
    """Claude Code begins its system prompt with a hash of the conversation, of which a model makes nothing."""
    system = "You are a careful calculator that explains each of its steps to children. " * 4
    cached = []
    for number in ("36ee5", "0aaa9"):
        line = f"x-anthropic-billing-header: cc_version=2.1.177.01c; cc_entrypoint=cli; cch={number};"
        blocks = [{"type": "text", "text": line}, {"type": "text", "text": system}]
        for given in (blocks, f"{line}\n{system}"):
            reply = ask(demo, "/v1/messages", model="demo", max_tokens=1, system=given)
            assert reply.status_code == 200, reply.text
            usage = reply.json()["usage"]
            cached.append((usage["cache_read_input_tokens"] or 0, usage["input_tokens"]))
    assert cached[2][0] > 60, f"cached tokens and others: {cached}"
    assert cached[3][0] > 60, f"cached tokens and others: {cached}"


def test_also_a_seed_reproduces(demo: Running) -> None:
    options = {"temperature": 1.0, "seed": 11, "max_tokens": 40, "ignore_eos": True}
    assert choice_of(demo, **options)["message"] == choice_of(demo, **options)["message"]
    assert choice_of(demo, **options)["message"] != choice_of(demo, **{**options, "seed": 12})["message"]


def test_also_stop_ids_are_the_union(stories260k: Path, tmp_path: Path) -> None:
    """Of the tokenizer's, the config's and the generation config's."""
    for path in stories260k.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    for name, ids in (("config.json", [5, 6]), ("generation_config.json", 7)):
        document = json.loads((tmp_path / name).read_text()) | {"eos_token_id": ids}
        (tmp_path / name).write_text(json.dumps(document))
    flags = {"engine.threads": 1, "cache.kv_cache_memory": "16MiB"}
    model = load_served(str(tmp_path), load_settings(flags, environ={}, folder=Path("/nonexistent")))
    with serving(model) as server:
        own = set(ask(server, "/tokenize", prompt="").json()["tokens"])
        with server.http() as http:
            ends = set(http.get("/tokenizer_info").json()["eos_token_ids"])
    assert ends >= {5, 6, 7}
    assert len(ends - own) >= 3


def test_also_official_client_sees_no_difference(demo: Running) -> None:
    """Whole and streamed replies of one seed are the same text."""
    client: openai.OpenAI = demo.openai()
    options: dict[str, Any] = {"model": "demo", "messages": HELLO, "temperature": 1, "seed": 3, "max_tokens": 30}
    whole = client.chat.completions.create(**options).choices[0].message.content
    pieces = client.chat.completions.create(stream=True, **options)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in pieces) == whole
