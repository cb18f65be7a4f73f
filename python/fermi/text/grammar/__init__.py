"""Constrained decoding: a schema, expression or grammar becomes, at each step, the tokens that may come next."""

from fermi.text.grammar.compiler import Grammar, GrammarCompiler
from fermi.text.grammar.spec import GBNF, Choice, GrammarSpec, JsonObject, JsonSchema, Lark, Regex
from fermi.text.grammar.thinking import ThinkingBudget, after_thinking

__all__ = [
    "GBNF",
    "Choice",
    "Grammar",
    "GrammarCompiler",
    "GrammarSpec",
    "JsonObject",
    "JsonSchema",
    "Lark",
    "Regex",
    "ThinkingBudget",
    "after_thinking",
]
