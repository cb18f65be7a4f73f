"""A checkpoint's tokenizer does what Transformers' does with the same files, and says what is wrong with bad ones."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend

from fermi.errors import CheckpointError, RequestError
from fermi.text.tokenizer import Tokenizer

TEXTS = [
    "",
    " ",
    "Once upon a time, there was a little girl named Lily.",
    "  leading, trailing  \n\n\ttabs  and   runs ",
    "naïve café 你好世界 🎉👩‍👩‍👧‍👦 \u0301\ufb01 ＡＢＣ",
    "<s>special </s> inside<|im_end|> text<unk>",
    "<|im_start|>user\nHi<|im_end|>\n<think>\n</think><tool_call>",
    "def f(x):\n    return {'a': [1, 2.5e-3]}  # ok",
    "\x00\x07 control \u200b\u2028",
    "▁ and Ġ and <0x41>",
]


def agree(folder: Path, ours: Tokenizer, name: str = "PreTrainedTokenizerFast") -> None:
    """The same ids, the same text, the same special tokens as Transformers' tokenizer over the same files."""
    transformers = pytest.importorskip("transformers")
    theirs = getattr(transformers, name).from_pretrained(str(folder))
    for text in TEXTS:
        for special in (True, False):
            ids = theirs(text, add_special_tokens=special)["input_ids"]
            assert ours.encode(text, add_special_tokens=special) == ids, text
        for skip in (True, False):
            assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip)
    assert ours.encode_batch(TEXTS) == theirs(TEXTS)["input_ids"]
    assert (ours.bos_token, ours.eos_token) == (theirs.bos_token, theirs.eos_token)
    assert (ours.bos_token_id, ours.vocab_size) == (theirs.bos_token_id, len(theirs))
    assert ours.special_tokens == theirs.special_tokens_map


def test_qwen3(shared: Path, qwen3: Tokenizer) -> None:
    agree(shared / "tokenizers" / "qwen3", qwen3)
    agree(shared / "tokenizers" / "qwen3", qwen3, "AutoTokenizer")
    assert qwen3.vocab_size == 151_669
    assert qwen3.bos_token is None
    assert qwen3.eos_token == "<|im_end|>"
    assert qwen3.eos_token_ids == {151_645}
    assert qwen3.model_max_length == 131_072
    assert qwen3.chat_template.supports_thinking


def test_stories(shared: Path) -> None:
    folder = shared / "models" / "stories260K"
    tokenizer = Tokenizer.from_folder(str(folder))
    agree(folder, tokenizer)  # AutoTokenizer puts a normaliser of its own in the place of tokenizer.json's
    assert tokenizer.encode("Once")[0] == tokenizer.bos_token_id == 1
    assert tokenizer.eos_token_ids == {2}
    assert tokenizer.chat_template.render([{"role": "user", "content": "Hi"}]) == "<s>user: Hi\nassistant:"
    text = (folder / "expected.txt").read_text("utf-8")
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(st.text())
@settings(max_examples=300)
def test_text_survives_a_byte_level_vocabulary(built: dict[str, Tokenizer], text: str) -> None:
    tokenizer = built["byte_level"]
    assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=False) == text


CONFIGS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "strings": {"bos_token": "<s>", "eos_token": "</s>", "model_max_length": 1000000000000000019884624838656},
    "objects": {"eos_token": {"__type": "AddedToken", "content": "<|im_end|>", "lstrip": True}},
    "nulls": {"bos_token": None, "eos_token": "</s>", "pad_token": None},
    "new tokens": {"bos_token": "<new>", "eos_token": "</s>", "additional_special_tokens": ["<extra>", "<|im_end|>"]},
    "added tokens": {
        "added_tokens_decoder": {
            "1000": {"content": "<a>", "special": True, "normalized": False, "lstrip": False, "rstrip": True},
            "999": {"content": "time", "special": False, "normalized": True, "lstrip": False, "rstrip": False},
        },
        "eos_token": "<a>",
        "extra_special_tokens": ["<b>"],
    },
    "named": {"image_token": "<image>", "extra_special_tokens": {"audio_token": "<audio>"}},
    "cleaned": {"clean_up_tokenization_spaces": True},
    "split": {"split_special_tokens": True},
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback", "metaspace", "word_piece", "words", "end_of_word"])
def test_built_tokenizers(backends: Any, checkpoint: Callable[..., Path], kind: str, config: dict[str, Any]) -> None:
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **config}
    folder = checkpoint(backends[kind](), tokenizer_config=config)
    agree(folder, Tokenizer.from_folder(folder))


