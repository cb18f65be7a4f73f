"""Texts and pairs of texts as an embedding model or a cross-encoder takes them: prompts, lengths, types of tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from fermi.errors import CheckpointError, ContextLengthError, RequestError
from fermi.text.folder import read_object, read_text
from fermi.text.tokenizer import Encoded, Tokenizer

__all__ = ["YES_OR_NO", "PairFormat", "SentenceConfig", "Sentences"]

#: sentence-transformers names the settings of its first module after the family of the encoder.
_FAMILIES = ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")

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
class SentenceConfig:
    """What the files of sentence-transformers beside a checkpoint say of its texts.

    Attributes:
        folder: where the tokenizer is.
        prompts: put before texts, by name.
        default_prompt_name: of the prompt for texts that name none; None: no prompt.
        max_seq_length: tokens of a text; None where nobody says.
        lower_case: texts are brought to lower case.
    """

    folder: Path
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None
    max_seq_length: int | None = None
    lower_case: bool = False

    @classmethod
    def from_folder(cls, folder: str | Path) -> SentenceConfig:
        """As far as the files are there. CheckpointError naming one that is malformed."""
        folder = Path(folder)
        path = folder / "config_sentence_transformers.json"
        named = read_object(path)
        prompts = named.get("prompts") or {}
        if not isinstance(prompts, dict) or not all(isinstance(text, str | None) for text in prompts.values()):
            raise CheckpointError(f"{path}: prompts must map names to texts, found {prompts!r:.200}")
        prompts = {"query": "", "document": ""} | {name: text or "" for name, text in prompts.items()}
        default = named.get("default_prompt_name")
        if default is not None and default not in prompts:
            raise CheckpointError(f"{path}: default_prompt_name is {default!r}, which is not in prompts")
        inner = folder / _first_module(folder)
        for family in _FAMILIES:
            path = inner / f"sentence_{family}_config.json"
            if path.is_file():
                break
        config = read_object(path)
        length = config.get("max_seq_length")
        if length is not None and (not isinstance(length, int) or isinstance(length, bool) or length < 1):
            raise CheckpointError(f"{path}: max_seq_length must be a number of tokens, found {length!r}")
        return cls(inner, prompts, default, length, config.get("do_lower_case") is True)


class Sentences:
    """The text side of an embedding model. Safe to share between threads.

    Attributes:
        max_length: tokens of a text, or of a pair, with what the tokenizer adds.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        config: SentenceConfig,
        *,
        max_length: int,
        pair_format: PairFormat | None = None,
    ) -> None:
        """``pair_format``: how pairs are asked about, where the model has no format of its own for two texts."""
        self.tokenizer = tokenizer
        self.max_length = max_length
        self._config = config
        self._pair_format = pair_format

    def prompt(self, name: str | None = None, text: str | None = None, *, role: str | None = None) -> str:
        """What stands before a text: ``text`` itself, else the prompt of that name, else that of its role, which is
        query or document, else the model's default.

        RequestError where the model has no prompt of that name.
        """
        prompts = self._config.prompts
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
        default = self._config.default_prompt_name
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


def _first_module(folder: Path) -> str:
    """The folder of the transformer in modules.json, relative to that of the checkpoint; where it is, mostly."""
    path = folder / "modules.json"
    if not path.is_file():
        return ""
    modules = _list_of(path)
    first = modules[0].get("path", "") if modules else ""
    if not isinstance(first, str) or Path(first).is_absolute() or ".." in Path(first).parts:
        raise CheckpointError(f"{path}: path must be a folder in that of the model, found {first!r}")
    return first


def _list_of(path: Path) -> list[dict[str, Any]]:
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(content, list) or not all(isinstance(each, dict) for each in content):
        raise CheckpointError(f"{path}: a list of modules is expected")
    return content
