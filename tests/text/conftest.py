"""Small tokenizers of every kind that the text tests need, built on the spot."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend

from fermi.text.tokenizer import Tokenizer

CORPUS = [
    "Once upon a time, there was a little girl named Lily.",
    "She didn't want to play , it 's true . Don't! We 've seen it ?",
    "naïve café, 你好世界, emoji 🎉🎉 and   spaces\n\nlines\tand tabs",
    '{"name": "add", "arguments": {"a": 1, "b": [2, 3]}}',
]
SPECIALS = ["<unk>", "<s>", "</s>", "<|im_end|>"]


def byte_level() -> Backend:
    """Like GPT-2, Llama 3, Qwen."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.add_tokens([AddedToken("plain added é token", normalized=False)])
    return backend


def byte_fallback(strip: int = 1) -> Backend:
    """Like Llama 2, Mistral, Phi-3 (Gemma: ``strip=0``): SentencePiece's BPE with bytes for what it does not know."""
    pieces = [
        *SPECIALS,
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        *"abcdeilnoprstu.,'",
        "▁a",
        "▁t",
        "▁th",
        "he",
    ]
    merges = [("▁", "a"), ("▁", "t"), ("h", "e")]
    pieces += [piece for piece in ("h", "▁the", "你", "é") if piece not in pieces]
    backend = Backend(
        models.BPE(
            vocab={piece: at for at, piece in enumerate(pieces)},
            merges=merges,
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    backend.add_special_tokens(SPECIALS)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", strip, 0)]
    backend.decoder = decoders.Sequence(steps)
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return backend


def fused_first() -> Backend:
    """Steps behind the joining of tokens: a replacement that may cross them, more than one space to strip."""
    backend = byte_fallback()
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Replace("th", "TH"), decoders.Strip(" ", 2, 0)])
    return backend


def metaspace(scheme: str = "always") -> Backend:
    """Like T5 and other Unigram models."""
    pieces = [(piece, 0.0) for piece in SPECIALS] + [
        (piece, -2.0) for piece in ["▁", *"abcdehilnost", "▁the", "▁a", "▁▁"]
    ]
    backend = Backend(models.Unigram(pieces, unk_id=0))
    backend.add_special_tokens(SPECIALS)
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    backend.decoder = decoders.Metaspace(prepend_scheme=scheme)
    return backend


def word_piece(cleanup: bool = True) -> Backend:
    """Like BERT."""
    backend = Backend(models.WordPiece(unk_token="<unk>"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(cleanup=cleanup)
    backend.train_from_iterator(
        CORPUS, trainers.WordPieceTrainer(vocab_size=200, special_tokens=SPECIALS, show_progress=False)
    )
    backend.add_tokens(["do not", " ' ", "n't"])
    return backend


def end_of_word() -> Backend:
    """Like the first GPT: a suffix marks the end of a word."""
    backend = Backend(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.BPEDecoder()
    trainer = trainers.BpeTrainer(
        vocab_size=200, special_tokens=SPECIALS, end_of_word_suffix="</w>", show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    return backend


def words() -> Backend:
    """No decoder at all: the library joins tokens with spaces."""
    backend = Backend(models.WordLevel({token: at for at, token in enumerate([*SPECIALS, "a", "time", "."])}, "<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(SPECIALS)
    return backend


def whole_only() -> Backend:
    """A decoder that looks at all tokens, which no stream can follow."""
    backend = words()
    backend.decoder = decoders.CTC(pad_token="a")
    return backend


BACKENDS: Mapping[str, Callable[[], Backend]] = {
    "byte_level": byte_level,
    "byte_fallback": byte_fallback,
    "byte_fallback_unstripped": lambda: byte_fallback(strip=0),
    "fused_first": fused_first,
    "metaspace": metaspace,
    "metaspace_never": lambda: metaspace("never"),
    "word_piece": word_piece,
    "word_piece_uncleaned": lambda: word_piece(cleanup=False),
    "end_of_word": end_of_word,
    "words": words,
    "whole_only": whole_only,
}


@pytest.fixture(scope="session")
def backends() -> Mapping[str, Callable[[], Backend]]:
    """Makers of the library's tokenizers, by name."""
    return BACKENDS


@pytest.fixture(scope="session")
def built() -> dict[str, Tokenizer]:
    """Every kind of tokenizer, by name; those named ``…+clean`` also clean up spaces as Transformers does."""
    plain = {name: Tokenizer(make()) for name, make in BACKENDS.items()}
    return plain | {
        f"{name}+clean": Tokenizer(BACKENDS[name](), clean_up_spaces=True) for name in ("word_piece", "words")
    }


@pytest.fixture(scope="session")
def qwen3(shared: Path) -> Tokenizer:
    """The real tokenizer of Qwen3."""
    return Tokenizer.from_folder(shared / "tokenizers" / "qwen3")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """Writes a folder with a tokenizer (or the text in its place) and JSON files, and returns it."""

    def write(backend: Backend | str | None, **files: Any) -> Path:
        if isinstance(backend, Backend):
            backend.save(str(tmp_path / "tokenizer.json"))
        elif backend is not None:
            (tmp_path / "tokenizer.json").write_text(backend, encoding="utf-8")
        for name, content in files.items():
            text = content if isinstance(content, str) else json.dumps(content)
            (tmp_path / f"{name}.json").write_text(text, encoding="utf-8")
        return tmp_path

    return write


@pytest.fixture
def run_in_threads() -> Callable[[Callable[[int], None]], None]:
    """Runs a function of the thread's number in eight threads at once, and raises what any of them raised."""

    def run(work: Callable[[int], None]) -> None:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(8)))

    return run
