"""What a grammar costs: to compile it, to fill masks over a vocabulary, and in whole steps of an engine.

python benchmarks/grammar.py --tokenizer FOLDER [--vocabulary 151936] [--batch 8] [--threads 2]

Masks are filled along a typical reply, token by token, as while a model runs. Steps are of a model so small that what
stands around it shows: the same requests with a grammar and without, at temperature 1. Medians and the slowest.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from typing import Any

import numpy as np

from fermi import _C
from fermi.engine.engine import Engine, EngineConfig
from fermi.engine.sampling import Sampling
from fermi.engine.sequence import Request
from fermi.models import random_model
from fermi.text.grammar import Grammar, GrammarCompiler, GrammarSpec, JsonObject, JsonSchema, Regex, Thoughts
from fermi.text.grammar.constraint import Constraint
from fermi.text.tokenizer import Tokenizer

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 0},
        "tags": {"type": "array", "items": {"type": "string"}},
        "address": {
            "type": "object",
            "properties": {
                "street": {"type": "string"},
                "city": {"type": "string"},
                "zip": {"type": "string", "pattern": "^[0-9]{5}$"},
            },
            "required": ["street", "city", "zip"],
            "additionalProperties": False,
        },
    },
    "required": ["name", "age", "tags", "address"],
    "additionalProperties": False,
}
VALUE = {
    "name": "John Smith the third",
    "age": 35,
    "tags": ["a friend", "of mine", "whom I have not seen for a long time"],
    "address": {"street": "Main street 5", "city": "Berlin", "zip": "12345"},
}
TEXT = json.dumps(VALUE)
CASES: dict[str, tuple[GrammarSpec, Thoughts | None, str]] = {
    "a schema": (JsonSchema(SCHEMA), None, TEXT),
    "a schema, indented": (JsonSchema(SCHEMA), None, json.dumps(VALUE, indent=2)),
    "any object": (JsonObject(), None, TEXT),
    "a schema behind thoughts": (
        JsonSchema(SCHEMA),
        Thoughts(opened=True),
        "The user wants an address, so I " * 8 + f"</think>\n\n{TEXT}",
    ),
    "any line": (Regex(r"[^\n]*"), None, TEXT),
}


def spent(times: list[float]) -> str:
    return f"{1e6 * statistics.median(times):9.1f} {1e6 * statistics.fmean(times):9.1f} {1e6 * max(times):9.1f}"


def along(compiler: GrammarCompiler, grammar: Grammar, text: str, batch: int) -> tuple[list[float], list[float]]:
    """Seconds for the masks of each step of a batch, and to take in its tokens."""
    tokens = compiler.tokenizer.encode(text, add_special_tokens=False)
    constraints = [grammar.start() for _ in range(batch)]
    masks = np.zeros((batch, (compiler.vocab_size + 31) // 32), np.uint32)
    fills, accepts = [], []
    for token in tokens:
        start = time.perf_counter()
        errors = Constraint.fill(constraints, masks)
        filled = time.perf_counter()
        assert not errors, errors
        assert masks[0, token // 32] >> (token % 32) & 1, compiler.tokenizer.token_text(token)
        for each in constraints:
            each.accept(token)
        accepts.append(time.perf_counter() - filled)
        fills.append(filled - start)
    return fills, accepts


def steps(compiler: GrammarCompiler, grammar: Grammar | None, batch: int, threads: int, count: int) -> list[float]:
    """Seconds of each step that draws a token for a whole batch."""
    config = {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "hidden_act": "silu",
        "vocab_size": compiler.vocab_size,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
    }
    model = random_model(config, backend=_C.open_backend("cpu", threads=threads))
    engine = Engine(model, EngineConfig(kv_cache_memory=64 << 20))
    for number in range(batch):
        sampling = Sampling(temperature=1.0, max_tokens=count, ignore_eos=True, seed=number)
        prompt = [(number * 7 + at * 11) % 997 for at in range(16)]
        eos = compiler.tokenizer.eos_token_ids
        engine.add(
            Request(id=str(number), prompt_token_ids=prompt, sampling=sampling, grammar=grammar, eos_token_ids=eos)
        )
    engine.step()
    times = []
    while engine.has_work:
        start = time.perf_counter()
        events = engine.step()
        if len(events) == batch and not any(event.finish_reason for event in events):
            times.append(time.perf_counter() - start)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--vocabulary", type=int, default=151936)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    compiler = GrammarCompiler(Tokenizer.from_folder(arguments.tokenizer), arguments.vocabulary)
    start = time.perf_counter()
    _ = compiler.vocabulary
    print(f"vocabulary read in {time.perf_counter() - start:.2f} s")
    print(f"{'':28}{'compiled':>12}{'mask, µs: median mean slowest':>40}{'taken in, µs: median mean slowest':>44}")
    for name, (spec, thoughts, text) in CASES.items():
        start = time.perf_counter()
        grammar = compiler.compile(spec, thoughts)
        compiled = time.perf_counter() - start
        for batch in (1, arguments.batch):
            fills, accepts = along(compiler, grammar, text, batch)
            label = f"{name}, batch {batch}"
            print(f"{label:34}{1e3 * compiled:8.2f} ms   {spent(fills)}   {spent(accepts)}")
    letters = compiler.compile(Regex("[a-z ]*"))
    schema = compiler.compile(JsonSchema({"type": "array", "items": {"type": "string"}, "minItems": 1000}))
    print(f"\n{'step, µs: median mean slowest':>62}")
    rounds: dict[str, list[float]] = {"free": [], "letters": [], "strings": []}
    for _ in range(3):  # by turns, for a machine that is not idle
        for label, bound in (("free", None), ("letters", letters), ("strings", schema)):
            rounds[label] += steps(compiler, bound, arguments.batch, arguments.threads, 120)
    for label, times in rounds.items():
        print(f"{label + f', batch {arguments.batch}':34}{spent(times)}")


if __name__ == "__main__":
    main()
