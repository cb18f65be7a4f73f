"""POST /v1/chat/completions through OpenAI's own client."""

from __future__ import annotations

import json

import openai
import pytest
from openai.types.chat import ChatCompletionChunk

from fermi.defaults import Defaults
from server.running import Running, Serve
from server.toy import service_of, settings_with, toy_model

HELLO = [{"role": "user", "content": "Hi"}]
CALCULATOR = {"type": "function", "function": {"name": "calculator", "parameters": {"type": "object"}}}
CALL = '<tool_call>\n{"name": "calculator", "arguments": {"expression": "2 * 3"}}\n</tool_call>'


def chunks_of(server: Running, **body: object) -> list[ChatCompletionChunk]:
    body = {"model": "toy", "messages": HELLO, **body}
    return list(server.openai().chat.completions.create(stream=True, **body))  # type: ignore[call-overload]


def test_whole_reply(toy_server: Running) -> None:
    reply = toy_server.openai().chat.completions.create(model="toy", messages=HELLO)
    assert reply.object == "chat.completion"
    assert reply.id.startswith("chatcmpl-")
    choice = reply.choices[0]
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", "Hello, world.", "stop")
    assert choice.message.refusal is None
    assert choice.logprobs is None
    assert choice.message.tool_calls is None
    assert reply.usage is not None
    assert reply.usage.completion_tokens == len("Hello, world.") + 1
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    assert reply.usage.prompt_tokens_details is not None
    assert reply.usage.prompt_tokens_details.cached_tokens == 3
    assert reply.usage.completion_tokens_details is not None
    assert reply.usage.completion_tokens_details.reasoning_tokens == 0


def test_keys_that_must_be_there(toy_server: Running) -> None:
    with toy_server.http() as http:
        reply = http.post("/v1/chat/completions", json={"messages": HELLO}).json()
    choice = reply["choices"][0]
    assert set(choice) == {"index", "message", "logprobs", "finish_reason"}
    assert set(choice["message"]) == {"role", "content", "refusal"}
    assert set(reply["performance"]) == {
        "prefill_ms",
        "decode_ms",
        "decode_iterations",
        "tokens_per_second",
        "time_to_first_token_ms",
    }
    assert reply["usage"]["performance"] == reply["performance"]
    assert reply["performance"]["prefill_ms"] == 2.0


def test_stream(toy_server: Running) -> None:
    chunks = chunks_of(toy_server)
    assert {(chunk.id, chunk.created, chunk.model, chunk.object) for chunk in chunks} == {
        (chunks[0].id, chunks[0].created, "toy", "chat.completion.chunk")
    }
    first, *middle, last = [chunk.choices[0] for chunk in chunks]
    assert first.delta.model_dump(exclude_unset=True) == {"role": "assistant", "content": ""}
    assert "".join(choice.delta.content or "" for choice in middle) == "Hello, world."
    assert all(choice.delta.role is None and choice.finish_reason is None for choice in middle)
    assert last.delta.model_dump(exclude_unset=True) == {}
    assert last.finish_reason == "stop"
    assert all(chunk.usage is None for chunk in chunks)


def test_wire_of_a_stream(toy_server: Running) -> None:
    with toy_server.http() as http:
        reply = http.post("/v1/chat/completions", json={"messages": HELLO, "stream": True})
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    events = reply.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    for event in events[:-2]:
        chunk = json.loads(event.removeprefix("data: "))
        assert "usage" not in chunk
        assert set(chunk["choices"][0]) == {"index", "delta", "logprobs", "finish_reason"}
        assert chunk["choices"][0]["finish_reason"] in (None, "stop")


def test_usage_of_a_stream(toy_server: Running) -> None:
    *rest, last = chunks_of(toy_server, stream_options={"include_usage": True})
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == 14
    assert all("usage" in chunk.model_fields_set and chunk.usage is None for chunk in rest)


def test_usage_on_each_chunk(toy_server: Running) -> None:
    *rest, last = chunks_of(toy_server, stream_options={"include_usage": True, "continuous_usage_stats": True})
    counts = [chunk.usage.completion_tokens for chunk in rest if chunk.usage]
    assert len(counts) == len(rest)
    assert counts == sorted(counts)
    assert last.usage is not None
    assert counts[-1] == last.usage.completion_tokens


