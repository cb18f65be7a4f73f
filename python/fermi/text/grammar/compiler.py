"""Compiles grammars for one model's vocabulary, and keeps those that were used last."""

from __future__ import annotations

import threading
from collections import OrderedDict

from llguidance import LLExecutor, LLMatcher, LLParserLimits, LLTokenizer

from fermi.errors import RequestError
from fermi.text.grammar.constraint import Constraint, reason_of
from fermi.text.grammar.spec import GrammarSpec, describe
from fermi.text.grammar.vocabulary import read_vocabulary
from fermi.text.tokenizer import Tokenizer

__all__ = ["Grammar", "GrammarCompiler"]

#: Grammars that are kept compiled.
MAX_KEPT = 64


class Grammar:
    """A compiled grammar. Sequences that are bound to it each start a constraint of their own.

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
        return Constraint(self._matcher.deep_copy(), self._executor)


class GrammarCompiler:
    """Makes grammars over one tokenizer's vocabulary. Threads may share it: they compile one at a time.

    The vocabulary is read when the first grammar is asked for, which takes a second where there are 150,000 tokens.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int | None = None, *, threads: int = 1) -> None:
        """``vocab_size``: columns of the model's logits, by default the tokenizer's entries; those beyond the tokenizer
        are never allowed. ``threads``: that fill the masks of one step."""
        self.tokenizer = tokenizer
        self.vocab_size = tokenizer.vocab_size if vocab_size is None else vocab_size
        self._threads = threads
        self._lock = threading.Lock()
        self._vocabulary: LLTokenizer | None = None
        self._executor: LLExecutor | None = None
        self._kept: OrderedDict[str, Grammar] = OrderedDict()
        self._limits = LLParserLimits(verbose_errors=False)

    def compile(self, spec: GrammarSpec) -> Grammar:
        """The grammar of a spec; may take a while, so not on an event loop. RequestError says why it cannot be."""
        return self.compile_source(describe(spec))

    def compile_source(self, source: str) -> Grammar:
        """The grammar that llguidance's JSON describes."""
        with self._lock:
            grammar = self._kept.get(source)
            if grammar is None:
                grammar = self._kept[source] = self._compile(source)
                while len(self._kept) > MAX_KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(source)
            return grammar

    @property
    def vocabulary(self) -> LLTokenizer:
        """llguidance's view of the tokenizer."""
        with self._lock:
            return self._read_vocabulary()

    @property
    def unused(self) -> list[tuple[int, int]]:
        """Ids that stand for nothing, the model's logits beyond the tokenizer's entries among them: first and last of
        each range."""
        used = sorted({*self.tokenizer.token_ids(), self.vocab_size})
        starts = [0, *(token_id + 1 for token_id in used)]
        return [(start, end - 1) for start, end in zip(starts, used, strict=False) if start < end]

    def _read_vocabulary(self) -> LLTokenizer:
        if self._vocabulary is None:
            self._vocabulary = read_vocabulary(self.tokenizer, self.vocab_size)
        return self._vocabulary

    def _compile(self, source: str) -> Grammar:
        matcher = LLMatcher(self._read_vocabulary(), source, log_level=0, limits=self._limits)
        first = matcher.deep_copy()
        if not matcher.is_error():  # the first mask builds the lexer: what it cannot do shows now
            first.compute_bitmask()
        if first.is_error():
            raise RequestError(f"the grammar cannot be compiled: {reason_of(first)}")
        if self._executor is None:
            self._executor = LLExecutor(self._threads)
        return Grammar(self, source, matcher, self._executor)
