"""Tools through OpenAI's own client: every family's calls as they stream, every choice as it is enforced."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import tokenizers
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from fermi.config import load_settings
from fermi.defaults import Defaults
from fermi.server.loading import load_served
from fermi.server.served import ServedModel, can_think
from fermi.text.chat import ChatTemplate
from fermi.text.grammar import GrammarCompiler
from fermi.text.tokenizer import Tokenizer
from server.running import Running, Serve, serving
from server.toy import BOS, END, ScriptedService, service_of, toy_model

HELLO = [{"role": "user", "content": "Weather in Rome and Oslo?"}]
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": CITY}}
NOW = {"type": "function", "function": {"name": "now"}}
TALK = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{{ tools }}"
ROME, OSLO = '{"city": "Rome"}', '{"city": "Oslo"}'
SEP = "<｜tool▁sep｜>"


def speaker(answer: str, template: str, special: list[str], **options: object) -> ServedModel:
    """A toy that says this, with special tokens of its own."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(alphabet)} | {BOS: 256, END: 257}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens([BOS, END, *special])
    chat_template = ChatTemplate(template, bos_token=BOS, eos_token=END)
    tokenizer = Tokenizer(backend, special_tokens={"bos_token": BOS, "eos_token": END}, chat_template=chat_template)
    service = ScriptedService(tokenizer, [answer], max_model_len=2048, **options)  # type: ignore[arg-type]
    return ServedModel(
        name="toy",
        tokenizer=tokenizer,
        template=chat_template,
        grammars=GrammarCompiler(tokenizer),
        service=service,
        max_model_len=2048,
        defaults=Defaults(max_tokens=1000),
        thinks=can_think(chat_template),
    )


def ask(server: Running, **body: object) -> ChatCompletion:
    body = {"model": "toy", "messages": HELLO, "tools": [WEATHER, NOW], **body}
    return server.openai().chat.completions.create(**body)  # type: ignore[call-overload, no-any-return]


def stream(server: Running, **body: object) -> list[ChatCompletionChunk]:
    body = {"model": "toy", "messages": HELLO, "tools": [WEATHER, NOW], **body}
    return list(server.openai().chat.completions.create(stream=True, **body))  # type: ignore[call-overload]


def said(chunks: list[ChatCompletionChunk]) -> tuple[str, list[tuple[str, str]], str | None]:
    """Content, calls and the finish reason of a stream, which must be as the contract has it."""
    content, reason = "", None
    calls: list[tuple[str, str]] = []
    ids = set()
    for chunk in chunks:
        [choice] = chunk.choices
        content += choice.delta.content or ""
        for piece in choice.delta.tool_calls or []:
            assert piece.function is not None
            if piece.id is not None:
                assert piece.index == len(calls)
                assert (piece.type, piece.function.arguments) == ("function", "")
                calls.append((piece.function.name or "", ""))
                ids.add(piece.id)
            else:
                assert piece.index == len(calls) - 1
                assert piece.model_dump(exclude_unset=True) == {
                    "index": piece.index,
                    "function": {"arguments": piece.function.arguments},
                }
                calls[-1] = (calls[-1][0], calls[-1][1] + (piece.function.arguments or ""))
        reason = choice.finish_reason or reason
    assert len(ids) == len(calls)
    assert chunks[-1].choices[0].delta.model_dump(exclude_unset=True) == {}
    return content, calls, reason


def whole(reply: ChatCompletion) -> tuple[str, list[tuple[str, str]], str | None]:
    message = reply.choices[0].message
    calls = [(call.function.name, call.function.arguments) for call in message.tool_calls or []]  # type: ignore[union-attr]
    assert message.content is None or message.content or not calls
    return message.content or "", calls, reply.choices[0].finish_reason


CALLS, CALL = "<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>"
END_CALLS, END_CALL = "<｜tool▁calls▁end｜>", "<｜tool▁call▁end｜>"


def objects(between: str, key: str = "arguments") -> str:
    """Both calls as JSON."""
    return between.join(f'{{"name": "get_weather", "{key}": {each}}}' for each in (ROME, OSLO))


def each_city(before: str, after: str, between: str = "") -> str:
    """Both calls around the arguments."""
    return between.join(before + each + after for each in (ROME, OSLO))