def test_several_choices(serve: Serve) -> None:
    server = serve(toy_model("Yes."))
    reply = server.openai().chat.completions.create(model="toy", messages=HELLO, n=3)
    assert [choice.message.content for choice in reply.choices] == ["Yes."] * 3
    texts, reasons, roles = ["", "", ""], ["", "", ""], [0, 0, 0]
    for chunk in chunks_of(server, n=3):
        choice = chunk.choices[0]
        texts[choice.index] += choice.delta.content or ""
        roles[choice.index] += choice.delta.role is not None
        reasons[choice.index] = choice.finish_reason or ""
    assert (texts, reasons, roles) == (["Yes."] * 3, ["stop"] * 3, [1, 1, 1])


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_limits(serve: Serve, field: str) -> None:
    model = toy_model("Hello, world.")
    server = serve(model)
    reply = server.openai().chat.completions.create(model="toy", messages=HELLO, **{field: 5})  # type: ignore[call-overload]
    assert (reply.choices[0].message.content, reply.choices[0].finish_reason) == ("Hello", "length")
    assert service_of(model).last.sampling.max_tokens == 5


def test_default_limit_is_what_the_context_leaves(serve: Serve) -> None:
    model = toy_model(max_model_len=100)
    serve(model).openai().chat.completions.create(model="toy", messages=HELLO)
    request = service_of(model).last
    assert request.sampling.max_tokens == 100 - len(request.prompt_token_ids)


@pytest.mark.parametrize("stops", ["wor", ["zzz", "wor"], ["o, wor"], ["o, w", "world"]])
def test_stop(serve: Serve, stops: str | list[str]) -> None:
    expected = "Hello, world."[: "Hello, world.".index(stops if isinstance(stops, str) else stops[-1][:4])]
    expected = {"wor": "Hello, ", "o, wor": "Hell", "o, w": "Hell"}.get(
        stops if isinstance(stops, str) else stops[0], expected
    )
    model = toy_model("Hello, world.")
    server = serve(model)
    reply = server.openai().chat.completions.create(model="toy", messages=HELLO, stop=stops)
    assert (reply.choices[0].message.content, reply.choices[0].finish_reason) == (expected, "stop")
    assert 0 in service_of(model).streams[0].cancelled
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks_of(server, stop=stops))
    assert text == expected


def test_sampling_reaches_the_engine(serve: Serve) -> None:
    model = toy_model()
    body = {"temperature": 0.5, "top_p": 0.9, "seed": -1, "presence_penalty": 0.1, "frequency_penalty": 0.2}
    more = {"top_k": 5, "min_p": 0.05, "repeat_penalty": 1.2, "min_tokens": 2, "ignore_eos": True, "priority": 3}
    more["stop_token_ids"] = [65]
    serve(model).openai().chat.completions.create(  # type: ignore[call-overload]
        model="toy", messages=HELLO, logit_bias={"7": -100}, extra_body=more, **body
    )
    request = service_of(model).last
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.9, 5, 0.05)
    assert (sampling.presence_penalty, sampling.frequency_penalty, sampling.repetition_penalty) == (0.1, 0.2, 1.2)
    assert (sampling.seed, sampling.logit_bias, sampling.stop_token_ids) == (2**64 - 1, {7: -100.0}, frozenset({65}))
    assert (sampling.min_tokens, sampling.ignore_eos, request.priority) == (2, True, 3)
    assert request.eos_token_ids == frozenset({257})


def test_defaults(serve: Serve) -> None:
    model = toy_model(defaults=Defaults(temperature=0.7, top_p=0.8, top_k=20, repetition_penalty=1.05, max_tokens=9))
    server = serve(model)
    server.openai().chat.completions.create(model="toy", messages=HELLO)
    sampling = service_of(model).last.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.7, 0.8, 20)
    assert (sampling.repetition_penalty, sampling.max_tokens) == (1.05, 9)
    server.openai().chat.completions.create(model="toy", messages=HELLO, temperature=0)
    assert service_of(model).last.sampling.repetition_penalty == 1.0


