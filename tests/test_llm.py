"""The offline API on a real checkpoint and on the demo model."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fermi import LLM, SamplingParams
from fermi.errors import ConfigError, ContextLengthError, FermiError, RequestError

GREEDY = SamplingParams(temperature=0, max_tokens=24)
RAGGED = ["Once", "One day, a little", "The sun", "Lily and Tom went to the big park to play with", "A", "She saw a"]


@pytest.fixture(scope="module")
def stories(stories260k: Path) -> LLM:
    return LLM(str(stories260k))


@pytest.fixture(scope="module")
def demo() -> LLM:
    return LLM("demo")


def text_of(llm: LLM, prompt: str | list[int], params: SamplingParams = GREEDY) -> str:
    return llm.generate(prompt, params, use_tqdm=False)[0].outputs[0].text


def test_a_real_checkpoint_tells_its_story(stories: LLM, stories260k: Path) -> None:
    params = SamplingParams(temperature=0, max_tokens=200)
    output = stories.generate([[1]], params, use_tqdm=False)[0]
    assert output.outputs[0].text == (stories260k / "expected.txt").read_text("utf-8")
    assert output.prompt_token_ids == [1]
    assert len(output.outputs[0].token_ids) == 200
    assert output.outputs[0].finish_reason == "length"


def test_an_empty_text_begins_the_same_story(stories: LLM) -> None:
    assert text_of(stories, "").startswith("Once upon a time")


def test_prompts_together_give_what_each_gives_alone(stories: LLM) -> None:
    alone = [text_of(stories, prompt) for prompt in RAGGED]
    together = stories.generate(RAGGED, GREEDY, use_tqdm=False)
    assert [output.outputs[0].text for output in together] == alone
    assert [output.prompt for output in together] == RAGGED


@pytest.mark.parametrize(
    "settings",
    [
        {"max_num_batched_tokens": 8, "max_num_seqs": 8},
        {"prefix_cache": False},
        {"block_size": 4},
        {"threads": 1},
        {"isa": "portable"},
        {"kv_cache_memory": 40 * 16 * 2560},
        {"batch_invariant": True},
    ],
    ids=str,
)
def test_no_setting_of_the_engine_changes_a_text(stories: LLM, stories260k: Path, settings: dict[str, object]) -> None:
    other = LLM(str(stories260k), **settings)  # type: ignore[arg-type]
    expected = [output.outputs[0].text for output in stories.generate(RAGGED, GREEDY, use_tqdm=False)]
    assert [output.outputs[0].text for output in other.generate(RAGGED, GREEDY, use_tqdm=False)] == expected


def test_a_seed_gives_the_same_text_alone_and_in_a_batch(stories: LLM) -> None:
    params = SamplingParams(temperature=1.0, top_p=0.95, seed=7, max_tokens=24)
    alone = text_of(stories, "Once upon", params)
    batch = stories.generate([*RAGGED, "Once upon"], params, use_tqdm=False)
    assert batch[-1].outputs[0].text == alone
    assert text_of(stories, "Once upon", params.replace(seed=8)) != alone


def test_several_completions_of_one_prompt_differ(stories: LLM) -> None:
    params = SamplingParams(n=4, temperature=1.0, seed=1, max_tokens=16)
    output = stories.generate("Once upon", params, use_tqdm=False)[0]
    assert [each.index for each in output.outputs] == [0, 1, 2, 3]
    assert len({each.text for each in output.outputs}) == 4


def test_a_stop_string_ends_the_text_before_it(stories: LLM) -> None:
    whole = text_of(stories, "Once upon a", GREEDY)
    stop = whole[8:14]
    output = stories.generate("Once upon a", GREEDY.replace(stop=[stop]), use_tqdm=False)[0].outputs[0]
    assert output.text == whole[: whole.index(stop)]
    assert (output.finish_reason, output.stop_reason) == ("stop", stop)
    assert not stories.engine.has_work
    kept = GREEDY.replace(stop=stop, include_stop_str_in_output=True)
    assert text_of(stories, "Once upon a", kept) == whole[: whole.index(stop) + len(stop)]


def test_a_stop_token_ends_it_too(stories: LLM) -> None:
    token_ids = stories.generate("Once", GREEDY, use_tqdm=False)[0].outputs[0].token_ids
    output = stories.generate("Once", GREEDY.replace(stop_token_ids=[token_ids[5]]), use_tqdm=False)[0].outputs[0]
    first = token_ids.index(token_ids[5])
    assert output.token_ids == token_ids[: first + 1]
    assert (output.finish_reason, output.stop_reason) == ("stop", token_ids[5])


def test_stop_strings_end_each_completion_by_itself(stories: LLM) -> None:
    params = SamplingParams(n=3, temperature=1.0, seed=3, max_tokens=40, stop=["."])
    output = stories.generate("Once upon", params, use_tqdm=False)[0]
    assert all("." not in each.text for each in output.outputs)
    assert all(each.finish_reason in ("stop", "length") for each in output.outputs)
    free = SamplingParams(n=3, temperature=1.0, seed=3, max_tokens=40)
    for each, whole in zip(output.outputs, stories.generate("Once upon", free, use_tqdm=False)[0].outputs, strict=True):
        assert each.text == whole.text.partition(".")[0]


def test_logprobs_are_the_models_own(stories: LLM) -> None:
    output = stories.generate("Once upon a time", GREEDY.replace(logprobs=3, prompt_logprobs=1), use_tqdm=False)[0]
    token_ids = output.prompt_token_ids + output.outputs[0].token_ids
    logits = stories.logits(token_ids).astype(np.float64)
    logprobs = logits - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
    logprobs -= logits.max(-1, keepdims=True)
    assert output.outputs[0].logprobs is not None
    assert output.prompt_logprobs is not None
    assert output.prompt_logprobs[0] is None
    start = len(output.prompt_token_ids)
    for place, each in enumerate(output.outputs[0].logprobs):
        row = logprobs[start + place - 1]
        assert each.token_id == token_ids[start + place]
        assert each.logprob == pytest.approx(row[each.token_id], abs=1e-4)
        assert [token for token, _ in each.top] == list(np.argsort(-row, kind="stable")[:3])
    for place, scored in enumerate(output.prompt_logprobs[1:], start=1):
        assert scored is not None
        assert scored.logprob == pytest.approx(logprobs[place - 1][token_ids[place]], abs=1e-4)


def test_logits_of_every_position(stories: LLM) -> None:
    logits = stories.logits([1, 5, 9])
    assert (logits.shape, logits.dtype) == ((3, 512), np.float32)
    np.testing.assert_array_equal(stories.logits(np.array([1, 5])), logits[:2])
    assert stories.logits(list(range(1, 400))).shape[0] == 399


@pytest.mark.parametrize("token_ids", [[], [-1], [512], [1] * 513, "text", [1.5], [True]])
def test_logits_refuse_what_are_no_tokens(stories: LLM, token_ids: list[int]) -> None:
    with pytest.raises(RequestError):
        stories.logits(token_ids)


def test_perplexity_is_that_of_the_logits(stories: LLM) -> None:
    text = "Once upon a time, there was a little girl named Lily."
    token_ids = stories.tokenizer.encode(text)
    logits = stories.logits(token_ids).astype(np.float64)
    shifted = logits - logits.max(-1, keepdims=True)
    logprobs = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    nats = -sum(logprobs[place, token] for place, token in enumerate(token_ids[1:]))
    measured = stories.perplexity(text)
    assert measured.tokens == len(token_ids) - 1
    assert measured.nats == pytest.approx(nats, rel=1e-5)
    assert measured.perplexity == pytest.approx(np.exp(nats / measured.tokens), rel=1e-5)


def test_perplexity_of_a_text_longer_than_the_context(stories: LLM) -> None:
    text = "Once upon a time, there was a little girl named Lily. She loved to play outside. " * 30
    measured = stories.perplexity(text)
    assert measured.tokens == len(stories.tokenizer.encode(text)) - 1 > 512
    assert 1 < measured.perplexity < 20
    with pytest.raises(RequestError, match="window"):
        stories.perplexity(text, window=513)
    with pytest.raises(RequestError, match="stride"):
        stories.perplexity(text, window=8, stride=8)
    with pytest.raises(RequestError, match="text"):
        stories.perplexity("")


def test_a_prompt_that_cannot_fit_is_refused_and_nothing_runs(stories: LLM) -> None:
    with pytest.raises(ContextLengthError, match="512"):
        stories.generate(["Once", [1] * 600], GREEDY, use_tqdm=False)
    assert not stories.engine.has_work
    assert text_of(stories, "Once")


@pytest.mark.parametrize("prompts", [3, [[1.5]], [None], {"a": 1}, [[]], [[512]]])
def test_prompts_of_the_wrong_kind_are_refused(stories: LLM, prompts: object) -> None:
    with pytest.raises(RequestError):
        stories.generate(prompts, GREEDY, use_tqdm=False)  # type: ignore[arg-type]
    assert not stories.engine.has_work


def test_sampling_params_must_match_the_prompts(stories: LLM) -> None:
    with pytest.raises(RequestError, match="sampling_params"):
        stories.generate(["a", "b"], [GREEDY], use_tqdm=False)
    with pytest.raises(RequestError, match="sampling_params"):
        stories.generate("a", {"temperature": 0}, use_tqdm=False)  # type: ignore[arg-type]
    assert stories.generate([], GREEDY, use_tqdm=False) == []


def test_unknown_arguments_are_refused_by_name(stories260k: Path) -> None:
    with pytest.raises(ConfigError, match="max_modl_len"):
        LLM(str(stories260k), max_modl_len=3)
    with pytest.raises(ConfigError, match="dtype"):
        LLM(str(stories260k), dtype="int3")
    with pytest.raises(ConfigError, match="device"):
        LLM(str(stories260k), device="abacus")
    with pytest.raises(FermiError, match="no-such-folder"):
        LLM("./no-such-folder")


@pytest.mark.parametrize("model", [None, 3, b"x", "x" * 5000])
def test_what_names_no_model_is_refused(model: Any) -> None:
    with pytest.raises(FermiError):
        LLM(model, offline=True)


def test_more_memory_than_there_is_is_refused(stories260k: Path) -> None:
    with pytest.raises(ConfigError, match="kv_cache_memory"):
        LLM(stories260k, kv_cache_memory=2**62)


def test_threads_take_turns(stories: LLM) -> None:
    alone = [text_of(stories, prompt) for prompt in RAGGED]
    with ThreadPoolExecutor(len(RAGGED)) as pool:
        assert list(pool.map(lambda prompt: text_of(stories, prompt), RAGGED)) == alone


def test_as_many_tokens_as_one_likes(stories: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=10**30, min_tokens=10**29)
    assert stories.generate("Once", params, use_tqdm=False)[0].outputs[0].finish_reason == "length"


@pytest.mark.parametrize(
    "arguments", [{"window": "a"}, {"window": 2.5}, {"window": True}, {"stride": 1.5}, {"stride": 0}, {"window": 1}]
)
def test_perplexity_names_a_bad_argument(stories: LLM, arguments: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=next(iter(arguments))):
        stories.perplexity("Once upon a time", **arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"tools": 3},
        {"chat_template_kwargs": 3},
        {"chat_template_kwargs": {3: 4}},
        {"chat_template_kwargs": [("a", 1)]},
        {"chat_template_kwargs": {"self": 1}},
        {"chat_template_kwargs": {"documents": 3}},
    ],
)
def test_chat_refuses_bad_arguments(stories: LLM, arguments: dict[str, Any]) -> None:
    with pytest.raises(RequestError):
        stories.chat([{"role": "user", "content": "x"}], GREEDY, use_tqdm=False, **arguments)


@pytest.mark.parametrize("name", ["add_generation_prompt", "continue_final_message"])
@pytest.mark.parametrize("value", ["no", 1, None])
def test_chat_takes_booleans_only_where_they_are_meant(stories: LLM, name: str, value: object) -> None:
    with pytest.raises(RequestError, match=f"{name} must be True or False, got {value!r}"):
        stories.chat([{"role": "user", "content": "x"}], GREEDY, use_tqdm=False, **{name: value})  # type: ignore[arg-type]


def test_chat_with_the_demo_model(demo: LLM) -> None:
    one = [{"role": "user", "content": "What is 3 + 4?"}]
    two = [{"role": "user", "content": "What is 2 + 2?"}]
    params = SamplingParams(temperature=0, max_tokens=64)
    thoughtless = {"enable_thinking": False}
    single = demo.chat(one, params, chat_template_kwargs=thoughtless, use_tqdm=False)
    assert "7" in single[0].outputs[0].text
    assert single[0].outputs[0].finish_reason == "stop"
    both = demo.chat([one, two], params, chat_template_kwargs=thoughtless, use_tqdm=False)
    assert both[0].outputs[0].text == single[0].outputs[0].text
    assert "4" in both[1].outputs[0].text


def test_chat_refuses_what_is_no_conversation(demo: LLM) -> None:
    for messages in ([], "hello", [{"role": "user"}, 3], [{"content": "x"}]):
        with pytest.raises(RequestError):
            demo.chat(messages, GREEDY, use_tqdm=False)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="chat_template_kwargs"):
        demo.chat([{"role": "user", "content": "x"}], GREEDY, chat_template_kwargs={"tools": []}, use_tqdm=False)


def test_default_sampling_is_the_models(demo: LLM) -> None:
    assert demo.generate("3 + 4 =", use_tqdm=False)[0].outputs[0].token_ids
