"""fermi beside its peers: the same weights, prompts and threads, in turns, in one run. Prints a table, draws a plot.

python benchmarks/peers.py [--quick] [--models llama-1b,qwen3-0.6b] [--formats bf16,int8,int4] [--peers llama.cpp,...]
                           [--cases prefill_512,decode_1024,...] [--threads 2] [--repeats 5] [--json FILE] [--plot FILE]

A model is one of these names, a config.json, or a folder with one; where the folder has no weights, random ones of
its shape are made. Checkpoints and conversions are made once, in --cache (about 10 GB for a model of a billion).
Every contestant runs in a process of its own and is idle while another is timed. Around each repetition all threads
spin and read memory; repetitions during which the machine was not all there are dropped, and medians of the others are
compared. A ratio above 1 means that fermi is ahead, whatever the unit. `pip install "fermi-infer[bench]"` installs the
peers; one that is missing, or that cannot do a case, is named with the reason.

--json writes the rows; beside them FILE.about.json describes the machine, the versions, and what was left out.

The weights are random, so the text is noise; what is drawn greedily is hashed beside the speed (fermi's, then the
peer's: near ties between random logits are broken differently by other roundings, so in bf16 they are often, and with
other ways to quantize seldom the same).
"""

from __future__ import annotations

import argparse
import json
import math
import signal
import sys
import time
from pathlib import Path
from typing import IO

from checkpoints import SHAPES, cache_folder, checkpoint
from contestants import PEERS
from contestants.case import CASES, QUICK, Case, parse
from contestants.contest import Contest
from contestants.report import HEADER, Row, line, plot
from contestants.serving import serve
from contestants.text_contest import peer_rows
from machine import describe_machine

from fermi import _C
from fermi.bench.ceiling import Ceiling

FORMATS = ("bf16", "int8", "int4")
EMBEDDER = "all-minilm-l6-v2"
"""Has real weights, peers and a case of its own: texts of 20 to 200 tokens to vectors, as benchmarks/embeddings.py."""
QUICK_SECONDS = 1080.0
"""For measuring, of the 20 minutes of --quick: where the machine is slow, what is left then is left out and named."""


def arguments_of() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models",
        "--model",
        default=None,
        help=f"comma-separated: of {', '.join([*SHAPES, EMBEDDER])}, files or folders",
    )
    parser.add_argument("--formats", default=",".join(FORMATS))
    parser.add_argument("--peers", default=",".join(PEERS), help=f"of {', '.join(PEERS)}; none for fermi alone")
    parser.add_argument("--cases", default=None, help=f"of {CASES}; any other number will do as well")
    parser.add_argument("--threads", type=int, default=_C.physical_cores())
    parser.add_argument("--repeats", type=int, default=None, help="default: 5, with --quick 3")
    parser.add_argument("--tokens", type=int, default=None, help="drawn in a repetition; default: 32, with --quick 16")
    parser.add_argument("--quick", action="store_true", help="some cases, within 20 minutes on two cores")
    parser.add_argument("--cache", type=Path, default=cache_folder(), help="default: %(default)s")
    parser.add_argument("--json", type=Path, help="also write machine and rows here")
    parser.add_argument("--plot", type=Path, help="default: peers.png in the cache")
    arguments = parser.parse_args()
    # With cases or peers named, the model that has others is left out unless it is named, too.
    everything = arguments.cases is None and arguments.peers == ",".join(PEERS)
    arguments.models = (arguments.models or ",".join([*SHAPES, *([EMBEDDER] if everything else [])])).split(",")
    arguments.peers = [name for name in arguments.peers.split(",") if name and name != "none"]
    arguments.formats = arguments.formats.split(",")
    for given, known, what in ((arguments.peers, PEERS, "peer"), (arguments.formats, FORMATS, "format")):
        for name in given:
            if name not in known:
                parser.error(f"there is no {what} {name}; there are {', '.join(known)}")
    try:
        arguments.cases = {
            format: parse(arguments.cases or (QUICK[format] if arguments.quick else CASES))
            for format in arguments.formats
        }
    except ValueError as error:
        parser.error(str(error))
    arguments.plot = arguments.plot or arguments.cache / "peers.png"
    arguments.repeats = arguments.repeats or (3 if arguments.quick else 5)
    arguments.tokens = arguments.tokens or (16 if arguments.quick else 32)
    return arguments


