"""What one sequence may say next: a grammar's state, and how long it may still think."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from llguidance import LLExecutor, LLMatcher

from fermi.text.grammar.budget import Budget

__all__ = ["Constraint", "GrammarError", "reason_of"]


class GrammarError(Exception):
    """A grammar cannot go on: its parser became too large, or a token came that it does not allow."""


class Constraint:
    """One sequence under a grammar, a budget, or both. For one thread at a time."""

    __slots__ = ("_budget", "_executor", "_failed", "_matcher")

    def __init__(
        self,
        matcher: LLMatcher | None = None,
        executor: LLExecutor | None = None,
        failed: Callable[[], None] | None = None,
        budget: Budget | None = None,
    ) -> None:
        """``failed`` is called where the grammar cannot go on."""
        self._matcher = matcher
        self._executor = executor
        self._failed = failed
        self._budget = budget

    @property
    def free(self) -> bool:
        """Whether any token may come next."""
        return self._matcher is None and (self._budget is None or self._budget.forced is None)

    @property
    def complete(self) -> bool:
        """Whether only an end of the text can come next, as far as that shows already."""
        return self._matcher is not None and self._matcher.is_stopped()

    def with_budget(self, budget: Budget) -> Constraint:
        """The same, thinking no longer than that."""
        return Constraint(self._matcher, self._executor, self._failed, budget)

    def accept(self, token_id: int) -> None:
        """The token was drawn. GrammarError where the grammar does not allow it."""
        if self._budget is not None:
            self._budget.accept(token_id)
        if self._matcher is not None and not self._matcher.consume_token(token_id):
            raise GrammarError(self._reason(self._matcher))

    @staticmethod
    def fill(constraints: Sequence[Constraint], masks: npt.NDArray[np.uint32]) -> dict[int, str]:
        """Writes row i of ``masks`` [constraints, words]: bit ``id % 32`` of word ``id // 32`` for each token that may
        come next in ``constraints[i]``.

        Lets go of the GIL once, for all of them. Returns by place why a grammar cannot go on; those rows mean nothing.
        """
        matchers: list[tuple[LLMatcher, int]] = []
        executor: LLExecutor | None = None
        for row, constraint in enumerate(constraints):
            forced = constraint._budget.forced if constraint._budget is not None else None
            if forced is not None:
                masks[row] = 0
                masks[row, forced // 32] = 1 << (forced % 32)
            elif constraint._matcher is None:
                masks[row] = 2**32 - 1
            else:
                matchers.append((constraint._matcher, row))
                executor = constraint._executor
        if executor is None:
            return {}
        executor.unsafe_compute_mask_ptr(matchers, masks.ctypes.data, masks.strides[0], len(masks))
        return {row: constraints[row]._reason(matcher) for matcher, row in matchers if matcher.is_error()}

    def _reason(self, matcher: LLMatcher) -> str:
        """Why its grammar cannot go on."""
        if self._failed is not None:
            self._failed()
        return reason_of(matcher)


def reason_of(matcher: LLMatcher) -> str:
    """llguidance's own words, without its dump of the parser."""
    reason = matcher.get_error().split("\n<state>", 1)[0].removesuffix("<non-verbose/>").strip()
    return "no text matches it" if reason.startswith("NoExtension") else reason
