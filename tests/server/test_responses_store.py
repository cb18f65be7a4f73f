"""Responses that are kept: over restarts, within bounds, for one key, whatever the file does."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.responses import ResponseItem
from pydantic import TypeAdapter

from fermi.config import data_folder
from fermi.server.responses.items import Item
from fermi.server.responses.store import Bounds, Database, Record, ResponseStore
from server.responses_oracle import check_response
from server.running import Running, Serve, serving
from server.toy import service_of, settings_with, toy_model

PATH = "/v1/responses"


def item(text: str, name: str = "") -> Item:
    return {"type": "message", "id": name or f"msg_{text}", "role": "user", "status": "completed", "content": text}


def record(name: str, *, owner: str = "", status: str = "completed", size: int = 1, history: list[Item] = []) -> Record:  # noqa: B006
    document = {"id": name, "status": status, "text": "x" * size, "output": [item(f"out {name}")]}
    return Record(owner, document, history, [item(f"in {name}")])


@pytest.fixture
def at() -> list[float]:
    """What the store's clock says."""
    return [1000.0]


@pytest.fixture
def open_store(tmp_path: Path, at: list[float]) -> Iterator[Callable[..., ResponseStore]]:
    """Opens stores on one file, or on another one."""
    stores: list[ResponseStore] = []

    def open_one(path: Path | None = tmp_path / "folder" / "responses.sqlite", **bounds: float) -> ResponseStore:
        stores.append(ResponseStore(path, Bounds(**bounds), clock=lambda: at[0]))  # type: ignore[arg-type]
        return stores[-1]

    yield open_one
    for store in stores:
        asyncio.run(store.close())


def tables(path: Path) -> dict[str, int]:
    """How many rows each table of a file has."""
    with sqlite3.connect(path) as sql:
        names = ("responses", "items", "members")
        return {name: sql.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in names}