def test_logprobs(toy_server: Running) -> None:
    reply = toy_server.openai().chat.completions.create(model="toy", messages=HELLO, logprobs=True, top_logprobs=2)
    logprobs = reply.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert "".join(entry.token for entry in logprobs.content) == "Hello, world."
    assert all(entry.bytes == list(entry.token.encode()) for entry in logprobs.content)
    assert all(len(entry.top_logprobs) == 2 for entry in logprobs.content)
    assert all(entry.top_logprobs[0].logprob == entry.logprob for entry in logprobs.content)


def test_logprobs_of_a_stream(serve: Serve) -> None:
    chunks = chunks_of(serve(toy_model("né 🎉!")), logprobs=True, stop=["zz"])
    tokens: list[int] = []
    for chunk in chunks:
        logprobs = chunk.choices[0].logprobs
        for entry in (logprobs.content or []) if logprobs else []:
            assert entry.top_logprobs == []
            tokens += entry.bytes or []
    assert bytes(tokens).decode() == "né 🎉!"


def test_split_characters_never_break(serve: Serve) -> None:
    chunks = chunks_of(serve(toy_model("né 🎉🎉!")))
    contents = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(contents) == "né 🎉🎉!"
    assert not any("\ufffd" in content for content in contents)


def test_roles_and_parts(serve: Serve) -> None:
    model = toy_model()
    messages = [
        {"role": "developer", "content": [{"type": "text", "text": "Be"}, {"type": "text", "text": "brief."}]},
        {"role": "user", "content": "2*3?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "calculator", "arguments": '{"e": "2*3"}'}}
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "6"},
    ]
    serve(model).openai().chat.completions.create(model="toy", messages=messages)  # type: ignore[call-overload]
    prompt = service_of(model).prompt(service_of(model).last)
    assert prompt.startswith("<s>[system]Be\nbrief.[user]2*3?[assistant]<tool_call>")
    assert '"arguments": {"e": "2*3"}' in prompt
    assert "[tool]6[assistant]" in prompt


def test_system_prompt_of_the_server(serve: Serve) -> None:
    model = toy_model()
    server = serve(model, settings=settings_with(default_system_prompt="Be kind."))
    server.openai().chat.completions.create(model="toy", messages=HELLO)
    assert service_of(model).prompt(service_of(model).last).startswith("<s>[system]Be kind.[user]Hi")
    own = [{"role": "system", "content": "Mine."}, *HELLO]
    server.openai().chat.completions.create(model="toy", messages=own)  # type: ignore[call-overload]
    assert service_of(model).prompt(service_of(model).last).startswith("<s>[system]Mine.[user]Hi")


def test_continue_the_final_message(serve: Serve) -> None:
    model = toy_model(" world.")
    messages = [*HELLO, {"role": "assistant", "content": "Hello,"}]
    body = {"continue_final_message": True, "add_generation_prompt": False}
    reply = serve(model).openai().chat.completions.create(model="toy", messages=messages, extra_body=body)  # type: ignore[call-overload]
    assert reply.choices[0].message.content == " world."
    assert service_of(model).prompt(service_of(model).last).endswith("[assistant]Hello,")


