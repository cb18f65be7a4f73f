"""The decoders of the tokenizers library, one token at a time: pieces of the vocabulary in, final text out.

Each stage takes a list of pieces and gives a list of pieces, like the library's ``decode_chain``, but keeps what the
next tokens could still change and hands it over later: pushed bit by bit and finished, a chain gives exactly what the
library gives for the whole sequence, and each token costs the same however many came before. Semantics follow
https://github.com/huggingface/tokenizers, ``tokenizers/src/decoders``.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from fermi.text.suffix import held_back

__all__ = ["CLEANUPS", "StreamDecoder", "byte_level_bytes", "fallback_byte", "plan_decoder"]

# What Transformers' clean_up_tokenization_spaces replaces, in this order.
CLEANUPS = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)
# What the WordPiece decoder replaces inside each piece: the same, and one contraction more.
_WORD_PIECE_CLEANUPS = (*CLEANUPS[:7], (" do not", " don't"), *CLEANUPS[7:])


class Stage(Protocol):
    """One step of a chain."""

    def push(self, pieces: list[str]) -> list[str]:
        """What is now certain, given these pieces more."""

    def finish(self) -> list[str]:
        """What is left when no more pieces come."""


StageMaker = Callable[[bool], Stage]  # of: does the text continue an earlier one


class StreamDecoder:
    """A chain of stages for one sequence. Not to be pushed to after ``finish``."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self._stages = stages

    def push(self, pieces: list[str]) -> str:
        """The text that these pieces make certain."""
        for stage in self._stages:
            pieces = stage.push(pieces)
        return "".join(pieces)

    def finish(self) -> str:
        """The rest of the text."""
        pieces: list[str] = []
        for stage in self._stages:
            pieces = stage.push(pieces) + stage.finish()
        return "".join(pieces)


def plan_decoder(specification: Mapping[str, Any] | None, cleanup: bool = False) -> list[StageMaker] | None:
    """The stages for the ``decoder`` entry of a tokenizer.json, or None when one of them cannot work on a stream.

    With ``cleanup`` the text goes through Transformers' ``clean_up_tokenization_spaces`` at the end.
    """
    if specification is None:
        flat: list[Mapping[str, Any]] = [{"type": "Join"}]
    else:
        flat = _flatten(specification)
    makers: list[StageMaker] = []
    fused = False
    for step in flat:
        if step["type"] == "Fuse":
            fused = True
            continue
        maker = _on_text(step) if fused else _on_pieces(step)
        if maker is None:
            return None
        makers.append(maker)
        fused = fused or step["type"] == "ByteLevel"
    if cleanup:
        makers += [_text_replacer(pattern, content) for pattern, content in CLEANUPS]
    return makers