def test_the_old_map_of_special_tokens(backends: Any, checkpoint: Callable[..., Path]) -> None:
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}
    old = {"bos_token": {"content": "<s>", "lstrip": False}, "eos_token": "<|im_end|>"}
    folder = checkpoint(backends["byte_level"](), tokenizer_config=config, special_tokens_map=old)
    tokenizer = Tokenizer.from_folder(folder)
    agree(folder, tokenizer)
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "<|im_end|>")

    token = {"content": "<z>", "lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    config["added_tokens_decoder"] = {"1000": {**token, "special": True}}
    folder = checkpoint(None, tokenizer_config=config)
    tokenizer = Tokenizer.from_folder(folder)
    agree(folder, tokenizer)
    assert (tokenizer.bos_token, tokenizer.eos_token) == (None, "</s>")


def test_truncation_and_padding_are_switched_off(backends: Any, checkpoint: Callable[..., Path]) -> None:
    backend: Backend = backends["byte_level"]()
    backend.enable_truncation(2)
    backend.enable_padding()
    tokenizer = Tokenizer.from_folder(checkpoint(backend))
    assert len(tokenizer.encode_batch(["one", "Once upon a time"])[1]) > 2
    assert tokenizer.encode("") == []


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
def test_bos_and_eos_are_added_once(backends: Any, checkpoint: Callable[..., Path], kind: str) -> None:
    config = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True, "add_eos_token": True}
    tokenizer = Tokenizer.from_folder(checkpoint(backends[kind](), tokenizer_config=config))
    bare = tokenizer.encode("a time", add_special_tokens=False)
    assert tokenizer.encode("a time") == [1, *bare, 2]
    assert tokenizer.encode_batch(["a time"], add_special_tokens=False) == [bare]


def test_every_end_counts(backends: Any, checkpoint: Callable[..., Path]) -> None:
    files = {
        "tokenizer_config": {"eos_token": "</s>"},
        "config": {"eos_token_id": 3},
        "generation_config": {"eos_token_id": [3, 7, -1]},
    }
    assert Tokenizer.from_folder(checkpoint(backends["byte_level"](), **files)).eos_token_ids == {2, 3, 7}
    assert Tokenizer.from_folder(checkpoint(None, config={"eos_token_id": None})).eos_token_ids == {2, 3, 7}


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback", "metaspace", "word_piece", "words"])
def test_bytes_of_tokens_make_the_text(built: dict[str, Tokenizer], kind: str) -> None:
    """The bytes of a text's tokens are the bytes of the text, but for the space at its beginning."""
    tokenizer = built[kind]
    ids = [4, *range(5, tokenizer.vocab_size)]
    ids = [token_id for token_id in ids if tokenizer.token_bytes(token_id).isascii()]
    joined = b"".join(map(tokenizer.token_bytes, ids)).decode()
    first = tokenizer.token_text(ids[0])
    whole = tokenizer.decode(ids, skip_special_tokens=False)
    assert joined.removeprefix(first).lstrip() == whole.removeprefix(first.lstrip()).lstrip()


def test_bytes_of_parts_of_characters(qwen3: Tokenizer, built: dict[str, Tokenizer]) -> None:
    for tokenizer in (qwen3, built["byte_fallback"]):
        ids = tokenizer.encode("𓀀", add_special_tokens=False)
        parts = [tokenizer.token_bytes(token_id) for token_id in ids]
        assert b"".join(parts).decode().strip() == "𓀀"
        assert "\ufffd" in tokenizer.token_text(ids[-1])
    assert qwen3.token_text(151_645) == "<|im_end|>"
    assert qwen3.token_bytes(10**6) == b""
    assert built["whole_only"].token_bytes(5) == b"time"


def test_what_is_not_text_is_refused(qwen3: Tokenizer) -> None:
    with pytest.raises(RequestError, match=r"not valid Unicode: .* at character 3"):
        qwen3.encode("abc\ud83d")
    with pytest.raises(RequestError, match="must be a string, found int"):
        qwen3.encode_batch(["a", 1])  # type: ignore[list-item]


@pytest.mark.parametrize("ids", [[-1], [2**40], ["a"], [None], 5])
def test_what_is_no_token_is_refused(qwen3: Tokenizer, ids: Any) -> None:
    with pytest.raises(RequestError, match="cannot be decoded"):
        qwen3.decode(ids)