class TestTools:
    def test_offered(self, serve: Serve) -> None:
        model = toy_model()
        client = serve(model).openai()
        for choice, offered in [(openai.NOT_GIVEN, True), ("auto", True), ("none", False)]:
            client.chat.completions.create(model="toy", messages=HELLO, tools=[CALCULATOR], tool_choice=choice)  # type: ignore[call-overload]
            assert ('[tools][{"type": "function"' in service_of(model).prompt(service_of(model).last)) is offered

    def test_whole(self, serve: Serve) -> None:
        reply = serve(toy_model(CALL)).openai().chat.completions.create(model="toy", messages=HELLO, tools=[CALCULATOR])  # type: ignore[call-overload]
        choice = reply.choices[0]
        assert (choice.message.content, choice.finish_reason) == (None, "tool_calls")
        [call] = choice.message.tool_calls
        assert (call.type, call.function.name) == ("function", "calculator")
        assert json.loads(call.function.arguments) == {"expression": "2 * 3"}
        assert call.id.startswith("call_")

    def test_stream(self, serve: Serve) -> None:
        chunks = chunks_of(serve(toy_model(f"Let me see.\n{CALL}\n{CALL}")), tools=[CALCULATOR])
        contents = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert contents == "Let me see."
        calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
        assert {call.index for call in calls} == {0, 1}
        for index in (0, 1):
            first, *rest = (call for call in calls if call.index == index)
            assert first.id
            assert first.type == "function"
            assert first.function is not None
            assert (first.function.name, first.function.arguments) == ("calculator", "")
            dumps = [piece.model_dump(exclude_unset=True) for piece in rest]
            assert all(set(piece) == {"index", "function"} for piece in dumps)
            assert "".join(piece["function"].pop("arguments") for piece in dumps) == '{"expression": "2 * 3"}'
            assert all(piece["function"] == {} for piece in dumps)
        assert chunks[-1].choices[0].finish_reason == "tool_calls"

    def test_one_at_a_time(self, serve: Serve) -> None:
        model = toy_model(CALL + CALL)
        server = serve(model)
        body = {"model": "toy", "messages": HELLO, "tools": [CALCULATOR], "parallel_tool_calls": False}
        reply = server.openai().chat.completions.create(**body)  # type: ignore[call-overload]
        assert len(reply.choices[0].message.tool_calls) == 1
        assert reply.choices[0].finish_reason == "tool_calls"
        assert 0 in service_of(model).streams[0].cancelled
        calls = [call for chunk in chunks_of(server, **body) for call in chunk.choices[0].delta.tool_calls or []]
        assert {call.index for call in calls} == {0}
        assert "".join(call.function.arguments or "" for call in calls if call.function) == '{"expression": "2 * 3"}'

    @pytest.mark.parametrize(
        "text", ["<tool_call>nonsense</tool_call>", '<tool_call>{"name": 3}</tool_call>', "<tool_call>{", "<tool_"]
    )
    def test_malformed_is_content(self, serve: Serve, text: str) -> None:
        server = serve(toy_model(text))
        reply = server.openai().chat.completions.create(model="toy", messages=HELLO, tools=[CALCULATOR])  # type: ignore[call-overload]
        assert (reply.choices[0].message.content, reply.choices[0].finish_reason) == (text, "stop")
        chunks = chunks_of(server, tools=[CALCULATOR])
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text

    def test_not_asked_for(self, serve: Serve) -> None:
        reply = serve(toy_model(CALL)).openai().chat.completions.create(model="toy", messages=HELLO)
        assert (reply.choices[0].message.content, reply.choices[0].finish_reason) == (CALL, "stop")


@pytest.mark.parametrize("together", [1, 2, 5, 100])
def test_nothing_counts_after_a_stop_string(serve: Serve, together: int) -> None:
    client = serve(toy_model("Hello, world.", tokens_per_event=together)).openai()
    reply = client.chat.completions.create(model="toy", messages=HELLO, stop="o,", logprobs=True)
    choice = reply.choices[0]
    assert (choice.message.content, choice.finish_reason) == ("Hell", "stop")
    assert choice.logprobs is not None
    assert "".join(score.token for score in choice.logprobs.content or ()) == "Hello,"
    assert reply.usage is not None
    assert reply.usage.completion_tokens == len("Hello,")


