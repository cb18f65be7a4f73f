"""Writes texts at random under a grammar, as a model without sense would, and reads given ones."""

from __future__ import annotations

import random

import numpy as np
import numpy.typing as npt

from fermi.text.grammar import Grammar, GrammarCompiler, ThinkingBudget
from fermi.text.grammar.constraint import Constraint
from fermi.text.tokenizer import Tokenizer

Words = npt.NDArray[np.uint32]


def allowed(constraint: Constraint, vocab_size: int) -> list[int]:
    """The tokens that may come next."""
    masks: Words = np.full((1, (vocab_size + 31) // 32), 0xAAAAAAAA, np.uint32)
    assert Constraint.fill([constraint], masks) == {}
    bits = np.unpackbits(masks[0].view(np.uint8), bitorder="little")[:vocab_size]
    found: list[int] = bits.nonzero()[0].tolist()
    return found


def write(compiler: GrammarCompiler, grammar: Grammar | ThinkingBudget, seed: int, most: int = 400) -> list[int]:
    """Tokens at random, a token of one character every other time so that texts end, with the end if it comes."""
    tokenizer, chance = compiler.tokenizer, random.Random(seed)
    constraint, tokens = grammar.start(), list[int]()
    while len(tokens) < most:
        choices = allowed(constraint, compiler.vocab_size)
        ends = [token for token in choices if token in tokenizer.eos_token_ids]
        if ends and (chance.random() < 0.5 or len(ends) == len(choices)):
            constraint.accept(ends[0])
            return [*tokens, ends[0]]
        closing = [token for token in choices if tokenizer.token_bytes(token) in (b'"', b"}", b"]")]
        pool = closing if closing and chance.random() < 0.3 else choices
        tokens.append(chance.choice([token for token in pool if token not in tokenizer.eos_token_ids]))
        constraint.accept(tokens[-1])
    return tokens


def read(compiler: GrammarCompiler, grammar: Grammar | ThinkingBudget, text: str) -> str:
    """What a grammar makes of a text: ``whole``, ``part``, or what it refuses."""
    tokenizer = compiler.tokenizer
    return read_tokens(compiler, grammar, tokenizer.encode(text, add_special_tokens=False))


def read_tokens(compiler: GrammarCompiler, grammar: Grammar | ThinkingBudget, tokens: list[int]) -> str:
    """The same of token ids."""
    constraint = grammar.start()
    for token in tokens:
        if token not in allowed(constraint, compiler.vocab_size):
            return compiler.tokenizer.token_text(token)
        constraint.accept(token)
    ends = set(allowed(constraint, compiler.vocab_size)) & compiler.tokenizer.eos_token_ids
    return "whole" if ends else "part"


def text_of(tokenizer: Tokenizer, tokens: list[int]) -> str:
    """The text of tokens without their end. The walk must have come to one."""
    assert tokens[-1] in tokenizer.eos_token_ids
    return tokenizer.decode(tokens[:-1], skip_special_tokens=False)
