"""Compiles grammars for one model's vocabulary, and keeps those that were used last."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

from llguidance import LLExecutor, LLMatcher, LLParserLimits

from fermi.errors import RequestError
from fermi.text.grammar.constraint import Constraint, reason_of
from fermi.text.grammar.spec import GrammarSpec, describe
from fermi.text.grammar.thoughts import Thoughts, behind
from fermi.text.grammar.vocabulary import Vocabulary
from fermi.text.tokenizer import Tokenizer

__all__ = ["Grammar", "GrammarCompiler"]

#: Grammars that are kept compiled. One may take some 30 MiB, though most take a few KiB.
MAX_KEPT = 32
#: What reading a grammar's regular expressions may cost, and how many states matching them may have, in llguidance's
#: units: about a quarter of a second, and 50 MiB.
LEXER_FUEL = 200_000
LEXER_STATES = 50_000

Result = TypeVar("Result")


class Grammar:
    """A compiled grammar. Each sequence that is bound to it starts a constraint of its own.

    Attributes:
        source: what was compiled: llguidance's JSON.
    """

    def __init__(self, compiler: GrammarCompiler, source: str, matcher: LLMatcher, executor: LLExecutor) -> None:
        self.compiler = compiler
        self.source = source
        self._matcher = matcher
        self._executor = executor

    def start(self) -> Constraint:
        """What a new sequence may say: the state before its first token."""
        return Constraint(self._matcher.deep_copy(), self._executor, self.forget)

    def forget(self) -> None:
        """Compile it anew for the next who asks: its lexer, which all its sequences share, is at its end."""
        self.compiler.forget(self)


class GrammarCompiler:
    """Makes grammars over one tokenizer's vocabulary. Threads may share it: they compile one at a time.

    The vocabulary is read when the first grammar is asked for, or by ``prepare``: where there are 150,000 tokens that
    takes a second, with the GIL, and 70 MiB.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int | None = None, *, threads: int | None = None) -> None:
        """``vocab_size``: columns of the model's logits, by default the tokenizer's entries; those beyond the tokenizer
        are never allowed. ``threads``: that fill the masks of one step; a quarter of the processors by default."""
        self.tokenizer = tokenizer
        self.vocab_size = tokenizer.vocab_size if vocab_size is None else vocab_size
        self._threads = max(1, (os.cpu_count() or 1) // 4) if threads is None else threads
        self._turn = threading.Lock()  # to compile
        self._lock = threading.Lock()  # of what is kept, for moments only
        self._vocabulary: Vocabulary | None = None
        self._executor: LLExecutor | None = None
        self._background: ThreadPoolExecutor | None = None
        self._kept: OrderedDict[tuple[str, Thoughts | None], Grammar] = OrderedDict()

    def prepare(self) -> None:
        """Reads the vocabulary now, while nothing waits for the GIL."""
        with suppress(RequestError):  # a model that takes no grammar says so when one is asked for
            _ = self.vocabulary

    def compile(self, spec: GrammarSpec, thoughts: Thoughts | None = None) -> Grammar:
        """The grammar of a spec, begun behind the thinking block where there may be one.

        May take a while, so not on an event loop. RequestError says why it cannot be.
        """
        return self._compiled(describe(spec), thoughts)

    def find(self, spec: GrammarSpec, thoughts: Thoughts | None = None) -> Grammar | None:
        """The same, at once, where it is still kept. RequestError where the spec is malformed."""
        return self._find((describe(spec), thoughts))

    def behind(self, grammar: Grammar, thoughts: Thoughts) -> Grammar:
        """A grammar begun behind a thinking block."""
        return self._compiled(grammar.source, thoughts)

    def forget(self, grammar: Grammar) -> None:
        """Do not keep a grammar any longer."""
        with self._lock:
            for key, kept in list(self._kept.items()):
                if kept is grammar:
                    del self._kept[key]

    def in_background(self, work: Callable[[], Result]) -> Future[Result]:
        """Does work on a thread for compiling, in turn: however many ask, the others' threads stay free."""
        with self._lock:
            if self._background is None:
                self._background = ThreadPoolExecutor(1, "fermi-grammars")
        return self._background.submit(work)

    @property
    def vocabulary(self) -> Vocabulary:
        """llguidance's view of the tokenizer."""
        with self._turn:
            return self._read_vocabulary()

    def _read_vocabulary(self) -> Vocabulary:
        if self._vocabulary is None:
            self._vocabulary = Vocabulary(self.tokenizer, self.vocab_size)
        return self._vocabulary

    def _find(self, key: tuple[str, Thoughts | None]) -> Grammar | None:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def _compiled(self, source: str, thoughts: Thoughts | None) -> Grammar:
        key = (source, thoughts)
        with self._turn:
            grammar = self._find(key)
            if grammar is None:
                if thoughts is not None:
                    source = behind(source, thoughts, self._read_vocabulary())
                grammar = self._compile(source)
                with self._lock:
                    self._kept[key] = grammar
                    if len(self._kept) > MAX_KEPT:
                        self._kept.popitem(last=False)
            return grammar

    def _compile(self, source: str) -> Grammar:
        limits = LLParserLimits(initial_lexer_fuel=LEXER_FUEL, max_lexer_states=LEXER_STATES, verbose_errors=False)
        matcher = LLMatcher(self._read_vocabulary().tokenizer, source, log_level=0, limits=limits)
        for _ in range(2):  # masks build the lexer, which all copies share: what it cannot do shows with the second
            first = matcher.deep_copy()
            if not first.is_error():
                first.compute_bitmask()
            if first.is_error():
                raise RequestError(f"the grammar cannot be compiled: {reason_of(first):.2000}")
        if self._executor is None:
            self._executor = LLExecutor(self._threads)
        return Grammar(self, source, matcher, self._executor)
