"""Texts and pairs of texts as an embedding model or a cross-encoder takes them: prompts, lengths, types of tokens."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

from fermi.errors import CheckpointError, ContextLengthError, RequestError
from fermi.text.chat import ChatTemplate
from fermi.text.folder import read_object
from fermi.text.tokenizer import Encoded, Tokenizer

__all__ = ["PairFormat", "Prompts", "Sentences", "TemplateFormat", "YesOrNo"]

#: Names of prompts, by what the text is to the other one: the first that a model has counts.
_ROLES: Mapping[str, tuple[str, ...]] = {"query": ("query",), "document": ("document", "passage", "corpus")}


#: Stands for a document where a template shows what comes after it.
_MARK = "DOCUMENT-STANDS-HERE"


class PairFormat(Protocol):
    """How a decoder is asked about a query and a document.

    Attributes:
        after: the end of the question, which stays where the rest is cut.
    """

    @property
    def after(self) -> str: ...
    def before(self, query: str, document: str) -> str:
        """All that stands before that end."""


class YesOrNo:
    """The question of Qwen3-Reranker, whose answer is the next token, yes or no.

    Zhang et al., "Qwen3 Embedding: Advancing Text Embedding and Reranking Through Foundation Models", 2025.
    """

    after = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"

    def before(self, query: str, document: str) -> str:
        """All that stands before the end."""
        return (
            "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
            'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
            "<Instruct>: Given a web search query, retrieve relevant passages that answer the query\n"
            f"<Query>: {query}\n<Document>: {document}"
        )


class TemplateFormat:
    """The question of a chat template that knows the roles query and document, as sentence-transformers renders it."""

    def __init__(self, template: ChatTemplate, prompt: str) -> None:
        """``prompt``: the message of the system, where it is not empty."""
        self._template = template
        self._first = [{"role": "system", "content": prompt}] if prompt else []
        self.after = self._render("", _MARK).rpartition(_MARK)[2]

    @classmethod
    def fits(cls, template: ChatTemplate) -> bool:
        """Whether the template knows both roles."""
        return all(re.search(f"[\"']{role}[\"']", template.source) for role in ("query", "document"))

    def before(self, query: str, document: str) -> str:
        """All that stands before the end."""
        return self._render(query, document).removesuffix(self.after)

    def _render(self, query: str, document: str) -> str:
        pair = [{"role": "query", "content": query}, {"role": "document", "content": document}]
        return self._template.render([*self._first, *pair], None, False)


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

    @property
    def standard(self) -> str:
        """The prompt for texts that name none."""
        return "" if self.default is None else self.named[self.default]


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
        return self._prompts.standard

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
        befores = [pair_format.before(*pair) for pair in pairs]
        encode = partial(self.tokenizer.encode_batch, add_special_tokens=False)
        encoded = encode([before + pair_format.after for before in befores])
        if limit is not None:
            for place, token_ids in enumerate(encoded):
                if len(token_ids) > limit:
                    before, after = encode([befores[place], pair_format.after])
                    encoded[place] = [*before[: max(0, limit - len(after))], *after]
        return [Encoded(token_ids, None) for token_ids in encoded]

    def _refuse(self, length: int, place: int, param: str) -> None:
        raise ContextLengthError(
            f"This model's maximum context length is {self.max_length} tokens. However, you requested {length} tokens "
            f"in the {param}, number {place}. Please reduce the length of the {param}.",
            param=param,
        )
