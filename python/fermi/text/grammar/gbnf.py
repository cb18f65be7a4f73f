"""llama.cpp's grammars (GBNF) in llguidance's dialect of Lark."""

from __future__ import annotations

from llguidance.gbnf_to_lark import gbnf_to_lark

from fermi.errors import RequestError

__all__ = ["lark_of_gbnf"]


def lark_of_gbnf(text: str) -> str:
    """The same grammar as Lark. RequestError where it is malformed."""
    try:
        return gbnf_to_lark(text)
    except (Exception, RecursionError) as error:
        raise RequestError(f"the GBNF grammar is malformed: {error}") from None
