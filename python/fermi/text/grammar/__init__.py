"""Constrained decoding: a schema, expression or grammar becomes, at each step, the tokens that may come next."""

from fermi.text.grammar.compiler import Grammar, GrammarCompiler
from fermi.text.grammar.json_schema import readable_schema
from fermi.text.grammar.spec import GBNF, Choice, GrammarSpec, JsonObject, JsonSchema, Lark, Regex, written_grammar
from fermi.text.grammar.thinking import ThinkingBudget, after_thinking, bounds, within_budget
from fermi.text.grammar.thoughts import Thoughts

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
    "Thoughts",
    "after_thinking",
    "bounds",
    "readable_schema",
    "within_budget",
    "written_grammar",
]
