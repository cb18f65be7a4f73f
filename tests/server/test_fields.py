"""Every field of chat completions and completions: what it does, or that it is refused by its name.

A field that is missing here fails `test_every_field_is_listed`.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import pytest
import structlog

from fermi.config import load_settings
from fermi.engine.sequence import Request
from fermi.server.loading import load_served
from fermi.server.schema.chat import ChatBody
from fermi.server.schema.completions import CompletionBody
from server.running import Running, Serve, serving
from server.toy import ScriptedService, service_of, toy_model

HELLO = [{"role": "user", "content": "Hi"}]
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
TOOL = {"type": "function", "function": {"name": "calculator", "parameters": {"type": "object"}}}
THOUGHT = "<think>\nHmm.\n</think>\n\nYes."
CALL = '<tool_call>\n{"name": "calculator", "arguments": {}}\n</tool_call>'


class Seen(NamedTuple):
    """What came of a request."""

    body: dict[str, Any]
    request: Request
    prompt: str

    @property
    def choice(self) -> dict[str, Any]:
        return dict(self.body["choices"][0])

    @property
    def content(self) -> str:
        choice = self.choice
        return str(choice["text"] if "text" in choice else choice["message"]["content"])


Effect = Callable[[Seen], object]


def sampling(name: str, value: object) -> Effect:
    return lambda seen: getattr(seen.request.sampling, name) == value


#: Of both endpoints: field, value, how its effect is seen.
COMMON: list[tuple[str, dict[str, Any], Effect]] = [
    ("model", {"model": "also/toy"}, lambda seen: seen.body["model"] == "toy"),
    ("n", {"n": 3}, lambda seen: [choice["index"] for choice in seen.body["choices"]] == [0, 1, 2]),
    ("temperature", {"temperature": 0.75}, sampling("temperature", 0.75)),
    ("top_p", {"top_p": 0.5}, sampling("top_p", 0.5)),
    ("top_k", {"top_k": 7}, sampling("top_k", 7)),
    ("min_p", {"min_p": 0.25}, sampling("min_p", 0.25)),
    ("presence_penalty", {"presence_penalty": 1.5}, sampling("presence_penalty", 1.5)),
    ("frequency_penalty", {"frequency_penalty": -0.5}, sampling("frequency_penalty", -0.5)),
    ("repetition_penalty", {"repetition_penalty": 1.25}, sampling("repetition_penalty", 1.25)),
    ("repetition_penalty", {"repeat_penalty": 1.25}, sampling("repetition_penalty", 1.25)),
    ("logit_bias", {"logit_bias": {"72": 50.0}}, sampling("logit_bias", {72: 50.0})),
    ("seed", {"seed": 11}, sampling("seed", 11)),
    ("stop", {"stop": [",", "w"]}, lambda seen: seen.content == "Hello"),
    ("stop", {"stop": "wor"}, lambda seen: seen.content == "Hello, "),
    ("stop_token_ids", {"stop_token_ids": [65]}, sampling("stop_token_ids", frozenset({65}))),
    (
        "include_stop_str_in_output",
        {"stop": ",", "include_stop_str_in_output": True},
        lambda seen: seen.content == "Hello,",
    ),
    ("max_tokens", {"max_tokens": 5}, lambda seen: (seen.content, seen.choice["finish_reason"]) == ("Hello", "length")),
    ("min_tokens", {"min_tokens": 4}, sampling("min_tokens", 4)),
    ("ignore_eos", {"ignore_eos": True}, sampling("ignore_eos", True)),
    ("timeout", {"timeout": 5.0}, lambda seen: (seen.request.deadline or 1e18) < time.monotonic() + 30),
    ("priority", {"priority": -3}, lambda seen: seen.request.priority == -3),
    ("cache_salt", {"cache_salt": "mine"}, lambda seen: seen.request.cache_salt != 0),
    ("prompt_cache_key", {"prompt_cache_key": "mine"}, lambda seen: seen.request.affinity != 0),
    ("metadata", {"metadata": {"project": "x"}}, lambda seen: seen.body["metadata"] == {"project": "x"}),
    ("truncate_prompt_tokens", {"truncate_prompt_tokens": 2}, lambda seen: len(seen.request.prompt_token_ids) == 2),
    ("allowed_token_ids", {"allowed_token_ids": [72]}, lambda seen: seen.request.grammar is not None),
    ("bad_words", {"bad_words": ["bad"]}, lambda seen: seen.request.grammar is not None),
    ("return_token_ids", {"return_token_ids": True}, lambda seen: seen.choice["token_ids"][-1] == 257),
    ("response_format", {"response_format": {"type": "json_object"}}, lambda seen: seen.request.grammar is not None),
    ("grammar", {"grammar": {"type": "regex", "value": "a+"}}, lambda seen: seen.request.grammar is not None),
    ("json_schema", {"json_schema": {"type": "object"}}, lambda seen: seen.request.grammar is not None),
    ("guided_json", {"guided_json": {"type": "object"}}, lambda seen: seen.request.grammar is not None),
    ("guided_regex", {"guided_regex": "a+"}, lambda seen: seen.request.grammar is not None),
    ("guided_choice", {"guided_choice": ["a", "b"]}, lambda seen: seen.request.grammar is not None),
    ("guided_grammar", {"guided_grammar": 'root ::= "a"'}, lambda seen: seen.request.grammar is not None),
    ("structured_outputs", {"structured_outputs": {"regex": "a"}}, lambda seen: seen.request.grammar is not None),
]

#: Of chat completions alone; what the model says comes last.
OF_CHAT: list[tuple[str, dict[str, Any], Effect, str]] = [
    ("messages", {"messages": [{"role": "user", "content": "Ho"}]}, lambda seen: "[user]Ho" in seen.prompt, "x"),
    ("max_completion_tokens", {"max_completion_tokens": 2}, lambda seen: seen.content == "ab", "abc"),
    ("logprobs", {"logprobs": True}, lambda seen: seen.choice["logprobs"]["content"][0]["token"] == "H", "Hi"),
    (
        "top_logprobs",
        {"logprobs": True, "top_logprobs": 2},
        lambda seen: len(seen.choice["logprobs"]["content"][0]["top_logprobs"]) == 2,
        "Hi",
    ),
    (
        "return_tokens_as_token_ids",
        {"logprobs": True, "return_tokens_as_token_ids": True},
        lambda seen: seen.choice["logprobs"]["content"][0]["token"].startswith("token_id:"),
        "Hi",
    ),
    ("prompt_logprobs", {"prompt_logprobs": 1}, lambda seen: seen.body["prompt_logprobs"][0] is None, "x"),
    ("return_token_ids", {"return_token_ids": True}, lambda seen: seen.body["prompt_token_ids"][0] == 256, "x"),
    ("tools", {"tools": [TOOL]}, lambda seen: seen.choice["finish_reason"] == "tool_calls", CALL),
    ("tool_choice", {"tools": [TOOL], "tool_choice": "none"}, lambda seen: "[tools]" not in seen.prompt, "x"),
    ("tool_choice", {"tools": [TOOL], "tool_choice": "required"}, lambda seen: seen.request.grammar is not None, CALL),
    (
        "parallel_tool_calls",
        {"tools": [TOOL], "parallel_tool_calls": False},
        lambda seen: len(seen.choice["message"]["tool_calls"]) == 1,
        CALL + CALL,
    ),
    ("thinking", {"thinking": "on"}, lambda seen: seen.content == THOUGHT, THOUGHT),
    (
        "reasoning_effort",
        {"reasoning_effort": "high"},
        lambda seen: seen.choice["message"]["reasoning"] == "Hmm.",
        THOUGHT,
    ),
    (
        "reasoning_format",
        {"thinking": "on", "reasoning_format": "parsed"},
        lambda seen: seen.choice["message"]["reasoning"] == "Hmm.",
        THOUGHT,
    ),
    (
        "include_reasoning",
        {"thinking": "auto", "include_reasoning": False},
        lambda seen: "reasoning" not in seen.choice["message"],
        THOUGHT,
    ),
    (
        "thinking_budget",
        {"thinking": "on", "thinking_budget": 9},
        lambda seen: seen.request.grammar is not None,
        THOUGHT,
    ),
    (
        "chat_template_kwargs",
        {"chat_template_kwargs": {"enable_thinking": True}},
        lambda seen: seen.choice["message"]["reasoning"] == "Hmm.",
        THOUGHT,
    ),
    ("add_generation_prompt", {"add_generation_prompt": False}, lambda seen: seen.prompt.endswith("[user]Hi"), "x"),
    (
        "continue_final_message",
        {"messages": [*HELLO, {"role": "assistant", "content": "So"}], "continue_final_message": True},
        lambda seen: seen.prompt.endswith("[assistant]So"),
        "x",
    ),
    ("add_special_tokens", {"add_special_tokens": True}, lambda seen: seen.prompt.startswith("<s>"), "x"),
    ("skip_special_tokens", {"skip_special_tokens": False}, lambda seen: seen.content == "a<s>b", "a<s>b"),
]

OF_COMPLETIONS: list[tuple[str, dict[str, Any], Effect]] = [
    ("prompt", {"prompt": [[65, 66]]}, lambda seen: list(seen.request.prompt_token_ids) == [65, 66]),
    ("logprobs", {"logprobs": 1}, lambda seen: len(seen.choice["logprobs"]["top_logprobs"][0]) == 1),
    (
        "return_tokens_as_token_ids",
        {"logprobs": 1, "return_tokens_as_token_ids": True},
        lambda seen: seen.choice["logprobs"]["tokens"][0].startswith("token_id:"),
    ),
    ("echo", {"echo": True}, lambda seen: seen.content == "Once Hello, world."),
    (
        "echo",
        {"echo": True, "logprobs": 0, "prompt": "Hm"},
        lambda seen: seen.choice["logprobs"]["token_logprobs"][:2] == [None, -0.1],
    ),
    ("prompt_logprobs", {"prompt_logprobs": 0}, lambda seen: len(seen.choice["prompt_logprobs"]) == len("Once ")),
    ("return_token_ids", {"return_token_ids": True}, lambda seen: len(seen.choice["prompt_token_ids"]) == len("Once ")),
    ("best_of", {"best_of": 3, "n": 2}, lambda seen: (len(seen.body["choices"]), seen.request.sampling.n) == (2, 3)),
    (
        "add_special_tokens",
        {"add_special_tokens": False},
        lambda seen: len(seen.request.prompt_token_ids) == len("Once "),
    ),
    ("thinking_budget", {"thinking_budget": 5}, lambda seen: seen.request.grammar is not None),
]

#: Seen elsewhere: how streams look, and what stands in the log.
ELSEWHERE = {"stream", "stream_options", "user", "safety_identifier"}


def ask(serve: Serve, path: str, body: dict[str, Any], answer: str) -> Seen:
    model = toy_model(answer)
    service = service_of(model)
    with serve(model).http() as http:
        reply = http.post(path, json=body)
    assert reply.status_code == 200, reply.text
    return Seen(reply.json(), service.last, service.prompt(service.last))


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize(("field", "body", "effect"), COMMON, ids=lambda value: value if isinstance(value, str) else "")
def test_field_of_both(serve: Serve, path: str, field: str, body: dict[str, Any], effect: Effect) -> None:
    base: dict[str, Any] = {"messages": HELLO} if path == CHAT else {"prompt": "Once ", "max_tokens": 100}
    seen = ask(serve, path, base | body, "Hello, world.")
    assert effect(seen), field
    if "grammar" not in field:  # without the field it is otherwise
        plain = ask(serve, path, base, "Hello, world.")
        with suppress(KeyError):
            assert not effect(plain) or field == "model", f"{field}: the same without it"


@pytest.mark.parametrize(
    ("field", "body", "effect", "answer"), OF_CHAT, ids=lambda value: value if isinstance(value, str) else ""
)
def test_field_of_chat(serve: Serve, field: str, body: dict[str, Any], effect: Effect, answer: str) -> None:
    assert effect(ask(serve, CHAT, {"messages": HELLO} | body, answer)), field


@pytest.mark.parametrize(
    ("field", "body", "effect"), OF_COMPLETIONS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_field_of_completions(serve: Serve, field: str, body: dict[str, Any], effect: Effect) -> None:
    base = {"prompt": "Once ", "max_tokens": 100}
    assert effect(ask(serve, COMPLETIONS, base | body, "Hello, world.")), field


def test_every_field_is_listed() -> None:
    both = {field for field, *_ in COMMON}
    chat = {field for field, *_ in OF_CHAT} | {"documents"}
    assert set(ChatBody.model_fields) - both - ELSEWHERE == chat - both
    assert (
        set(CompletionBody.model_fields) - both - ELSEWHERE - {"skip_special_tokens"}
        == {field for field, *_ in OF_COMPLETIONS} - both
    )


@pytest.mark.parametrize(
    ("path", "field"),
    [*((CHAT, field) for field in ChatBody.refused), *((COMPLETIONS, field) for field in CompletionBody.refused)],
)
def test_what_is_refused_is_named(toy_server: Running, path: str, field: str) -> None:
    with toy_server.http() as http:
        body = {"messages": HELLO, "prompt": "x"}
        reply = http.post(path, json={**body, field: "something else"})
        assert reply.status_code == 400
        error = reply.json()["error"]
        assert (error["param"], error["code"]) == (field, "unsupported_parameter")
        assert field in error["message"]
        harmless = (ChatBody if path == CHAT else CompletionBody).refused[field]
        for value in (None, *harmless):
            assert http.post(path, json={**body, field: value}).status_code == 200


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (CHAT, {"stream_options": {"include_usage": True}}, "stream_options"),
        (COMPLETIONS, {"stream_options": {"continuous_usage_stats": True}}, "stream_options"),
        (CHAT, {"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
        (CHAT, {"stream": True, "prompt_logprobs": 1}, "prompt_logprobs"),
        (COMPLETIONS, {"stream": True, "prompt_logprobs": 1}, "prompt_logprobs"),
        (CHAT, {"prompt_logprobs": 21}, "prompt_logprobs"),
        (CHAT, {"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        (CHAT, {"truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
        (CHAT, {"allowed_token_ids": [1000]}, "allowed_token_ids"),
        (CHAT, {"bad_words": [""]}, "bad_words.0"),
        (CHAT, {"metadata": {"a": 1}}, "metadata.a"),
        (CHAT, {"metadata": {"a": "x" * 513}}, "metadata.a"),
        (CHAT, {"metadata": {str(number): "x" for number in range(17)}}, "metadata"),
        (COMPLETIONS, {"best_of": 1, "n": 2}, "best_of"),
        (COMPLETIONS, {"best_of": 2, "stream": True}, "best_of"),
    ],
)
def test_values_that_make_no_sense(toy_server: Running, path: str, body: dict[str, Any], param: str) -> None:
    with toy_server.http() as http:
        reply = http.post(path, json={"messages": HELLO, "prompt": "x", **body})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)


def test_an_unknown_field_is_accepted(toy_server: Running) -> None:
    with toy_server.http() as http:
        assert http.post(CHAT, json={"messages": HELLO, "what_is_this": 1}).status_code == 200


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_streams_tell_tokens_and_metadata(toy_server: Running, path: str) -> None:
    body = {"messages": HELLO, "prompt": "x", "stream": True, "return_token_ids": True, "metadata": {"a": "b"}}
    with toy_server.http() as http:
        text = http.post(path, json=body).text
        whole = http.post(path, json={**body, "stream": False}).json()
    chunks = [json.loads(line.removeprefix("data: ")) for line in text.split("\n\n")[:-2]]
    ids = [token for chunk in chunks for token in chunk["choices"][0].get("token_ids") or ()]
    assert ids == whole["choices"][0]["token_ids"]
    first = chunks[0] if path == CHAT else chunks[0]["choices"][0]
    assert first["prompt_token_ids"] == (whole if path == CHAT else whole["choices"][0])["prompt_token_ids"]
    assert sum("prompt_token_ids" in json.dumps(chunk) for chunk in chunks) == 1
    assert [chunk["metadata"] for chunk in chunks if "metadata" in chunk] == [{"a": "b"}]


def test_documents_reach_the_template(serve: Serve) -> None:
    model = toy_model(template="{% for each in documents %}({{ each.title }}){% endfor %}{{ messages[0].content }}")
    with serve(model).http() as http:
        http.post(CHAT, json={"messages": HELLO, "documents": [{"title": "a"}, {"title": "b"}]})
    assert service_of(model).prompt(service_of(model).last) == "(a)(b)Hi"


@pytest.mark.parametrize("field", ["user", "safety_identifier"])
def test_who_asks_stands_in_the_log(serve: Serve, field: str) -> None:
    server = serve(toy_model())
    logged: list[dict[str, Any]] = []

    def note(logger: object, method: str, event: dict[str, Any]) -> dict[str, Any]:
        logged.append(event)
        raise structlog.DropEvent

    before = structlog.get_config()
    structlog.configure(processors=[note], wrapper_class=structlog.make_filtering_bound_logger(0))
    try:
        with server.http() as http:
            http.post(CHAT, json={"messages": HELLO, field: "someone"})
            http.get("/v1/models")  # the line of the request before is written by now
    finally:
        structlog.configure(**before)
    assert [line.get("user") for line in logged if CHAT in str(line.get("event"))] == ["someone"]


def test_the_best_are_the_likeliest(serve: Serve) -> None:
    model = toy_model("x")
    service = service_of(model)

    class Ranked(ScriptedService):
        def events(self, request: Request, index: int, text: str) -> list[Any]:
            events = super().events(request, index, "abc"[index])
            for event in events:
                for score in event.logprobs or ():
                    object.__setattr__(score, "logprob", -(1.0, 3.0, 0.5)[index])
            return events

    service.__class__ = Ranked
    with serve(model).http() as http:
        reply = http.post(COMPLETIONS, json={"prompt": "x", "n": 2, "best_of": 3}).json()
    assert [(choice["index"], choice["text"]) for choice in reply["choices"]] == [(0, "c"), (1, "a")]
    assert reply["choices"][0]["logprobs"] is None
    assert reply["usage"]["completion_tokens"] == 6  # all that was made


@pytest.fixture(scope="module")
def demo() -> Iterator[Running]:
    flags = {"engine.threads": 1, "cache.kv_cache_memory": "16MiB"}
    with serving(load_served("demo", load_settings(flags, environ={}, folder=Path("/nonexistent")))) as running:
        yield running


class TestInTheEngine:
    """What only shows where tokens are drawn."""

    BODY: ClassVar = {"prompt": "What is 3 + 4?", "max_tokens": 8, "temperature": 0, "return_token_ids": True}

    def ask(self, demo: Running, **body: Any) -> dict[str, Any]:
        with demo.http() as http:
            reply = http.post(COMPLETIONS, json={**self.BODY, **body})
        assert reply.status_code == 200, reply.text
        return dict(reply.json()["choices"][0])

    def test_allowed_token_ids(self, demo: Running) -> None:
        assert set(self.ask(demo)["token_ids"]) - {40, 41}
        assert set(self.ask(demo, allowed_token_ids=[40, 41])["token_ids"]) <= {40, 41}
        many = self.ask(demo, allowed_token_ids=[40, 41], n=2, temperature=1.5, seed=3)
        assert set(many["token_ids"]) <= {40, 41}

    def test_allowed_token_ids_within_a_grammar(self, demo: Running) -> None:
        with demo.http() as http:
            digits = [
                http.post("/tokenize", json={"prompt": each, "add_special_tokens": False}).json()["tokens"]
                for each in "35"
            ]
        allowed = [ids[-1] for ids in digits]
        choice = self.ask(demo, allowed_token_ids=allowed, guided_regex="[0-9]{3}", max_tokens=3)
        assert choice["text"].strip("35") == ""
        assert len(choice["text"]) == 3

    def test_bad_words(self, demo: Running) -> None:
        text = self.ask(demo)["text"]
        word = text.split()[0]
        assert word not in self.ask(demo, bad_words=[word])["text"].split()[:1]

    def test_prompt_logprobs_are_those_of_the_echo(self, demo: Running) -> None:
        told = self.ask(demo, prompt_logprobs=2, echo=True, logprobs=1)
        echoed = told["logprobs"]["token_logprobs"][: len(told["prompt_token_ids"])]
        own = [
            None if entry is None else entry[str(token_id)]["logprob"]
            for entry, token_id in zip(told["prompt_logprobs"], told["prompt_token_ids"], strict=True)
        ]
        assert own == echoed
        for entry in told["prompt_logprobs"][1:]:
            assert len(entry) in (2, 3)
            assert sum(math.exp(each["logprob"]) for each in entry.values()) <= 1 + 1e-5
            assert min(each["rank"] for each in entry.values()) == 1

    def test_truncated_prompts_are_continued_as_their_ends_are(self, demo: Running) -> None:
        ids = self.ask(demo)["prompt_token_ids"]
        assert len(ids) > 5
        cut = self.ask(demo, truncate_prompt_tokens=5, logprobs=1)
        assert cut["prompt_token_ids"] == ids[-5:]
        assert cut["token_ids"] == self.ask(demo, prompt=[ids[-5:]])["token_ids"]
        long = self.ask(demo, prompt=[ids * 100], truncate_prompt_tokens=-1)
        assert len(long["prompt_token_ids"]) + 8 <= 2**20
        assert long["finish_reason"] in ("length", "stop")

    def test_min_tokens_and_ignore_eos(self, demo: Running) -> None:
        assert len(self.ask(demo, max_tokens=64, ignore_eos=True)["token_ids"]) == 64
        stop = self.ask(demo)["token_ids"][1]
        assert len(self.ask(demo, stop_token_ids=[stop])["token_ids"]) == 2
        assert len(self.ask(demo, stop_token_ids=[stop], min_tokens=6)["token_ids"]) >= 6

    def test_a_seed_gives_the_same_again(self, demo: Running) -> None:
        first, second, third = (self.ask(demo, temperature=2.0, seed=seed)["token_ids"] for seed in (5, 5, 6))
        assert first == second
        assert first != third
