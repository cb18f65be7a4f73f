"""What only the holder of the admin key may do."""

from __future__ import annotations

from fastapi import Request

from fermi.server.errors import AdminOnlyError


def require_admin(request: Request) -> None:
    """Let a request through that carries ``openai.admin_key``: call it first, or depend on it.

    AdminOnlyError, answered 403, for every other, and for all where no such key is configured: what changes the server
    is never open.
    """
    if not request.scope["state"].get("admin", False):
        raise AdminOnlyError(
            "This needs the admin key: send it as 'Authorization: Bearer KEY'. The server's operator sets it as "
            "openai.admin_key (FERMI_ADMIN_KEY)."
        )
