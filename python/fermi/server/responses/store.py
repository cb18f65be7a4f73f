"""The responses that are kept: in SQLite, in a file or in memory, bounded, each for the key that made it."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import psutil
from pydantic_core import to_json

from fermi.server.log import logger
from fermi.server.responses.document import FINAL
from fermi.server.responses.items import Item

Result = TypeVar("Result")

LOCK_S = 2.0  # how long one access waits for other servers on the same file
RETRY_S = 30.0  # after an access that failed, this long only memory is used
APPLICATION_ID = 0x6665726D  # "ferm", in the file's header
VERSION = 1

_SCHEMA = """
CREATE TABLE responses (
    key INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    used REAL NOT NULL,
    status TEXT NOT NULL,
    runner TEXT NOT NULL,
    document TEXT NOT NULL
);
CREATE INDEX responses_by_use ON responses (used);
CREATE TABLE items (key INTEGER PRIMARY KEY, id TEXT NOT NULL, owner TEXT NOT NULL, body TEXT NOT NULL);
CREATE INDEX items_by_id ON items (owner, id);
CREATE TABLE members (
    response INTEGER NOT NULL,
    position INTEGER NOT NULL,
    item INTEGER NOT NULL,
    is_output INTEGER NOT NULL,
    PRIMARY KEY (response, position)
) WITHOUT ROWID;
CREATE INDEX members_by_item ON members (item);
CREATE TRIGGER response_leaves BEFORE DELETE ON responses BEGIN
    DELETE FROM members WHERE response = OLD.key;
END;
CREATE TRIGGER member_leaves AFTER DELETE ON members BEGIN
    DELETE FROM items WHERE key = OLD.item AND NOT EXISTS (SELECT 1 FROM members WHERE item = OLD.item);
END;
"""


@dataclass(frozen=True, slots=True)
class Record:
    """A response that is to be kept.

    Attributes:
        owner: the key that made it; "" where there are no keys.
        history: what stood before its own input: the conversation of ``previous``.
    """

    owner: str
    document: dict[str, Any]
    history: Sequence[Item] = ()
    input: Sequence[Item] = ()

    @property
    def id(self) -> str:
        """The response's id."""
        return str(self.document["id"])


class Page(NamedTuple):
    """Some of a response's input items, and whether there are more."""

    items: list[Item]
    has_more: bool


class Bounds(NamedTuple):
    """How much is kept, 0 for no bound: responses, bytes, and seconds since a response was last used."""

    responses: int = 0
    bytes: int = 0
    age_s: float = 0.0