def test_unknown_tokens_are_nothing(qwen3: Tokenizer) -> None:
    assert qwen3.decode([160_000, *qwen3.encode("x"), 10**9]) == "x"


GOOD = json.dumps({"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}})


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer", ""),
        ("tokenizer", "{"),
        ("tokenizer", "[]"),
        ("tokenizer", '{"version": "1.0"}'),
        ("tokenizer", '{"version": "1.0", "model": {"type": "Surprise"}}'),
        # These two panic inside the library.
        ("tokenizer", GOOD.replace('"merges": []', '"merges": [["a", "b"]]')),
        ("tokenizer", GOOD.replace('"a": 0', '"a": 0, "ab": 7').replace('"merges": []', '"merges": [["ab", "a"]]')),
        ("tokenizer_config", "{"),
        ("tokenizer_config", "[]"),
        ("tokenizer_config", "[" * 100_000),
        ("tokenizer_config", '{"bos_token": 1}'),
        ("tokenizer_config", r'{"bos_token": "\ud800"}'),
        ("tokenizer_config", r'{"added_tokens_decoder": {"1": {"content": "\ud800"}}}'),
        ("tokenizer_config", '{"eos_token": {"text": "x"}}'),
        ("tokenizer_config", '{"eos_token": {"content": "x", "lstrip": "yes"}}'),
        ("tokenizer_config", '{"added_tokens_decoder": []}'),
        ("tokenizer_config", '{"added_tokens_decoder": {"x": "a"}}'),
        ("tokenizer_config", '{"added_tokens_decoder": {"1": {"content": 1}}}'),
        ("tokenizer_config", '{"additional_special_tokens": [1]}'),
        ("tokenizer_config", '{"additional_special_tokens": "x"}'),
        ("tokenizer_config", '{"chat_template": "{% for %}"}'),
        ("tokenizer_config", '{"chat_template": 1}'),
        ("config", '{"eos_token_id": "2"}'),
        ("config", '{"eos_token_id": [true]}'),
        ("generation_config", "nonsense"),
        ("special_tokens_map", "1"),
        ("chat_template", "1"),
    ],
)
def test_malformed_files_are_named(checkpoint: Callable[..., Path], name: str, content: str) -> None:
    folder = checkpoint(GOOD, **{name: content})
    with pytest.raises(CheckpointError, match=rf"{name}\.json: "):
        Tokenizer.from_folder(folder)


def test_files_that_cannot_be_read_are_named(checkpoint: Callable[..., Path]) -> None:
    folder = checkpoint(GOOD)
    (folder / "config.json").write_bytes(b'{"\xff": 1}')
    with pytest.raises(CheckpointError, match=r"config\.json: cannot be read"):
        Tokenizer.from_folder(folder)


def test_a_missing_tokenizer_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: no such file$"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.model").touch()
    with pytest.raises(CheckpointError, match=r"only tokenizer\.model.*save_pretrained"):
        Tokenizer.from_folder(tmp_path)


@given(st.data())
@settings(max_examples=200)
def test_mutilated_files_never_crash(fuzzed: tuple[Path, str], data: st.DataObject) -> None:
    """Any damage to tokenizer.json is either harmless or an error with its name."""
    folder, text = fuzzed
    begin = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(begin, min(begin + 40, len(text))))
    insert = data.draw(
        st.sampled_from(["", "0", "-1", "null", "[]", "{}", '"', '"x"', "true", "1e999", ",", "\\u0000"])
    )
    (folder / "tokenizer.json").write_text(text[:begin] + insert + text[end:], encoding="utf-8")
    try:
        tokenizer = Tokenizer.from_folder(folder)
    except CheckpointError as error:
        if "tokenizer.json" not in str(error):
            raise
        return
    for action in (lambda: tokenizer.encode("a time <s>"), lambda: tokenizer.decode([0, 1, 2, 5, 9])):
        with contextlib.suppress(RequestError):
            action()


@pytest.fixture(scope="module")
def fuzzed(backends: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder to spoil, and the tokenizer.json that was in it, short enough to hit every part of it."""
    folder = tmp_path_factory.mktemp("fuzzed")
    content = json.loads(backends["byte_fallback"]().to_str())
    vocabulary = content["model"]["vocab"]
    keep = [*sorted(vocabulary, key=vocabulary.__getitem__)[:6], "▁", "a", "▁a"]
    content["model"] |= {"vocab": {piece: at for at, piece in enumerate(keep)}, "merges": [["▁", "a"]]}
    return folder, json.dumps(content, ensure_ascii=False)
