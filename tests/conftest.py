"""Fixtures and settings that every test folder shares."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest

# PyTorch's models here are tiny: its threads would only wait for each other, and for fermi's. Read when it is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

hypothesis.settings.register_profile("ci", derandomize=True, deadline=None, print_blob=True, database=None)
hypothesis.settings.load_profile("ci")

SHARED = Path(__file__).resolve().parents[1].parent / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data beside the checkout (README there); tests that need it are skipped visibly without it."""
    if not (SHARED / "README.md").is_file():
        pytest.skip(f"the folder of real test data is not at {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def stories260k(shared: Path) -> Path:
    """A real Llama checkpoint of 260 thousand parameters, with the text it is known to write."""
    return shared / "models" / "stories260K"