# The signs of a family in a template, and two calls as it writes them.
FAMILIES = {
    "hermes": ("<tool_call>", f"<tool_call>\n{objects('</tool_call> <tool_call>')}\n</tool_call>"),
    "qwen3_coder": (
        "<tool_call><function=f><parameter=p>",
        "\n".join(
            f"<tool_call>\n<function=get_weather>\n<parameter=city>\n{each}\n</parameter>\n</function>\n</tool_call>"
            for each in ("Rome", "Oslo")
        ),
    ),
    "llama3": ("<|python_tag|>", objects("; ", "parameters")),
    "pythonic": ("<|python_start|>", "[get_weather(city='Rome'), get_weather(city='Oslo')]"),
    "mistral": ("[TOOL_CALLS]", f"[TOOL_CALLS][{objects(', ')}]"),
    "mistral_args": ("[TOOL_CALLS] [ARGS]", each_city("[TOOL_CALLS]get_weather[ARGS]", "")),
    "phi4": ("<|tool|><|/tool|>", f"<|tool_call|>[{objects(', ')}]<|/tool_call|>"),
    "deepseek": (
        SEP + "```json",
        CALLS + each_city(f"{CALL}function{SEP}get_weather\n```json\n", f"\n```{END_CALL}", "\n") + END_CALLS,
    ),
}
SPECIAL = [
    "<tool_call>", "</tool_call>", "<|python_tag|>", "<|python_start|>", "[TOOL_CALLS]", "[ARGS]", "<|tool_call|>",
    "<|/tool_call|>", CALLS, CALL, SEP, END_CALL, END_CALLS,
]  # fmt: skip


@pytest.mark.parametrize("special", [[], SPECIAL], ids=["text", "tokens"])
@pytest.mark.parametrize("family", FAMILIES)
def test_calls_of_every_family(serve: Serve, family: str, special: list[str]) -> None:
    signs, answer = FAMILIES[family]
    model = speaker(answer, TALK + "{# " + signs + " #}", special)
    assert model.replies.tools.name == family
    server = serve(model)
    expected = ("", [("get_weather", ROME), ("get_weather", OSLO)], "tool_calls")
    reply = ask(server)
    assert whole(reply) == expected
    assert reply.choices[0].message.content is None
    chunks = stream(server)
    assert said(chunks) == expected


def test_long_arguments_come_in_pieces(serve: Serve) -> None:
    city = "Llanfairpwllgwyngyllgogerychwyrndrobwllllantysiliogogogoch in Wales, and whatever lies beyond it"
    answer = f'<tool_call>{{"name": "get_weather", "arguments": {{"city": "{city}"}}}}</tool_call>'
    chunks = stream(serve(toy_model(answer)))
    assert said(chunks) == ("", [("get_weather", json.dumps({"city": city}))], "tool_calls")
    assert sum(bool(chunk.choices[0].delta.tool_calls) for chunk in chunks) > 20


def test_special_tokens_are_never_content(serve: Serve) -> None:
    template = TALK + "{# <|tool_call|> [THINK] #}"
    special = ["<|tool_call|>", "<|/tool_call|>", "[THINK]", "[/THINK]", "<|other|>"]
    server = serve(speaker("a<|other|>b<|tool_call|>no call<|/tool_call|>[/THINK]c", template, special))
    assert whole(ask(server)) == said(stream(server)) == ("abno callc", [], "stop")
    shown = ask(server, extra_body={"skip_special_tokens": False}).choices[0].message.content
    assert shown is not None
    assert "<|other|>" in shown


def test_thoughts_between_special_tokens(serve: Serve) -> None:
    """Magistral's: the tokens are not in the text of a reply, but tell it apart."""
    template = TALK + "{{ '[THINK]' if enable_thinking else '' }}"
    model = speaker("Hm.[/THINK]Sunny.", template, ["[THINK]", "[/THINK]"])
    with serve(model).http() as http:
        body = {"messages": HELLO, "thinking": "auto", "chat_template_kwargs": {"enable_thinking": True}}
        message = http.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]
    assert (message["content"], message["reasoning_content"]) == ("Sunny.", "Hm.")


class TestThoughtsAndCalls:
    THOUGHT = '<think>\nMaybe <tool_call>{"name": "now"}</tool_call>?\n</think>\n\nSo:\n'
    CALL = '<tool_call>{"name": "now", "arguments": {}}</tool_call>'

    @pytest.mark.parametrize(
        ("body", "content"), [({"thinking": "auto"}, "So:"), ({"thinking": "on"}, THOUGHT.strip()), ({}, "So:")]
    )
    def test_a_call_in_the_thoughts_is_none(self, serve: Serve, body: dict[str, Any], content: str) -> None:
        server = serve(toy_model(self.THOUGHT + self.CALL))
        expected = (content, [("now", "{}")], "tool_calls")
        assert whole(ask(server, extra_body=body)) == expected
        assert said(stream(server, extra_body=body)) == expected

    def test_thoughts_without_end(self, serve: Serve) -> None:
        server = serve(toy_model("<think>\n" + self.CALL))
        reply = ask(server, extra_body={"thinking": "auto"})
        assert whole(reply) == ("", [], "stop")
        assert reply.choices[0].message.reasoning_content == self.CALL  # type: ignore[attr-defined]


