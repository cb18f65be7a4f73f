"""A whole model of random weights through the engine, as ``fermi bench`` measures one of a checkpoint.

python benchmarks/decode.py [--model llama-1b,qwen3-0.6b,mixture-0.9b] [--prompt 512] [--context 0,1024]
                            [--batch 1] [--repeats 5] [--dtype bf16] [--threads 2] [--architecture avx512] [--json FILE]

Shares are of the read bandwidth and of the arithmetic that the machine reached in the same run. The last column is a
hash of the tokens drawn: the same for the same model, case and dtype, whatever the number of threads.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from checkpoints import MIXTURES, SHAPES

from fermi import _C
from fermi.bench.case import cases
from fermi.bench.ceiling import Ceiling
from fermi.bench.measure import Bench
from fermi.bench.report import HEADER, line, row, skipped
from fermi.models import random_model


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=",".join(SHAPES), help=f"comma-separated; also {', '.join(MIXTURES)}")
    parser.add_argument("--prompt", type=numbers, default=[512], help="tokens of prompts, comma-separated")
    parser.add_argument("--context", type=numbers, default=[0, 1024], help="tokens before decoding")
    parser.add_argument("--batch", type=numbers, default=[1], help="sequences that decode together")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dtype", default="bf16", choices=("f32", "f16", "bf16"))
    parser.add_argument("--threads", type=int, default=_C.physical_cores())
    parser.add_argument("--architecture", default=_C.cpu_architectures()[0], choices=_C.cpu_architectures())
    parser.add_argument("--kv-cache-memory", type=int, default=4 << 30, help="bytes at most")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    backend = _C.open_backend(threads=arguments.threads, architecture=arguments.architecture)
    print(f"{backend.description}, {arguments.dtype}; medians of {arguments.repeats}")
    rows = []
    chosen = list(cases(arguments.prompt, arguments.context, arguments.batch))
    with Ceiling(arguments.architecture, arguments.threads) as ceiling:
        for name in arguments.model.split(","):
            model = random_model({**SHAPES, **MIXTURES}[name], backend=backend, dtype=arguments.dtype)
            memory = arguments.kv_cache_memory
            bench = Bench(model, ceiling, chosen, kv_cache_memory=memory, repeats=arguments.repeats)
            print(f"\n{name}\n{HEADER}")
            for case in chosen:
                why = bench.obstacle(case)
                if why is not None:
                    print(skipped(case, why))
                    continue
                result = bench.run(case)
                rows.append({"model": name, "weights": bench.weights, **row(result)})
                print(line(result), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
