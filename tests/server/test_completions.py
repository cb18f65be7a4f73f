"""POST /v1/completions through OpenAI's own client, and as evaluation harnesses use it."""

from __future__ import annotations

import openai
import pytest

from server.running import Running, Serve
from server.toy import service_of, toy_model


def test_whole(toy_server: Running) -> None:
    reply = toy_server.openai().completions.create(model="toy", prompt="Say it:")
    assert (reply.object, reply.id[:5], reply.model) == ("text_completion", "cmpl-", "toy")
    assert (reply.choices[0].text, reply.choices[0].finish_reason) == ("Hello, world.", "stop")
    assert reply.choices[0].logprobs is None
    assert reply.usage is not None
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (7, 14)


def test_stream(toy_server: Running) -> None:
    chunks = list(toy_server.openai().completions.create(model="toy", prompt="Say it:", stream=True))
    assert len({chunk.id for chunk in chunks}) == 1
    assert "".join(chunk.choices[0].text for chunk in chunks) == "Hello, world."
    assert [chunk.choices[0].finish_reason for chunk in chunks[-2:]] == [None, "stop"]
    assert chunks[-1].choices[0].text == ""


def test_default_limit(serve: Serve) -> None:
    model = toy_model("A reply of more than sixteen tokens.")
    reply = serve(model).openai().completions.create(model="toy", prompt="x")
    assert (reply.choices[0].text, reply.choices[0].finish_reason) == ("A reply of more ", "length")


@pytest.mark.parametrize(
    ("prompt", "texts"), [("ab", ["ab"]), (["ab", "c"], ["ab", "c"]), ([66, 67], None), ([[66], [67, 68]], None)]
)
def test_prompts(serve: Serve, prompt: object, texts: list[str] | None) -> None:
    model = toy_model()
    reply = serve(model).openai().completions.create(model="toy", prompt=prompt, echo=True, max_tokens=1)  # type: ignore[call-overload]
    requests = service_of(model).requests
    ids = [list(request.prompt_token_ids) for request in requests]
    expected = [prompt] if isinstance(prompt[0], int) else prompt  # type: ignore[index]
    assert [choice.index for choice in reply.choices] == list(range(len(ids)))
    if texts is None:
        assert ids == expected
        texts = [service_of(model).prompt(request) for request in requests]
    assert [choice.text for choice in reply.choices] == [text + "H" for text in texts]
    assert reply.usage is not None
    assert reply.usage.prompt_tokens == sum(len(each) for each in ids)
    assert reply.usage.completion_tokens == len(ids)


def test_several_choices_of_several_prompts(serve: Serve) -> None:
    model = toy_model(lambda prompt: prompt.upper())
    server = serve(model)
    body = {"model": "toy", "prompt": ["a", "b"], "n": 2}
    reply = server.openai().completions.create(**body)  # type: ignore[call-overload]
    assert [(choice.index, choice.text) for choice in reply.choices] == [(0, "A"), (1, "A"), (2, "B"), (3, "B")]
    texts, ends = [""] * 4, [0] * 4
    for chunk in server.openai().completions.create(stream=True, **body):  # type: ignore[call-overload]
        texts[chunk.choices[0].index] += chunk.choices[0].text
        ends[chunk.choices[0].index] += chunk.choices[0].finish_reason == "stop"
    assert (texts, ends) == (["A", "A", "B", "B"], [1] * 4)


def test_harness(serve: Serve) -> None:
    """The request by which evaluation harnesses score a continuation."""
    server = serve(toy_model())
    prompt = [[66, 67, 68], [69, 70]]
    body = {"model": "toy", "prompt": prompt, "echo": True, "max_tokens": 1, "logprobs": 1, "temperature": 0}
    reply = server.openai().completions.create(**body)  # type: ignore[call-overload]
    for choice, ids in zip(reply.choices, prompt, strict=True):
        logprobs = choice.logprobs
        assert len(logprobs.tokens) == len(ids) + 1
        assert logprobs.token_logprobs[0] is None
        assert logprobs.top_logprobs[0] is None
        for token, score, top in zip(
            logprobs.tokens[1:], logprobs.token_logprobs[1:], logprobs.top_logprobs[1:], strict=True
        ):
            assert top[token] == score == max(top.values())
        assert "".join(logprobs.tokens) == choice.text
        assert logprobs.text_offset == [len("".join(logprobs.tokens[:at])) for at in range(len(logprobs.tokens))]
    text = ""
    tokens: list[str] = []
    for chunk in server.openai().completions.create(stream=True, **{**body, "prompt": prompt[0]}):  # type: ignore[call-overload]
        text += chunk.choices[0].text
        tokens += chunk.choices[0].logprobs.tokens if chunk.choices[0].logprobs else []
    assert (text, tokens) == (reply.choices[0].text, reply.choices[0].logprobs.tokens)


def test_echo_without_a_token(serve: Serve) -> None:
    reply = (
        serve(toy_model()).openai().completions.create(model="toy", prompt="abc", echo=True, max_tokens=0, logprobs=0)
    )
    choice = reply.choices[0]
    assert (choice.text, choice.finish_reason) == ("abc", "length")
    assert choice.logprobs is not None
    assert choice.logprobs.tokens == ["a", "b", "c"]
    assert choice.logprobs.top_logprobs is not None
    assert [set(top) for top in choice.logprobs.top_logprobs[1:]] == [{"b"}, {"c"}]  # type: ignore[arg-type]


def test_echo_of_several_choices(serve: Serve) -> None:
    reply = serve(toy_model()).openai().completions.create(model="toy", prompt="abc", echo=True, n=2, logprobs=1)
    assert reply.choices[0].model_dump(exclude={"index"}) == reply.choices[1].model_dump(exclude={"index"})


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 1, "n": 2}, "best_of"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": ["a", ""]}, "prompt"),
        ({"prompt": [1.5]}, "prompt.0"),
        ({"prompt": "a", "logprobs": 21}, "logprobs"),
        ({"prompt": ["a"] * 1025}, "prompt"),
    ],
)
def test_refused(toy_server: Running, body: dict[str, object], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        toy_server.openai().completions.create(**{"model": "toy", "prompt": "x"} | body)  # type: ignore[call-overload]
    assert refused.value.param == param


def test_best_of_that_asks_for_nothing(toy_server: Running) -> None:
    toy_server.openai().completions.create(model="toy", prompt="x", best_of=1, suffix="")
