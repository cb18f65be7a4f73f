"""Fixtures of servers around models of the test's choice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from fermi.config import LogSettings
from fermi.server.log import configure_logging
from server.running import Running, Serve, serving
from server.toy import toy_model


@pytest.fixture(autouse=True, scope="session")
def _quiet() -> None:
    configure_logging(LogSettings(level="error", format="text"))


@pytest.fixture(autouse=True, scope="session")
def _own_data_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data")))
        yield


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts servers that end with the test."""
    with ExitStack() as stack:
        yield lambda *models, settings=None: stack.enter_context(serving(*models, settings=settings))


@pytest.fixture(scope="module")
def toy_server() -> Iterator[Running]:
    """A server whose model always says "Hello, world."."""
    with serving(toy_model()) as running:
        yield running
