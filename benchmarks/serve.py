"""The server under load: what a request costs, how many it answers, how evenly it streams, what it does when idle.

    python benchmarks/serve.py [--quick] [--model FOLDER] [--shape qwen3-0.6b] [--rows cost,rate,company,prefix,idle]
                               [--threads 2] [--json FILE]

Each server is a process of its own on the loopback interface, asked by wrk where it is installed and by a small client
otherwise. --model is the checkpoint of the rows of rate and idleness, stories260K where they are compared with their
targets; without it the demo model is used. The streams' evenness and the shared prefix are measured on random weights
of --shape in int8, made once in --cache (1.2 GB).

What a request costs is CPU time of the server's process, all threads together, less that of the same steps in an
engine without a server. Targets are for two cores.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from checkpoints import SHAPES, cache_folder, checkpoint, made_once
from contestants import fermi_engine
from contestants.made_up_tokenizer import with_tokenizer
from http_load import generator, load
from machine import describe_machine
from server_process import ServerProcess
from stream_client import StreamClient

from fermi import _C
from fermi.config import load_settings
from fermi.engine.engine import StepRunner
from fermi.engine.plan import Plan, StepOutput, Work
from fermi.engine.sampling import Sampling
from fermi.engine.sequence import Request
from fermi.loader import LoadedModel, load_generator

ROWS = ("cost", "rate", "company", "prefix", "idle")
SHARED_PREFIX = 2000
CLIENTS = 8
STREAMED = (8, 200)
"""Tokens of two streams whose difference tells what a token costs."""


class Cost(NamedTuple):
    """Seconds of CPU: of the server's process, of the engine's steps without it, of the computation in them."""

    process: float
    steps: float
    computation: float


@dataclass(frozen=True)
class Figure:
    """One line of the table.

    Attributes:
        target: what it must reach; None: it is told for those who want to know.
        least: the target is the least, not the most, that it may be.
    """

    name: str
    value: float
    unit: str
    target: float | None = None
    least: bool = False

    @property
    def verdict(self) -> str:
        if self.target is None:
            return ""
        reached = self.value >= self.target if self.least else self.value <= self.target
        return "reached" if reached else "missed"

    def line(self) -> str:
        goal = "" if self.target is None else f"{'≥' if self.least else '≤'} {self.target:g} {self.unit}"
        return f"{self.name:68} {self.value:10.3f} {self.unit:8} {goal:14} {self.verdict}"


def arguments_of() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="a folder; default: the demo model")
    parser.add_argument("--shape", default="qwen3-0.6b", help=f"of {', '.join(SHAPES)}, a config.json, or a folder")
    parser.add_argument("--rows", default=",".join(ROWS), help="comma-separated, of %(default)s")
    parser.add_argument("--threads", type=int, default=_C.physical_cores())
    parser.add_argument("--quick", action="store_true", help="shorter measurements, about two minutes in all")
    parser.add_argument("--long", type=int, default=8192, help="tokens of the long prompt beside the streams")
    parser.add_argument("--cache", type=Path, default=cache_folder(), help="default: %(default)s")
    parser.add_argument("--json", type=Path, help="also write machine and figures here")
    arguments = parser.parse_args()
    arguments.rows = arguments.rows.split(",")
    for row in arguments.rows:
        if row not in ROWS:
            parser.error(f"there is no row {row}; there are {', '.join(ROWS)}")
    arguments.seconds = 3.0 if arguments.quick else 10.0
    return arguments


def main() -> None:
    arguments = arguments_of()
    machine = describe_machine(arguments.threads)
    print(f"{machine['processor']}, {arguments.threads} threads; {machine['backend']}; load by {generator()}")
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as temporary:
        for figure in measure(arguments, Path(temporary, "server.log")):
            figures.append(figure)
            print(figure.line(), flush=True)
    if arguments.json:
        rows = [{**asdict(figure), "verdict": figure.verdict} for figure in figures]
        about = {"machine": machine, "generator": generator(), "model": arguments.model}
        arguments.json.write_text(json.dumps({**about, "figures": rows}, indent=1) + "\n")


def measure(arguments: argparse.Namespace, log: Path) -> Iterator[Figure]:
    """The figures, as they come."""
    wanted = set(arguments.rows)
    threads = ["--threads", str(arguments.threads)]
    if "cost" in wanted:
        yield from cost(arguments.seconds, log)
    if wanted & {"rate", "idle"}:
        with ServerProcess(["--model", arguments.model, *threads], log) as server:
            if "rate" in wanted:
                yield from rate(server, arguments.seconds)
            if "idle" in wanted:
                yield from idle(server, arguments.seconds)
    if wanted & {"company", "prefix"}:
        folder = served_folder(arguments.shape, arguments.cache)
        options = ["--model", str(folder), "--max-model-len", str(2 * arguments.long), "--kv-cache-memory", "2GiB"]
        vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
        with ServerProcess([*options, "--timeout-ms", "0", *threads], log) as server:
            if "prefix" in wanted:
                yield from prefix(server, vocabulary)
            if "company" in wanted:
                yield from company(server, vocabulary, arguments.long, arguments.seconds)


def served_folder(shape: str, cache: Path) -> Path:
    """A checkpoint of this shape in int8, with a tokenizer."""
    _, folder = checkpoint(shape, cache)
    path = fermi_engine.prepare(folder, "int8")
    return made_once(path.parent / "int8-served", lambda part: with_tokenizer(path, part))


# What a request costs


def cost(seconds: float, log: Path) -> Iterator[Figure]:
    """CPU of a chat request and of a streamed token, on the demo model on one thread.

    With one client alone each token has a wake-up of the event loop and one of the client to itself; it is told, too.
    """
    with ServerProcess(["--model", "demo", "--threads", "1"], log) as server:
        flags = {"engine.threads": 1, "model.offline": True}
        loaded = load_generator("demo", load_settings(flags, environ={}, folder=Path("/nonexistent")))
        messages = [long_chat(server, number) for number in range(64)]
        template = loaded.tokenizer.chat_template
        assert template is not None
        prompts = [loaded.tokenizer.encode(template.render(each), add_special_tokens=False) for each in messages]
        bodies = [{"max_tokens": 1, "temperature": 0, "ignore_eos": True, "messages": each} for each in messages]
        for clients in (CLIENTS, 1):

            def per_request(clients: int, tokens: int | None) -> Cost:
                asked = [{**body, "max_tokens": tokens or 1, "stream": tokens is not None} for body in bodies]

                def work() -> int:
                    return load(server.port, "/v1/chat/completions", asked, clients, seconds).requests

                work()  # to warm up
                counts, done = server.measured(work)
                engine = step_cost(loaded, prompts, tokens or 1, clients)
                return Cost(counts.processor_s / done, *engine)

            whole = per_request(clients, None)
            few, many = (per_request(clients, tokens) for tokens in STREAMED)
            token = Cost(
                *((after - before) / (STREAMED[1] - STREAMED[0]) for before, after in zip(few, many, strict=True))
            )
            target = clients == CLIENTS
            who = f"{clients} clients" if clients > 1 else "1 client"
            beyond = whole.process - whole.steps
            yield Figure(
                f"chat, 64 tokens in, 1 out, {who}: CPU beyond its step", 1e3 * beyond, "ms", 1.5 if target else None
            )
            yield Figure("  beyond the model's computation", 1e3 * (whole.process - whole.computation), "ms")
            beyond = token.process - token.steps
            yield Figure(f"a streamed token, {who}: CPU beyond its step", 1e6 * beyond, "µs", 60 if target else None)
            yield Figure("  beyond the model's computation", 1e6 * (token.process - token.computation), "µs")


def long_chat(server: ServerProcess, number: int) -> list[dict[str, str]]:
    """A conversation of 64 tokens in the model's format, or as near as whole words come."""
    words = f"Story {number}: what is {number} + 4? Tell me a story of a dog and a cat that went to a big park".split()
    messages: list[dict[str, str]] = []
    text, count = "", 0
    while count < 64:
        text = f"{text} {words[len(text.split()) % len(words)]}".strip()
        messages = [{"role": "user", "content": text}]
        counted = server.post("/tokenize", {"messages": messages})["count"]
        assert isinstance(counted, int)
        count = counted
    return messages


