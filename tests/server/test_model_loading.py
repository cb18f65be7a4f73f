"""Models that come and go while the server runs: by its operator's word, on demand, and several engines of one."""

from __future__ import annotations

import gc
import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from fermi.config import Settings, load_settings
from fermi.engine.pool import Pool
from fermi.sampling_params import SamplingParams
from fermi.server.configured import configured, names_of
from fermi.server.exchange import Exchange, current
from fermi.server.loading import load_served
from fermi.server.prompts import Prompt, engine_request
from fermi.server.registry import Entry
from fermi.server.schema.chat import ChatBody
from server.processes import server_process
from server.running import Running, Serve, serving
from server.toy import settings_with, toy_model

QUESTION = [{"role": "user", "content": "What is 3 + 4?"}]
CHAT = "/v1/chat/completions"
ADMIN = {"Authorization": "Bearer boss"}


def settings_of(**flags: object) -> Settings:
    flags = {"engine.threads": 1, "cache.kv_cache_memory": "16MiB", "openai.admin_key": "boss", **flags}
    return load_settings(flags, environ={}, folder=Path("/nonexistent"))


@contextmanager
def server_of(*sources: str, **flags: object) -> Iterator[tuple[Running, httpx.Client]]:
    """A server that knows these models and has loaded none."""
    settings = settings_of(**flags)
    entries = [configured(source, settings) for source in sources]
    with serving(*entries, settings=settings) as running, running.http() as http:
        yield running, http


def ask(http: httpx.Client, model: str | None, **body: object) -> httpx.Response:
    named = {} if model is None else {"model": model}
    return http.post(CHAT, json={"messages": QUESTION, "temperature": 0, **named, **body})


def says(reply: httpx.Response) -> str:
    assert reply.status_code == 200, reply.text
    return str(reply.json()["choices"][0]["message"]["content"])


def states(http: httpx.Client) -> dict[str, tuple[str, int | None]]:
    cards = http.get("/v1/models").json()["data"]
    return {card["id"]: (card["state"], card["max_model_len"]) for card in cards}


def test_names(tmp_path: Path) -> None:
    folder = tmp_path / "some-model"
    folder.mkdir()
    assert names_of(str(folder)) == ("some-model", {str(folder)})
    assert names_of(f"mine={folder}") == ("mine", {str(folder), "some-model"})
    assert names_of("Qwen/Qwen3-0.6B") == ("Qwen/Qwen3-0.6B", frozenset())
    assert names_of("q=Qwen/Qwen3-0.6B") == ("q", {"Qwen/Qwen3-0.6B"})


@pytest.mark.parametrize("path", ["/v1/models/load", "/v1/models/unload"])
def test_only_the_operator_loads_and_unloads(serve: Serve, path: str) -> None:
    with serve(toy_model()).http() as http:
        refused = http.post(path, json={"model": "toy"})
        assert refused.status_code == 403
        assert "openai.admin_key" in refused.json()["error"]["message"]
    with serve(toy_model(), settings=settings_with(admin_key="boss", api_keys=("user",))).http() as http:
        assert http.post(path, json={"model": "toy"}).status_code == 401
        assert http.post(path, json={"model": "toy"}, headers={"x-api-key": "user"}).status_code == 403
        assert http.post(path, json={"model": "toy"}, headers=ADMIN).status_code == 200


def test_loaded_and_unloaded_by_the_operator() -> None:
    with server_of("demo", "second=demo") as (_, http):
        assert states(http) == {"demo": ("unloaded", None), "second": ("unloaded", None)}
        refused = ask(http, "demo")
        assert refused.status_code == 503
        assert "retry-after" in refused.headers
        assert "/v1/models/load" in refused.json()["error"]["message"]
        card = http.post("/v1/models/load", json={"model": "demo"}, headers=ADMIN).json()
        assert (card["id"], card["object"], card["state"]) == ("demo", "model", "loaded")
        assert states(http)["demo"] == ("loaded", card["max_model_len"])
        assert http.get("/v1/models/demo").json() == card
        assert "7" in says(ask(http, "demo"))
        assert ask(http, "second").status_code == 503
        assert http.post("/v1/models/unload", json={"model": "demo"}, headers=ADMIN).json()["state"] == "unloaded"
        assert states(http)["demo"] == ("unloaded", card["max_model_len"])
        assert ask(http, "demo").status_code == 503


def test_a_model_that_the_server_did_not_know() -> None:
    with server_of("demo", **{"openai.lazy": True}) as (_, http):
        body = {"model": "demo", "alias": "other"}
        assert http.post("/v1/models/load", json=body, headers=ADMIN).json()["id"] == "demo"
        assert "7" in says(ask(http, "other"))
        body = {"model": "third=demo"}
        assert http.post("/v1/models/load", json=body, headers=ADMIN).json()["id"] == "third"
        taken = http.post("/v1/models/load", json={"model": "third", "alias": "other"}, headers=ADMIN)
        assert (taken.status_code, taken.json()["error"]["param"]) == (400, "alias")
        assert list(states(http)) == ["demo", "third"]
        unknown = http.post("/v1/models/unload", json={"model": "nobody"}, headers=ADMIN)
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")


