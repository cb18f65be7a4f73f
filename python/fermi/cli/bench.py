"""``fermi bench``: how fast a model runs here, as a share of what the machine can do."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fermi.cli.flags import add_setting_flags, settings_from

if TYPE_CHECKING:
    from fermi.bench.measure import Bench
    from fermi.config import Settings
    from fermi.loader import LoadedModel

HELP = "Measure how fast a model runs on this machine, beside the machine's own limits."
SECTIONS = ("model", "engine", "cache")
CEILING_MEGABYTES = 512


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to measure, and the settings."""
    parser.add_argument("name", nargs="?", metavar="MODEL", help="A folder, a hub id or demo; also --model.")
    parser.add_argument("--prompt", type=_counts, metavar="N,…", help="Tokens of prompts. Default: 128,512,2048.")
    parser.add_argument("--context", type=_numbers, metavar="N,…", help="Tokens before decoding. Default: 0,1024,8192.")
    parser.add_argument("--batch", type=_counts, metavar="N,…", help="Sequences at a time. Default: 1,4,16.")
    parser.add_argument("--repeats", type=int, metavar="N", help="Repetitions of each figure. Default: 5.")
    parser.add_argument("--quick", action="store_true", help="Short contexts, few sequences, three repetitions.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="Also write every figure to this file.")
    add_setting_flags(parser, SECTIONS)


def run(arguments: argparse.Namespace) -> int:
    """Measure and print a table. ConfigError, HubError and CheckpointError as for any command that loads a model."""
    if arguments.name is not None:
        setattr(arguments, "model.id", [arguments.name])
    settings = settings_from(arguments)
    from tqdm import tqdm

    from fermi.bench.case import BATCHES, CONTEXTS, PROMPTS, cases
    from fermi.bench.ceiling import Ceiling
    from fermi.bench.memory import memory
    from fermi.bench.report import HEADER, line, row, skipped

    quick = arguments.quick
    chosen = list(
        cases(
            arguments.prompt or (PROMPTS[:2] if quick else PROMPTS),
            arguments.context or (CONTEXTS[:2] if quick else CONTEXTS),
            arguments.batch or (BATCHES[:2] if quick else BATCHES),
        )
    )
    loaded, load_s, first_token_s = _load(settings)
    model = loaded.model
    print(f"{loaded.source}: {model.parameters / 1e6:.1f} million parameters, {model.weight_bytes / 1e6:.1f} MB")
    print(f"{model.backend.description}; loaded in {load_s:.3f} s, then {first_token_s:.3f} s to the first token")
    rows: list[dict[str, Any]] = []
    with Ceiling(model.backend.architecture, model.backend.threads, CEILING_MEGABYTES) as ceiling:
        bench = _bench(loaded, settings, ceiling, chosen, arguments.repeats or (3 if quick else 5))
        peak = bench.peaks.of(bench.weights) / 1e9
        print(f"weights in {bench.weights}, with which this machine reaches {peak:.0f} GFLOP/s in registers")
        print(HEADER)
        bar = tqdm(chosen, unit="case", leave=False, disable=not sys.stderr.isatty())
        for case in bar:
            bar.set_description(str(case))
            why = bench.obstacle(case)
            if why is not None:
                bar.write(skipped(case, why), file=sys.stdout)
                continue
            result = bench.run(case)
            rows.append(row(result))
            bar.write(line(result), file=sys.stdout)
            sys.stdout.flush()
        blocks = bench.engine.stats().blocks.total
    taken = memory()
    cache = blocks * bench.engine.block_bytes
    files = "" if taken.files is None else f"{taken.files / 1e6:.0f} MB of mapped files (shared), "
    print(f"memory: {files}{taken.private / 1e6:.0f} MB private, of which a KV cache of up to {cache / 1e6:.0f} MB")
    if arguments.json is not None:
        document = {
            "model": loaded.source,
            "device": model.backend.description,
            "weights": bench.weights,
            "parameters": model.parameters,
            "weight_bytes": model.weight_bytes,
            "load_seconds": load_s,
            "first_token_seconds": first_token_s,
            "mapped_file_bytes": taken.files,
            "private_bytes": taken.private,
            "kv_cache_bytes": cache,
            "cases": rows,
        }
        arguments.json.write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    return 0


def _load(settings: Settings) -> tuple[LoadedModel, float, float]:
    """The model, how long it took to load, and from then to the first token of a prompt of one."""
    from fermi.engine.sampling import Sampling
    from fermi.engine.sequence import Request
    from fermi.loader import load_generator

    start = time.perf_counter()
    loaded = load_generator(settings.model.id, settings)
    ready = time.perf_counter()
    loaded.engine.add(Request(id="first", prompt_token_ids=[0], sampling=Sampling(max_tokens=1, temperature=0.0)))
    while loaded.engine.has_work:
        loaded.engine.step()
    return loaded, ready - start, time.perf_counter() - ready


def _bench(loaded: LoadedModel, settings: Settings, ceiling: Any, chosen: list[Any], repeats: int) -> Bench:
    """The model in an engine with as much KV cache as the cases want and the settings allow."""
    from fermi.bench.measure import Bench
    from fermi.loader import engine_config

    memory = settings.cache.kv_cache_memory
    free = loaded.model.backend.memory()[0]
    allowed = int(free * 0.5) if memory is None else int(free * memory) if isinstance(memory, float) else memory
    return Bench(
        loaded.model,
        ceiling,
        chosen,
        kv_cache_memory=allowed,
        config=engine_config(settings),
        repeats=repeats,
    )


def _numbers(text: str, least: int = 0) -> tuple[int, ...]:
    """Comma-separated whole numbers."""
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = (-1,)
    if min(numbers) < least:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers from {least} on, such as 128,512")
    return numbers


def _counts(text: str) -> tuple[int, ...]:
    return _numbers(text, least=1)
