"""Grammars behind a thinking block, and budgets that end one."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend

from fermi.errors import RequestError
from fermi.text.grammar import (
    Choice,
    GrammarCompiler,
    JsonSchema,
    Regex,
    ThinkingBudget,
    Thoughts,
    after_thinking,
    bounds,
)
from fermi.text.grammar.budget import Budget
from fermi.text.tokenizer import Tokenizer
from text.grammar_walk import allowed, read, text_of, write

FLAG = JsonSchema(
    {
        "type": "object",
        "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 999}},
        "required": ["a"],
        "additionalProperties": False,
    }
)
ANSWERS = Choice(("yes", "no"))


def compiler_of(backend: Backend, *special: str) -> GrammarCompiler:
    backend.add_special_tokens(list(special))
    tokenizer = Tokenizer(backend, eos_token_ids=[3])
    return GrammarCompiler(tokenizer, tokenizer.vocab_size + 7)


@pytest.fixture(scope="module", params=["special tokens", "plain text", "byte fallback"])
def compiler(request: pytest.FixtureRequest, backends: Mapping[str, Callable[[], Backend]]) -> GrammarCompiler:
    """Vocabularies that write the tags as tokens of their own, and letter by letter."""
    if request.param == "special tokens":
        return compiler_of(backends["byte_level"](), "<think>", "</think>", "<tool>")
    return compiler_of(backends["byte_level" if request.param == "plain text" else "byte_fallback"]())


@pytest.fixture(scope="module")
def plain(backends: Mapping[str, Callable[[], Backend]]) -> GrammarCompiler:
    return compiler_of(backends["byte_level"]())


@pytest.fixture(scope="module")
def tagged(backends: Mapping[str, Callable[[], Backend]]) -> GrammarCompiler:
    return compiler_of(backends["byte_level"](), "<think>", "</think>", "<tool>")


def test_a_grammar_begins_behind_the_block_of_the_prompt(plain: GrammarCompiler, tagged: GrammarCompiler) -> None:
    for compiler in (plain, tagged):
        grammar = after_thinking(compiler.compile(ANSWERS))
        for thoughts in ("so: maybe {", "\nü\n", ""):
            for line_ends in ("", "\n", "\n\n"):
                assert read(compiler, grammar, f"{thoughts}</think>{line_ends}yes") == "whole"
        assert read(compiler, grammar, "yes") == "part"
        assert read(compiler, grammar, "hm</think>\n\nmaybe") != "whole"
        assert read(compiler, grammar, "hm</think>") == "part"


def test_a_block_that_the_reply_may_open(plain: GrammarCompiler, tagged: GrammarCompiler) -> None:
    for compiler in (plain, tagged):
        grammar = after_thinking(compiler.compile(FLAG), opened=False)
        assert read(compiler, grammar, '{"a": 1}') == "whole"
        assert read(compiler, grammar, '<think>{"a"} is it</think>\n\n{"a": 1}') == "whole"
        assert read(compiler, grammar, "so") != "whole"
        assert read(compiler, grammar, "<think>hm") == "part"


def test_other_tags(plain: GrammarCompiler) -> None:
    grammar = after_thinking(plain.compile(ANSWERS), "[/THINK]", opening="[THINK]", opened=False)
    assert read(plain, grammar, "[THINK]a</think>[/THINK]no") == "whole"


def test_thoughts_hold_any_token_but_an_end(tagged: GrammarCompiler) -> None:
    grammar = after_thinking(tagged.compile(ANSWERS))
    drawn = allowed(grammar.start(), tagged.vocab_size)
    assert tagged.tokenizer.token_id("<tool>") in drawn
    assert not set(drawn) & tagged.tokenizer.eos_token_ids
    assert max(drawn) < tagged.tokenizer.vocab_size
    assert read(tagged, grammar, "<tool>x</think>no") == "whole"


def test_what_is_drawn_at_random_behind_thoughts_fits(compiler: GrammarCompiler) -> None:
    grammar = compiler.compile(Regex("[0-9]{3}x"), Thoughts(opened=True))
    closing = compiler.tokenizer.encode("</think>", add_special_tokens=False)
    for seed in range(4):
        chance, constraint = random.Random(seed), grammar.start()
        tokens: list[int] = []
        for _ in range(chance.randrange(5)):
            choices = allowed(constraint, compiler.vocab_size)
            whole = [token for token in choices if compiler.tokenizer.token_bytes(token).isascii()]
            tokens.append(chance.choice(whole))
            constraint.accept(tokens[-1])
        before = compiler.tokenizer.decode(tokens, skip_special_tokens=False)
        for token in closing:
            assert token in allowed(constraint, compiler.vocab_size), before
            constraint.accept(token)
        while 3 not in (choices := allowed(constraint, compiler.vocab_size)):
            tokens.append(chance.choice(choices))
            constraint.accept(tokens[-1])
        assert choices == [3]
        text = compiler.tokenizer.decode(tokens[-6:], skip_special_tokens=False)
        assert text.endswith("x")


def budgeted(compiler: GrammarCompiler, tokens: int, text: str, *, opened: bool = True) -> tuple[str, int]:
    """What a model that would say a text says under a budget, and how many tokens that took with the block's end."""
    budget = ThinkingBudget(compiler.tokenizer, tokens, Thoughts(opened))
    constraint = budget.start()
    said: list[int] = []
    for token in compiler.tokenizer.encode(text, add_special_tokens=False):
        while not constraint.free:
            (forced,) = allowed(constraint, compiler.vocab_size)
            constraint.accept(forced)
            said.append(forced)
        if "</think>" in compiler.tokenizer.decode(said, skip_special_tokens=False):
            break
        constraint.accept(token)
        said.append(token)
    return compiler.tokenizer.decode(said, skip_special_tokens=False), len(said)


