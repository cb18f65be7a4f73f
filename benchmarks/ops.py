"""Each op at the shapes of real models: time, GB/s, GFLOP/s, and its share of what this machine can do at most.

python benchmarks/ops.py [--model llama-1b,qwen3-0.6b] [--phase decode,batch,prefill] [--dtype bf16] [--threads 2]
                         [--cache i8] [--architecture avx512] [--only linear] [--repeats 11] [--json FILE]

The share is the time that the bytes or the operations of the op need at the limits measured beside it, whichever is
longer, over the time it took. Repetitions alternate with samples of those limits, and repetitions during which the
process did not have the processors for itself are dropped.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fermi import _C
from fermi.bench.ceiling import Ceiling
from fermi.bench.probe import Sample, sample, undisturbed

BLOCK_SIZE = 16
COLD_BYTES = 160 << 20
"""What one repetition reads at the least: several times the cache, as in a model whose layers follow each other."""


@dataclass(frozen=True)
class Model:
    """The sizes that ops depend on."""

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int


MODELS = {
    "llama-1b": Model(2048, 32, 8, 64, 8192, 128256),
    "qwen3-0.6b": Model(1024, 16, 8, 128, 3072, 151936),
    "qwen3-1.7b": Model(2048, 16, 8, 128, 6144, 151936),
}


@dataclass(frozen=True)
class Phase:
    """Sequences of a step, the tokens that each has in it, and the keys that its last token sees."""

    sequences: int
    queries: int
    context: int

    @property
    def tokens(self) -> int:
        return self.sequences * self.queries


PHASES = {
    "decode": Phase(1, 1, 1024),
    "decode_8192": Phase(1, 1, 8192),
    "batch": Phase(8, 1, 1024),
    "batch_16": Phase(16, 1, 256),
    "prefill": Phase(1, 512, 512),
    "prefill_4096": Phase(1, 512, 4096),
}


class Memory:
    """Random bits handed out as tensors, each from where the last one ended: cold when it comes around again."""

    def __init__(self, size: int, dtype: _C.DTypeName) -> None:
        generator = np.random.default_rng(1)
        self.dtype = dtype
        if dtype == "f32":
            values = generator.standard_normal(1 << 20, np.float32)
        elif dtype == "i8":
            values = generator.integers(-127, 128, 1 << 20, dtype=np.int8)
        elif dtype == "f16":
            values = generator.standard_normal(1 << 20, np.float32).astype(np.float16)
        else:
            values = (generator.standard_normal(1 << 20, np.float32).view(np.uint32) >> 16).astype(np.uint16)
        repeats = -(-size // values.nbytes)
        self._tensor = _C.Tensor.from_numpy(np.tile(values, repeats), dtype="bf16" if dtype == "bf16" else None)
        self._next = 0

    def take(self, *shape: int) -> _C.Tensor:
        """A view of the next elements, from the start again when they do not suffice."""
        count = int(np.prod(shape))
        if self._next + count > self._tensor.shape[0]:
            self._next = 0
        view = self._tensor.narrow(0, self._next, count).reshape(shape)
        self._next += count
        return view


def activations(*shape: int) -> _C.Tensor:
    return _C.Tensor.from_numpy(np.random.default_rng(2).standard_normal(shape, np.float32))


def indices(values: object) -> _C.Tensor:
    return _C.Tensor.from_numpy(np.ascontiguousarray(values, dtype=np.int32))


Describe = Callable[[], object]


def describe_ops(model: Model, phase: Phase, memory: Memory, kept: Memory) -> Iterator[tuple[str, Describe]]:
    """(name, call) of every op of a layer, then of the embedding and the head.

    A call takes fresh memory; keys and values take that of ``kept``.
    """
    tokens, dim = phase.tokens, model.head_dim
    q_size, kv_size = model.heads * dim, model.kv_heads * dim
    x, wide = activations(tokens, model.hidden), activations(tokens, q_size)
    gated = activations(tokens, model.intermediate)
    q, k, v = (activations(tokens, n, dim) for n in (model.heads, model.kv_heads, model.kv_heads))
    frequencies = _C.Tensor.from_numpy(np.float32(1e4) ** (-np.arange(dim // 2, dtype=np.float32) / (dim // 2))[None])
    positions = indices(np.tile(np.arange(phase.context - phase.queries, phase.context), phase.sequences))
    angles = activations(tokens, dim)
    blocks = -(-phase.context // BLOCK_SIZE)
    tables = indices(np.arange(phase.sequences * blocks).reshape(phase.sequences, blocks))
    slots = indices(np.repeat(np.arange(phase.sequences), phase.queries) * blocks * BLOCK_SIZE + positions.numpy())
    starts = indices(np.arange(phase.sequences + 1) * phase.queries)
    contexts = indices(np.full(phase.sequences, phase.context))
    ids = indices(np.random.default_rng(3).integers(0, model.vocabulary, tokens))
    last = indices(np.arange(1, phase.sequences + 1) * phase.queries - 1)

    def weights(columns: int, *rows: int) -> list[_C.Weight]:
        return [_C.Weight(memory.take(n, columns)) for n in rows]

    shape = (phase.sequences * blocks, model.kv_heads, BLOCK_SIZE, dim)
    scales = {}
    if kept.dtype == "i8":
        scales = {name: activations(*shape[:3]) for name in ("key_scales", "value_scales")}

    def cache() -> tuple[_C.Tensor, _C.Tensor]:
        return kept.take(*shape), kept.take(*shape)

    def surroundings() -> dict[str, Any]:
        return {"norm": memory.take(model.hidden), "epsilon": 1e-6}

    yield "rms_norm", lambda: _C.rms_norm(x, memory.take(model.hidden), 1e-6)
    yield "linear qkv", lambda: _C.linear(x, weights(model.hidden, q_size, kv_size, kv_size), **surroundings())
    yield "rope_angles", lambda: _C.rope_angles(positions, positions, frequencies)
    yield "rope_append", lambda: _C.rope_append(q, k, v, angles, slots, *cache(), **scales)
    yield "attention", lambda: _C.attention(q, *cache(), tables, starts, contexts, scale=dim**-0.5, **scales)
    yield "linear output", lambda: _C.linear(wide, weights(q_size, model.hidden), residual=x)
    gate_up = (model.intermediate, model.intermediate)
    yield (
        "linear gate up",
        lambda: _C.linear(x, weights(model.hidden, *gate_up), activation="silu", **surroundings()),
    )
    yield "linear down", lambda: _C.linear(gated, weights(model.intermediate, model.hidden), residual=x)
    yield "embed", lambda: _C.embed(ids, weights(model.hidden, model.vocabulary)[0])
    yield "gather_rows", lambda: _C.gather_rows(x, last)
    head = activations(phase.sequences, model.hidden)
    yield "linear head", lambda: _C.linear(head, weights(model.hidden, model.vocabulary), **surroundings())


@dataclass(frozen=True)
class Result:
    """Medians for one op."""

    model: str
    phase: str
    op: str
    seconds: float
    bytes: int
    operations: int
    share: float

    def __str__(self) -> str:
        bandwidth, rate = self.bytes / self.seconds / 1e9, self.operations / self.seconds / 1e9
        case = f"{self.model:11} {self.phase:12} {self.op:17}"
        return f"{case} {self.seconds * 1e6:10.1f} {bandwidth:7.1f} {rate:9.1f} {self.share:7.0%}"


def record(backend: _C.Backend, describe: Describe) -> tuple[_C.Recording, int]:
    """As many copies of the op as read COLD_BYTES or do work of that order, and their number."""
    with _C.record(backend) as one:
        describe()
    cost = one.costs[0]
    copies = max(1, min(64, COLD_BYTES // max(1, cost.bytes), 10**10 // max(1, cost.operations)))
    with _C.record(backend) as step:
        for _ in range(copies):
            describe()
    step.run()
    return step, copies


def measure(
    step: _C.Recording, copies: int, ceiling: Ceiling, peak: Callable[[], float], repeats: int
) -> tuple[float, float]:
    """Seconds of one op, and its share of the limits sampled beside it."""
    cost = step.costs[0]
    runs: list[Sample] = []
    reads: list[Sample] = []
    peaks: list[Sample] = []

    def run() -> float:
        start = time.perf_counter()
        step.run()
        return (time.perf_counter() - start) / copies

    for _ in range(repeats):
        reads.append(sample(ceiling.read, ceiling.threads))
        peaks.append(sample(peak, ceiling.threads))
        runs.append(sample(run, ceiling.threads))
    seconds, bandwidth, rate = (statistics.median(undisturbed(samples)) for samples in (runs, reads, peaks))
    return seconds, max(cost.bytes / bandwidth, cost.operations / rate) / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="llama-1b,qwen3-0.6b", help=f"of {', '.join(MODELS)}")
    parser.add_argument("--phase", default="decode,batch,prefill", help=f"of {', '.join(PHASES)}")
    parser.add_argument("--dtype", default="bf16", choices=["f32", "f16", "bf16"], help="of weights and KV cache")
    parser.add_argument("--cache", choices=["f32", "f16", "bf16", "i8"], help="of the KV cache, if another")
    parser.add_argument("--threads", type=int, default=_C.physical_cores())
    parser.add_argument("--architecture", default=_C.cpu_architectures()[0], choices=_C.cpu_architectures())
    parser.add_argument("--only", default="", help="ops whose name contains this")
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    backend = _C.open_backend("cpu", threads=arguments.threads, architecture=arguments.architecture)
    print(backend.description, arguments.dtype)
    print(f"{'model':11} {'phase':12} {'op':17} {'µs':>10} {'GB/s':>7} {'GFLOP/s':>9} {'share':>7}")
    results = []
    with Ceiling(arguments.architecture, arguments.threads, megabytes=256) as ceiling:
        rounded = arguments.dtype == "bf16" and ceiling.bf16() > 0
        for model_name in arguments.model.split(","):
            model = MODELS[model_name]
            size = max(COLD_BYTES, model.vocabulary * model.hidden * 4)
            memory = Memory(2 * size, arguments.dtype)
            cache = Memory(2 * COLD_BYTES, arguments.cache) if arguments.cache else memory
            for phase_name in arguments.phase.split(","):
                for op, describe in describe_ops(model, PHASES[phase_name], memory, cache):
                    if arguments.only not in op:
                        continue
                    step, copies = record(backend, describe)
                    pairs = op.startswith("linear") or (op == "attention" and PHASES[phase_name].queries > 4)
                    peak = ceiling.bf16 if rounded and pairs else ceiling.f32
                    seconds, share = measure(step, copies, ceiling, peak, arguments.repeats)
                    cost = step.costs[0]
                    result = Result(model_name, phase_name, op, seconds, cost.bytes, cost.operations, share)
                    print(result, flush=True)
                    results.append(result)
    if arguments.json:
        arguments.json.write_text(json.dumps([vars(result) for result in results], indent=1) + "\n")


if __name__ == "__main__":
    main()
