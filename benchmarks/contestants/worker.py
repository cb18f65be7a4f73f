"""A contestant's process: takes calls as lines of JSON on standard input, answers each with a line.

python -m contestants.worker NAME
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from contestants import adapter
from contestants.contestant import Contestant, NotSupportedError, Setting


def memory() -> dict[str, int]:
    """Bytes of this process that are its own, and that are pages of files (Linux)."""
    fields = {}
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]:
        name, value = line.split(":")
        fields[name] = int(value.split()[0]) * 1024
    return {"private": fields["Anonymous"], "shared": fields["Rss"] - fields["Anonymous"]}


def calls(name: str) -> Mapping[str, Callable[..., Any]]:
    """What the contestant answers to."""
    module = adapter(name)
    opened: list[Contestant] = []

    def open_model(path: str, variant: str, **setting: int) -> float:
        """Seconds from nothing to the first token of a prompt of one token."""
        start = time.perf_counter()
        contestant = module.open(Path(path), variant, Setting(**setting))
        contestant.prefill([1])
        seconds = time.perf_counter() - start
        opened.append(contestant)
        return seconds

    return {
        "variants": lambda format: module.VARIANTS[format],
        "version": module.version,
        "prepare": lambda checkpoint, variant: str(module.prepare(Path(checkpoint), variant)),
        "open": open_model,
        "prefill": lambda prompt: opened[0].prefill(prompt)._asdict(),
        "decode": lambda prompts, tokens: opened[0].decode(prompts, tokens)._asdict(),
        "warm_up": lambda prompts, tokens: opened[0].warm_up(prompts, tokens),
        "decode_bytes": lambda context: opened[0].decode_bytes(context),
        "memory": memory,
    }


def answer_calls(make: Callable[[], Mapping[str, Callable[..., Any]]]) -> None:
    """Answers the calls that ``make`` gives, until the standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    try:
        known = make()
    except ImportError as error:
        print(json.dumps({"refused": f"not installed ({error})"}), file=answers, flush=True)
        return
    print(json.dumps({"value": None}), file=answers, flush=True)
    for line in sys.stdin:
        call = json.loads(line)
        try:
            answer: dict[str, object] = {"value": known[call.pop("call")](**call)}
        except NotSupportedError as error:
            answer = {"refused": str(error)}
        except Exception as error:
            answer = {"refused": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    answer_calls(lambda: calls(sys.argv[1]))
