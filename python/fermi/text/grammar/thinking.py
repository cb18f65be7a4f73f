"""Grammars and the thinking block: a grammar begins behind it, a budget ends it."""

from __future__ import annotations

import json

from fermi.errors import RequestError
from fermi.text.grammar.budget import Budget, BudgetRules
from fermi.text.grammar.compiler import Grammar
from fermi.text.grammar.constraint import Constraint
from fermi.text.tokenizer import Tokenizer

__all__ = ["ThinkingBudget", "after_thinking"]

#: Line ends between the block and what the grammar bounds.
LINE_ENDS = r"/\n{0,4}/"


def after_thinking(
    grammar: Grammar, closing: str = "</think>", *, opening: str = "<think>", opened: bool = True
) -> Grammar:
    """The grammar for a reply that thinks first: anything up to the closing tag, line ends, then what it bounds.

    The reply cannot end within its thoughts. ``opened``: the prompt ends inside the block; otherwise the reply may
    begin with ``opening`` and think, or begin with what the grammar bounds.

    May take as long as compiling. RequestError where llguidance cannot join the two.
    """
    compiler = grammar.compiler
    thoughts, rules = _thoughts(grammar, closing)
    start = f"{thoughts} {LINE_ENDS} @reply" if opened else f"({_tag(grammar, opening)} {thoughts} {LINE_ENDS})? @reply"
    source = json.loads(grammar.source)
    source["grammars"][0]["name"] = "reply"
    source["grammars"].insert(0, {"lark_grammar": f"start: {start}\n{rules}"})
    return compiler.compile_source(json.dumps(source))


def _thoughts(grammar: Grammar, closing: str) -> tuple[str, str]:
    """What matches thoughts with the tag that closes them, and the rules that it needs."""
    compiler = grammar.compiler
    token_id = _special(grammar, closing)
    if token_id is None:
        return "thoughts", f"thoughts[lazy]: /(.|\\n)*{_escaped(closing)}/"
    never = [str(token_id), *map(str, compiler.vocabulary.eos_tokens)]
    never += [f"{first}-{last}" for first, last in compiler.unused]
    return f"<[^{','.join(never)}]>* <[{token_id}]>", ""


def _tag(grammar: Grammar, tag: str) -> str:
    token_id = _special(grammar, tag)
    return json.dumps(tag) if token_id is None else f"<[{token_id}]>"


def _special(grammar: Grammar, tag: str) -> int | None:
    """The tag's token, where the vocabulary has one that text is never made of."""
    token_id = grammar.compiler.tokenizer.token_id(tag)
    return token_id if token_id is not None and grammar.compiler.vocabulary.is_special_token(token_id) else None


def _escaped(text: str) -> str:
    """A text as a part of a regular expression in Lark's slashes."""
    return "".join(f"\\{each}" if not (each.isalnum() or each in "<> ") else each for each in text)


class ThinkingBudget:
    """Ends the thinking block of a reply when it has taken so many tokens, its end included; bounds nothing else.

    The tokens that must come next are then those of the closing tag, so that the model goes on with its answer as if it
    had stopped by itself. A budget smaller than the tag ends the block at once.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        tokens: int,
        *,
        closing: str = "</think>",
        opening: str = "<think>",
        opened: bool = True,
        grammar: Grammar | None = None,
    ) -> None:
        """``opened``: as for `after_thinking`. ``grammar``: bounds the reply besides, the block being a part of it.

        RequestError when the tokenizer cannot write the closing tag.
        """
        # As chat templates have it: the tag on a line of its own, then an empty one.
        end, end_of_line = (
            tuple(tokenizer.encode(text, add_special_tokens=False)) for text in (f"\n{closing}\n\n", f"{closing}\n\n")
        )
        for tokens_of_end in (end, end_of_line):
            if closing.encode() not in b"".join(map(tokenizer.token_bytes, tokens_of_end)):
                raise RequestError(f"this model's tokenizer cannot write {closing}", param="thinking_budget")
        self._rules = BudgetRules(
            tokens=tokens,
            opening=opening.encode(),
            closing=closing.encode(),
            end=end,
            end_of_line=end_of_line,
            bytes_of=tokenizer.token_bytes,
            opened=opened,
        )
        self._grammar = grammar

    def start(self) -> Constraint:
        """What a new sequence may say."""
        constraint = Constraint() if self._grammar is None else self._grammar.start()
        return constraint.with_budget(Budget(self._rules))
