"""/metrics and /v1/metrics: every request counted once, by few labels; what is now, read when somebody looks."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from fermi.engine.distribution import Distribution
from fermi.engine.event import Event
from fermi.server import observability
from server.live import BLOCKS, Paced, wait_for
from server.running import Serve
from server.toy import service_of, settings_with, toy_embedder, toy_model

CHAT = "/v1/chat/completions"
HELLO = {"messages": [{"role": "user", "content": "Hi"}]}
NAMES = {  # what dashboards rely on
    "fermi_requests", "fermi_request_duration_seconds", "fermi_choices", "fermi_prompt_tokens",
    "fermi_cached_prompt_tokens", "fermi_completion_tokens", "fermi_time_to_first_token_seconds",
    "fermi_inter_token_latency_seconds", "fermi_queue_time_seconds", "fermi_prompt_length_tokens",
    "fermi_completion_length_tokens", "fermi_rate_limited", "fermi_ready", "fermi_uptime_seconds",
    "fermi_http_requests_open", "fermi_memory_bytes", "fermi_cpu_seconds", "fermi_engine_restarts",
    "fermi_requests_running", "fermi_requests_waiting", "fermi_waiting_tokens", "fermi_kv_blocks", "fermi_used_blocks",
    "fermi_cached_blocks", "fermi_kv_cache_usage_ratio", "fermi_cache_hit_rate", "fermi_preemptions", "fermi_evictions",
    "fermi_batch_size",
}  # fmt: skip

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def scrape(http: httpx.Client) -> Samples:
    """Each sample by its name and labels."""
    reply = http.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    samples = [sample for family in parse(reply.text) for sample in family.samples]
    found = {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for sample in samples}
    assert len(found) == len(samples)
    return found


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples.get((name, tuple(sorted(labels.items()))), 0.0)


def labels_of(samples: Samples, name: str, label: str) -> set[str]:
    return {dict(labels)[label] for sample, labels in samples if sample == name}


def test_names(serve: Serve) -> None:
    with serve(toy_model()).http() as http:
        families = list(parse(http.get("/metrics").text))
        assert {family.name for family in families} == NAMES
        assert all(family.documentation.endswith(".") for family in families)
        accept = {"accept": "application/openmetrics-text; version=1.0.0"}
        reply = http.get("/metrics", headers=accept)
        assert reply.headers["content-type"].startswith("application/openmetrics-text")
        assert {family.name for family in parse_openmetrics(reply.text)} == NAMES


@pytest.mark.parametrize("stream", [False, True])
def test_what_a_reply_took(serve: Serve, stream: bool) -> None:
    model = toy_model("abc")
    with serve(model).http() as http:
        for _ in range(2):
            usage = http.post(CHAT, json={**HELLO, "n": 2}).json()["usage"]
            assert http.post(CHAT, json={**HELLO, "n": 2, "stream": stream}).status_code == 200
        seen = scrape(http)
    assert value(seen, "fermi_requests_total", endpoint=CHAT, model="toy", status="200") == 4
    assert value(seen, "fermi_request_duration_seconds_count", endpoint=CHAT, model="toy") == 4
    assert value(seen, "fermi_choices_total", model="toy", reason="stop") == 8
    assert value(seen, "fermi_prompt_tokens_total", model="toy") == 4 * usage["prompt_tokens"]
    assert value(seen, "fermi_cached_prompt_tokens_total", model="toy") == 4 * 3
    assert value(seen, "fermi_completion_tokens_total", model="toy") == 4 * usage["completion_tokens"] == 4 * 8
    assert value(seen, "fermi_prompt_length_tokens_sum", model="toy") == 4 * usage["prompt_tokens"]
    assert value(seen, "fermi_completion_length_tokens_bucket", model="toy", le="5") == 0
    assert value(seen, "fermi_completion_length_tokens_bucket", model="toy", le="10") == 4
    # The script says: 1 ms in the queue, 2 ms to the first token.
    assert value(seen, "fermi_queue_time_seconds_bucket", model="toy", le="0.001") == 8
    assert value(seen, "fermi_time_to_first_token_seconds_bucket", model="toy", le="0.001") == 0
    assert value(seen, "fermi_time_to_first_token_seconds_bucket", model="toy", le="0.005") == 8
    assert value(seen, "fermi_inter_token_latency_seconds_count", model="toy") == 8 * 3  # of four tokens with the end


def test_how_replies_end(serve: Serve) -> None:
    model = toy_model("abc abc abc")
    with serve(model).http() as http:
        http.post(CHAT, json={**HELLO, "max_tokens": 3})
        http.post(CHAT, json={**HELLO, "stop": "c"})
        for reason in ("error", "abort", "deadline"):
            service_of(model).script = lambda stream, reason=reason: stream.put(
                Event(stream.request.id, 0, finish_reason=reason)
            )
            assert http.post(CHAT, json={**HELLO, "n": 2}).status_code >= 500
            assert http.post(CHAT, json={**HELLO, "stream": True}).status_code >= 500
        service_of(model).script = lambda stream: stream.put(
            Event(stream.request.id, 0, [65], finish_reason="deadline")
        )
        assert http.post(CHAT, json=HELLO).status_code == 200
        seen = scrape(http)
    reasons = {dict(labels)["reason"]: count for (name, labels), count in seen.items() if name == "fermi_choices_total"}
    assert reasons == {"length": 1, "stop": 1, "error": 2, "abort": 2 + 3, "deadline": 2 + 1}
    assert value(seen, "fermi_requests_total", endpoint=CHAT, model="toy", status="500") == 4
    assert value(seen, "fermi_requests_total", endpoint=CHAT, model="toy", status="504") == 2


def test_labels_are_few(serve: Serve) -> None:
    server = serve(toy_model(), settings=settings_with(api_keys=("one",)))
    with server.http() as http:
        http.get("/v1/models")  # without the key
        http.headers["x-api-key"] = "one"
        for path in ("/a", "/b/c", "/v1/models/x", "/v1/models/also/toy", "/v1/nothing", "/metrics", "/health", "/%00"):
            http.get(path)
        for name in ("x" * 100, "unknown", "also/toy"):
            http.post(CHAT, json={**HELLO, "model": name})
        http.delete("/a")
        seen = scrape(http)
    assert labels_of(seen, "fermi_requests_total", "endpoint") == {
        "/v1/models", "/v1/models/{name:path}", "/metrics", "/health", CHAT, "other",
    }  # fmt: skip
    assert labels_of(seen, "fermi_requests_total", "model") == {"", "toy"}
    assert value(seen, "fermi_requests_total", endpoint="/v1/models", model="", status="401") == 1
    assert value(seen, "fermi_requests_total", endpoint=CHAT, model="", status="404") == 2
    assert value(seen, "fermi_requests_total", endpoint="other", model="", status="404") == 5


def test_texts_that_are_embedded(serve: Serve) -> None:
    with serve(toy_embedder()).http() as http:
        http.post("/v1/embeddings", json={"input": ["abc", "de"]})
        seen = scrape(http)
    assert value(seen, "fermi_requests_total", endpoint="/v1/embeddings", model="toy-embedder", status="200") == 1
    assert value(seen, "fermi_prompt_tokens_total", model="toy-embedder") == 5
    assert not labels_of(seen, "fermi_completion_tokens_total", "model")


def test_what_the_engine_does_right_now(serve: Serve) -> None:
    model = Paced(free=False)
    server = serve(model.served())
    body = {"prompt": "x" * 40, "max_tokens": 5}
    with server.http() as http, ThreadPoolExecutor(10) as pool:
        try:
            asked = [pool.submit(httpx.post, f"{server.url}/v1/completions", json=body, timeout=60) for _ in range(10)]
            wait_for(lambda: model.service.open_requests == 10)
            while model.service.stats.running < 8:
                model.permits.release()
                assert model.stepped.acquire(timeout=60)
            seen = scrape(http)
        finally:
            model.let_go()
        assert [each.result(60).status_code for each in asked] == [200] * 10
        wait_for(lambda: model.idle)
        after = scrape(http)
    assert value(seen, "fermi_requests_running", model="paced") == 8
    assert value(seen, "fermi_requests_waiting", model="paced") == 2
    assert value(seen, "fermi_waiting_tokens", model="paced") == 80
    assert value(seen, "fermi_http_requests_open") == 10
    assert value(seen, "fermi_kv_blocks", model="paced") == BLOCKS
    used = value(seen, "fermi_used_blocks", model="paced")
    assert used >= 8
    assert value(seen, "fermi_kv_cache_usage_ratio", model="paced") == used / BLOCKS
    assert value(seen, "fermi_ready") == 1
    assert value(after, "fermi_requests_running", model="paced") == 0
    assert value(after, "fermi_cached_blocks", model="paced") > 0
    assert 0 < value(after, "fermi_cache_hit_rate", model="paced") < 1
    assert value(after, "fermi_batch_size_count", model="paced") == model.steps
    assert value(after, "fermi_batch_size_sum", model="paced") >= 50
    assert value(after, "fermi_batch_size_bucket", model="paced", le="8") == model.steps
    assert value(after, "fermi_memory_bytes") > 2**20
    assert value(after, "fermi_cpu_seconds_total") > 0


def test_without_a_model_it_is_not_ready(serve: Serve) -> None:
    with serve().http() as http:
        assert value(scrape(http), "fermi_ready") == 0


def test_distribution() -> None:
    counted = Distribution((1.0, 2.0))
    for each in (0.5, 1.0, 1.5, 9.0):
        counted.add(each)
    counted.add(2.0, times=3)
    other = Distribution((1.0, 2.0))
    other.add(1.0)
    counted.merge(other)
    assert list(counted.cumulative()) == [(1.0, 3), (2.0, 7), (float("inf"), 8)]
    assert counted.total == 0.5 + 1.0 + 1.5 + 9.0 + 6.0 + 1.0


class NVML:
    """What nvidia-ml-py says of one GPU, divided or not."""

    class NVMLError(Exception):
        pass

    def __init__(self, *, divided: bool = False) -> None:
        self.divided = divided

    def nvmlInit(self) -> None:  # noqa: N802
        pass

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:  # noqa: N802
        if self.divided:
            raise self.NVMLError
        return SimpleNamespace(gpu=37)

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:  # noqa: N802
        return SimpleNamespace(used=2**30, total=2**32)

    def nvmlDeviceGetTemperature(self, handle: int, sensor: int) -> int:  # noqa: N802
        assert sensor == 0
        return 55


@pytest.fixture(autouse=True)
def _no_gpu_is_remembered() -> Iterator[None]:
    observability._first_gpu.cache_clear()
    yield
    observability._first_gpu.cache_clear()


@pytest.mark.parametrize("divided", [False, True])
def test_the_machine(serve: Serve, monkeypatch: pytest.MonkeyPatch, divided: bool) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", NVML(divided=divided))
    with serve(toy_model()).http() as http:
        document = http.get("/v1/metrics").json()
    assert set(document) == {"cpu", "memory", "gpu", "timestamp"}
    assert 0 <= document["cpu"]["utilization_percent"] <= 100
    assert document["cpu"]["core_count"] >= 1
    memory = document["memory"]
    assert 0 < memory["used_mb"] <= memory["total_mb"]
    assert 0 < memory["available_mb"] <= memory["total_mb"]
    assert document["gpu"] == {
        "device_id": 0,
        "utilization_percent": None if divided else 37,
        "memory_used_mb": 1024.0,
        "memory_total_mb": 4096.0,
        "temperature_celsius": 55,
    }


def test_a_machine_without_a_gpu(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with serve(toy_model()).http() as http:
        assert http.get("/v1/metrics").json()["gpu"] is None


def test_what_runs_in_the_background_is_counted_when_it_ends(serve: Serve) -> None:
    model = Paced(free=False)
    server = serve(model.served(), settings=settings_with(response_store=":memory:", tokens_per_minute=1000))
    with server.http() as http:
        try:
            asked = http.post("/v1/responses", json={"input": "x", "background": True, "max_output_tokens": 7})
            assert asked.status_code == 200
            wait_for(lambda: model.service.open_requests)
            assert value(scrape(http), "fermi_completion_tokens_total", model="paced") == 0
        finally:
            model.let_go()
        wait_for(lambda: model.idle)
        wait_for(lambda: value(scrape(http), "fermi_completion_tokens_total", model="paced"))
        seen = scrape(http)
        reply = http.post("/v1/completions", json={"prompt": "x", "max_tokens": 1, "add_special_tokens": False})
    assert value(seen, "fermi_completion_tokens_total", model="paced") == 7
    assert value(seen, "fermi_choices_total", model="paced", reason="length") == 1
    used = value(seen, "fermi_prompt_tokens_total", model="paced") + 7 + 1 + 1
    assert int(reply.headers["x-ratelimit-remaining-tokens"]) == 1000 - used
