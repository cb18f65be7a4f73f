"""A checkpoint's tokenizer: text to token ids and back, special tokens, the chat template."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

import tokenizers

from fermi.errors import CheckpointError, RequestError
from fermi.text.chat import ChatTemplate
from fermi.text.decoders import CLEANUPS, StreamDecoder, byte_level_bytes, fallback_byte, plan_decoder
from fermi.text.folder import read_object
from fermi.text.special_tokens import added_tokens, end_ids, extra_tokens, named_tokens

__all__ = ["Encoded", "Tokenizer"]

_NO_LIMIT = 10**9  # Transformers writes 10**30 for "no limit" into model_max_length
#: Characters of a text that is encoded without letting other threads take the interpreter: they would not give it back
#: for longer than the encoding takes.
_SHORT_TEXT = 4096


class Encoded(NamedTuple):
    """The tokens of a text or a pair of texts; the types tell a pair's first text (0) from its second (1)."""

    token_ids: list[int]
    type_ids: list[int] | None = None


class Tokenizer:
    """What a model's text is made of. Safe to share between threads; encoding leaves the GIL free.

    Attributes:
        bos_token, eos_token: the strings that mark beginning and end of text, None where the tokenizer has none.
        special_tokens: all named special tokens, as chat templates see them: ``{"bos_token": "<s>", …}``.
        bos_token_id: the id of ``bos_token``.
        eos_token_ids: every id that ends a reply: of the tokenizer, config.json and generation_config.json together.
        vocab_size: number of entries, added tokens included. The model's logits may have more columns.
        model_max_length: the length in tokens that the tokenizer states, None where it states none.
        chat_template: the model's own, else the plain ``role: content`` format.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        special_tokens: Mapping[str, str] | None = None,
        eos_token_ids: Iterable[int] = (),
        add_bos_token: bool = False,
        add_eos_token: bool = False,
        clean_up_spaces: bool = False,
        model_max_length: int | None = None,
        truncation_side: Literal["left", "right"] = "right",
        chat_template: ChatTemplate | None = None,
    ) -> None:
        """A tokenizer over a loaded ``tokenizers.Tokenizer``, whose truncation and padding are switched off.

        ``add_bos_token``, ``add_eos_token``: ``encode`` adds them where the post-processor does not do so itself.
        ``truncation_side``: where a text loses tokens that is to be cut.
        """
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self.special_tokens = dict(special_tokens or {})
        self.bos_token = self.special_tokens.get("bos_token")
        self.eos_token = self.special_tokens.get("eos_token")
        self.bos_token_id = self.token_id(self.bos_token) if self.bos_token is not None else None
        eos_token_id = self.token_id(self.eos_token) if self.eos_token is not None else None
        self.eos_token_ids = frozenset(eos_token_ids) | ({eos_token_id} if eos_token_id is not None else set())
        self.vocab_size = backend.get_vocab_size(with_added_tokens=True)
        self.model_max_length = model_max_length
        self.chat_template = chat_template or ChatTemplate.plain(**self.special_tokens)

        added = backend.get_added_tokens_decoder()
        self._special = frozenset(token.content for token in added.values() if token.special)
        self.special_token_ids = frozenset(at for at, token in added.items() if token.content in self._special)
        around = backend.encode("").ids
        self._prefix = _missing(self.bos_token_id, around) if add_bos_token else []
        self._suffix = _missing(eos_token_id, around) if add_eos_token else []

        self._truncation_side = truncation_side
        self._clean_up_spaces = clean_up_spaces
        specification = json.loads(backend.decoder.__getstate__()) if backend.decoder is not None else None
        self._decoder_plan = plan_decoder(specification, clean_up_spaces)
        self._byte_level = '"ByteLevel"' in json.dumps(specification)
        self._byte_fallback = '"ByteFallback"' in json.dumps(specification)

    @classmethod
    def from_folder(cls, folder: str | Path, *, lower_case: bool = False) -> Tokenizer:
        """The tokenizer of a checkpoint folder: tokenizer.json, and the configs beside it as far as they are there.

        ``lower_case``: bring texts to lower case first. CheckpointError naming the file when one is missing or
        malformed.
        """
        folder = Path(folder)
        path, config_path = folder / "tokenizer.json", folder / "tokenizer_config.json"
        if not path.is_file():
            raise CheckpointError(f"{path}: no such file{_what_else(folder)}")
        config = read_object(config_path)
        legacy = read_object(folder / "special_tokens_map.json")
        named = named_tokens(config, legacy, config_path)
        special_tokens = {name: token.content for name, token in named.items()}
        model_configs = (folder / "config.json", folder / "generation_config.json")
        ends = [end_ids(read_object(each), each) for each in model_configs]
        limit = config.get("model_max_length")
        chat_template = ChatTemplate.from_folder(folder, config.get("chat_template"), special_tokens)
        with _errors_of(path):
            backend = tokenizers.Tokenizer.from_file(str(path))
            backend.encode_special_tokens = config.get("split_special_tokens") is True
            if lower_case:
                own = [] if backend.normalizer is None else [backend.normalizer]
                backend.normalizer = tokenizers.normalizers.Sequence([tokenizers.normalizers.Lowercase(), *own])
            _add_missing(
                backend, added_tokens(config, config_path), [*named.values(), *extra_tokens(config, config_path)]
            )
            return cls(
                backend,
                special_tokens=special_tokens,
                eos_token_ids=frozenset().union(*ends),
                add_bos_token=config.get("add_bos_token") is True,
                add_eos_token=config.get("add_eos_token") is True,
                # A byte-pair tokenizer keeps its spaces: Transformers ignores the setting there, for it loses text.
                clean_up_spaces=config.get("clean_up_tokenization_spaces") is True
                and not isinstance(backend.model, tokenizers.models.BPE),
                model_max_length=int(limit) if isinstance(limit, (int, float)) and 0 < limit < _NO_LIMIT else None,
                truncation_side="left" if config.get("truncation_side") == "left" else "right",
                chat_template=chat_template,
            )

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """The token ids of a text, with what the tokenizer adds around it (BOS …) unless ``add_special_tokens`` is off.

        Special tokens written out in the text become those tokens. RequestError for text that is not valid Unicode.
        """
        if len(text) > _SHORT_TEXT:
            return self.encode_batch([text], add_special_tokens)[0]
        [encoding] = self._checked([text], lambda: [self._backend.encode(text, add_special_tokens=add_special_tokens)])
        return [*self._prefix, *encoding.ids, *self._suffix] if add_special_tokens else encoding.ids

    def encode_batch(self, texts: Sequence[str], add_special_tokens: bool = True) -> list[list[int]]:
        """``encode`` of each text, on all cores."""
        encodings = self._checked(
            texts, lambda: self._backend.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens)
        )
        if not add_special_tokens:
            return [encoding.ids for encoding in encodings]
        return [[*self._prefix, *encoding.ids, *self._suffix] for encoding in encodings]

    def encode_truncated(self, text: str, max_length: int) -> list[int]:
        """``encode`` of a text that loses tokens where there would be more than ``max_length``."""
        encoding = self._bare([text])[0]
        encoding.truncate(self._room(max_length, pair=False), direction=self._truncation_side)
        return [*self._prefix, *self._backend.post_process(encoding).ids, *self._suffix]

    def encode_pairs(self, pairs: Sequence[tuple[str, str]], max_length: int | None = None) -> list[Encoded]:
        """Pairs of texts as the tokenizer joins them, with their types; cut at ``max_length`` tokens, the longer of
        the two first, as Transformers' ``longest_first``. RequestError for text that is not valid Unicode.
        """
        joined = self._checked(
            [text for pair in pairs for text in pair], lambda: self._backend.encode_batch(list(pairs))
        )
        found = [self._joined(encoding.ids, encoding.type_ids) for encoding in joined]
        if max_length is None:
            return found
        room = self._room(max_length, pair=True)
        for place, each in enumerate(found):
            if len(each.token_ids) <= max_length:
                continue
            first, second = self._bare(pairs[place])
            lengths = _longest_first(len(first.ids), len(second.ids), room)
            for encoding, length in zip((first, second), lengths, strict=True):
                encoding.truncate(length, direction=self._truncation_side)
            encoding = self._backend.post_process(first, second)
            found[place] = self._joined(encoding.ids, encoding.type_ids)
        return found

    def _checked(
        self, texts: Sequence[str], encode: Callable[[], list[tokenizers.Encoding]]
    ) -> list[tokenizers.Encoding]:
        """What the library makes of texts. RequestError where it cannot."""
        try:
            return encode()
        except BaseException as error:  # a panic of the library is not an Exception
            if not _is_failure(error):
                raise
            raise RequestError(_why_not_encoded(texts, error)) from error

    def _joined(self, token_ids: list[int], type_ids: list[int]) -> Encoded:
        last = type_ids[-1] if type_ids else 0
        return Encoded(
            [*self._prefix, *token_ids, *self._suffix],
            [*([0] * len(self._prefix)), *type_ids, *([last] * len(self._suffix))],
        )

    def _bare(self, texts: Sequence[str]) -> list[tokenizers.Encoding]:
        """Texts without what the tokenizer adds around them."""
        return self._checked(texts, lambda: self._backend.encode_batch(list(texts), add_special_tokens=False))

    def _room(self, max_length: int, *, pair: bool) -> int:
        """Tokens of the text itself among so many."""
        added = self._backend.num_special_tokens_to_add(pair) + len(self._prefix) + len(self._suffix)
        return max(0, max_length - added)

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of token ids. Unknown ids stand for nothing; RequestError for what cannot be an id."""
        try:
            text: str = self._backend.decode(token_ids, skip_special_tokens=skip_special_tokens)
        except BaseException as error:  # a panic of the library is not an Exception
            if not _is_failure(error):
                raise
            raise RequestError(f"the token ids cannot be decoded: {error}") from error
        if self._clean_up_spaces:
            for pattern, content in CLEANUPS:
                text = text.replace(pattern, content)
        return text

    def token_id(self, token: str) -> int | None:
        """The id of one entry of the vocabulary, written as the vocabulary writes it."""
        return self._backend.token_to_id(token)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token adds to the end of a text, maybe a part of a character; none for an unknown id."""
        pieces = self.pieces([token_id], skip_special_tokens=False)
        if not pieces:
            return b""
        if self._byte_level:
            return byte_level_bytes(pieces[0])
        byte = fallback_byte(pieces[0]) if self._byte_fallback else None
        if byte is not None:
            return bytes([byte])
        decoder = self.stream_decoder(continues=True)
        if decoder is None:
            return self.decode([token_id], skip_special_tokens=False).encode("utf-8")
        return (decoder.push(pieces) + decoder.finish()).encode("utf-8")

    def token_text(self, token_id: int) -> str:
        """``token_bytes`` as a string, with U+FFFD for parts of characters; special tokens as they are written."""
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def token_ids(self) -> Iterable[int]:
        """Every id that stands for something, in no order."""
        return self._backend.get_vocab(with_added_tokens=True).values()

    def serialized(self) -> str:
        """The tokenizer.json of the tokenizer as it is, with what the configs beside the file added to it."""
        return self._backend.to_str()

    def holds_text(self, token_ids: Iterable[int]) -> bool:
        """Whether any of them is more than a special token: what is generated after them goes on from a text."""
        return any(token_id not in self.special_token_ids for token_id in token_ids)

    def pieces(self, token_ids: Iterable[int], skip_special_tokens: bool) -> list[str]:
        """The vocabulary's entries for token ids, which ``stream_decoder`` takes; unknown ids are left out."""
        entries = map(self._backend.id_to_token, token_ids)
        if skip_special_tokens:
            return [entry for entry in entries if entry is not None and entry not in self._special]
        return [entry for entry in entries if entry is not None]

    def stream_decoder(self, continues: bool = False) -> StreamDecoder | None:
        """A fresh decoder for one sequence of pieces, None where this tokenizer's text depends on its very end.

        ``continues``: the text follows another, so a space at its beginning stays.
        """
        if self._decoder_plan is None:
            return None
        return StreamDecoder([make(continues) for make in self._decoder_plan])