class TestStore:
    @pytest.mark.parametrize("path", ["file", "memory"])
    async def test_keeps(self, open_store: Callable[..., ResponseStore], path: str) -> None:
        store = open_store() if path == "file" else open_store(None)
        await store.save(record("a"))
        first = await store.conversation("", "a")
        assert first == [item("in a"), item("out a")]
        await store.save(record("b", history=first), "a")
        assert await store.get("", "a") == record("a").document
        assert await store.get("", "b") == record("b").document
        assert await store.conversation("", "b") == [*first, item("in b"), item("out b")]
        assert await store.input_items("", "b") == [*first, item("in b")]
        assert await store.item("", "msg_out a") == item("out a")
        assert await store.get("", "c") is None
        assert await store.conversation("", "c") is None
        assert await store.item("", "msg_out c") is None

    async def test_a_conversation_outlives_its_beginning(
        self, open_store: Callable[..., ResponseStore], tmp_path: Path
    ) -> None:
        store = open_store()
        await store.save(record("a"))
        history = [item("in a"), item("out a")]
        await store.save(record("b", history=history), "a")
        assert await store.delete("", "a")
        assert not await store.delete("", "a")
        assert await store.conversation("", "b") == [*history, item("in b"), item("out b")]
        path = tmp_path / "folder" / "responses.sqlite"
        assert tables(path) == {"responses": 1, "items": 4, "members": 4}
        assert await store.delete("", "b")
        assert tables(path) == {"responses": 0, "items": 0, "members": 0}

    async def test_belongs_to_its_key(self, open_store: Callable[..., ResponseStore]) -> None:
        store = open_store()
        await store.save(record("a", owner="me"))
        for other in ("", "you"):
            assert await store.get(other, "a") is None
            assert await store.conversation(other, "a") is None
            assert await store.input_items(other, "a") is None
            assert await store.item(other, "msg_out a") is None
            assert not await store.delete(other, "a")
            assert not await store.finish(other, record("a").document)
        assert await store.get("me", "a") is not None

    async def test_ends_once(self, open_store: Callable[..., ResponseStore]) -> None:
        store = open_store()
        await store.save(Record("", {"id": "a", "status": "queued", "output": []}, [], [item("in a")]))
        assert await store.finish("", record("a", status="cancelled").document)
        assert not await store.finish("", record("a").document)
        assert await store.get("", "a") == record("a", status="cancelled").document
        assert await store.conversation("", "a") == [item("in a"), item("out a")]

    async def test_number(self, open_store: Callable[..., ResponseStore], at: list[float], tmp_path: Path) -> None:
        store = open_store(responses=3)
        for name in "abc":
            at[0] += 1
            await store.save(record(name))
        at[0] += 1
        await store.conversation("", "a")  # used, so b leaves first
        at[0] += 1
        await store.save(record("d"))
        kept = [name for name in "abcd" if await store.get("", name)]
        assert kept == ["a", "c", "d"]
        assert tables(tmp_path / "folder" / "responses.sqlite") == {"responses": 3, "items": 6, "members": 6}

    @pytest.mark.parametrize("path", ["file", "memory"])
    async def test_bytes(self, open_store: Callable[..., ResponseStore], at: list[float], path: str) -> None:
        options: dict[str, Any] = {"bytes": 300_000}
        store = open_store(**options) if path == "file" else open_store(None, **options)
        for number in range(100):
            at[0] += 1
            await store.save(record(f"r{number}", size=10_000))
        kept = [number for number in range(100) if await store.get("", f"r{number}")]
        assert 10 < len(kept) < 30
        assert kept == list(range(100 - len(kept), 100))
        await store.save(record("huge", size=400_000))  # the newest stays in any case
        assert await store.get("", "huge") is not None
        assert await store.get("", "r99") is None

    async def test_age(self, open_store: Callable[..., ResponseStore], at: list[float], tmp_path: Path) -> None:
        store = open_store(age_s=60)
        await store.save(record("a"))
        await store.save(record("b"))
        at[0] += 50
        await store.conversation("", "a")
        at[0] += 20
        assert await store.get("", "a") is not None
        assert await store.get("", "b") is None
        assert await store.conversation("", "b") is None
        await store.save(record("c"))
        assert tables(tmp_path / "folder" / "responses.sqlite")["responses"] == 2

    async def test_a_process_that_died(self, open_store: Callable[..., ResponseStore], tmp_path: Path) -> None:
        store = open_store()
        await store.save(Record("", {"id": "a", "status": "in_progress", "output": []}, [], []))
        document = await store.get("", "a")
        assert document is not None
        assert document["status"] == "in_progress"
        with sqlite3.connect(tmp_path / "folder" / "responses.sqlite") as sql:
            sql.execute("UPDATE responses SET runner = '1:0'")  # a process of that number, begun at another time
        document = await store.get("", "a")
        assert document is not None
        assert (document["status"], document["error"]["code"]) == ("failed", "server_error")

    async def test_private(self, open_store: Callable[..., ResponseStore], tmp_path: Path) -> None:
        await open_store().save(record("a"))
        folder = tmp_path / "folder"
        assert {path.name for path in folder.iterdir()} >= {"responses.sqlite", "responses.sqlite-wal"}
        for path in folder.iterdir():
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700

    async def test_several_servers_on_one_file(self, open_store: Callable[..., ResponseStore]) -> None:
        stores = [open_store() for _ in range(4)]
        names = [(store, f"{number}-{at}") for at in range(25) for number, store in enumerate(stores)]
        await asyncio.gather(*(store.save(record(name)) for store, name in names))
        for reader in stores:
            assert all([await reader.get("", name) for _, name in names])

    async def test_a_process_that_is_killed_loses_nothing(
        self, open_store: Callable[..., ResponseStore], tmp_path: Path
    ) -> None:
        path = tmp_path / "folder" / "responses.sqlite"
        code = (
            "import asyncio, os, signal, sys; from pathlib import Path\n"
            "from fermi.server.responses.store import Bounds, Record, ResponseStore\n"
            "store = ResponseStore(Path(sys.argv[1]), Bounds())\n"
            "asyncio.run(store.save(Record('', {'id': 'a', 'status': 'completed', 'output': []})))\n"
            "os.kill(os.getpid(), signal.SIGKILL)\n"
        )
        assert subprocess.run([sys.executable, "-c", code, str(path)], timeout=60).returncode == -9
        assert await open_store().get("", "a") is not None

    async def test_other_processes_on_the_file(self, open_store: Callable[..., ResponseStore], tmp_path: Path) -> None:
        path = tmp_path / "folder" / "responses.sqlite"
        code = (
            "import asyncio, sys; from pathlib import Path\n"
            "from fermi.server.responses.store import Bounds, Record, ResponseStore\n"
            "async def main():\n"
            "    store = ResponseStore(Path(sys.argv[1]), Bounds())\n"
            "    for at in range(20):\n"
            "        document = {'id': f'{sys.argv[2]}-{at}', 'status': 'completed', 'output': []}\n"
            "        await store.save(Record('', document))\n"
            "    await store.close()\n"
            "asyncio.run(main())\n"
        )
        others = [subprocess.Popen([sys.executable, "-c", code, str(path), str(number)]) for number in range(3)]
        assert [other.wait(60) for other in others] == [0, 0, 0]
        store = open_store()
        assert all([await store.get("", f"{number}-{at}") for number in range(3) for at in range(20)])