class TestThinking:
    THOUGHT = "<think>\nHmm.\n</think>\n\nYes."

    def ask(self, serve: Serve, text: str = THOUGHT, settings: object = None, **body: object) -> tuple[dict, str, dict]:
        """The message, the prompt, the usage; the stream must agree with the message."""
        model = toy_model(text)
        server = serve(model, settings=settings)
        with server.http() as http:
            reply = http.post("/v1/chat/completions", json={"messages": HELLO, **body}).json()
            stream = http.post("/v1/chat/completions", json={"messages": HELLO, "stream": True, **body}).text
        message = reply["choices"][0]["message"]
        deltas = [json.loads(event[6:])["choices"][0]["delta"] for event in stream.split("\n\n")[:-2]]
        assert "".join(delta.get("content", "") for delta in deltas) == message["content"]
        for name in ("reasoning", "reasoning_content"):
            assert "".join(delta.get(name, "") for delta in deltas) == message.get(name, "")
        return message, service_of(model).prompt(service_of(model).last), reply["usage"]

    def test_off_by_default(self, serve: Serve) -> None:
        message, prompt, usage = self.ask(serve)
        assert message == {"role": "assistant", "content": "Yes.", "refusal": None}  # the leaked block is dropped
        assert prompt.endswith("[assistant]<think>\n\n</think>\n\n")
        assert usage["completion_tokens_details"]["reasoning_tokens"] > 0

    @pytest.mark.parametrize(
        "body",
        [
            {"thinking": "auto"},
            {"thinking": "ON", "reasoning_format": "deepseek"},
            {"reasoning_effort": "low"},
            {"chat_template_kwargs": {"enable_thinking": True}},
        ],
    )
    def test_apart(self, serve: Serve, body: dict[str, object]) -> None:
        message, prompt, usage = self.ask(serve, **body)
        assert (message["content"], message["reasoning"], message["reasoning_content"]) == ("Yes.", "Hmm.", "Hmm.")
        assert prompt.endswith("[assistant]")
        assert usage["completion_tokens_details"]["reasoning_tokens"] == len("<think>\nHmm.\n</think>\n\n")

    @pytest.mark.parametrize("together", [1, 2, 5, 100])
    def test_counted_the_same_however_many_tokens_come_at_once(self, serve: Serve, together: int) -> None:
        model = toy_model(self.THOUGHT, tokens_per_event=together)
        with serve(model).http() as http:
            usage = http.post("/v1/chat/completions", json={"messages": HELLO, "thinking": "auto"}).json()["usage"]
        assert usage["completion_tokens"] == len(self.THOUGHT) + 1
        assert usage["completion_tokens_details"]["reasoning_tokens"] == len("<think>\nHmm.\n</think>\n\n")

    @pytest.mark.parametrize("body", [{"thinking": True}, {"thinking": "on", "reasoning_format": "none"}])
    def test_in_the_content(self, serve: Serve, body: dict[str, object]) -> None:
        message, _, _ = self.ask(serve, **body)
        assert message == {"role": "assistant", "content": self.THOUGHT, "refusal": None}

    def test_hidden(self, serve: Serve) -> None:
        message, prompt, _ = self.ask(serve, thinking="on", reasoning_format="hidden")
        assert message == {"role": "assistant", "content": "Yes.", "refusal": None}
        assert prompt.endswith("[assistant]")

    def test_server_default_and_veto(self, serve: Serve) -> None:
        assert self.ask(serve, settings=settings_with(default_thinking="auto"))[0]["reasoning"] == "Hmm."
        veto = settings_with(default_thinking="on", disable_think=True)
        assert "reasoning" not in self.ask(serve, settings=veto, thinking="on")[0]

    def test_template_that_opens_the_block(self, serve: Serve) -> None:
        template = "{% for message in messages %}{{ message.content }}{% endfor %}[assistant]{{ '<think>\\n' }}"
        model = toy_model("Hmm.\n</think>\n\nYes.", template=template)
        with serve(model).http() as http:

            def ask(**body: object) -> dict[str, object]:
                reply = http.post("/v1/chat/completions", json={"messages": HELLO, **body}).json()
                return dict(reply["choices"][0]["message"])

            apart = ask(thinking="auto")
            assert (apart["content"], apart["reasoning"]) == ("Yes.", "Hmm.")
            assert ask(thinking="on")["content"] == "<think>\nHmm.\n</think>\n\nYes."
            ask(thinking="off")
        assert service_of(model).prompt(service_of(model).last).endswith("<think>\n\n</think>\n\n")

    def test_model_that_cannot(self, serve: Serve) -> None:
        server = serve(toy_model(template="{{ messages[0].content }}"))
        with pytest.raises(openai.BadRequestError) as refused:
            server.openai().chat.completions.create(model="toy", messages=HELLO, extra_body={"thinking": "on"})
        assert refused.value.param == "thinking"
        server.openai().chat.completions.create(model="toy", messages=HELLO, extra_body={"thinking": "auto"})


async def test_async_client(toy_server: Running) -> None:
    async with toy_server.async_openai() as client:
        stream = await client.chat.completions.create(model="toy", messages=HELLO, stream=True)  # type: ignore[call-overload]
        assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == "Hello, world."


def test_stream_helper(toy_server: Running) -> None:
    with toy_server.openai().chat.completions.stream(model="toy", messages=HELLO) as stream:
        kinds = [event.type for event in stream]
        assert stream.get_final_completion().choices[0].message.content == "Hello, world."
    assert kinds.count("content.done") == 1
