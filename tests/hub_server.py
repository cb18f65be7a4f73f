"""A small HTTP server that imitates the part of the Hugging Face hub's API that huggingface_hub uses for models."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class Repository:
    """One model: files by commit, branches, and who may read it."""

    files: dict[str, bytes]
    revisions: tuple[str, ...] = ("main",)
    token: str | None = None  # who has it may read; None is everybody
    gated: bool = False  # without the token: 403 GatedRepo instead of 401 RepoNotFound

    @property
    def commit(self) -> str:
        digest = hashlib.sha1(usedforsecurity=False)
        for name in sorted(self.files):
            digest.update(name.encode() + b"\0" + self.files[name])
        return digest.hexdigest()


@dataclass
class Hub:
    """The hub's state and what it was asked."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)  # method, path, Range
    cut_after: dict[str, int] = field(default_factory=dict)  # file -> bytes after which the connection breaks, once
    status: int | None = None  # answer everything with this status
    url: str = ""

    def fetched(self) -> list[str]:
        """The files whose content was asked for, in order."""
        return [
            path.split("/resolve/")[1].partition("/")[2]
            for method, path, _ in self.requests
            if method == "GET" and "/resolve/" in path
        ]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path, self.headers.get("Range")))
        if self.hub.status is not None:
            self._refuse(self.hub.status)
        elif match := re.fullmatch(r"/api/models/([^/]+(?:/[^/]+)??)(?:/(revision|tree)/([^/]+))?", path):
            self._about(match[1], match[2] or "revision", match[3])
        elif match := re.fullmatch(r"/([^/]+/[^/]+|[^/]+)/resolve/([^/]+)/(.+)", path):
            self._about(match[1], "file", match[2], match[3])
        else:
            self._refuse(404)

    def _about(self, name: str, kind: str, revision: str | None, file: str = "") -> None:
        repository = self.hub.repositories.get(name)
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        allowed = repository is not None and repository.token in (None, token)
        if repository is None or (not allowed and not repository.gated):
            self._refuse(401, "RepoNotFound", "Repository not found")
        elif revision is not None and revision not in (*repository.revisions, repository.commit):
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        elif kind == "revision":
            self._json(_model_info(name, repository))
        elif kind == "tree":
            self._json([_entry(path, data) for path, data in sorted(repository.files.items())])
        elif not allowed:
            self._refuse(403, "GatedRepo", "Access to this model is restricted")
        else:
            self._file(repository, file)

    def _file(self, repository: Repository, name: str) -> None:
        data = repository.files.get(name)
        if data is None:
            self._refuse(404, "EntryNotFound", "Entry not found")
            return
        start = int(match[1]) if (match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")) else 0
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", repository.commit)
        self.send_header("Accept-Ranges", "bytes")
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if self.command == "GET":
            cut = self.hub.cut_after.pop(name, None)
            self.wfile.write(data[start:] if cut is None else data[start : start + cut])
            if cut is not None:
                self.close_connection = True

    def _json(self, document: Any) -> None:
        body = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def _refuse(self, status: int, code: str = "", message: str = "") -> None:
        body = json.dumps({"error": message}).encode()
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", message)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


def _model_info(name: str, repository: Repository) -> dict[str, Any]:
    return {
        "_id": "0" * 24,
        "id": name,
        "modelId": name,
        "sha": repository.commit,
        "private": False,
        "gated": "manual" if repository.gated else False,
        "disabled": False,
        "tags": [],
        "downloads": 0,
        "likes": 0,
        "siblings": [{"rfilename": path, "size": len(data)} for path, data in sorted(repository.files.items())],
    }


def _entry(path: str, data: bytes) -> dict[str, Any]:
    oid = hashlib.sha1(data, usedforsecurity=False).hexdigest()
    return {"type": "file", "path": path, "size": len(data), "oid": oid}


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """A hub on a free port of this machine, for as long as the block lasts."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
