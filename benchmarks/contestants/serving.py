"""The served case: fermi's server and llama.cpp's, with clients that send 128 tokens and read 64, all at once."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from checkpoints import made_once

from contestants import FERMI
from contestants.case import Case
from contestants.contest import Contest, Entrant
from contestants.contestant import NotSupportedError
from contestants.made_up_tokenizer import with_tokenizer
from contestants.process import settle
from contestants.server import Answers, Server, llama_server
from contestants.turn import figure_of

__all__ = ["PROMPT", "REPLY", "serve"]

PROMPT, REPLY = 128, 64
"""Tokens."""
CONTEXT = 512
"""Tokens that each slot of a server has room for."""


def serve(contest: Contest, entrants: Sequence[Entrant], cases: Sequence[Case], cache: Path) -> None:
    """Adds two rows for each case: tokens per second of all clients, and the median time to the first token."""
    if not cases:
        return
    clients = max(case.number for case in cases)
    with ExitStack() as stack:
        servers: list[tuple[str, Server]] = []
        for entrant in entrants:
            try:
                command = command_of(entrant, contest.threads, clients, cache)
                servers.append((entrant.label, stack.enter_context(Server(command, contest.threads, contest.log))))
            except NotSupportedError as error:
                contest.miss("served", entrant.label, str(error))
        for case in cases:
            if contest.late(case):
                continue
            ask(contest, case, servers)


def command_of(entrant: Entrant, threads: int, clients: int, cache: Path) -> list[str]:
    """Starts the server of an entrant at port PORT."""
    if entrant.name == FERMI:
        path = Path(entrant.path)
        folder = made_once(path.parent / f"{entrant.variant}-served", lambda part: with_tokenizer(path, part))
        options = ["--model", str(folder), "--threads", str(threads), "--max-model-len", str(CONTEXT), "--offline"]
        options += ["--timeout-ms", str(10**6)]
        return [sys.executable, "-m", "fermi", "serve", *options, "--host", "127.0.0.1", "--port", "PORT"]
    if entrant.name == "llama.cpp":
        slots = ["-np", str(clients), "-c", str(CONTEXT * clients), "-t", str(threads), "-tb", str(threads)]
        return [str(llama_server(cache)), "-m", entrant.path, *slots, "--host", "127.0.0.1", "--port", "PORT"]
    raise NotSupportedError("its server is not measured; llama.cpp's is")


def ask(contest: Contest, case: Case, servers: Sequence[tuple[str, Server]]) -> None:
    """One number of clients."""
    answers: dict[str, dict[int, Answers]] = {}

    def measure(label: str, server: Server) -> Callable[[int], float]:
        def run(repeat: int) -> float:
            generator = np.random.default_rng([case.number, repeat])
            prompts = generator.integers(1, contest.vocabulary, (case.number, PROMPT)).tolist()
            answers[label][repeat] = server.ask(prompts, REPLY)
            return answers[label][repeat].rate

        return run

    ready = []
    for label, server in servers:
        try:
            answers[label] = {}
            measure(label, server)(contest.repeats)  # once, with prompts of its own, to warm up
            ready.append((label, server))
        except (NotSupportedError, OSError) as error:
            contest.miss(str(case), label, str(error))
    if not ready:
        return
    everyone = [server for _, server in servers]
    turns = [measure(*each) for each in ready]
    results = contest.interleave(turns, lambda: settle(everyone))
    rates = {label: figure_of(kept) for (label, _), kept in zip(ready, results, strict=True)}
    firsts = {}
    for (label, _), kept in zip(ready, results, strict=True):
        value = statistics.median(answers[label][each.repeat].first for each in kept)
        firsts[label] = {**rates[label], "value": value}
    contest.add_rows(str(case), "tok/s", rates)
    contest.add_rows(f"{case}_first", "s", firsts)
