"""The demo model's folder: small, complete, and read alike by fermi and Transformers."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import islice
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from fermi.demo import model_folder
from fermi.demo.conversation import chat_template
from fermi.demo.corpus import Corpus
from fermi.demo.tokenizer import MARKUP_TOKENS, SPECIAL_TOKENS
from fermi.text.chat import ChatTemplate

CALL = {"type": "function", "function": {"name": "calculator", "arguments": {"expression": "2 * 3"}}}
TOOL = {"type": "function", "function": {"name": "calculator", "parameters": {"type": "object", "properties": {}}}}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "user": [{"role": "user", "content": "Hello"}],
    "system": [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hello"}],
    "system later": [{"role": "user", "content": "Hello"}, {"role": "system", "content": "Be short."}],
    "turns": [
        {"role": "user", "content": "1+1"},
        {"role": "assistant", "content": "1 + 1 = 2", "reasoning_content": "Ones: 1 and 1 make 2."},
        {"role": "user", "content": "2+2"},
        {"role": "assistant", "content": "<think>\nOnes.\n</think>\n\n2 + 2 = 4"},
    ],
    "tool": [
        {"role": "user", "content": "2*3"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [CALL, CALL],
            "reasoning_content": "I should use the calculator.",
        },
        {"role": "tool", "content": "6"},
        {"role": "tool", "content": "6"},
    ],
}


@pytest.fixture(scope="module")
def reference() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(model_folder())


def test_finding_the_folder_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'transformers', 'tokenizers', 'jinja2', 'numpy'}"
    code = f"import sys, fermi.demo; fermi.demo.model_folder(); sys.exit(bool({heavy} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_weights_are_small() -> None:
    assert (model_folder() / "model.safetensors").stat().st_size <= 8_000_000


def test_the_folder_holds_the_template_of_the_source() -> None:
    config = json.loads((model_folder() / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert config["chat_template"] == chat_template()


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("tools", [None, [TOOL]], ids=["no tools", "tools"])
@pytest.mark.parametrize("enable_thinking", [False, True], ids=["no thinking", "thinking"])
def test_the_template_renders_as_in_transformers(
    reference: PreTrainedTokenizerBase, conversation: str, tools: list[dict[str, Any]] | None, enable_thinking: bool
) -> None:
    messages = CONVERSATIONS[conversation]
    expected = reference.apply_chat_template(
        messages, tools=tools, tokenize=False, add_generation_prompt=True, enable_thinking=enable_thinking
    )
    assert ChatTemplate(chat_template()).render(messages, tools, enable_thinking=enable_thinking) == expected


def test_without_thinking_a_second_turn_extends_the_first() -> None:
    template = ChatTemplate(chat_template())
    messages = CONVERSATIONS["turns"][:1]
    prompt = template.render(messages, enable_thinking=False)
    longer = [*messages, {"role": "assistant", "content": "1 + 1 = 2"}, {"role": "user", "content": "2+2"}]
    assert template.render(longer, enable_thinking=False).startswith(prompt + "1 + 1 = 2<|im_end|>\n")


def test_special_and_markup_tokens_are_single_tokens() -> None:
    tokenizer = Tokenizer.from_file(str(model_folder() / "tokenizer.json"))
    for token in (*SPECIAL_TOKENS, *MARKUP_TOKENS):
        assert len(tokenizer.encode(token).ids) == 1
    assert tokenizer.decode(tokenizer.encode("<think>a</think><|im_end|>").ids) == "<think>a</think>"


def test_every_digit_is_a_token() -> None:
    tokenizer = Tokenizer.from_file(str(model_folder() / "tokenizer.json"))
    assert tokenizer.encode("1234").tokens == ["1", "2", "3", "4"]


@given(st.text())
def test_the_tokenizer_round_trips(text: str) -> None:
    tokenizer = Tokenizer.from_file(str(model_folder() / "tokenizer.json"))
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_segments_tokenize_as_the_whole_document_does() -> None:
    tokenizer = Tokenizer.from_file(str(model_folder() / "tokenizer.json"))
    for document in islice(Corpus(seed=5).documents(), 1_000):
        whole = tokenizer.encode("".join(segment.text for segment in document)).ids
        assert [token for segment in document for token in tokenizer.encode(segment.text).ids] == whole