def main() -> None:
    arguments = arguments_of()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that contestants end with it
    start = time.monotonic()
    machine = describe_machine(arguments.threads)
    print(f"{machine['processor']}, {arguments.threads} threads; {machine['backend']}; random weights", flush=True)
    rows, absent = list[Row](), list[dict[str, str]]()
    arguments.cache.mkdir(parents=True, exist_ok=True)
    log_path = arguments.cache / "contestants.log"

    def write(versions: dict[str, str]) -> None:
        if arguments.json:
            arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
            about = {"machine": machine, "versions": versions, "absent": absent}
            arguments.json.with_suffix(".about.json").write_text(json.dumps(about, indent=1) + "\n")

    versions = dict[str, str]()
    with Ceiling(_C.cpu_architectures()[0], arguments.threads) as limits, log_path.open("w") as log:
        machine["read_bytes_per_second"] = max(limits.read() for _ in range(5))
        print(HEADER, flush=True)
        models = [model for model in arguments.models if model != EMBEDDER]
        if EMBEDDER in arguments.models:
            try:
                rows += embed(arguments, limits, log)
                write(versions)
            except ImportError as error:
                print(f"{EMBEDDER}: without: {error}", flush=True)
        parts = len(models) * len(arguments.formats)
        shares = iter([(part + 1) / parts for part in range(parts)])
        for model in models:
            name, folder = checkpoint(model, arguments.cache)
            vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
            for format in arguments.formats:
                contest = Contest(
                    model=name,
                    format=format,
                    checkpoint=folder,
                    vocabulary=vocabulary,
                    threads=arguments.threads,
                    repeats=arguments.repeats,
                    tokens=arguments.tokens,
                    patience=0.5 if arguments.quick else 3.0,
                    deadline=start + next(shares) * QUICK_SECONDS if arguments.quick else math.inf,
                    limits=limits,
                    log=log,
                    say=lambda text: print(text, flush=True),
                )
                hold(contest, arguments.peers, arguments.cases[format], arguments.cache)
                versions |= contest.versions
                rows += contest.rows
                absent += [
                    {"model": name, "format": format, "case": case, "peer": peer, "reason": reason}
                    for case, peer, reason in contest.absent
                ]
                write(versions)
    print(f"\n{HEADER}")
    for row in rows:
        print(line(row))
    for each in absent:
        print(f"{each['model']} {each['format']} {each['case']}: without {each['peer']}: {each['reason']}")
    print("; ".join(f"{name}: {version}" for name, version in versions.items()))
    try:
        plot(rows, f"{machine['processor']}, {arguments.threads} threads", arguments.plot)
        print(f"plot: {arguments.plot}")
    except ImportError as error:
        print(f"no plot: {error}")
    print(f"{time.monotonic() - start:.0f} s")


def embed(arguments: argparse.Namespace, limits: Ceiling, log: IO[str]) -> list[Row]:
    """The model of embeddings. ImportError where its package is missing."""
    rows = peer_rows(
        EMBEDDER,
        threads=arguments.threads,
        repeats=arguments.repeats,
        patience=0.5 if arguments.quick else 3.0,
        limits=limits,
        log=log,
        say=lambda text: print(text, flush=True),
    )
    for row in rows:
        print(line(row), flush=True)
    return rows


def hold(contest: Contest, peers: list[str], cases: list[Case], cache: Path) -> None:
    """All cases of one model in one format."""
    entrants = contest.enter(peers)
    contest.timed(entrants, [case for case in cases if case.kind in ("prefill", "decode")])
    contest.timed(entrants, [case for case in cases if case.kind == "batch"])
    contest.fresh(entrants, [case for case in cases if case.kind in ("load", "memory")])
    serve(contest, entrants, [case for case in cases if case.kind == "served"], cache)


if __name__ == "__main__":
    main()
