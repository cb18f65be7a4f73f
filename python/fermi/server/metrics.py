"""What the server has done, counted for Prometheus; what it does right now is read when somebody looks."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import psutil
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from fermi.engine.distribution import Distribution
from fermi.engine.scheduler import SchedulerStats
from fermi.server.exchange import Exchange
from fermi.server.generation import GAPS
from fermi.server.served import ServedModel
from fermi.server.state import ServerState

SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0)
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000)

Value: TypeAlias = "Callable[[SchedulerStats], float]"

OTHER = "other"  # the endpoint of a path that does not exist: there are too many of those to tell apart


class Kind(NamedTuple):
    """A metric that is counted: its meaning, its labels and, where it is a histogram, the bounds of its values."""

    meaning: str
    labels: tuple[str, ...]
    bounds: Sequence[float] = ()


COUNTED: Mapping[str, Kind] = {
    "fermi_requests": Kind("HTTP requests answered.", ("endpoint", "model", "status")),
    "fermi_request_duration_seconds": Kind("From a request to the end of its answer.", ("endpoint", "model"), SECONDS),
    "fermi_choices": Kind("Replies ended, by how.", ("model", "reason")),
    "fermi_prompt_tokens": Kind("Tokens of prompts and of texts embedded.", ("model",)),
    "fermi_cached_prompt_tokens": Kind("Of them, found in the prefix cache.", ("model",)),
    "fermi_completion_tokens": Kind("Tokens generated for replies.", ("model",)),
    "fermi_time_to_first_token_seconds": Kind(
        "From a request's way into the engine to its first token.", ("model",), SECONDS
    ),
    "fermi_inter_token_latency_seconds": Kind("Between two tokens of a reply.", ("model",), GAPS),
    "fermi_queue_time_seconds": Kind("From a request's way into the engine to its first step.", ("model",), SECONDS),
    "fermi_prompt_length_tokens": Kind("Prompts by their tokens.", ("model",), TOKENS),
    "fermi_completion_length_tokens": Kind("Requests by the tokens generated for them.", ("model",), TOKENS),
    "fermi_rate_limited": Kind("Requests refused for the client's limits.", ("limit",)),
}


class Metrics:
    """Counts of everything since the start; for the event loop's thread.

    Attributes:
        registry: what prometheus_client shows.
    """

    def __init__(self, state: ServerState) -> None:
        self._counts: dict[str, Counter[tuple[str, ...]]] = {name: Counter() for name in COUNTED}
        self._distributions: dict[str, dict[tuple[str, ...], Distribution]] = {name: {} for name in COUNTED}
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(_Counted(self._counts, self._distributions))
        self.registry.register(_Live(state))

    def count(self, name: str, labels: tuple[str, ...], amount: int = 1) -> None:
        """Count up."""
        self._counts[name][labels] += amount

    def observe(self, name: str, labels: tuple[str, ...], value: float) -> None:
        """Put a value into a histogram."""
        self._distribution(name, labels).add(value)

    def refused(self, limit: str) -> None:
        """A request met a limit of its client."""
        self.count("fermi_rate_limited", (limit,))

    def ended(self, exchange: Exchange, endpoint: str, status: int, seconds: float) -> None:
        """A request has been answered."""
        model = exchange.model
        self.count("fermi_requests", (endpoint, model, str(status)))
        self.observe("fermi_request_duration_seconds", (endpoint, model), seconds)

    def used(self, exchange: Exchange) -> None:
        """The model has done its work for a request, if it had any."""
        model, usage = (exchange.model,), exchange.usage
        if usage is None:
            return
        self.count("fermi_prompt_tokens", model, usage.prompt_tokens)
        self.count("fermi_cached_prompt_tokens", model, usage.cached_tokens)
        self.observe("fermi_prompt_length_tokens", model, usage.prompt_tokens)
        if not usage.finish_reasons:
            return
        self.count("fermi_completion_tokens", model, usage.completion_tokens)
        self.observe("fermi_completion_length_tokens", model, usage.completion_tokens)
        self._distribution("fermi_inter_token_latency_seconds", model).merge(usage.gaps)
        for reason in usage.finish_reasons:
            self.count("fermi_choices", (*model, reason))
        for timing in usage.timings:
            self.observe("fermi_time_to_first_token_seconds", model, timing.first_token_s)
            if timing.queue_s:  # 0 where a stop string ended the reply: then nobody measured it
                self.observe("fermi_queue_time_seconds", model, timing.queue_s)

    def _distribution(self, name: str, labels: tuple[str, ...]) -> Distribution:
        found = self._distributions[name].get(labels)
        if found is None:
            found = self._distributions[name][labels] = Distribution(COUNTED[name].bounds)
        return found


class _Counted(Collector):
    """What was counted."""

    def __init__(
        self,
        counts: Mapping[str, Mapping[tuple[str, ...], int]],
        distributions: Mapping[str, Mapping[tuple[str, ...], Distribution]],
    ) -> None:
        self._counts = counts
        self._distributions = distributions

    def collect(self) -> Iterator[Metric]:
        for name, kind in COUNTED.items():
            if kind.bounds:
                yield _histogram(name, kind.meaning, kind.labels, self._distributions[name].items())
            else:
                family = CounterMetricFamily(name, kind.meaning, labels=kind.labels)
                for labels, count in self._counts[name].items():
                    family.add_metric(labels, count)
                yield family


class _Live(Collector):
    """What is true right now."""

    def __init__(self, state: ServerState) -> None:
        self._state = state
        self._process = psutil.Process()

    def collect(self) -> Iterator[Metric]:
        state = self._state
        yield _gauge("fermi_ready", "1 while work is taken.", int(state.ready))
        yield _gauge("fermi_uptime_seconds", "Since the start.", time.monotonic() - state.started)
        yield _gauge("fermi_http_requests_open", "HTTP requests being answered.", state.running)
        yield _gauge("fermi_memory_bytes", "Memory of the process (resident).", self._process.memory_info().rss)
        cpu = self._process.cpu_times()
        yield CounterMetricFamily("fermi_cpu_seconds", "CPU time of the process.", value=cpu.user + cpu.system)
        services = [(model.name, model.service) for model in state.models]
        restarts = CounterMetricFamily("fermi_engine_restarts", "Of the engine, after a crash.", labels=["model"])
        for name, service in services:
            restarts.add_metric([name], service.restarts)
        yield restarts
        generating = [model for model in state.models if isinstance(model, ServedModel)]
        yield from _of_engines({model.name: model.service.stats for model in generating})
        sizes = [((model.name,), model.service.batch_sizes) for model in generating]
        yield _histogram("fermi_batch_size", "Steps of the engine by the sequences in them.", ("model",), sizes)


def _of_engines(stats: Mapping[str, SchedulerStats]) -> Iterator[Metric]:
    gauges: dict[str, tuple[str, Value]] = {
        "fermi_requests_running": ("Sequences that the engine computes.", lambda each: each.running),
        "fermi_requests_waiting": ("Sequences that wait for the engine.", lambda each: each.waiting),
        "fermi_waiting_tokens": ("Their tokens.", lambda each: each.waiting_tokens),
        "fermi_kv_blocks": ("Blocks of the KV cache.", lambda each: each.blocks.total),
        "fermi_used_blocks": ("Of them, held by requests.", lambda each: each.blocks.used),
        "fermi_cached_blocks": ("Of them, kept for prompts that begin alike.", lambda each: each.blocks.cached),
        "fermi_kv_cache_usage_ratio": ("Share of the blocks that requests hold.", _usage),
        "fermi_cache_hit_rate": (
            "Share of the prompts' tokens found in the prefix cache.",
            lambda each: each.blocks.hit_rate,
        ),
    }
    counters: dict[str, tuple[str, Value]] = {
        "fermi_preemptions": ("Computed sequences given up for memory.", lambda each: each.preemptions),
        "fermi_evictions": ("Cached blocks given up for memory.", lambda each: each.blocks.evictions),
    }
    for name, (meaning, value) in gauges.items():
        gauge = GaugeMetricFamily(name, meaning, labels=["model"])
        for model, each in stats.items():
            gauge.add_metric([model], value(each))
        yield gauge
    for name, (meaning, value) in counters.items():
        counter = CounterMetricFamily(name, meaning, labels=["model"])
        for model, each in stats.items():
            counter.add_metric([model], value(each))
        yield counter


def _usage(stats: SchedulerStats) -> float:
    return stats.blocks.used / stats.blocks.total if stats.blocks.total else 0.0


def _gauge(name: str, meaning: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, meaning, value=value)


def _histogram(
    name: str, meaning: str, labels: Sequence[str], distributions: Iterable[tuple[tuple[str, ...], Distribution]]
) -> HistogramMetricFamily:
    family = HistogramMetricFamily(name, meaning, labels=labels)
    for values, distribution in distributions:
        cumulative = distribution.cumulative()
        buckets = [("+Inf" if bound == math.inf else str(bound), count) for bound, count in cumulative]
        family.add_metric(values, buckets, distribution.total)
    return family
