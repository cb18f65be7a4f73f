"""Grammars and the thinking block: a grammar begins behind it, a budget ends it."""

from __future__ import annotations

from fermi.errors import RequestError
from fermi.text.grammar.budget import Budget, BudgetRules
from fermi.text.grammar.compiler import Grammar, GrammarCompiler
from fermi.text.grammar.constraint import Constraint
from fermi.text.grammar.spec import GrammarSpec
from fermi.text.grammar.thoughts import Thoughts
from fermi.text.tokenizer import Tokenizer

__all__ = ["ThinkingBudget", "after_thinking", "bounds", "within_budget"]


def bounds(
    compiler: GrammarCompiler,
    spec: GrammarSpec | None,
    thoughts: Thoughts | None = None,
    budget: int | None = None,
) -> Grammar | ThinkingBudget | None:
    """What bounds a reply: a spec, begun behind its thoughts where it has any, and a budget of tokens for those.

    None where nothing does. Takes as long as compiling. RequestError as `GrammarCompiler.compile` and `ThinkingBudget`.
    """
    grammar = None if spec is None else compiler.compile(spec, thoughts)
    return within_budget(compiler, grammar, thoughts, budget)


def within_budget(
    compiler: GrammarCompiler, grammar: Grammar | None, thoughts: Thoughts | None, budget: int | None
) -> Grammar | ThinkingBudget | None:
    """A compiled grammar, or none, with a budget for the thoughts before it where both are given."""
    if thoughts is None or budget is None:
        return grammar
    return ThinkingBudget(compiler.tokenizer, budget, thoughts, grammar)


def after_thinking(
    grammar: Grammar, closing: str = "</think>", *, opening: str = "<think>", opened: bool = True
) -> Grammar:
    """The grammar for a reply that thinks first: anything up to the closing tag, line ends, then what it bounds.

    The reply cannot end within its thoughts. ``opened``: the prompt ends inside the block; otherwise the reply may
    begin with ``opening`` and think, or begin with what the grammar bounds. May take as long as compiling.
    """
    return grammar.compiler.behind(grammar, Thoughts(opened, opening, closing))


class ThinkingBudget:
    """Ends the thinking block of a reply when it has taken so many tokens, its end included; bounds nothing else.

    The tokens that must come next are then those of the closing tag, so that the model goes on with its answer as if it
    had stopped by itself. A budget smaller than the tag ends the block at once.

    Attributes:
        rules: what the thoughts may take.
    """

    def __init__(self, tokenizer: Tokenizer, tokens: int, thoughts: Thoughts, grammar: Grammar | None = None) -> None:
        """``grammar``: bounds the reply besides, the block being a part of it.

        RequestError when the tokenizer cannot write the closing tag.
        """
        opened, opening, closing = thoughts
        # As chat templates have it: the tag on a line of its own, then an empty one.
        end, end_of_line = (
            tuple(tokenizer.encode(text, add_special_tokens=False)) for text in (f"\n{closing}\n\n", f"{closing}\n\n")
        )
        for tokens_of_end in (end, end_of_line):
            if closing.encode() not in b"".join(map(tokenizer.token_bytes, tokens_of_end)):
                raise RequestError(f"this model's tokenizer cannot write {closing}", param="thinking_budget")
        self.rules = BudgetRules(
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
        return constraint.with_budget(Budget(self.rules))
