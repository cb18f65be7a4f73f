"""What a step of the engine takes outside its kernels: scheduling, the batch's arrays, describing, handing over.

python benchmarks/host.py [--vocabulary 1000,151936] [--layers 28] [--full 1] [--steps 200] [--threads 1] [--profile]

The model is tiny, random, and as deep as Qwen3-0.6B, so that recordings are of real length. Host time is that of
`Engine.step` less that of running the recording and of the sampler; medians, in microseconds. A step whose shape was
met before runs the recording that was made then; one of a new shape describes the model first.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from fermi import _C
from fermi.engine.engine import Engine, EngineConfig
from fermi.engine.sampling import Sampling
from fermi.engine.sequence import Request
from fermi.models import random_model

CONTEXT = 200


@dataclass
class Clock:
    """Seconds spent in the calls it wraps."""

    seconds: float = 0.0

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*arguments)
            finally:
                self.seconds += time.perf_counter() - start

        return timed


class TimedSampler:
    """A sampler under a clock."""

    def __init__(self, sampler: Any, clock: Clock) -> None:
        self.vocab_size = sampler.vocab_size
        self.sample = clock.wrap(sampler.sample)
        self.log_probabilities = clock.wrap(sampler.log_probabilities)


@dataclass
class Times:
    """Of each step: in all, in the kernels, in the sampler."""

    steps: list[tuple[float, float, float]] = field(default_factory=list)

    def line(self) -> str:
        host = statistics.median(step - kernels - sampler for step, kernels, sampler in self.steps)
        parts = [statistics.median(column) for column in zip(*self.steps, strict=True)]
        return "".join(f"{1e6 * seconds:12.0f}" for seconds in (host, *parts[1:], parts[0]))


class Bench:
    """An engine whose kernels and sampler are timed."""

    def __init__(self, vocabulary: int, layers: int, threads: int, full: int = 1) -> None:
        """``full``: every so manieth layer sees everything, the others slide."""
        backend = _C.open_backend("cpu", threads=threads)
        config = {
            "model_type": "qwen3",
            "hidden_size": 64,
            "intermediate_size": 64,
            "num_hidden_layers": layers,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 32,
            "hidden_act": "silu",
            "vocab_size": vocabulary,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1e6,
            "max_position_embeddings": 4096,
            "tie_word_embeddings": True,
            "use_sliding_window": True,
            "sliding_window": 128,
            "layer_types": ["sliding_attention" if (i + 1) % full else "full_attention" for i in range(layers)],
        }
        model = random_model(config, backend=backend)
        self.engine = Engine(model, EngineConfig(kv_cache_memory=256 << 20))
        self.kernels, self.sampler = Clock(), Clock()
        drawing = self.engine._runner._drawing  # type: ignore[attr-defined]
        drawing._sampler = TimedSampler(drawing._sampler, self.sampler)
        self._number = 0

    def add(self, tokens: int, sampling: Sampling) -> None:
        self._number += 1
        prompt = [(self._number * 7 + i * 11) % 997 for i in range(tokens)]
        self.engine.add(Request(id=str(self._number), prompt_token_ids=prompt, sampling=sampling))

    def step(self) -> tuple[float, float, float]:
        self.kernels.seconds = self.sampler.seconds = 0.0
        start = time.perf_counter()
        self.engine.step()
        return time.perf_counter() - start, self.kernels.seconds, self.sampler.seconds

    def end(self) -> None:
        self.engine.abort_all()
        while self.engine.has_work:
            self.engine.step()

    def decode(self, batch: int, steps: int, **sampling: float) -> Times:
        """Steps of one token for each of ``batch`` sequences."""
        for _ in range(batch):
            self.add(CONTEXT, Sampling(max_tokens=steps + 64, **sampling))  # type: ignore[arg-type]
        for _ in range(batch + 16):
            self.engine.step()
        times = Times([self.step() for _ in range(steps)])
        self.end()
        return times

    def prefill(self, lengths: Iterable[int]) -> Times:
        """Steps of a whole prompt each, from a request's first moment to its end."""
        times = Times()
        for length in lengths:
            self.add(length, Sampling(max_tokens=1, temperature=0.0))
            times.steps.append(self.step())
        return times

    def company(self, batch: int, length: int, steps: int) -> Times:
        """Steps of a whole prompt each, beside one token for each of ``batch`` sequences."""
        for _ in range(batch):
            self.add(CONTEXT, Sampling(max_tokens=steps + 64, temperature=0.0))
        for _ in range(batch + 16):
            self.engine.step()
        times = self.prefill([length] * steps)
        self.end()
        return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", default="1000,151936")
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--full", type=int, default=1, help="so manieth layers see everything, the others slide")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", default="1,8,32")
    parser.add_argument("--profile", action="store_true", help="also say which functions take how long")
    arguments = parser.parse_args()
    print(f"{'µs per step':39}{'host':>12}{'kernels':>12}{'sampler':>12}{'in all':>12}")
    for vocabulary in map(int, arguments.vocabulary.split(",")):
        bench = Bench(vocabulary, arguments.layers, arguments.threads, arguments.full)
        run = _C.Recording.run
        _C.Recording.run = bench.kernels.wrap(run)  # type: ignore[method-assign]
        profile = cProfile.Profile()
        if arguments.profile:
            profile.enable()
        try:
            for batch in map(int, arguments.batch.split(",")):
                greedy = bench.decode(batch, arguments.steps, temperature=0.0)
                print(f"vocabulary {vocabulary:6}, {f'decode × {batch} greedy':20}{greedy.line()}", flush=True)
            sampled = bench.decode(batch, arguments.steps, top_p=0.95)
            print(f"vocabulary {vocabulary:6}, {f'decode × {batch} top-p':20}{sampled.line()}", flush=True)
            few = max(5, arguments.steps // 8)
            for name, times in (
                ("prefill of 1", bench.prefill([1] * few)),
                ("prefill of 512", bench.prefill([512] * few)),
                ("prefill, a new shape", bench.prefill(range(511, 511 - few, -1))),
                (f"prefill of 64 + {batch}", bench.company(batch, 64, few)),
            ):
                print(f"vocabulary {vocabulary:6}, {name:20}{times.line()}", flush=True)
        finally:
            _C.Recording.run = run  # type: ignore[method-assign]
        if arguments.profile:
            profile.disable()
            pstats.Stats(profile).sort_stats("tottime").print_stats(25)


if __name__ == "__main__":
    main()