def test_a_model_that_cannot_be_loaded(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "nonsense"}')
    with server_of("demo", f"broken={tmp_path}", **{"openai.lazy": True}) as (_, http):
        assert "7" in says(ask(http, None))
        refused = http.post("/v1/models/load", json={"model": "broken"}, headers=ADMIN)
        assert refused.status_code == 400
        assert str(tmp_path) in refused.json()["error"]["message"]  # why, for the operator
        failed = ask(http, "broken")
        assert failed.status_code == 500
        assert str(tmp_path) not in failed.text
        missing = http.post("/v1/models/load", json={"model": f"{tmp_path}/nothing"}, headers=ADMIN)
        assert (missing.status_code, missing.json()["error"]["param"]) == (400, "model")
        for name in ("x" * 300, "~nobody-of-that-name/x", "a\0b", "alias=", str(tmp_path / "config.json")):
            reply = http.post("/v1/models/load", json={"model": name}, headers=ADMIN)
            assert (reply.status_code, reply.json()["error"]["param"]) == (400, "model"), reply.text
        assert states(http)["broken"] == ("unloaded", None)
        assert list(states(http)) == ["demo", "broken"]  # what cannot be loaded is not listed
        assert http.get("/ready").status_code == 200
        assert "7" in says(ask(http, "demo"))


def test_a_server_that_begins_without_its_models(tmp_path: Path, bert: Path) -> None:
    """What their files tell is known from the start; a second engine and a short idle time are no trouble."""
    flags = ["--lazy", "--keep-alive-ms", "20", "--engine-pool", "2", "--kv-cache-memory", "16MiB"]
    models = ["--model", f"embedder={bert}", "--model", "demo", "--model", "nobody/knows-this"]
    with server_process(tmp_path, *models, *flags) as process, httpx.Client(base_url=process.address) as http:
        cards = {card["id"]: (card["state"], card["max_model_len"]) for card in http.get("/v1/models").json()["data"]}
        assert list(cards) == ["embedder", "demo", "nobody/knows-this"]
        assert {state for state, _ in cards.values()} == {"unloaded"}
        assert cards["demo"][1] == load_served("demo", settings_of()).max_model_len
        assert "7" in says(ask(http, None))  # not by the embedder, which need not be loaded to know that
        assert http.get("/health").json()["status"] == "ok"
        assert any(states(http)["demo"][0] == "unloaded" for _ in range(100_000))
        assert "7" in says(ask(http, "demo"))
        assert ask(http, "nobody/knows-this").status_code == 500
        assert ask(http, "nobody").status_code == 404
        messages = [event["message"] for event in process.events()]
        assert messages.count("model loaded") == 2
        assert "loading a model" in messages


def test_on_demand_by_many_at_once() -> None:
    with server_of("demo", "second=demo", **{"openai.lazy": True}) as (running, http):
        ready = http.get("/ready")
        assert (ready.status_code, ready.json()["model_loaded"]) == (200, False)
        with ThreadPoolExecutor(8) as pool:
            replies = list(pool.map(lambda number: ask(http, ("demo", "second")[number % 2]), range(8)))
        assert all("7" in says(reply) for reply in replies)
        assert [state for state, _ in states(http).values()] == ["loaded", "loaded"]
        assert len([thread for thread in threading.enumerate() if thread.name == "fermi-engine"]) >= 2
        engines = {id(model.service) for model in running.listener.state.models}
        assert len(engines) == 2


def test_an_endpoint_without_a_model_named_finds_the_first_that_answers(bert: Path) -> None:
    with server_of(f"embedder={bert}", "demo", **{"openai.lazy": True}) as (_, http):
        assert "7" in says(ask(http, None))
        data = http.post("/v1/embeddings", json={"input": "x"}).json()
        assert data["model"] == "embedder"
        refused = ask(http, "embedder")
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "unsupported_model")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny_embedders import save_embedder

    folder = tmp_path_factory.mktemp("embedder")
    save_embedder("bert", folder / "bert")
    return folder / "bert" / "model"