class Database:
    """One SQLite file, or ":memory:". Every method may raise sqlite3.Error; all belong to one thread.

    A conversation's items are kept once; each response lists those that it saw, so it stays whole when the responses
    before it are deleted.
    """

    def __init__(self, path: str, bounds: Bounds, clock: Callable[[], float] = time.time) -> None:
        """Open it, or make it, for the user alone."""
        self._bounds = bounds
        self._clock = clock
        self._runner = _this_process()
        if path != ":memory:":
            Path(path).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        self._sql = sqlite3.connect(path, timeout=LOCK_S, isolation_level=None, check_same_thread=False)
        try:
            self._prepare()
        except BaseException:
            self._sql.close()
            raise

    def _prepare(self) -> None:
        self._sql.execute("PRAGMA secure_delete = ON")
        with self._writing():
            [application], [version] = (
                self._sql.execute(f"PRAGMA {name}").fetchone() for name in ("application_id", "user_version")
            )
            [tables] = self._sql.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if not tables and not application:
                for statement in _statements(_SCHEMA):
                    self._sql.execute(statement)
                self._sql.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                self._sql.execute(f"PRAGMA user_version = {VERSION}")
            elif (application, version) != (APPLICATION_ID, VERSION):
                raise sqlite3.DatabaseError("the file is of another program, or of another version of this one")
        with suppress(sqlite3.OperationalError):  # another server is just as far: then it is its turn
            self._sql.execute("PRAGMA journal_mode = WAL")
        self._sql.execute("PRAGMA synchronous = NORMAL")  # outlives the process; a power cut may take the last writes

    def close(self) -> None:
        """Write everything into the one file."""
        self._sql.close()

    def save(self, record: Record, previous: str | None) -> None:
        """Keep a new response; ``previous`` is the one whose conversation is its history."""
        document = {name: value for name, value in record.document.items() if name != "output"}
        with self._writing():
            row = (record.id, record.owner, self._clock(), document["status"], self._runner, _text(document))
            key = self._sql.execute(
                "INSERT INTO responses (id, owner, used, status, runner, document) VALUES (?, ?, ?, ?, ?, ?)", row
            ).lastrowid
            assert key is not None
            before = None if previous is None else self._find(record.owner, previous)
            position = 0
            if before is not None:
                position = self._sql.execute(
                    "INSERT INTO members SELECT ?, position, item, 0 FROM members WHERE response = ?", (key, before)
                ).rowcount
            else:
                position = self._append(key, record.owner, position, record.history, is_output=False)
            position = self._append(key, record.owner, position, record.input, is_output=False)
            self._append(key, record.owner, position, record.document["output"], is_output=True)
            self._forget(key)

    def finish(self, owner: str, document: dict[str, Any]) -> bool:
        """Note how a response ended that was kept while it ran; False where it is not kept, or ended otherwise."""
        own = {name: value for name, value in document.items() if name != "output"}
        with self._writing():
            row = self._sql.execute(
                "SELECT key, status, (SELECT count(*) FROM members WHERE response = key) FROM responses "
                "WHERE id = ? AND owner = ?",
                (document["id"], owner),
            ).fetchone()
            if row is None or row[1] in FINAL:
                return False
            key, _, position = row
            self._sql.execute(
                "UPDATE responses SET status = ?, document = ?, used = ? WHERE key = ?",
                (own["status"], _text(own), self._clock(), key),
            )
            self._append(key, owner, position, document["output"], is_output=True)
        return True

    def get(self, owner: str, response_id: str) -> dict[str, Any] | None:
        """The response object; failed where the process that ran it is gone."""
        row = self._sql.execute(
            "SELECT key, status, runner, document FROM responses WHERE id = ? AND owner = ? AND used >= ?",
            (response_id, owner, self._oldest()),
        ).fetchone()
        if row is None:
            return None
        key, status, runner, text = row
        document: dict[str, Any] = json.loads(text)
        document["output"] = [
            json.loads(body)
            for (body,) in self._sql.execute(
                "SELECT body FROM members JOIN items ON items.key = item WHERE response = ? AND is_output "
                "ORDER BY position",
                (key,),
            )
        ]
        if status not in FINAL and runner != self._runner and not _lives(runner):
            message = "The server ended before the response did."
            document |= {"status": "failed", "error": {"code": "server_error", "message": message}}
        return document

    def conversation(self, owner: str, response_id: str) -> list[Item] | None:
        """All items that a response saw and made; it counts as used."""
        key = self._find(owner, response_id)
        if key is None:
            return None
        with suppress(sqlite3.OperationalError), self._writing():  # what is only read need not be written
            self._sql.execute("UPDATE responses SET used = ? WHERE key = ?", (self._clock(), key))
        rows = self._sql.execute(
            "SELECT body FROM members JOIN items ON items.key = item WHERE response = ? ORDER BY position", (key,)
        )
        return [json.loads(body) for (body,) in rows]

    def item(self, owner: str, item_id: str) -> Item | None:
        """The latest item of that id."""
        row = self._sql.execute(
            "SELECT body FROM items WHERE owner = ? AND id = ? ORDER BY key DESC LIMIT 1", (owner, item_id)
        ).fetchone()
        return None if row is None else json.loads(row[0])

    def input_items(self, owner: str, response_id: str) -> list[Item] | None:
        """All items that a response saw, the oldest first."""
        key = self._find(owner, response_id)
        if key is None:
            return None
        rows = self._sql.execute(
            "SELECT body FROM members JOIN items ON items.key = item WHERE response = ? AND NOT is_output "
            "ORDER BY position",
            (key,),
        )
        return [json.loads(body) for (body,) in rows]

    def delete(self, owner: str, response_id: str) -> bool:
        """Forget a response; False where it is not kept."""
        key = self._find(owner, response_id)
        if key is None:
            return False
        with self._writing():
            self._sql.execute("DELETE FROM responses WHERE key = ?", (key,))
        return True

    def _append(self, key: int, owner: str, position: int, items: Sequence[Item], *, is_output: bool) -> int:
        for item in items:
            number = self._sql.execute(
                "INSERT INTO items (id, owner, body) VALUES (?, ?, ?)", (item["id"], owner, _text(item))
            ).lastrowid
            self._sql.execute("INSERT INTO members VALUES (?, ?, ?, ?)", (key, position, number, is_output))
            position += 1
        return position

    def _find(self, owner: str, response_id: str) -> int | None:
        row = self._sql.execute(
            "SELECT key FROM responses WHERE id = ? AND owner = ? AND used >= ?", (response_id, owner, self._oldest())
        ).fetchone()
        return None if row is None else int(row[0])

    def _oldest(self) -> float:
        return self._clock() - self._bounds.age_s if self._bounds.age_s else 0.0

    def _forget(self, newest: int) -> None:
        """Let go what is too old or too much, the least recently used first, but not the newest."""
        self._sql.execute("DELETE FROM responses WHERE used < ?", (self._oldest(),))
        limit = self._bounds.responses
        if limit:
            self._sql.execute(
                "DELETE FROM responses WHERE key IN "
                "(SELECT key FROM responses WHERE key <> ? ORDER BY used DESC, key DESC LIMIT -1 OFFSET ?)",
                (newest, limit - 1),
            )
        while self._bounds.bytes and self._size() > self._bounds.bytes:
            [others] = self._sql.execute("SELECT count(*) FROM responses WHERE key <> ?", (newest,)).fetchone()
            if not others:
                break
            self._sql.execute(
                "DELETE FROM responses WHERE key IN "
                "(SELECT key FROM responses WHERE key <> ? ORDER BY used, key LIMIT ?)",
                (newest, 1 + others // 16),
            )

    def _size(self) -> int:
        """Bytes in use."""
        pages, free, size = (
            self._sql.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
        )
        return int((pages - free) * size)

    def _writing(self) -> _Transaction:
        return _Transaction(self._sql)


class _Transaction:
    """Everything in the block, or nothing; other servers wait."""

    def __init__(self, sql: sqlite3.Connection) -> None:
        self._sql = sql

    def __enter__(self) -> None:
        self._sql.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None:
            self._sql.execute("COMMIT")
        else:
            with suppress(sqlite3.Error):
                self._sql.execute("ROLLBACK")


@dataclass(slots=True)
class _Disk:
    """The file, as far as it can be used."""

    path: Path
    database: Database | None = None
    again_at: float = 0.0  # on the monotonic clock: not before
    hopeless: bool = False


class ResponseStore:
    """Keeps responses without ever holding up the event loop, and without ever failing.

    Where the file cannot be read or written, a warning says so, and memory takes its place.
    """

    def __init__(self, path: Path | None, bounds: Bounds, clock: Callable[[], float] = time.time) -> None:
        """``path`` None: memory alone. ``clock``: seconds since 1970. Nothing is opened before it is needed."""
        self._bounds = bounds
        self._clock = clock
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="fermi-responses")
        self._disk = None if path is None else _Disk(path)
        self._memory: Database | None = None

    async def save(self, record: Record, previous: str | None = None) -> None:
        """Keep a new response."""
        await self._in_thread(lambda: self._write(lambda database: database.save(record, previous)))

    async def finish(self, owner: str, document: dict[str, Any]) -> bool:
        """Note how a response ended that was kept while it ran; False where it is not kept, or ended otherwise."""
        done = await self._in_thread(lambda: self._ask(lambda database: database.finish(owner, document) or None))
        return done is not None

    async def get(self, owner: str, response_id: str) -> dict[str, Any] | None:
        """The response object."""
        return await self._in_thread(lambda: self._ask(lambda database: database.get(owner, response_id)))

    async def conversation(self, owner: str, response_id: str) -> list[Item] | None:
        """All items that a response saw and made."""
        return await self._in_thread(lambda: self._ask(lambda database: database.conversation(owner, response_id)))

    async def item(self, owner: str, item_id: str) -> Item | None:
        """The latest item of that id."""
        return await self._in_thread(lambda: self._ask(lambda database: database.item(owner, item_id)))

    async def input_items(self, owner: str, response_id: str) -> list[Item] | None:
        """All items that a response saw, the oldest first."""
        return await self._in_thread(lambda: self._ask(lambda database: database.input_items(owner, response_id)))

    async def delete(self, owner: str, response_id: str) -> bool:
        """Forget a response; False where it is not kept."""
        return await self._in_thread(
            lambda: bool(self._ask(lambda database: database.delete(owner, response_id) or None))
        )

    async def close(self) -> None:
        """Finish what is being written."""
        if self._memory is not None or (self._disk is not None and self._disk.database is not None):
            await self._in_thread(self._close)
        self._thread.shutdown()

    async def _in_thread(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _ask(self, question: Callable[[Database], Result | None]) -> Result | None:
        """The first answer, of memory or of the file; None where neither has one."""
        answer = None if self._memory is None else question(self._memory)
        if answer is not None:
            return answer
        return self._on_disk(question)

    def _write(self, work: Callable[[Database], None]) -> None:
        """Into the file, or into memory."""

        def done(database: Database) -> bool:
            work(database)
            return True

        if not self._on_disk(done):
            if self._memory is None:
                self._memory = Database(":memory:", self._bounds, self._clock)
            work(self._memory)

    def _on_disk(self, work: Callable[[Database], Result | None]) -> Result | None:
        """Do it with the file; None where that cannot be done."""
        disk = self._disk
        if disk is None or disk.hopeless or time.monotonic() < disk.again_at:
            return None
        try:
            if disk.database is None:
                disk.database = Database(str(disk.path), self._bounds, self._clock)
            return work(disk.database)
        except (sqlite3.Error, OSError) as error:
            busy = isinstance(error, sqlite3.OperationalError) and "locked" in str(error)
            disk.hopeless = (disk.database is None and not busy) or _is_broken(error)
            disk.again_at = time.monotonic() + RETRY_S
            logger().warning(
                "responses are kept in memory only" + ("" if disk.hopeless else " for a while"),
                file=str(disk.path),
                error=str(error),
            )
            return None

    def _close(self) -> None:
        for database in (self._memory, None if self._disk is None else self._disk.database):
            if database is not None:
                with suppress(sqlite3.Error):
                    database.close()


def _is_broken(error: BaseException) -> bool:
    """The file is no database, or a damaged one."""
    return type(error) is sqlite3.DatabaseError


def _text(value: object) -> str:
    return to_json(value).decode()


def _statements(script: str) -> list[str]:
    """The statements of a script, which `executescript` would run outside of the transaction."""
    statements, begun = [], ""
    for piece in script.split(";"):
        begun += piece + ";"
        if sqlite3.complete_statement(begun):
            statements.append(begun)
            begun = ""
    return [statement for statement in statements if statement.strip(" \n;")]


def _this_process() -> str:
    return f"{os.getpid()}:{psutil.Process().create_time()}"


def _lives(runner: str) -> bool:
    """Whether a process of this machine, named as `_this_process` names it, still runs."""
    number, _, begun = runner.partition(":")
    try:
        return str(psutil.Process(int(number)).create_time()) == begun
    except (psutil.Error, ValueError):
        return False
