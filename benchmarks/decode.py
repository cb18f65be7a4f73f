"""A whole model, through the engine: prefill and decode, in tokens per second and as a share of the read bandwidth.

python benchmarks/decode.py [--model llama-1b,qwen3-0.6b] [--prompt 8,512,1024] [--tokens 32] [--repeats 5]
                            [--dtype bf16] [--threads 2] [--architecture avx512]

Weights are random. Runs alternate with samples of the machine's read bandwidth. The last column is a hash of the tokens
drawn: the same for the same model, prompt and dtype, whatever the number of threads.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import time
from typing import NamedTuple

import numpy as np
from checkpoints import SHAPES

from fermi import _C
from fermi.bench.ceiling import Ceiling
from fermi.engine.engine import Engine, EngineConfig
from fermi.engine.sampling import Sampling
from fermi.engine.sequence import Request
from fermi.models import random_model


class Run(NamedTuple):
    """Seconds to the first token, seconds for each further one, and the tokens."""

    prefill: float
    token: float
    token_ids: list[int]


def run(engine: Engine, prompt: list[int], tokens: int) -> Run:
    """Generates greedily, alone in the engine."""
    sampling = Sampling(max_tokens=tokens, temperature=0.0)
    engine.add(Request(id="benchmark", prompt_token_ids=prompt, sampling=sampling))
    times, token_ids = [time.perf_counter()], list[int]()
    while engine.has_work:
        for event in engine.step():
            times.append(time.perf_counter())
            token_ids += event.token_ids
    return Run(times[1] - times[0], statistics.median(np.diff(times[1:])), token_ids)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=",".join(SHAPES), help="comma-separated")
    parser.add_argument("--prompt", default="8,512,1024", help="tokens, comma-separated")
    parser.add_argument("--tokens", type=int, default=32, help="tokens to generate, at least 2")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dtype", default="bf16", choices=("f32", "f16", "bf16"))
    parser.add_argument("--threads", type=int, default=_C.physical_cores())
    parser.add_argument("--architecture", default=_C.cpu_architectures()[0], choices=_C.cpu_architectures())
    arguments = parser.parse_args()
    backend = _C.open_backend(threads=arguments.threads, architecture=arguments.architecture)
    print(f"{backend.description}, {arguments.dtype}; medians of {arguments.repeats}")
    print(f"{'model':12} {'prompt':>6} {'prefill tok/s':>14} {'decode tok/s':>13} {'GB/s':>6} {'of read':>8}  tokens")
    config = EngineConfig(kv_cache_memory=1 << 30, prefix_cache=False)
    with Ceiling(arguments.architecture, arguments.threads) as ceiling:
        for name in arguments.model.split(","):
            model = random_model(SHAPES[name], backend=backend, dtype=arguments.dtype)
            engine = Engine(model, config)
            for length in map(int, arguments.prompt.split(",")):
                prompt = np.random.default_rng(0).integers(0, model.vocab_size, length).tolist()
                runs, reads = list[Run](), list[float]()
                for _ in range(arguments.repeats):
                    runs.append(run(engine, prompt, arguments.tokens))
                    reads += [ceiling.read() for _ in range(3)]
                prefill = statistics.median(length / each.prefill for each in runs)
                decode = statistics.median(1 / each.token for each in runs)
                moved = decode * (model.weight_bytes + length * model.kv_spec.bytes_per_token)
                share = moved / statistics.median(reads)
                digest = hashlib.sha256(np.array([each.token_ids for each in runs])[0].tobytes()).hexdigest()[:8]
                print(f"{name:12} {length:6} {prefill:14.1f} {decode:13.1f} {moved / 1e9:6.1f} {share:8.0%}  {digest}")


if __name__ == "__main__":
    main()
