"""Times an engine at the cases of a benchmark, in turns with probes of the machine."""

from __future__ import annotations

import hashlib
import itertools
import statistics
import time
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fermi.bench.case import Case
from fermi.bench.ceiling import Ceiling
from fermi.bench.own_blocks import OwnBlocks
from fermi.bench.probe import interleave, sample, undisturbed
from fermi.engine.engine import Engine, EngineConfig
from fermi.engine.layer_groups import LayerGroups
from fermi.engine.sampling import Sampling
from fermi.engine.sequence import Request
from fermi.errors import EngineError
from fermi.models import Model

__all__ = ["HASHED", "Bench", "Peaks", "Result", "format_of"]

HASHED = 16
"""Tokens of the first sequence that a digest is made of."""
STEPS = 8
"""Of a repetition of decoding, at least."""
PATIENCE = 1.0
"""Seconds to wait for the machine to be all there, before a repetition."""
LONG_ENOUGH = 0.05
"""Seconds that a repetition takes at least, where steps are short."""


@dataclass(frozen=True, slots=True)
class Peaks:
    """Operations per second that the machine reaches in registers; 0 where it has no such instruction."""

    f32: float
    bf16: float
    int8: float

    @classmethod
    def measure(cls, ceiling: Ceiling, repeats: int = 11) -> Peaks:
        """The best of undisturbed repetitions: nothing but other processes makes registers slower."""
        kinds = (ceiling.f32, ceiling.bf16, ceiling.int8)
        ceiling.f32()  # wakes the threads
        rounds = [[sample(kind, ceiling.threads) for kind in kinds] for _ in range(repeats)]
        return cls(*(max(undisturbed(list(column))) for column in zip(*rounds, strict=True)))

    def of(self, weights: str) -> float:
        """For products with weights of this format."""
        best = {"bf16": self.bf16, "int8": self.int8, "int4": self.int8}.get(weights, 0.0)
        return max(best, self.f32)


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a case.

    Attributes:
        seconds: of a prompt, or of a step of one token for each sequence; a median.
        bytes, operations: what that must move and compute at the least.
        read: bytes per second that the machine read meanwhile; ``peak``: operations per second that it can do.
        tokens_sha256: of the first tokens drawn; the same model and case give the same, whatever the threads.
        repetitions: that were measured with the machine all there, or of the better half.
    """

    case: Case
    seconds: float
    bytes: int
    operations: int
    read: float
    peak: float
    tokens_sha256: str
    repetitions: int

    @property
    def tokens_per_second(self) -> float:
        return (self.case.tokens if self.case.phase == "prefill" else self.case.batch) / self.seconds

    @property
    def share_of_read(self) -> float:
        """Of the read bandwidth."""
        return self.bytes / self.seconds / self.read

    @property
    def share_of_peak(self) -> float:
        """Of the arithmetic."""
        return self.operations / self.seconds / self.peak

    @property
    def share(self) -> float:
        """Of the limit that is the nearer one: 1 could not be faster."""
        return max(self.share_of_read, self.share_of_peak)


def format_of(model: Model) -> str:
    """Of most of its weights: f32, f16, bf16, int8 or int4, by the bits that a number takes."""
    bits = 8 * model.weight_bytes / model.parameters
    return model.dtype if bits > 12 else "int8" if bits > 6.5 else "int4"


class Bench:
    """A model in an engine of its own, measured beside the machine's limits."""

    def __init__(
        self,
        model: Model,
        ceiling: Ceiling,
        cases: Iterable[Case],
        *,
        kv_cache_memory: int,
        config: EngineConfig | None = None,
        repeats: int = 5,
    ) -> None:
        """``cases`` that will be run: the KV cache is as large as they need, ``kv_cache_memory`` bytes at most.

        ``config``: the engine's other settings; sequences, their length and their sharing are the cases' own.
        """
        self.model = model
        self.weights = format_of(model)
        self.peaks = Peaks.measure(ceiling)
        self._ceiling = ceiling
        self._repeats = repeats
        self._numbers = itertools.count()
        config = config or EngineConfig()
        self._block_size = config.block_size
        self._groups = LayerGroups.of(model.windows, model.max_position_embeddings)
        self._block_bytes = self._groups.block_bytes(config.kv_spec(model.kv_spec), config.block_size)
        reachable = [case for case in cases if self._length(case) <= model.max_position_embeddings]
        blocks = [self._blocks(case) for case in reachable]
        fitting = [count for count in blocks if count * self._block_bytes <= kv_cache_memory]
        sequences = max([1, *(case.batch for case in reachable)])
        config = replace(
            config,
            kv_cache_memory=max([len(self._groups.windows), *fitting]) * self._block_bytes,
            max_model_len=None,
            max_num_seqs=sequences,
            max_num_batched_tokens=max(sequences, config.max_num_batched_tokens),
            prefix_cache=True,
        )
        self.engine = Engine(model, config, scheduler=OwnBlocks)

    def obstacle(self, case: Case) -> str | None:
        """Why a case cannot be measured, or None."""
        if self._length(case) > self.model.max_position_embeddings:
            return f"the model's context is {self.model.max_position_embeddings} tokens"
        needed = self._blocks(case)
        if needed > self.engine.stats().blocks.total:
            gigabytes = needed * self._block_bytes / 1e9
            return f"needs a KV cache of {gigabytes:.1f} GB: see --kv-cache-memory"
        return None

    def run(self, case: Case) -> Result:
        """Measures a case that has no obstacle."""
        return self._prefill(case) if case.phase == "prefill" else self._decode(case)

    def _prefill(self, case: Case) -> Result:
        tokens: list[int] = []

        def once(repeat: int) -> float:
            self._add(case.tokens, max_tokens=1, salt=next(self._numbers))
            start = time.perf_counter()
            while self.engine.has_work:
                for event in self.engine.step():
                    tokens.extend(event.token_ids)
            return time.perf_counter() - start

        once(-1)
        [kept] = interleave([once], self._repeats, self._ceiling, _settled, PATIENCE)
        moved, computed = self.engine.cost(1, case.tokens, 0)
        return self._result(case, [r.value for r in kept], [r.read for r in kept], moved, computed, tokens[:1])

    def _decode(self, case: Case) -> Result:
        growth = self._growth(case)
        if case.prompt > 1:  # so that the others find it
            self._add(case.prompt, max_tokens=1)
            while self.engine.has_work:
                self.engine.step()
        first = self._add(case.prompt, max_tokens=growth)
        for _ in range(case.batch - 1):
            self._add(case.prompt, max_tokens=growth)
        tokens: list[int] = []
        begun: set[str] = set()

        def step() -> float:
            start = time.perf_counter()
            events = self.engine.step()
            seconds = time.perf_counter() - start
            for event in events:
                begun.add(event.request_id)
                if event.request_id == first:
                    tokens.extend(event.token_ids)
            return seconds

        while len(begun) < case.batch:
            step()
        steps = self._steps(statistics.median(step() for _ in range(3)))

        def several(repeat: int) -> float:
            return statistics.median(step() for _ in range(steps))

        [kept] = interleave([several], self._repeats, self._ceiling, _settled, PATIENCE)
        while len(tokens) < HASHED:
            step()
        self.engine.abort_all()
        while self.engine.has_work:
            self.engine.step()
        moved, computed = self.engine.cost(case.batch, 1, case.prompt)
        return self._result(case, [r.value for r in kept], [r.read for r in kept], moved, computed, tokens[:HASHED])

    def _steps(self, seconds: float) -> int:
        return STEPS if seconds * STEPS >= LONG_ENOUGH else 2 * STEPS

    def _growth(self, case: Case) -> int:
        """New tokens of each sequence, at most."""
        return 1 if case.phase == "prefill" else max(HASHED, self._repeats * 2 * STEPS) + 8 + case.batch

    def _length(self, case: Case) -> int:
        """Tokens of each sequence, at most."""
        return case.prompt + self._growth(case)

    def _blocks(self, case: Case) -> int:
        """Blocks that the sequences take, the prompt that they copy, and those of the last while it is admitted."""
        blocks = -(-self._length(case) // self._block_size) * (case.batch + 3) + case.batch
        return blocks * len(self._groups.windows)

    def _add(self, prompt: int, *, max_tokens: int, salt: int = 0) -> str:
        token_ids = array("i", np.random.default_rng(0).integers(0, self.model.vocab_size, prompt, np.int32).tobytes())
        request = Request(
            id=str(next(self._numbers)),
            prompt_token_ids=token_ids,
            sampling=Sampling(max_tokens=max_tokens, temperature=0.0),
            cache_salt=salt,
        )
        self.engine.add(request)
        return request.id

    def _result(
        self,
        case: Case,
        seconds: Sequence[float],
        reads: Sequence[float],
        moved: int,
        computed: int,
        tokens: Sequence[int],
    ) -> Result:
        if not tokens:
            raise EngineError(f"{case}: no token came")
        return Result(
            case,
            statistics.median(seconds),
            moved,
            computed,
            statistics.median(reads),
            self.peaks.of(self.weights),
            hashlib.sha256(np.array(tokens, np.int64).tobytes()).hexdigest()[:12],
            len(seconds),
        )


def _settled() -> None:
    """Nothing runs between repetitions."""
