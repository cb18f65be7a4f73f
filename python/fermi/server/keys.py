"""API keys: which are valid, who holds the one that a request carries."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256
from hmac import compare_digest
from pathlib import Path
from typing import NamedTuple

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from fermi.config import OpenAISettings, split_words
from fermi.server.errors import unauthorized
from fermi.server.exchange import exchange
from fermi.server.log import logger

#: Answered without a key: signs of life, and the static pages.
OPEN = frozenset({"/health", "/ready", "/ping", "/", "/ui", "/docs", "/openapi.json", "/favicon.ico"})
OPEN_FOLDERS = ("/ui/",)


class Holder(NamedTuple):
    """Who sent a request: ``key_id`` names the key without telling it."""

    key_id: str
    admin: bool


class KeyFile:
    """Keys in a file, one per line (or with commas between), read again by the first request after it has changed."""

    def __init__(self, path: Path, keys: tuple[str, ...]) -> None:
        """``keys``: what it held at the start."""
        self._path = path
        self._keys = keys
        self._version: tuple[int, int, int] | None = None  # that was read
        self._broken = False

    def keys(self) -> tuple[str, ...]:
        """What the file holds; while it cannot be read, what it held."""
        try:
            status = self._path.stat()
            version = (status.st_mtime_ns, status.st_size, status.st_ino)
            if version != self._version:
                keys = split_words(self._path.read_text("utf-8"))
                if keys != self._keys or self._broken:
                    logger().info("keys read again", file=str(self._path), keys=len(keys))
                self._version, self._keys, self._broken = version, keys, False
        except (OSError, UnicodeDecodeError) as error:
            if not self._broken:
                logger().error("keys cannot be read: those of before go on", file=str(self._path), error=str(error))
            self._version, self._broken = None, True
        return self._keys


class KeyRing:
    """Every key that opens the server."""

    def __init__(self, settings: OpenAISettings) -> None:
        self._api_keys = settings.api_keys
        self._admin_keys = (settings.admin_key,) if settings.admin_key else ()
        self._users = KeyFile(settings.api_keys_file, self._api_keys) if settings.api_keys_file else None
        self._admins = (
            KeyFile(settings.admin_key_file, split_words(settings.admin_key or "")) if settings.admin_key_file else None
        )

    @property
    def known(self) -> bool:
        """Whether there is any key, an admin's or another, or may be."""
        return self.closed or self._admins is not None or bool(self._admin_keys)

    @property
    def closed(self) -> bool:
        """Whether a request needs a key. A file of keys closes the server even while it is empty."""
        return self._users is not None or bool(self._api_keys)

    def holder(self, carried: Iterable[bytes]) -> Holder | None:
        """Whose key is among these; None for nobody's. Takes as long wherever a wrong key begins to differ."""
        admins = self._admins.keys() if self._admins else self._admin_keys
        users = self._users.keys() if self._users else self._api_keys
        found: Holder | None = None
        for given in carried:
            for admin, keys in ((False, users), (True, admins)):
                for key in keys:
                    if compare_digest(key.encode(), given):
                        found = Holder(_id(given), admin or (found is not None and found.admin))
        return found


class Keys:
    """Lets a request through if it carries a key, or none is needed, or its path is open; notes who sent it."""

    def __init__(self, app: ASGIApp, ring: KeyRing, *, divide_cache: bool) -> None:
        """``divide_cache``: no key finds in the prefix cache what another has put there."""
        self._app = app
        self._ring = ring
        self._divide_cache = divide_cache

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            holder = self._ring.holder(_carried(Headers(scope=scope)))
            if holder is None and self._ring.closed and not _is_free(scope):
                await unauthorized().response()(scope, receive, send)
                return
            if holder is not None:
                known = exchange()
                known.key_id, known.admin = holder
                known.cache_owner = holder.key_id if self._divide_cache else ""
                scope["state"].update(key_id=holder.key_id, admin=holder.admin)
        await self._app(scope, receive, send)


def is_open(path: str) -> bool:
    """Whether a path needs no key."""
    return path in OPEN or path.startswith(OPEN_FOLDERS)


def _is_free(scope: Scope) -> bool:
    return is_open(scope["path"]) or scope["method"] == "OPTIONS"


def _carried(headers: Headers) -> list[bytes]:
    """The keys that a request carries."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    bearer = [token.strip()] if scheme.lower() == "bearer" else []
    return [key.encode("latin-1") for key in (*bearer, headers.get("x-api-key", "")) if key]  # as it was sent


def _id(key: bytes) -> str:
    return sha256(b"fermi key " + key).hexdigest()[:12]