class TestMistakes:
    def test_a_cut_call_keeps_what_came(self, serve: Serve) -> None:
        answer = FAMILIES["hermes"][1]
        server = serve(toy_model(answer))
        tokens = answer.index("ome")
        expected = ("", [("get_weather", '{"city": "R')], "length")
        assert whole(ask(server, max_tokens=tokens)) == said(stream(server, max_tokens=tokens)) == expected

    def test_a_stop_string_in_a_call(self, serve: Serve) -> None:
        """What it cut off is not taken for whole."""
        server = serve(toy_model('<tool_call>{"name": "get_weather", "arguments": {"city": ["Rome"], "x": 1}}'))
        expected = ("", [("get_weather", '{"city": ["Rome"')], "tool_calls")
        assert whole(ask(server, stop="]")) == said(stream(server, stop="]")) == expected

    def test_history_with_what_a_model_got_wrong(self, serve: Serve) -> None:
        """A reply whose arguments broke off can be sent back, as can calls and results of any order."""
        model = toy_model('<tool_call>{"name": "get_weather", "arguments": {"city": "Rome"}}</tool_call>')
        server = serve(model)
        message = (
            ask(server, max_tokens=len('<tool_call>{"name": "get_weather", "arguments": {"city": "Ro'))
            .choices[0]
            .message
        )
        assert message.tool_calls is not None
        history = [*HELLO, message, {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "error"}]
        ask(server, messages=history)
        prompt = service_of(model).prompt(service_of(model).last)
        assert '"Ro' in prompt
        assert "[tool]error" in prompt

    def test_system_messages_anywhere(self, serve: Serve) -> None:
        """The toy's template takes a system message at the beginning only."""
        model = toy_model()
        late = {"role": "system", "content": "In French."}
        ask(serve(model), messages=[{"role": "developer", "content": "Brief."}, *HELLO, late], tool_choice="none")
        assert service_of(model).prompt(service_of(model).last).startswith("<s>[system]Brief.\n\nIn French.[user]")


class TestOneCall:
    def test_the_reply_is_over(self, serve: Serve) -> None:
        model = toy_model("So:\n" + FAMILIES["hermes"][1])
        server = serve(model)
        expected = ("So:", [("get_weather", ROME)], "tool_calls")
        assert whole(ask(server, parallel_tool_calls=False)) == expected
        assert 0 in service_of(model).streams[0].cancelled
        assert said(stream(server, parallel_tool_calls=False)) == expected

    @pytest.mark.parametrize("together", [2, 7, 1000])
    def test_however_many_tokens_come_at_once(self, serve: Serve, together: int) -> None:
        server = serve(toy_model("So:\n" + FAMILIES["hermes"][1], tokens_per_event=together))
        expected = ("So:", [("get_weather", ROME)], "tool_calls")
        assert whole(ask(server, parallel_tool_calls=False)) == expected
        assert said(stream(server, parallel_tool_calls=False)) == expected


def refused(server: Running, **body: object) -> str | None:
    with pytest.raises(openai.BadRequestError) as refusal:
        ask(server, **body)
    return refusal.value.param


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"tool_choice": "required", "tools": []}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {}}}, "tool_choice.function.name"),
        ({"tool_choice": {"type": "custom", "custom": {"name": "x"}}}, "tool_choice.type"),
        ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice.allowed_tools"),
        ({"tool_choice": {"type": "allowed_tools", "allowed_tools": {}}}, "tool_choice.allowed_tools.mode"),
        (
            {"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}},
            "tool_choice.allowed_tools.tools",
        ),
        ({"tools": [WEATHER, WEATHER]}, "tools.1.function.name"),
        ({"tool_choice": "auto", "tools": [WEATHER], "extra_body": {"guided_regex": "a"}}, "guided_regex"),
        (
            {
                "tools": [
                    {
                        "type": "function",
                        "function": {"name": "f", "strict": True, "parameters": {"properties": {"a": {"not": {}}}}},
                    }
                ]
            },
            "tools",
        ),
        (
            {
                "tool_choice": "required",
                "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": 3}}}],
            },
            "tools",
        ),
    ],
    ids=range(12),
)
def test_what_makes_no_sense_is_named(toy_server: Running, body: dict[str, Any], param: str) -> None:
    assert refused(toy_server, **body) == param


@pytest.fixture(scope="module")
def demo() -> Iterator[Running]:
    """The demo model behind the real engine."""
    flags = {"model.id": "demo", "engine.threads": 1, "cache.kv_cache_memory": "16MiB"}
    settings = load_settings(flags, environ={}, folder=Path("/nonexistent"))
    with serving(load_served("toy=demo", settings), settings=settings) as running:
        yield running