class TestTrouble:
    """Whatever the file does, responses are kept in memory, and a warning says so."""

    @pytest.fixture(autouse=True)
    def warnings(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        told: list[str] = []

        class Log:
            def warning(self, event: str, *, error: str, file: str) -> None:
                told.append(f"{event}: {error}")

        monkeypatch.setattr("fermi.server.responses.store.logger", Log)
        return told

    async def check(self, store: ResponseStore, warnings: list[str], expected: str) -> None:
        """It does all that it should, and complains once."""
        await store.save(record("a"))
        assert await store.get("", "a") == record("a").document
        assert await store.conversation("", "a") == [item("in a"), item("out a")]
        await store.save(record("b", history=[item("in a"), item("out a")]), "a")
        assert len(await store.conversation("", "b") or []) == 4
        assert await store.delete("", "a")
        [warning] = warnings
        assert expected in warning

    async def test_no_database(
        self, open_store: Callable[..., ResponseStore], warnings: list[str], tmp_path: Path
    ) -> None:
        path = tmp_path / "text.sqlite"
        path.write_text("This is no database. " * 100)
        await self.check(open_store(path), warnings, "not a database")
        assert path.read_text() == "This is no database. " * 100

    async def test_damaged(self, open_store: Callable[..., ResponseStore], warnings: list[str], tmp_path: Path) -> None:
        path = tmp_path / "damaged.sqlite"
        before = ResponseStore(path, Bounds())
        for number in range(50):
            await before.save(record(f"old {number}", size=1000))
        await before.close()
        whole = path.read_bytes()
        path.write_bytes(whole[:4096] + os.urandom(len(whole) - 4096))
        await self.check(open_store(path), warnings, "are kept in memory only: ")

    async def test_of_another_program(
        self, open_store: Callable[..., ResponseStore], warnings: list[str], tmp_path: Path
    ) -> None:
        path = tmp_path / "other.sqlite"
        with sqlite3.connect(path) as sql:
            sql.execute("CREATE TABLE mine (x)")
        await self.check(open_store(path), warnings, "another program")
        with sqlite3.connect(path) as sql:
            assert sql.execute("SELECT name FROM sqlite_master").fetchall() == [("mine",)]

    async def test_no_place(
        self, open_store: Callable[..., ResponseStore], warnings: list[str], tmp_path: Path
    ) -> None:
        (tmp_path / "file").write_text("")
        await self.check(open_store(tmp_path / "file" / "responses.sqlite"), warnings, "File exists")

    async def test_read_only(
        self, open_store: Callable[..., ResponseStore], warnings: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(path: str, flags: int, mode: int = 0o777) -> int:
            raise PermissionError(13, "Permission denied", path)

        store = open_store()
        monkeypatch.setattr("fermi.server.responses.store.os.open", refuse)
        await self.check(store, warnings, "Permission denied")

    async def test_locked(
        self,
        open_store: Callable[..., ResponseStore],
        warnings: list[str],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("fermi.server.responses.store.LOCK_S", 0.05)
        store = open_store()
        await store.save(record("before"))
        other = sqlite3.connect(tmp_path / "folder" / "responses.sqlite", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        await self.check(store, warnings, "for a while: database is locked")
        other.execute("ROLLBACK")
        other.close()
        monkeypatch.setattr("fermi.server.responses.store.time.monotonic", lambda: 1e9)  # a while later
        assert await store.get("", "before") is not None
        assert await store.get("", "b") is not None

    def test_a_write_that_fails_leaves_nothing(self, tmp_path: Path) -> None:
        path = tmp_path / "responses.sqlite"
        database = Database(str(path), Bounds())
        database.save(record("a"), None)
        with pytest.raises(sqlite3.IntegrityError):
            database.save(record("a"), None)
        assert tables(path) == {"responses": 1, "items": 2, "members": 2}
        database.close()


class TestServer:
    @pytest.fixture
    def file(self, tmp_path: Path) -> dict[str, Any]:
        return {"response_store": str(tmp_path / "responses.sqlite")}

    def test_over_a_restart(self, file: dict[str, Any]) -> None:
        with serving(toy_model("Hello."), settings=settings_with(**file)) as server:
            first = server.openai().responses.create(model="toy", input="Hi", instructions="Be brief.")
        model = toy_model("Bye.")
        with serving(model, settings=settings_with(**file)) as server:
            client = server.openai()
            assert client.responses.retrieve(first.id) == first
            second = client.responses.create(model="toy", input="And?", previous_response_id=first.id)
            assert second.previous_response_id == first.id
            prompt = service_of(model).prompt(service_of(model).last)
            assert prompt.startswith("<s>[user]Hi[assistant]Hello.[user]And?[assistant]")  # without the instructions
            client.responses.delete(first.id)
            third = client.responses.create(model="toy", input="Still?", previous_response_id=second.id)
            assert third.output_text == "Bye."
            prompt = service_of(model).prompt(service_of(model).last)
            assert prompt.startswith("<s>[user]Hi[assistant]Hello.[user]And?[assistant]Bye.[user]Still?")

    def test_in_the_users_data_folder(self, serve: Serve) -> None:
        serve(toy_model()).openai().responses.create(model="toy", input="Hi")
        assert (data_folder() / "responses.sqlite").is_file()

    def test_a_background_response_over_a_restart(self, file: dict[str, Any]) -> None:
        with serving(toy_model(hold=True), settings=settings_with(**file)) as server:
            response = server.openai().responses.create(model="toy", input="Hi", background=True)
        with serving(toy_model(), settings=settings_with(**file)) as server, server.http() as http:
            document = http.get(f"{PATH}/{response.id}").json()
        assert check_response(document).status == "failed"

    def test_in_memory(self, serve: Serve, tmp_path: Path) -> None:
        client = serve(toy_model(), settings=settings_with(response_store=":memory:")).openai()
        response = client.responses.create(model="toy", input="Hi")
        assert client.responses.retrieve(response.id).output_text == "Hello, world."
        assert not Path(":memory:").exists()

    def test_off(self, serve: Serve) -> None:
        server = serve(toy_model(), settings=settings_with(response_store="off"))
        with server.http() as http:
            response = http.post(PATH, json={"input": "Hi"}).json()
            assert response["store"] is False
            assert http.get(f"{PATH}/{response['id']}").status_code == 404
            assert http.get(f"{PATH}/{response['id']}/input_items").status_code == 404
            assert http.delete(f"{PATH}/{response['id']}").status_code == 404
            for body, param in (
                ({"store": True}, "store"),
                ({"background": True}, "background"),
                ({"previous_response_id": response["id"]}, "previous_response_id"),
            ):
                refused = http.post(PATH, json={"input": "Hi", **body})
                assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)

    @pytest.mark.parametrize("stream", [False, True])
    def test_not_stored(self, toy_server: Running, stream: bool) -> None:
        client = toy_server.openai()
        if stream:
            events = list(client.responses.create(model="toy", input="Hi", store=False, stream=True))
            response = events[-1].response  # type: ignore[union-attr]
        else:
            response = client.responses.create(model="toy", input="Hi", store=False)
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(response.id)
        with pytest.raises(openai.BadRequestError) as unknown:
            client.responses.create(model="toy", input="Hi", previous_response_id=response.id)
        assert (unknown.value.code, unknown.value.param) == ("previous_response_not_found", "previous_response_id")

    def test_kept_when_the_last_event_comes(self, serve: Serve) -> None:
        client = serve(toy_model()).openai()
        for event in client.responses.create(model="toy", input="Hi", stream=True):
            if event.type == "response.completed":
                assert client.responses.retrieve(event.response.id).output_text == "Hello, world."
                break
        else:
            raise AssertionError("it never ended")

    def test_only_for_its_key(self, serve: Serve) -> None:
        server = serve(toy_model(), settings=settings_with(api_keys="mine, yours"))
        mine, yours = (openai.OpenAI(base_url=f"{server.url}/v1", api_key=key) for key in ("mine", "yours"))
        response = mine.responses.create(model="toy", input="Hi")
        background = mine.responses.create(model="toy", input="Hi", background=True)
        reference = {"type": "item_reference", "id": response.output[0].id}
        assert mine.responses.retrieve(response.id) == response
        assert mine.responses.create(model="toy", input=[reference, {"role": "user", "content": "?"}])  # type: ignore[list-item]
        for name in (response.id, background.id):
            with pytest.raises(openai.NotFoundError):
                yours.responses.retrieve(name)
            with pytest.raises(openai.NotFoundError):
                yours.responses.cancel(name)
            with pytest.raises(openai.NotFoundError):
                yours.responses.delete(name)
            with pytest.raises(openai.NotFoundError):
                yours.responses.input_items.list(name)
            with pytest.raises(openai.BadRequestError):
                yours.responses.create(model="toy", input="Hi", previous_response_id=name)
        with pytest.raises(openai.BadRequestError):
            yours.responses.create(model="toy", input=[reference])  # type: ignore[list-item]

    def test_deleted(self, toy_server: Running) -> None:
        response = toy_server.openai().responses.create(model="toy", input="Hi")
        with toy_server.http() as http:
            deleted = http.delete(f"{PATH}/{response.id}")
            assert deleted.json() == {"id": response.id, "object": "response", "deleted": True}
            for again in (http.delete(f"{PATH}/{response.id}"), http.get(f"{PATH}/{response.id}")):
                assert again.status_code == 404
                assert set(again.json()["error"]) == {"message", "type", "param", "code"}

    def test_references(self, serve: Serve) -> None:
        model = toy_model("Hello.")
        client = serve(model).openai()
        first = client.responses.create(model="toy", input="Hi")
        items = list(client.responses.input_items.list(first.id))
        given = [{"id": items[0].id}, {"type": "item_reference", "id": first.output[0].id}]
        client.responses.create(model="toy", input=[*given, {"role": "user", "content": "And?"}])  # type: ignore[list-item]
        prompt = service_of(model).prompt(service_of(model).last)
        assert prompt.startswith("<s>[user]Hi[assistant]Hello.[user]And?")

    def test_thoughts_are_sealed_afterwards(self, serve: Serve) -> None:
        client = serve(toy_model("<think>\nHmm.\n</think>\n\nYes.")).openai()
        response = client.responses.create(model="toy", input="Hi", reasoning={"effort": "low"})
        plain, sealed = (
            client.responses.retrieve(response.id, include=include).output[0]
            for include in ([], ["reasoning.encrypted_content"])
        )
        assert plain.type == sealed.type == "reasoning"
        assert plain.encrypted_content is None
        word = sealed.encrypted_content
        assert word is not None
        given = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": word}
        second = client.responses.create(model="toy", input=[given, {"role": "user", "content": "And?"}])  # type: ignore[list-item]
        items = client.responses.input_items.list(second.id, include=["reasoning.encrypted_content"], order="asc").data
        assert items[0].content[0].text == "Hmm."  # type: ignore[union-attr]
        assert items[0].encrypted_content == word  # type: ignore[union-attr]

    def test_the_store_holds_nobody_up(self, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
        """While a write hangs, the server answers others."""
        begun, go_on = threading.Event(), threading.Event()
        save = Database.save

        def slow(self: Database, *given: Any) -> None:
            begun.set()
            assert go_on.wait(30)
            save(self, *given)

        monkeypatch.setattr(Database, "save", slow)
        server = serve(toy_model())
        asked = threading.Thread(target=lambda: server.openai().responses.create(model="toy", input="Hi"))
        asked.start()
        try:
            assert begun.wait(30)
            with server.http() as http:
                assert http.get("/health").status_code == 200
                assert http.post(PATH, json={"input": "Hi", "store": False}).status_code == 200
        finally:
            go_on.set()
            asked.join(30)


class TestInputItems:
    @pytest.fixture(scope="class")
    @classmethod
    def server(cls) -> Iterator[Running]:
        with serving(toy_model("Hello.")) as running:
            yield running

    @pytest.fixture(scope="class")
    @classmethod
    def response_id(cls, server: Running) -> str:
        client = server.openai()
        first = client.responses.create(model="toy", input=[{"role": "user", "content": f"m{at}"} for at in range(4)])
        given = [
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "6"},
            {"type": "reasoning", "id": "rs_mine", "summary": [{"type": "summary_text", "text": "Hm."}]},
            {"role": "assistant", "content": "six"},
            {"role": "user", "content": [{"type": "input_text", "text": "?"}]},
        ]
        return client.responses.create(model="toy", input=given, previous_response_id=first.id).id  # type: ignore[arg-type]

    def test_complete(self, server: Running, response_id: str) -> None:
        with server.http() as http:
            page = http.get(f"{PATH}/{response_id}/input_items?order=asc&limit=100").json()
        assert set(page) == {"object", "data", "first_id", "last_id", "has_more"}
        for entry in page["data"]:
            TypeAdapter(ResponseItem).validate_python(entry, strict=True)
            assert entry["id"]
            assert entry["status"] == "completed"
        kinds = [entry["type"] for entry in page["data"]]
        assert kinds == [*["message"] * 5, "function_call", "function_call_output", "reasoning", "message", "message"]
        assert page["data"][4]["content"][0]["text"] == "Hello."  # of the response before

    @pytest.mark.parametrize("order", ["asc", "desc"])
    @pytest.mark.parametrize("limit", [1, 3, 10, 100])
    def test_pages(self, server: Running, response_id: str, order: Any, limit: int) -> None:
        client = server.openai()
        paged = [each.id for each in client.responses.input_items.list(response_id, order=order, limit=limit)]
        whole = [each.id for each in client.responses.input_items.list(response_id, order="asc", limit=100)]
        assert len(whole) == len(set(whole)) == 10
        assert paged == (whole if order == "asc" else whole[::-1])

    def test_the_latest_first(self, server: Running, response_id: str) -> None:
        with server.http() as http:
            page = http.get(f"{PATH}/{response_id}/input_items?limit=2").json()
            assert (page["data"][0]["role"], page["has_more"]) == ("user", True)
            assert (page["first_id"], page["last_id"]) == tuple(each["id"] for each in page["data"])
            last = http.get(f"{PATH}/{response_id}/input_items?order=asc").json()["data"][-1]["id"]
            rest = http.get(f"{PATH}/{response_id}/input_items?order=asc&after={last}").json()
        assert (rest["data"], rest["has_more"]) == ([], False)

    @pytest.mark.parametrize(
        ("query", "param"),
        [
            ("limit=0", "limit"),
            ("limit=101", "limit"),
            ("limit=x", "limit"),
            ("order=up", "order"),
            ("after=msg_unknown", "after"),
            ("include[]=everything", "include.0"),
            ("include=file_search_call.results", "include.0"),
        ],
    )
    def test_bad_queries(self, server: Running, response_id: str, query: str, param: str) -> None:
        with server.http() as http:
            refused = http.get(f"{PATH}/{response_id}/input_items?{query}")
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)

    @pytest.mark.parametrize(
        ("query", "param"),
        [
            ("stream=maybe", "stream"),
            ("starting_after=1", "starting_after"),
            ("stream=true&starting_after=x", "starting_after"),
            ("include_obfuscation=true", "include_obfuscation"),
            ("include[]=computer_call_output.output.image_url", "include.0"),
        ],
    )
    def test_bad_queries_of_get(self, server: Running, response_id: str, query: str, param: str) -> None:
        with server.http() as http:
            refused = http.get(f"{PATH}/{response_id}?{query}")
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)

    def test_unknown_response(self, server: Running) -> None:
        with server.http() as http:
            assert http.get(f"{PATH}/resp_unknown/input_items").status_code == 404


@pytest.mark.parametrize(
    ("environ", "platform", "expected"),
    [
        ({"XDG_DATA_HOME": "/data"}, "linux", Path("/data/fermi")),
        ({"XDG_DATA_HOME": "relative"}, "linux", Path.home() / ".local/share/fermi"),
        ({}, "linux", Path.home() / ".local/share/fermi"),
        ({}, "darwin", Path.home() / "Library/Application Support/fermi"),
        ({"LOCALAPPDATA": "/local"}, "win32", Path("/local/fermi")),
    ],
)
def test_data_folder(environ: dict[str, str], platform: str, expected: Path) -> None:
    assert data_folder(environ, platform) == expected