def _flatten(specification: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    if specification["type"] != "Sequence":
        return [specification]
    return [step for inner in specification["decoders"] for step in _flatten(inner)]


def _on_pieces(step: Mapping[str, Any]) -> StageMaker | None:
    """A stage that sees the pieces of the vocabulary one by one."""
    kind = step["type"]
    if kind == "ByteLevel":
        return lambda continues: _ByteLevel()
    if kind == "ByteFallback":
        return lambda continues: _ByteFallback()
    if kind == "Join":
        return lambda continues: _First(str, lambda piece: " " + piece, continues)
    if kind == "Replace" and step["pattern"].get("String"):
        pattern, content = step["pattern"]["String"], step["content"]
        return lambda continues: _Each(lambda piece: piece.replace(pattern, content))
    if kind == "Strip":
        return lambda continues: _Each(lambda piece: _strip(piece, step["content"], step["start"], step["stop"]))
    if kind == "Metaspace":
        mark = step["replacement"]
        at_start = " " if step.get("prepend_scheme", "always") == "never" else ""
        return lambda continues: _First(
            lambda piece: piece.replace(mark, at_start), lambda piece: piece.replace(mark, " "), continues
        )
    if kind == "WordPiece":
        prefix, clean = step["prefix"], _clean_piece if step["cleanup"] else str
        return lambda continues: _First(
            clean, lambda piece: clean(piece[len(prefix) :] if piece.startswith(prefix) else " " + piece), continues
        )
    if kind == "BPEDecoder":
        return lambda continues: _LastDiffers(step["suffix"])
    return None


def _on_text(step: Mapping[str, Any]) -> StageMaker | None:
    """A stage behind Fuse or ByteLevel: the pieces are parts of one text, cut anywhere."""
    if step["type"] == "Replace" and step["pattern"].get("String"):
        return _text_replacer(step["pattern"]["String"], step["content"])
    if step["type"] == "Strip":
        return lambda continues: _StripText(step["content"], 0 if continues else step["start"], step["stop"])
    return None


def _text_replacer(pattern: str, content: str) -> StageMaker:
    return lambda continues: _ReplaceText(pattern, content)


def _clean_piece(piece: str) -> str:
    for pattern, content in _WORD_PIECE_CLEANUPS:
        piece = piece.replace(pattern, content)
    return piece


def _strip(piece: str, content: str, start: int, stop: int) -> str:
    first = 0
    while first < min(start, len(piece)) and piece[first] == content:
        first += 1
    last = len(piece)
    while last > max(first, len(piece) - stop) and piece[last - 1] == content:
        last -= 1
    return piece[first:last]


class _Each:
    """A function of each piece alone."""

    def __init__(self, change: Callable[[str], str]) -> None:
        self._change = change

    def push(self, pieces: list[str]) -> list[str]:
        return [self._change(piece) for piece in pieces]

    def finish(self) -> list[str]:
        return []


class _First:
    """One function of the sequence's first piece, another of all others."""

    def __init__(self, first: Callable[[str], str], other: Callable[[str], str], continues: bool) -> None:
        self._next = other if continues else first
        self._other = other

    def push(self, pieces: list[str]) -> list[str]:
        changed = []
        for piece in pieces:
            changed.append(self._next(piece))
            self._next = self._other
        return changed

    def finish(self) -> list[str]:
        return []


class _LastDiffers:
    """The end-of-word suffix of the original BPE: a space, but nothing in the last piece."""

    def __init__(self, suffix: str) -> None:
        self._suffix = suffix
        self._last: list[str] = []

    def push(self, pieces: list[str]) -> list[str]:
        pieces = self._last + pieces
        self._last = pieces[-1:]
        return [piece.replace(self._suffix, " ") for piece in pieces[:-1]]

    def finish(self) -> list[str]:
        return [piece.replace(self._suffix, "") for piece in self._last]


class _ByteLevel:
    """Pieces written in GPT-2's alphabet of bytes: UTF-8, decoded as it comes."""

    def __init__(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, pieces: list[str]) -> list[str]:
        return [self._utf8.decode(b"".join(map(byte_level_bytes, pieces)))]

    def finish(self) -> list[str]:
        return [self._utf8.decode(b"", final=True)]


class _ByteFallback:
    """Pieces ``<0xNN>``: a whole run of them is UTF-8, or else each of its bytes a replacement character.

    So nothing of a run is certain before its end: its last byte may spoil the first character.
    """

    def __init__(self) -> None:
        self._run = bytearray()

    def push(self, pieces: list[str]) -> list[str]:
        decoded: list[str] = []
        for piece in pieces:
            byte = fallback_byte(piece)
            if byte is not None:
                self._run.append(byte)
                continue
            if self._run:
                decoded += self.finish()
            decoded.append(piece)
        return decoded

    def finish(self) -> list[str]:
        run, self._run = bytes(self._run), bytearray()
        try:
            return [run.decode("utf-8")]
        except UnicodeDecodeError:
            return ["\ufffd"] * len(run)


class _ReplaceText:
    """``str.replace`` of a text that comes in parts."""

    def __init__(self, pattern: str, content: str) -> None:
        self._pattern = pattern
        self._content = content
        self._held = ""

    def push(self, pieces: list[str]) -> list[str]:
        parts = (self._held + "".join(pieces)).split(self._pattern)
        held = held_back(parts[-1], self._pattern)
        self._held = parts[-1][len(parts[-1]) - held :]
        parts[-1] = parts[-1][: len(parts[-1]) - held]
        return [self._content.join(parts)]

    def finish(self) -> list[str]:
        held, self._held = self._held, ""
        return [held]


class _StripText:
    """Up to ``start`` leading and ``stop`` trailing characters ``content`` cut from a text that comes in parts."""

    def __init__(self, content: str, start: int, stop: int) -> None:
        self._content = content
        self._start = start
        self._stop = stop
        self._held = ""

    def push(self, pieces: list[str]) -> list[str]:
        text = "".join(pieces)
        while self._start and text:
            if text[0] != self._content:
                self._start = 0
                break
            self._start -= 1
            text = text[1:]
        text = self._held + text
        kept = _strip(text, self._content, 0, self._stop)
        self._held = text[len(kept) :]
        return [kept]

    def finish(self) -> list[str]:
        return []


def _byte_of_character() -> dict[str, int]:
    """GPT-2's alphabet: bytes that print stand for themselves, the others for U+0100 and up, in order."""
    printing = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printing]
    return {chr(byte): byte for byte in printing} | {chr(0x100 + at): byte for at, byte in enumerate(others)}


_BYTES = _byte_of_character()


def byte_level_bytes(piece: str) -> bytes:
    """The bytes that a piece of a byte-level vocabulary stands for; its own UTF-8 if it is not in that alphabet."""
    try:
        return bytes([_BYTES[character] for character in piece])
    except KeyError:
        return piece.encode("utf-8")


_FALLBACK = re.compile("<0x([0-9A-Fa-f+][0-9A-Fa-f])>")


def fallback_byte(piece: str) -> int | None:
    """The byte that a piece ``<0xNN>`` stands for, None for any other piece."""
    match = _FALLBACK.fullmatch(piece)
    return int(match[1], 16) if match else None
