"""Texts and pairs of texts as an embedding model or a cross-encoder takes them: prompts, lengths, types of tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from fermi.errors import CheckpointError, ContextLengthError, RequestError
from fermi.text.folder import read_object
from fermi.text.tokenizer import Encoded, Tokenizer

__all__ = ["YES_OR_NO", "PairFormat", "Prompts", "Sentences"]

#: Names of prompts, by what the text is to the other one: the first that a model has counts.
_ROLES: Mapping[str, tuple[str, ...]] = {"query": ("query",), "document": ("document", "passage", "corpus")}


class PairFormat(NamedTuple):
    """How a decoder is asked about a query and a document: ``middle`` may be cut at its end, the others not."""

    before: str
    middle: str
    after: str
    instruction: str


#: Zhang et al., "Qwen3 Embedding", 2025: the answer is the next token, yes or no.
YES_OR_NO = PairFormat(
    before="<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n',
    middle="<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}",
    after="<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
    instruction="Given a web search query, retrieve relevant passages that answer the query",
)


@dataclass(frozen=True, slots=True)
class Prompts:
    """What sentence-transformers puts before texts.

    Attributes:
        named: by name; every model has ``query`` and ``document``, if empty ones.
        default: the name of the prompt for texts that name none; None: no prompt.
    """

    named: Mapping[str, str] = field(default_factory=lambda: {"query": "", "document": ""})
    default: str | None = None

    @classmethod
    def from_folder(cls, folder: str | Path) -> Prompts:
        """Of config_sentence_transformers.json, where it is there. CheckpointError where it is malformed."""
        path = Path(folder) / "config_sentence_transformers.json"
        config = read_object(path)
        prompts = config.get("prompts") or {}
        if not isinstance(prompts, dict) or not all(isinstance(text, str | None) for text in prompts.values()):
            raise CheckpointError(f"{path}: prompts must map names to texts, found {prompts!r:.200}")
        named = {"query": "", "document": ""} | {name: text or "" for name, text in prompts.items()}
        default = config.get("default_prompt_name")
        if default is not None and default not in named:
            raise CheckpointError(f"{path}: default_prompt_name is {default!r}, which is not in prompts")
        return cls(named, default)


class Sentences:
    """The text side of an embedding model. Safe to share between threads.

    Attributes:
        max_length: tokens of a text, or of a pair, with what the tokenizer adds.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompts: Prompts,
        *,
        max_length: int,
        pair_format: PairFormat | None = None,
    ) -> None:
        """``pair_format``: how pairs are asked about, where the model has no format of its own for two texts."""
        self.tokenizer = tokenizer
        self.max_length = max_length
        self._prompts = prompts
        self._pair_format = pair_format

    def prompt(self, name: str | None = None, text: str | None = None, *, role: str | None = None) -> str:
        """What stands before a text: ``text`` itself, else the prompt of that name, else that of its role, which is
        query or document, else the model's default.

        RequestError where the model has no prompt of that name.
        """
        prompts = self._prompts.named
        if text is not None:
            return text
        if name is not None:
            if name not in prompts:
                known = ", ".join(sorted(prompts))
                message = f"prompt_name: the model has no prompt {name!r}; it has {known}"
                raise RequestError(message, param="prompt_name")
            return prompts[name]
        for known in _ROLES.get(role or "", ()):
            if known in prompts:
                return prompts[known]
        default = self._prompts.default
        return "" if default is None else prompts[default]

    def encode(
        self, texts: Sequence[str], *, prompt: str = "", max_length: int | None = None, param: str = "input"
    ) -> list[Encoded]:
        """The tokens of each text after the prompt, cut at ``max_length``; None refuses what is too long.

        Raises:
            ContextLengthError: a text is too long; ``param`` names the field of the request that holds it.
        """
        encoded = self.tokenizer.encode_batch([prompt + text for text in texts] if prompt else texts)
        limit = self.max_length if max_length is None else min(max_length, self.max_length)
        long = [place for place, token_ids in enumerate(encoded) if len(token_ids) > limit]
        if long and max_length is None:
            self._refuse(len(encoded[long[0]]), long[0], param)
        for place in long:
            encoded[place] = self.tokenizer.encode_truncated(prompt + texts[place], limit)
        return [Encoded(token_ids, None) for token_ids in encoded]

    def encode_pairs(
        self, pairs: Sequence[tuple[str, str]], *, max_length: int | None = None, param: str = "input"
    ) -> list[Encoded]:
        """The tokens of each pair of texts in one sequence, cut at ``max_length``, the longer text first.

        Raises as `encode`.
        """
        limit = self.max_length if max_length is None else min(max_length, self.max_length)
        if self._pair_format is not None:
            encoded = self._formatted(pairs, self._pair_format, None if max_length is None else limit)
        else:
            encoded = self.tokenizer.encode_pairs(pairs, None if max_length is None else limit)
        if max_length is None:
            for place, each in enumerate(encoded):
                if len(each.token_ids) > limit:
                    self._refuse(len(each.token_ids), place, param)
        return encoded

    def _formatted(self, pairs: Sequence[tuple[str, str]], pair_format: PairFormat, limit: int | None) -> list[Encoded]:
        def filled(query: str, document: str) -> str:
            return pair_format.middle.format(instruction=pair_format.instruction, query=query, document=document)

        before, after = self.tokenizer.encode_batch([pair_format.before, pair_format.after], add_special_tokens=False)
        room = None if limit is None else max(0, limit - len(before) - len(after))
        middles = self.tokenizer.encode_batch([filled(*pair) for pair in pairs], add_special_tokens=False)
        return [Encoded([*before, *middle[:room], *after], None) for middle in middles]

    def _refuse(self, length: int, place: int, param: str) -> None:
        raise ContextLengthError(
            f"This model's maximum context length is {self.max_length} tokens. However, you requested {length} tokens "
            f"in the {param}, number {place}. Please reduce the length of the {param}.",
            param=param,
        )