def step_cost(loaded: LoadedModel, prompts: Sequence[Sequence[int]], tokens: int, clients: int) -> tuple[float, float]:
    """Seconds of CPU for one request in an engine without a server that always has so many: of its steps, and of the
    computation and drawing in them."""
    engine, runner = loaded.engine, TimedRunner(loaded.engine._runner)
    engine._runner = runner
    sampling = Sampling(temperature=0.0, max_tokens=tokens, ignore_eos=True)
    requests = max(2 * clients, 2000 // tokens)
    for _ in range(2):  # once to warm up
        begun = ended = 0
        steps = runner.seconds = 0.0
        while ended < requests:
            while begun < requests and begun - ended < clients:
                engine.add(Request(id=str(begun), prompt_token_ids=prompts[begun % len(prompts)], sampling=sampling))
                begun += 1
            begin = time.thread_time()
            ended += sum(event.finish_reason is not None for event in engine.step())
            steps += time.thread_time() - begin
    engine._runner = runner.runner
    return steps / requests, runner.seconds / requests


class TimedRunner:
    """A runner that counts the CPU time of what it runs."""

    def __init__(self, runner: StepRunner) -> None:
        self.runner = runner
        self.seconds = 0.0

    def run(self, plan: Plan) -> StepOutput:
        begin = time.thread_time()
        output = self.runner.run(plan)
        self.seconds += time.thread_time() - begin
        return output

    def compute(self, work: list[Work]) -> npt.NDArray[np.float32]:
        return self.runner.compute(work)

    def cost(self, work: list[Work]) -> tuple[int, int]:
        return self.runner.cost(work)


# How many it answers


def rate(server: ServerProcess, seconds: float) -> Iterator[Figure]:
    """Requests of 16 tokens for one token, by 64 clients."""
    yield Figure("start to ready", server.start_s, "s", 2.0)
    bodies = [{"prompt": prompt, "max_tokens": 1, "temperature": 0} for prompt in short_prompts(server)]
    load(server.port, "/v1/completions", bodies, 64, 1)  # to warm up
    seen = load(server.port, "/v1/completions", bodies, 64, seconds)
    yield Figure("completions, 16 tokens in, 1 out, 64 clients: requests per second", seen.rate, "1/s", 700, least=True)
    yield Figure("  their 95th percentile", 1e3 * seen.p95, "ms", 100)
    chats = [{**body, "messages": [{"role": "user", "content": body.pop("prompt")}]} for body in bodies]
    seen = load(server.port, "/v1/chat/completions", chats, 64, seconds)
    yield Figure("chats of the same texts: requests per second", seen.rate, "1/s")
    yield Figure("  their 95th percentile", 1e3 * seen.p95, "ms")
    yield Figure("most memory of the process", server.most_memory() / 2**20, "MiB", 500e6 / 2**20)


def short_prompts(server: ServerProcess) -> list[str]:
    """Texts of 16 tokens, or as near as whole words come."""
    words = "Once upon a time there was a little dog and a big cat who liked to play in the park"
    prompts = []
    for number in range(64):
        order = np.random.default_rng(number).permutation(words.split()).tolist()
        text, count = "", 0
        while count < 16:
            text = f"{text} {order.pop()}".strip()
            counted = server.post("/tokenize", {"prompt": text})["count"]
            assert isinstance(counted, int)
            count = counted
        prompts.append(text)
    return prompts


# What it does when idle


def idle(server: ServerProcess, seconds: float) -> Iterator[Figure]:
    """Some seconds without a request, connections of earlier clients closed."""
    server.settle()
    before = server.counts()
    time.sleep(seconds)
    counts = server.counts().since(before)
    yield Figure("idle: share of a core", 100 * counts.processor_s / seconds, "%", 0)
    yield Figure("idle: times that a thread woke", float(counts.switches), "", 0)


# How evenly it streams


def company(server: ServerProcess, vocabulary: int, length: int, seconds: float) -> Iterator[Figure]:
    """Eight clients stream while another sends a long prompt.

    Their texts grow, and with them what each token takes: what they do alone is measured before and after it.
    """
    generator = np.random.default_rng(1)

    def prompt(length: int) -> list[int]:
        tokens: list[int] = generator.integers(1, vocabulary, length).tolist()
        return tokens

    others = [StreamClient(server.port, prompt(16), length).start() for _ in range(CLIENTS)]
    try:
        for client in others:
            client.wait(8)
        alone = gaps_of(others, seconds)
        arrival = StreamClient(server.port, prompt(length), 1).start()
        late = StreamClient(server.port, prompt(16), 1).start()
        first, late_first = arrival.wait(), late.wait()
        beside = gaps(others, arrival.sent, arrival.sent + first)
        alone += gaps_of(others, seconds)
    finally:
        for client in others:
            client.leave()
    arrival.leave()
    late.leave()
    name = f"{CLIENTS} streams, a prompt of {length} tokens beside them"
    mean = statistics.fmean(alone)
    yield Figure(f"{CLIENTS} streams alone: the mean gap between tokens", 1e3 * mean, "ms")
    yield Figure(f"{name}: the mean gap over that", statistics.fmean(beside) / mean, "×", 2.0)
    yield Figure("  median over median", statistics.median(beside) / statistics.median(alone), "×")
    yield Figure("  95th percentile over 95th percentile", percentile(beside, 95) / percentile(alone, 95), "×")
    yield Figure("  the longest gap", 1e3 * max(beside), "ms")
    yield Figure("  first token of the long prompt", first, "s")
    yield Figure("  first token of a prompt of 16 tokens that came after it", 1e3 * late_first, "ms")


def gaps_of(clients: Sequence[StreamClient], seconds: float) -> list[float]:
    """Those of the next seconds."""
    begin = time.monotonic()
    time.sleep(seconds)
    return gaps(clients, begin, time.monotonic())


def gaps(clients: Sequence[StreamClient], begin: float, end: float) -> list[float]:
    """Those of all clients."""
    return [gap for client in clients for gap in client.gaps(begin, end)]


def percentile(values: Sequence[float], share: float) -> float:
    return float(np.percentile(values, share))


# What a shared prefix saves


def prefix(server: ServerProcess, vocabulary: int) -> Iterator[Figure]:
    """Two requests that begin with the same 2,000 tokens and end with 16 of their own; medians of three such pairs."""
    server.settle()
    firsts: tuple[list[float], list[float]] = ([], [])
    for number in range(4):
        generator = np.random.default_rng([2, number])
        shared = generator.integers(1, vocabulary, SHARED_PREFIX).tolist()
        for times in firsts:
            own = generator.integers(1, vocabulary, 16).tolist()
            client = StreamClient(server.port, shared + own, 1).start()
            first = client.wait()
            client.leave()
            if number:  # the others warmed up
                times.append(first)
    before, after = (statistics.median(times) for times in firsts)
    yield Figure(f"a prefix of {SHARED_PREFIX} tokens: first token, first time", 1e3 * before, "ms")
    yield Figure("  second time", 1e3 * after, "ms")
    yield Figure("  the second over the first", 100 * after / before, "%", 10)


if __name__ == "__main__":
    main()