def test_a_budget_ends_the_block(compiler: GrammarCompiler) -> None:
    end = len(compiler.tokenizer.encode("\n</think>\n\n", add_special_tokens=False))
    for tokens in range(40):
        said, count = budgeted(compiler, tokens, "a long thought about nothing in particular, so it goes on and on")
        assert said.endswith("</think>\n\n")
        assert count <= max(tokens, end)
    assert said.startswith("a long thought")


def test_a_budget_that_is_not_used_up_changes_nothing(compiler: GrammarCompiler) -> None:
    text = "hm\n</think>\n\nyes, and on and on and on"
    tokens = compiler.tokenizer.encode(text, add_special_tokens=False)
    constraint = ThinkingBudget(compiler.tokenizer, len(tokens) - 2, Thoughts(opened=True)).start()
    for token in tokens:
        assert constraint.free
        constraint.accept(token)
    assert constraint.free


def test_a_reply_without_thoughts_has_no_budget(tagged: GrammarCompiler) -> None:
    constraint = ThinkingBudget(tagged.tokenizer, 6, Thoughts(opened=False)).start()
    for token in tagged.tokenizer.encode(
        "an answer <think> that goes on and on and on and on", add_special_tokens=False
    ):
        assert constraint.free
        constraint.accept(token)


def test_a_block_that_the_reply_opens_counts_with_its_tag(tagged: GrammarCompiler) -> None:
    said, count = budgeted(tagged, 12, "\n<think>one two three four five six seven eight", opened=False)
    assert said.startswith("\n<think>one")
    assert said.endswith("\n</think>\n\n")
    assert count <= 12


def test_the_tag_stands_on_a_line_of_its_own(tagged: GrammarCompiler) -> None:
    budget = ThinkingBudget(tagged.tokenizer, 9, Thoughts(opened=True))
    texts = set()
    for text in ("ab\n\n\n\n\n\n", "a b c d e f"):
        constraint, said = budget.start(), list[int]()
        for token in tagged.tokenizer.encode(text, add_special_tokens=False):
            if not constraint.free:
                break
            constraint.accept(token)
            said.append(token)
        while not constraint.free:
            (forced,) = allowed(constraint, tagged.vocab_size)
            constraint.accept(forced)
            said.append(forced)
        texts.add(tagged.tokenizer.decode(said, skip_special_tokens=False))
    assert all("\n</think>\n\n" in text for text in texts)


def test_a_character_of_several_bytes_is_not_cut(plain: GrammarCompiler) -> None:
    for tokens in range(4, 40):
        said, _ = budgeted(plain, tokens, "🎈🎈你好🎈ü🎈🎈🎈🎈🎈🎈🎈🎈🎈")
        assert "\ufffd" not in said, tokens


def test_a_budget_and_a_grammar(compiler: GrammarCompiler) -> None:
    for opened in (True, False):
        for seed in range(4):
            grammar = bounds(compiler, FLAG, Thoughts(opened), 14)
            assert grammar is not None
            tokens = write(compiler, grammar, seed, 300)
            text = text_of(compiler.tokenizer, tokens)
            assert text.rindex("}") > text.rfind("</think>")


def test_what_bounds_nothing(compiler: GrammarCompiler) -> None:
    assert bounds(compiler, None) is None
    assert bounds(compiler, None, Thoughts(opened=True)) is None
    assert bounds(compiler, None, None, 5) is None
    assert bounds(compiler, ANSWERS, None, 5) is compiler.compile(ANSWERS)


def test_a_tag_that_the_vocabulary_cannot_write(backends: Mapping[str, Callable[[], Backend]]) -> None:
    tokenizer = Tokenizer(backends["words"](), eos_token_ids=[3])
    with pytest.raises(RequestError, match="cannot write"):
        ThinkingBudget(tokenizer, 5, Thoughts(opened=True))


@given(st.text("ab\n<>/think", max_size=30), st.integers(0, 30), st.booleans())
def test_no_text_thinks_longer_than_it_may(plain: GrammarCompiler, text: str, tokens: int, opened: bool) -> None:
    budget = ThinkingBudget(plain.tokenizer, tokens, Thoughts(opened))
    state = Budget(budget.rules)
    said = b""
    inside = 0
    for token in plain.tokenizer.encode(text, add_special_tokens=False):
        while state.forced is not None:
            said += plain.tokenizer.token_bytes(state.forced)
            state.accept(state.forced)
            inside += 1
        said += plain.tokenizer.token_bytes(token)
        state.accept(token)
        thinking = opened or said.lstrip().startswith(b"<think>")
        inside += thinking and b"</think>" not in said
    assert inside <= max(tokens, len(budget.rules.end)) + 1
