"""What the tests of models share: the backend, and one checkpoint of each variant."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import transformers

from fermi import _C
from models.tiny_checkpoints import VARIANTS, save


@pytest.fixture(scope="session")
def backend() -> _C.Backend:
    return _C.open_backend("cpu", threads=2)


@pytest.fixture(scope="session")
def reference() -> Callable[[str], transformers.PreTrainedModel]:
    """The Transformers model of a variant, by its name."""
    models: dict[str, transformers.PreTrainedModel] = {}

    def get(name: str) -> transformers.PreTrainedModel:
        if name not in models:
            models[name] = VARIANTS[name].reference()
        return models[name]

    return get


@pytest.fixture(scope="session")
def checkpoint(
    tmp_path_factory: pytest.TempPathFactory, reference: Callable[[str], transformers.PreTrainedModel]
) -> Callable[[str], Path]:
    """The folder of a variant's checkpoint in float32, by the variant's name."""
    folders: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in folders:
            folders[name] = save(reference(name), tmp_path_factory.mktemp(name.replace(" ", "-")))
        return folders[name]

    return get
