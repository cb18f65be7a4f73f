"""Which format of tool calls a model was taught: what its chat template writes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fermi.errors import ConfigError
from fermi.text.tool_calls.bare_json import Llama3, PlainJSON
from fermi.text.tool_calls.base import ToolFormat
from fermi.text.tool_calls.deepseek import DeepSeek, DeepSeek31
from fermi.text.tool_calls.json_formats import Cohere, Functools, Granite, Hermes, Nemotron, Phi4
from fermi.text.tool_calls.mistral import Mistral, MistralArgs
from fermi.text.tool_calls.pythonic import LFM2, Pythonic
from fermi.text.tool_calls.qwen3_coder import Qwen3Coder

__all__ = ["FORMATS", "tool_format"]

FORMATS: Mapping[str, type[ToolFormat]] = {
    each.name: each
    for each in (
        Hermes,
        Qwen3Coder,
        Llama3,
        Pythonic,
        LFM2,
        Mistral,
        MistralArgs,
        Phi4,
        Functools,
        DeepSeek,
        DeepSeek31,
        Granite,
        Nemotron,
        Cohere,
        PlainJSON,
    )
}

# The first whose texts all stand in the template: what is written only by one family comes first.
_SIGNS: tuple[tuple[type[ToolFormat], tuple[str, ...]], ...] = (
    (Qwen3Coder, ("<function=", "<parameter=")),
    (DeepSeek, ("<｜tool▁sep｜>", "```json")),
    (DeepSeek31, ("<｜tool▁sep｜>",)),
    (MistralArgs, ("[TOOL_CALLS]", "[ARGS]")),
    (Mistral, ("[TOOL_CALLS]",)),
    (Cohere, ("<|START_ACTION|>",)),
    (LFM2, ("<|tool_call_start|>",)),
    (LFM2, ("<|tool_list_start|>",)),
    (Nemotron, ("<TOOLCALL>",)),
    (Functools, ("functools[",)),
    (Phi4, ("<|/tool_call|>",)),
    (Phi4, ("<|/tool|>",)),
    (Granite, ("<|tool_call|>",)),
    (Hermes, ("<tool_call>",)),
    (Pythonic, ("<|python_start|>",)),
    (Pythonic, ("[func_name1(params_name1=",)),
    (Llama3, ("<|python_tag|>",)),
    (Llama3, ('"parameters": ', "<|start_header_id|>")),
    (Hermes, ()),
)


def tool_format(template: str, override: str | None = None, special: Mapping[str, int] | None = None) -> ToolFormat:
    """The format that a chat template's text shows, or the one named.

    ``special``: the tokenizer's special tokens with their ids. A template that knows no tools has the format of Hermes,
    in which fermi itself then tells the model of them. ConfigError for a name that is none.
    """
    if override is not None and override not in FORMATS:
        raise ConfigError(f"there is no tool parser {override!r}, only {', '.join(FORMATS)}")
    return (FORMATS[override] if override is not None else _shown_by(template))(special)


def _shown_by(template: str) -> type[ToolFormat]:
    return next(kind for kind, signs in _SIGNS if _all_in(signs, template))


def _all_in(signs: Iterable[str], template: str) -> bool:
    return all(sign in template for sign in signs)