SIZES = {"type": "object", "properties": {"size": {"enum": ["S", "M"]}, "hot": {"type": "boolean"}}}
ORDER = {
    "type": "function",
    "function": {
        "name": "order",
        "parameters": {**SIZES, "required": ["size", "hot"], "additionalProperties": False},
    },
}
CANCEL = {
    "type": "function",
    "function": {
        "name": "cancel",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"why": {"enum": ["late", "cold"]}},
            "required": ["why"],
            "additionalProperties": False,
        },
    },
}


def check(name: str, arguments: str) -> str:
    """The name of a call, whose arguments must match its schema."""
    values = json.loads(arguments)
    if name == "order":
        assert set(values) == {"size", "hot"}
        assert values["size"] in ("S", "M")
        assert type(values["hot"]) is bool
    else:
        assert name == "cancel"
        assert values in ({"why": "late"}, {"why": "cold"})
    return name


class TestEnforced:
    """The demo model knows neither of these tools: what it calls is what the grammar makes it call."""

    BODY = {"tools": [ORDER, CANCEL], "messages": [{"role": "user", "content": "Hello."}], "max_tokens": 200}  # noqa: RUF012

    @pytest.mark.parametrize("temperature", [0, 1])
    def test_required(self, demo: Running, temperature: float) -> None:
        body = {**self.BODY, "tool_choice": "required", "temperature": temperature, "seed": 5}
        for content, calls, reason in (whole(ask(demo, **body)), said(stream(demo, **body))):
            assert content == ""
            assert reason in ("tool_calls", "length")
            assert calls
            for name, arguments in calls[:-1] if reason == "length" else calls:
                check(name, arguments)

    @pytest.mark.parametrize("name", ["order", "cancel"])
    def test_named(self, demo: Running, name: str) -> None:
        choice = {"type": "function", "function": {"name": name}}
        body = {**self.BODY, "tool_choice": choice, "parallel_tool_calls": False}
        for content, calls, reason in (whole(ask(demo, **body)), said(stream(demo, **body))):
            assert (content, reason) == ("", "tool_calls")
            assert [check(*call) for call in calls] == [name]

    def test_allowed(self, demo: Running) -> None:
        allowed = {"mode": "required", "tools": [{"type": "function", "function": {"name": "cancel"}}]}
        body = {**self.BODY, "tool_choice": {"type": "allowed_tools", "allowed_tools": allowed}, "n": 3}
        reply = ask(demo, **{**body, "parallel_tool_calls": False, "temperature": 1.5, "seed": 1})
        for choice in reply.choices:
            [call] = choice.message.tool_calls or []
            assert check(call.function.name, call.function.arguments) == "cancel"  # type: ignore[union-attr]

    def test_behind_the_thoughts(self, demo: Running) -> None:
        body = {**self.BODY, "tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 400}
        reply = ask(demo, **body, extra_body={"thinking": "auto", "thinking_budget": 40})
        content, calls, reason = whole(reply)
        assert (content, reason) == ("", "tool_calls")
        assert len(calls) == 1
        check(*calls[0])

    def test_an_answer_in_json_or_a_call(self, demo: Running) -> None:
        schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
        form = {
            "type": "json_schema",
            "json_schema": {"name": "x", "schema": {**schema, "additionalProperties": False}},
        }
        content, calls, _ = whole(ask(demo, **self.BODY, response_format=form))
        assert bool(content) != bool(calls)
        if content:
            assert set(json.loads(content)) == {"ok"}
        for call in calls:
            check(*call)

    def test_a_strict_tool_leaves_answers_free(self, demo: Running) -> None:
        content, calls, _ = whole(ask(demo, **{**self.BODY, "tools": [CANCEL]}, temperature=0))
        loose = {"type": "function", "function": {**CANCEL["function"], "strict": False}}  # type: ignore[dict-item]
        free, _, _ = whole(ask(demo, **{**self.BODY, "tools": [loose]}, temperature=0))
        assert content
        assert (calls, content[:3]) == ([], free[:3])


def test_helper_of_the_client(demo: Running) -> None:
    """``.stream()`` gathers the calls, and parses the arguments of strict tools."""
    body = {"messages": [{"role": "user", "content": "Hello."}], "tools": [CANCEL], "max_tokens": 100}
    choice = {"type": "function", "function": {"name": "cancel"}}
    with demo.openai().chat.completions.stream(
        model="toy", tool_choice=choice, parallel_tool_calls=False, **body
    ) as events:  # type: ignore[call-overload]
        kinds = [event.type for event in events]
        final = events.get_final_completion()
    assert "tool_calls.function.arguments.delta" in kinds
    assert kinds.count("tool_calls.function.arguments.done") == 1
    [call] = final.choices[0].message.tool_calls
    assert call.function.parsed_arguments in ({"why": "late"}, {"why": "cold"})