def test_the_bound_of_memory() -> None:
    settings = settings_of()
    needed = load_served("demo", settings).memory
    with server_of("demo", "second=demo", **{"openai.max_loaded_memory": int(1.5 * needed)}) as (_, http):
        assert "7" in says(ask(http, "demo"))
        assert "7" in says(ask(http, "second"))
        assert [state for state, _ in states(http).values()] == ["unloaded", "loaded"]
        assert "7" in says(ask(http, "demo"))
    with server_of("demo", **{"openai.max_loaded_memory": needed // 2}) as (_, http):
        refused = ask(http, "demo")
        assert refused.status_code == 503
        assert "openai.max_loaded_memory" in refused.json()["error"]["message"]
        assert "retry-after" in refused.headers


def test_work_in_flight_is_finished_before_its_model_leaves(serve: Serve) -> None:
    model = toy_model(hold=True)
    submitted = threading.Event()
    model.service.on_submit = submitted.set  # type: ignore[attr-defined]
    server = serve(Entry("toy", load=lambda: model), settings=settings_with(admin_key="boss", lazy=True))
    with server.http() as http, ThreadPoolExecutor(2) as pool:
        running = pool.submit(lambda: ask(http, "toy"))
        assert submitted.wait(30)
        unloading = pool.submit(lambda: http.post("/v1/models/unload", json={"model": "toy"}, headers=ADMIN))
        assert any(states(http)["toy"][0] == "unloading" for _ in range(100_000))
        stream = model.service.streams[0]  # type: ignore[attr-defined]
        server.call(lambda: model.service.release(stream, "Done."))  # type: ignore[attr-defined]
        assert says(running.result(30)) == "Done."
        assert unloading.result(30).json()["state"] == "unloaded"


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_memory_is_given_back(stories260k: Path) -> None:
    """Threads of the engine and of its kernels, mapped files and the KV cache: all are gone after an unload."""

    def mapped() -> int:
        return Path("/proc/self/maps").read_text().count(str(stories260k.resolve()))

    def threads() -> int:
        return len(os.listdir("/proc/self/task"))

    def taken() -> int:
        return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")

    def engines() -> int:
        return sum(thread.name == "fermi-engine" for thread in threading.enumerate())

    flags = {"cache.kv_cache_memory": "1GiB", "engine.threads": 2, "openai.lazy": True}
    with server_of(f"stories={stories260k}", **flags) as (running, http):
        body = {"model": "stories", "prompt": "Once", "max_tokens": 4}

        def load_use_unload() -> tuple[int, int, int]:
            assert http.post("/v1/completions", json=body).status_code == 200
            during = (mapped(), threads(), taken())
            assert engines() == before_engines + 1
            reply = http.post("/v1/models/unload", json={"model": "stories"}, headers=ADMIN)
            assert reply.json()["state"] == "unloaded"
            return during

        gc.collect()
        before_engines = engines()
        load_use_unload()  # what is made once for a process
        before = mapped()
        during = load_use_unload()
        after = mapped(), threads(), taken()
        assert before_engines == engines()
        assert during[0] > 0
        assert after[0] == before == 0
        assert during[1] > after[1]
        assert during[2] - after[2] > 2**29  # the cache's address space, at the least
        assert list(running.listener.state.models) == []


@pytest.fixture(scope="module")
def replicas() -> Iterator[tuple[Running, httpx.Client]]:
    with server_of("demo", **{"openai.engine_pool": 2, "openai.lazy": True}) as pair:
        yield pair


class TestReplicas:
    """``openai.engine_pool``: engines that share weights."""

    def service(self, running: Running) -> Pool:
        [model] = running.listener.state.models
        assert isinstance(model.service, Pool)
        return model.service

    def test_all_answer_the_same(self, replicas: tuple[Running, httpx.Client]) -> None:
        running, http = replicas
        with ThreadPoolExecutor(8) as pool:
            replies = [says(reply) for reply in pool.map(lambda _: ask(http, "demo"), range(16))]
        assert len(set(replies)) == 1
        each = [replica.service.stats for replica in self.service(running)._replicas]
        assert all(stats.generated_tokens > 0 for stats in each)
        assert self.service(running).stats.generated_tokens == sum(stats.generated_tokens for stats in each)
        assert http.get("/ready").status_code == 200

    def test_a_conversation_stays_where_it_is_cached(self, replicas: tuple[Running, httpx.Client]) -> None:
        _, http = replicas
        prompt = list(range(5, 5 + 64))
        cached = []
        for _ in range(4):
            reply = http.post("/v1/completions", json={"prompt": prompt, "max_tokens": 1}).json()
            cached.append(reply["usage"]["prompt_tokens_details"]["cached_tokens"])
        assert cached[0] == 0
        assert all(tokens > 0 for tokens in cached[1:])

    def test_they_share_weights_and_divide_the_cache(self, replicas: tuple[Running, httpx.Client]) -> None:
        running, http = replicas
        ask(http, "demo")
        pool = self.service(running)
        engines = [replica.cache for replica in pool._replicas]
        models = [engine._runner._model for engine in engines]  # type: ignore[attr-defined]
        own = {name for name in vars(models[0]) if vars(models[0])[name] is not vars(models[1])[name]}
        assert own == {"backend"}
        single = load_served("demo", settings_of())
        assert pool.stats.blocks.total in (single.service.stats.blocks.total, single.service.stats.blocks.total - 1)  # type: ignore[attr-defined]


def test_the_time_that_loading_took_is_the_requests() -> None:
    model = toy_model()
    body = ChatBody.model_validate({"messages": QUESTION, "timeout": 50.0})

    def deadline(waited_s: float) -> float:
        token = current.set(Exchange(waited_s=waited_s))
        try:
            request = engine_request(model, body, Prompt([1]), SamplingParams(), timeout_ms=60_000)
        finally:
            current.reset(token)
        assert request.deadline is not None
        return request.deadline

    assert deadline(30.0) < deadline(0.0) - 20
