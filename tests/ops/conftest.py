"""Ops are tested on every device and instruction set that this machine has."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from fermi import _C

Opener = Callable[[int], _C.Backend]


@pytest.fixture(params=_C.cpu_architectures())
def architecture(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def opened(architecture: str) -> Opener:
    """Opens the CPU with this instruction set and a number of threads."""
    return lambda threads: _C.open_backend("cpu", threads=threads, architecture=architecture)


@pytest.fixture(params=[1, 2, 3], ids=lambda threads: f"{threads}-threads")
def backend(request: pytest.FixtureRequest, opened: Opener) -> Iterator[_C.Backend]:
    """The backend on which eager ops of the test run."""
    with opened(int(request.param)) as backend:
        yield backend


@pytest.fixture
def generator() -> np.random.Generator:
    return np.random.default_rng(7)
