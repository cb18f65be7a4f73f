"""Which tokens are special: what tokenizer_config.json, special_tokens_map.json and the model's configs say."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from fermi.errors import CheckpointError

__all__ = ["added_tokens", "end_ids", "extra_tokens", "named_tokens"]

NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def named_tokens(config: Mapping[str, Any], legacy: Mapping[str, Any], path: Path) -> dict[str, AddedToken]:
    """Special tokens by name (``bos_token`` …), from tokenizer_config.json and, for old checkpoints, the legacy map.

    Like Transformers, special_tokens_map.json counts only where tokenizer_config.json has no ``added_tokens_decoder``,
    and then wins. Names beyond the usual ones count when they end in ``_token``.
    """
    merged = dict(config) if "added_tokens_decoder" in config else {**config, **legacy}
    more = merged.get("extra_special_tokens")
    if isinstance(more, dict):
        merged.update(more)
    names = [*NAMES, *sorted(name for name in merged if name.endswith("_token") and name not in NAMES)]
    found = {}
    for name in names:
        value = merged.get(name)
        if isinstance(value, (str, dict)):
            found[name] = _token(value, f"{path}: {name}")
        elif value is not None and name in NAMES:
            raise CheckpointError(f"{path}: {name} must be a string or an AddedToken, found {value!r}")
    return found


def added_tokens(config: Mapping[str, Any], path: Path) -> list[AddedToken]:
    """``added_tokens_decoder`` of tokenizer_config.json, in the order of the ids."""
    by_id = config.get("added_tokens_decoder")
    if by_id is None:
        return []
    if not isinstance(by_id, dict) or not all(key.isdecimal() for key in by_id):
        raise CheckpointError(f"{path}: added_tokens_decoder must map token ids to tokens")
    return [_token(by_id[key], f"{path}: added_tokens_decoder.{key}", special=False) for key in sorted(by_id, key=int)]


def extra_tokens(config: Mapping[str, Any], path: Path) -> list[AddedToken]:
    """Special tokens without a name: ``extra_special_tokens``, by its older name ``additional_special_tokens``."""
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    if not isinstance(extra, (list, dict)):
        raise CheckpointError(f"{path}: additional_special_tokens must be a list, found {extra!r}")
    return [] if isinstance(extra, dict) else [_token(each, f"{path}: additional_special_tokens") for each in extra]


def end_ids(config: Mapping[str, Any], path: Path) -> frozenset[int]:
    """``eos_token_id`` of config.json or generation_config.json: one id or several; negative ones mean none."""
    value = config.get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(each, int) and not isinstance(each, bool) for each in ids):
        raise CheckpointError(f"{path}: eos_token_id must be a token id or a list of them, found {value!r}")
    return frozenset(each for each in ids if each >= 0)


def _token(value: Any, where: str, special: bool = True) -> AddedToken:
    if isinstance(value, str):
        return AddedToken(_unicode(value, where), special=special)
    if not isinstance(value, dict) or not isinstance(value.get("content"), str):
        raise CheckpointError(f"{where} must be a string or an object with a string 'content', found {value!r}")
    flags = {name: value[name] for name in _FLAGS if name in value}
    if not all(isinstance(flag, bool) for flag in flags.values()):
        raise CheckpointError(f"{where}: {', '.join(_FLAGS)} must be true or false, found {value!r}")
    return AddedToken(_unicode(value["content"], where), **({"special": special} | flags))


def _unicode(text: str, where: str) -> str:
    """The text, which JSON's escapes can make of half a character. CheckpointError for that."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise CheckpointError(f"{where}: {text!r} is not valid Unicode") from error
    return text