def _longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens of two texts stay in ``room``, where the longer one is cut until both are alike."""
    if first + second <= room:
        return first, second
    short = min(first, second)
    if 2 * short >= room:
        less, more = room // 2, room - room // 2
    else:
        less, more = short, room - short
    return (less, more) if first <= second else (more, less)


def _missing(token_id: int | None, around: Sequence[int]) -> list[int]:
    return [] if token_id is None or token_id in around else [token_id]


def _add_missing(
    backend: tokenizers.Tokenizer, added: Sequence[tokenizers.AddedToken], special: Sequence[tokenizers.AddedToken]
) -> None:
    """Add what the configs declare and tokenizer.json has not: added tokens with just these flags, special tokens."""
    known = backend.get_added_tokens_decoder().values()
    descriptions = {repr(token) for token in known}
    missing = [token for token in added if repr(token) not in descriptions]
    contents = {token.content for token in (*known, *missing)}
    for token in special:
        if token.content not in contents:
            missing.append(token)
            contents.add(token.content)
    backend.add_tokens(missing)


def _is_failure(error: BaseException) -> bool:
    """An error of the library: an Exception, or a panic of its Rust code, which Python sees as a BaseException."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


@contextmanager
def _errors_of(path: Path) -> Iterator[None]:
    try:
        yield
    except CheckpointError:
        raise
    except BaseException as error:
        if not _is_failure(error):
            raise
        raise CheckpointError(f"{path}: not a usable tokenizer: {error}") from error


def _what_else(folder: Path) -> str:
    others = [name for name in ("tokenizer.model", "vocab.json", "tekken.json") if (folder / name).is_file()]
    if not others:
        return ""
    return f" (only {others[0]}; Transformers' AutoTokenizer.from_pretrained(…).save_pretrained(…) makes one of it)"


def _why_not_encoded(texts: Sequence[str], error: BaseException) -> str:
    for text in texts:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as surrogate:
            return f"the text is not valid Unicode: {surrogate.reason} at character {surrogate.start}"
        except AttributeError:
            return f"text must be a string, found {type(text).__name__}"
    return f"the tokenizer cannot encode the text: {error}"
