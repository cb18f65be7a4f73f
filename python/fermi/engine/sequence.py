"""A request, the sequences generated for it, and how far each has come."""

from __future__ import annotations

from array import array
from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from fermi.engine.blocks import block_key
from fermi.engine.event import TokenLogprobs
from fermi.engine.sampling import Sampling

if TYPE_CHECKING:
    from fermi.engine._sampler import Draws

__all__ = ["Constraint", "Grammar", "Group", "Request", "Sequence", "Table"]


class Constraint(Protocol):
    """What may come next in one sequence."""

    @property
    def free(self) -> bool:
        """Whether any token may come next."""

    @property
    def complete(self) -> bool:
        """Whether nothing but an end can come next. It may be told late: an end is then drawn."""

    def accept(self, token_id: int) -> None:
        """The token was drawn. Raises where it may not come."""

    @staticmethod
    def fill(constraints: Items[Any], masks: npt.NDArray[np.uint32]) -> dict[int, str]:
        """Writes row i of ``masks`` [constraints, words] for ``constraints[i]``, which are of this class: bit
        ``id % 32`` of word ``id // 32`` for each token that may come next.

        Called on a thread of its own while a step runs. Returns by row why a constraint cannot go on.
        """


class Grammar(Protocol):
    """Bounds the tokens of a request."""

    def start(self) -> Constraint:
        """The state before the first new token."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Request:
    """What to generate.

    Attributes:
        id: names the request in events; unique among those in the engine.
        eos_token_ids: the model's end-of-text tokens.
        deadline: the time, by the engine's clock (seconds), at which the request ends as it is.
        priority: lower values run earlier and are preempted later; arrival decides among equals.
        cache_salt: requests with different salts share no cached block.
        affinity: of several engines, requests of the same number other than 0 go to the same one, if it is not busier.
    """

    id: str
    prompt_token_ids: Items[int]
    sampling: Sampling
    eos_token_ids: frozenset[int] = frozenset()
    deadline: float | None = None
    priority: int = 0
    cache_salt: int = 0
    affinity: int = 0
    grammar: Grammar | None = None


class Table:
    """The KV blocks of a sequence's tokens, for one group of layers.

    Attributes:
        blocks: block of tokens 0 … block_size - 1, of the next block_size, …
        dropped: the first of ``blocks`` that no query will see again: given back, their numbers mean nothing.
    """

    __slots__ = ("blocks", "dropped")

    def __init__(self, blocks: Items[int], dropped: int = 0) -> None:
        self.blocks = array("i", blocks)
        self.dropped = dropped

    @property
    def held(self) -> array[int]:
        """The blocks that it has a reference to."""
        return self.blocks[self.dropped :]

    def drop(self, first: int) -> array[int]:
        """Forgets the blocks before the ``first`` one that will be seen again; returns those to give back."""
        left = self.blocks[self.dropped : first]
        self.dropped = max(self.dropped, first)
        return left


class Sequence:
    """Tokens of the prompt and after it, and the KV blocks of those that are computed.

    Attributes:
        computed: tokens whose keys and values are in the cache; the others are computed next.
        tables: of each group of layers; none while the sequence has no blocks.
        keys: content keys of the first full blocks of ``token_ids``, as far as they were needed.
        found: its blocks in the prefix cache as of a version of the pool, while it waits.
        published: blocks of each table that were offered to the prefix cache.
        rope_length: the length that the rotary frequencies of its tokens are chosen for, at least.
        order: sorts sequences by priority, then arrival, then index.
        draws: the sampler's state, the runner's.
    """

    __slots__ = (
        "computed",
        "constraint",
        "draws",
        "finished",
        "found",
        "group",
        "index",
        "keys",
        "order",
        "prompt_length",
        "published",
        "root",
        "rope_length",
        "tables",
        "token_ids",
    )

    def __init__(self, group: Group, index: int, root: bytes) -> None:
        request = group.request
        self.group = group
        self.index = index
        self.root = root
        self.order = (request.priority, group.arrival_number, index)
        self.token_ids = array("i", request.prompt_token_ids)
        self.prompt_length = self.rope_length = len(self.token_ids)
        self.computed = 0
        self.tables: list[Table] = []
        self.keys: list[bytes] = []
        self.found: tuple[int, list[list[int]]] | None = None
        self.published = 0
        self.finished = False
        self.constraint: Constraint | None = None if request.grammar is None else request.grammar.start()
        self.draws: Draws | None = None

    @property
    def remaining(self) -> int:
        """Tokens to compute before the next can be drawn."""
        return len(self.token_ids) - self.computed

    @property
    def held(self) -> list[int]:
        """The blocks that it has a reference to."""
        return [block for table in self.tables for block in table.held]

    @property
    def output_length(self) -> int:
        """New tokens so far."""
        return len(self.token_ids) - self.prompt_length

    @property
    def decodes(self) -> bool:
        """Whether the next token to compute is the last one drawn."""
        return self.computed >= self.prompt_length and len(self.token_ids) - self.computed == 1

    def key(self, place: int, block_size: int) -> bytes:
        """The content key of a full block."""
        keys = self.keys
        while len(keys) <= place:
            start = len(keys) * block_size
            parent = keys[-1] if keys else self.root
            keys.append(block_key(parent, self.token_ids[start : start + block_size]))
        return keys[place]


class Group:
    """A request in the engine: its sequences and times.

    Attributes:
        unborn: sequences that wait for the prompt to be computed by the first.
        prompt_logprobs: as far as the prompt was scored; None where it need not be.
        started: when its first part was computed; ``first_token``: when its first token was drawn.
    """

    __slots__ = (
        "arrival",
        "arrival_number",
        "cached_tokens",
        "first_token",
        "prompt_logprobs",
        "request",
        "sequences",
        "started",
        "unborn",
    )

    def __init__(self, request: Request, arrival: float, arrival_number: int, root: bytes) -> None:
        self.request = request
        self.arrival = arrival
        self.arrival_number = arrival_number
        self.cached_tokens = 0
        self.started: float | None = None
        self.first_token: float | None = None
        wanted = request.sampling.prompt_logprobs is not None
        self.prompt_logprobs: list[TokenLogprobs | None] | None = [None] if wanted else None
        self.sequences = [Sequence(self, index, root) for index in range(request.sampling.n)]
        self.unborn = self.sequences[1:]

    @property
    def scored(self) -> int:
        """Positions of the prompt whose logits need not be computed for ``prompt_logprobs``."""
        if self.prompt_logprobs is None:
            return len(self.request.prompt_token_ids)
        return len(self.prompt_logprobs) - 1

    @property
    def finished(self) -> bool:
        """Whether every sequence has ended."""
        return all(sequence.finished for sequence in self.sequences)
