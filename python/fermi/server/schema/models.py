"""The bodies of POST /v1/models/load and /v1/models/unload."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fermi.server.schema.common import Body


class LoadBody(Body):
    """Which model to load.

    Attributes:
        model: a name that is listed, or a folder or hub id as ``--model`` takes it, with or without ``alias=``.
        alias: a further name for it; for a new model the one that it is listed by.
    """

    model: Annotated[str, Field(min_length=1, max_length=4096)]
    alias: Annotated[str, Field(min_length=1, max_length=255, pattern="^[^=]+$")] | None = None


class UnloadBody(Body):
    """Which model to take out of memory: a name that is listed."""

    model: Annotated[str, Field(min_length=1)]
