"""llama.cpp's grammars: what they accept, and that nothing else is drawn, however the lexemes are cut."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend

from fermi.errors import RequestError
from fermi.text.grammar import GBNF, Grammar, GrammarCompiler
from fermi.text.grammar.gbnf import Characters, Either, Node, Reference, Repeat, Row, Text, read_gbnf
from fermi.text.grammar.gbnf_lark import MAX_RULES
from fermi.text.tokenizer import Tokenizer
from text.grammar_walk import read, text_of, write

ARITHMETIC = r"""
root ::= (expr "=" ws term "\n")+
expr ::= term ([-+*/] ws term)*
term ::= ident | num | "(" ws expr ")" ws
ident ::= [a-z] [a-z0-9_]* ws
num ::= [0-9]+ ws
ws ::= [ \t\n]*
"""
JSON = r"""
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws

object ::=
  "{" ws (
            string ":" ws value
    ("," ws string ":" ws value)*
  )? "}" ws

array  ::=
  "[" ws (
            value
    ("," ws value)*
  )? "]" ws

string ::=
  "\"" (
    [^"\\\x7F\x00-\x1F] |
    "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) # escapes
  )* "\"" ws

number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws

# optional space
ws ::= | " " | "\n" [ \t]{0,20}
"""
LIST = r"""
root ::= item+

# Excludes various line break characters
item ::= "- " [^\r\n\x0b\x0c\x85\u2028\u2029]+ "\n"
"""
CHESS = r"""
root   ::= "1. " move " " move "\n" ([1-9] [0-9]? ". " move " " move "\n")+
move   ::= (pawn | nonpawn | castle) [+#]?
nonpawn ::= [NBKQR] [a-h]? [1-8]? "x"? [a-h] [1-8]
pawn   ::= ([a-h] "x")? [a-h] [1-8] ("=" [NBKQR])?
castle ::= "O-O" "-O"?
"""
JAPANESE = """
root ::= jp-char+ ([ \\t\\n] jp-char+)*
jp-char ::= hiragana | katakana | punctuation | cjk
hiragana ::= [ぁ-ゟ]
katakana ::= [ァ-ヿ]
punctuation ::= [、-〾]
cjk ::= [一-鿿]
"""


@pytest.fixture(scope="module")
def compiler(backends: Mapping[str, Callable[[], Backend]]) -> GrammarCompiler:
    return GrammarCompiler(Tokenizer(backends["byte_level"](), eos_token_ids=[3]))


@pytest.mark.parametrize(
    ("grammar", "whole", "part", "refused"),
    [
        (ARITHMETIC, ["1+2=3\n", "(a + b)*3 = x\n\n", "1 = 2\n3 = 4\n"], ["1=", "1=2"], ["=", "1+=", "(1)\n2"]),
        (JSON, ['{"a": [1, 2.5e1, "x\\n"], "b": {"c": null}}\n'], ["{", '{"a":'], ["[1]", '{"a" 1}', '{"a": 01}']),
        (LIST, ["- a\n- b\n"], ["- a", "- "], ["a", "- \n"]),
        (CHESS, ["1. e4 e5\n2. Nf3 Nc6\n", "1. O-O-O exd4+\n12. e8=Q O-O\n"], ["1. e4 e5\n"], ["1. zz", "2. e4"]),
        (JAPANESE, ["こんにちは、世界", "ア ぁ"], ["ぁ "], ["hello"]),
        ('root ::= "(" root ")" | word "x"\nword ::= [a-z]+', ["abx", "((xx))"], ["ab", "((ab"], ["(ab)"]),
        ('root ::= .{3}', ["a\nü", "🎉🎉🎉"], ["a"], ["abcd"]),
        (r'root ::= "\x41\u00e9\U0001F600\"\\\n" [\]\-\[^]', ['Aé😀"\\\n]', 'Aé😀"\\\n^'], ["Aé"], ['Aé😀"\\\n+']),
        ('root ::= "a" |\n "b" # or\n  | "c"\n\n', ["a", "b", "c"], [], ["d", "|"]),
        ('root ::= [a-c-]{2,} "!"?', ["a-", "bc!"], ["a"], ["d", "ab!!"]),
        ('root ::= ("a" "b"?){2}', ["aa", "abab"], ["a"], ["b", "aaa"]),
        ("root ::= x x\nx ::= y?\ny ::= [0-9]", ["", "1", "12"], [], ["123"]),
        ('root ::= "one" | [^a-z]+ root', ["one", "1 one"], ["1"], ["two"]),
    ],
)  # fmt: skip
def test_grammars(
    compiler: GrammarCompiler, grammar: str, whole: list[str], part: list[str], refused: list[str]
) -> None:
    compiled = compiler.compile(GBNF(grammar))
    found = {text: read(compiler, compiled, text) for text in (*whole, *part, *refused)}
    assert {text: found[text] for text in whole} == dict.fromkeys(whole, "whole")
    assert {text: found[text] for text in part} == dict.fromkeys(part, "part")
    assert not {text for text in refused if found[text] in ("whole", "part")}


def test_special_tokens(backends: Mapping[str, Callable[[], Backend]]) -> None:
    backend = backends["byte_level"]()
    backend.add_special_tokens(["<think>", "</think>"])
    tokenizer = Tokenizer(backend, eos_token_ids=[3])
    compiler = GrammarCompiler(tokenizer)
    think, closed = tokenizer.token_id("<think>"), tokenizer.token_id("</think>")
    for rule in ("<think> [^<]* </think>", f"<[{think}]> !<[{closed}]>* <[{closed}]>"):
        grammar = compiler.compile(GBNF(f'root ::= {rule} "ok" | "no"'))
        assert read(compiler, grammar, "<think>hm</think>ok") == "whole"
        assert read(compiler, grammar, "no") == "whole"
        assert read(compiler, grammar, "ok") == "o"


@pytest.mark.parametrize(
    ("grammar", "reason"),
    [
        ("", "no rule root"),
        ('x ::= "a"', "no rule root"),
        ("root ::= y", "no rule y"),
        ('root = "a"', "line 1 .* expected ::="),
        ('root ::= "b"\n\n?', "line 3 .* name of a rule"),
        ('root ::= "a', "closing quote"),
        ("root ::= [a", "closing quote or bracket"),
        ('root ::= ("a"', r"expected \)"),
        ('root ::= "a" )', "end of the rule"),
        ('root ::= "a"{2,1}', "can never be"),
        ('root ::= "a"{x}', "expected {m}"),
        (r'root ::= "\q"', "no escape"),
        (r'root ::= "\ud800"', "no character"),
        ("root ::= [z-a]", "ends before it begins"),
        ("root ::= []", "without characters"),
        ("root ::= !<think>", "by their number"),
        ("root ::= <a b>", "a token such as"),
        ("root ::= root", "no text matches"),
        (
            "\n".join(f'r{n} ::= r{n + 1} "x"' for n in range(MAX_RULES)) + f'\nroot ::= r0\nr{MAX_RULES} ::= ""',
            "rules",
        ),
    ],
)
def test_what_is_malformed_is_refused_with_its_line(compiler: GrammarCompiler, grammar: str, reason: str) -> None:
    with pytest.raises(RequestError, match=reason):
        compiler.compile(GBNF(grammar))


@pytest.mark.parametrize(
    "grammar",
    [
        "root ::= " + "[a-z]* " * 900,
        "root ::= " + "[a-z]* " * 900 + "root?",
        "root ::= r0\n" + "\n".join(f"r{n} ::= r{n + 1} r{n + 1}" for n in range(60)) + "\nr60 ::= [a-z]*",
        'root ::= r0 "!" | "(" root ")"\n'
        + "\n".join(f"r{n} ::= r{n + 1} r{n + 1}" for n in range(60))
        + "\nr60 ::= [a-z]*",
        "root ::= " + "(" * 60 + "[a-z]" + "){1,9}" * 60 + ' | "(" root ")"',
        "root ::= [" + "".join(chr(0x4E00 + 2 * n) for n in range(8000)) + "]+ root?",
        "root ::= " + " | ".join(f'"k{n}" root [a-{chr(98 + n % 20)}]*' for n in range(900)),
    ],
    ids=["many runs", "many runs in a circle", "doubling", "doubling in a circle", "counts", "characters", "choices"],
)
def test_absurd_grammars_are_compiled_or_refused(compiler: GrammarCompiler, grammar: str) -> None:
    with suppress(RequestError):
        write(compiler, compiler.compile(GBNF(grammar)), 0, 3)
    assert read(compiler, compiler.compile(GBNF('root ::= "a"')), "a") == "whole"


def test_what_is_drawn_is_in_the_language(compiler: GrammarCompiler) -> None:
    rules = read_gbnf(ARITHMETIC)
    compiled = compiler.compile(GBNF(ARITHMETIC))
    for seed in range(10):
        tokens = write(compiler, compiled, seed, 60)
        if tokens[-1] == 3:
            assert derives(rules, text_of(compiler.tokenizer, tokens))


def derives(rules: Mapping[str, Node], text: str) -> bool:
    """Whether a grammar has a text, by trying every way: the meaning of GBNF in the fewest lines."""
    ends: dict[tuple[str, int], set[int]] = {(rule, start): set() for rule in rules for start in range(len(text) + 1)}

    def after(node: Node, starts: set[int]) -> set[int]:
        match node:
            case Text():
                return {start + len(node.text) for start in starts if text.startswith(node.text, start)}
            case Characters():
                inside = [start for start in starts if start < len(text)]
                return {at + 1 for at in inside if any(low <= ord(text[at]) <= high for low, high in node.ranges)}
            case Reference():
                return {end for start in starts for end in ends[node.rule, start]}
            case Row():
                for part in node.nodes:
                    starts = after(part, starts)
                return starts
            case Either():
                return {end for part in node.nodes for end in after(part, starts)}
            case Repeat():
                found = set(starts) if node.least == 0 else set()
                for count in range(1, (node.most if node.most is not None else node.least + len(text)) + 1):
                    starts = after(node.node, starts)
                    found |= starts if count >= node.least else set()
                return found
        raise AssertionError(node)

    grown = True
    while grown:
        grown = False
        for (rule, start), known in ends.items():
            found = after(rules[rule], {start})
            grown |= not found <= known
            known |= found
    return len(text) in ends["root", 0]


ELEMENTS = st.sampled_from(['"a"', '"b"', '"ab"', '"ba"', '"c"', "[ab]", "[bc]", "[a-c]", '""', "root", "x"])


def rules_of(body: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    row = st.lists(body, min_size=1, max_size=3).map(" ".join)
    either = st.lists(row, min_size=2, max_size=3).map(lambda parts: f"({' | '.join(parts)})")
    repeat = st.tuples(body, st.sampled_from(["*", "+", "?", "{0,2}", "{2}"])).map(
        lambda parts: f"({parts[0]}){parts[1]}"
    )
    return row.map("({})".format) | either | repeat


@settings(max_examples=60)
@given(st.recursive(ELEMENTS, rules_of, max_leaves=6), st.recursive(ELEMENTS, rules_of, max_leaves=4))
def test_any_grammar_lets_nothing_be_drawn_that_it_has_not(compiler: GrammarCompiler, root: str, x: str) -> None:
    grammar = f"root ::= {root}\nx ::= {x}"
    try:
        compiled = compiler.compile(GBNF(grammar))
    except RequestError:
        assume(False)
    rules = read_gbnf(grammar)
    for text in texts("abc", 3):
        if drawn(compiler, compiled, text):
            assert derives(rules, text), text


def drawn(compiler: GrammarCompiler, compiled: Grammar, text: str) -> bool:
    """Whether a text may be drawn; no where the grammar is too ambiguous to go on."""
    try:
        return read(compiler, compiled, text) == "whole"
    except Exception:
        return False


def texts(alphabet: str, longest: int) -> Iterable[str]:
    for length in range(longest + 1):
        yield from map("".join, itertools.product(alphabet, repeat=length))
