"""How a reply may think before it answers, as a part of its grammar."""

from __future__ import annotations

import json
from typing import NamedTuple, Protocol

__all__ = ["Entries", "Thoughts", "behind"]

#: Line ends between the block and what the grammar bounds.
LINE_ENDS = r"/\n{0,2}/"


class Thoughts(NamedTuple):
    """The thinking block of a reply.

    Attributes:
        opened: the prompt ends inside the block; otherwise the reply may open it.
    """

    opened: bool
    opening: str = "<think>"
    closing: str = "</think>"


class Entries(Protocol):
    """What is to be known of a vocabulary."""

    def special(self, text: str) -> int | None:
        """The token with this text that other text is never made of."""

    @property
    def not_thoughts(self) -> list[str]:
        """Token ids and ranges of them that end a reply or stand for nothing."""


def behind(source: str, thoughts: Thoughts, entries: Entries) -> str:
    """A grammar (llguidance's JSON) that begins behind a thinking block."""
    closing = entries.special(thoughts.closing)
    if closing is None:
        rules = f"\nthoughts[lazy]: /(.|\\n)*{_escaped(thoughts.closing)}/"
        body = f"thoughts {LINE_ENDS} @reply"
    else:  # any tokens but that one: what they spell does not matter
        rules = ""
        body = f"<[^{','.join([str(closing), *entries.not_thoughts])}]>* <[{closing}]> {LINE_ENDS} @reply"
    if not thoughts.opened:
        opening = entries.special(thoughts.opening)
        tag = json.dumps(thoughts.opening) if opening is None else f"<[{opening}]>"
        rules = f"\nthinking: {tag} {body}{rules}"
        body = "thinking | @reply"
    grammars = json.loads(source)["grammars"]
    whole = {"lark_grammar": f"start: {body}{rules}"}
    return json.dumps({"grammars": [whole, {**grammars[0], "name": "reply"}, *grammars[1:]]})


def _escaped(text: str) -> str:
    """A text as a part of a regular expression in Lark's slashes."""
    return "".join(each if each.isalnum() or each in "<> " else f"\\{each}" for each in text)
