"""From settings to a loaded model: files, device, weights, tokenizer and engine, in that order.

Both front doors start here: `fermi.LLM` and the server. Errors are ConfigError, HubError or CheckpointError.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fermi import _C
from fermi.config import Settings, load_settings
from fermi.engine.engine import Engine, EngineConfig
from fermi.errors import CheckpointError, ConfigError
from fermi.hub import resolve
from fermi.models import Model, load_model
from fermi.text.tokenizer import Tokenizer

__all__ = ["LoadedModel", "load", "read_settings"]

_DTYPES: Mapping[str, str] = {"auto": "auto", "float32": "f32", "bfloat16": "bf16", "float16": "f16"}
_CACHE_DTYPES: Mapping[str, Literal["auto", "f32", "bf16", "f16", "i8"]] = {
    "auto": "auto",
    "float32": "f32",
    "bfloat16": "bf16",
    "float16": "f16",
    "int8": "i8",
}


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that is ready to run.

    Attributes:
        source: the folder, hub id or ``demo`` that it was asked for by.
        generation_config: the checkpoint's generation_config.json, empty where it has none.
    """

    source: str
    folder: Path
    tokenizer: Tokenizer
    model: Model
    engine: Engine
    generation_config: Mapping[str, Any]


def load(source: str, settings: Settings) -> LoadedModel:
    """Loads a model and makes its engine. Raises ConfigError, HubError or CheckpointError, which say what to do."""
    folder = resolve(
        source,
        revision=settings.model.revision,
        token=settings.model.token,
        offline=settings.model.offline,
        cache_dir=settings.cache.hub_dir,
        endpoint=settings.model.endpoint,
    )
    tokenizer = Tokenizer.from_folder(folder)
    model = load_model(folder, backend=_open_backend(settings), dtype=_DTYPES[settings.engine.dtype])
    engine = Engine(
        model,
        EngineConfig(
            max_num_seqs=settings.engine.max_num_seqs,
            max_num_batched_tokens=settings.engine.max_num_batched_tokens,
            max_model_len=settings.engine.max_model_len,
            block_size=settings.engine.block_size,
            prefix_cache=settings.engine.prefix_cache,
            eviction=settings.engine.eviction,
            kv_cache_memory=settings.cache.kv_cache_memory,
            kv_cache_dtype=_CACHE_DTYPES[settings.cache.kv_cache_dtype],
            batch_invariant=settings.engine.batch_invariant,
        ),
    )
    return LoadedModel(source, folder, tokenizer, model, engine, _generation_config(folder))


def read_settings(named: Mapping[str, Any], more: Mapping[str, Any]) -> Settings:
    """Settings from a program: ``named`` by section and key, ``more`` by key alone, over environment and file.

    Raises ConfigError for a key that is no setting of the engine, naming it.
    """
    flags = dict(named)
    for key, value in more.items():
        for section in ("engine", "cache", "model"):
            if key in type(getattr(Settings(), section)).model_fields:
                flags[f"{section}.{key}"] = value
                break
        else:
            raise ConfigError(f"unknown argument {key!r}")
    return load_settings(flags)


def _open_backend(settings: Settings) -> _C.Backend:
    device = settings.engine.device
    if device == "auto":
        device = "cpu"
    try:
        return _C.open_backend(device, threads=settings.engine.threads or 0, architecture=settings.engine.isa)
    except (_C.BackendError, ValueError) as error:
        raise ConfigError(f"device {device}: {error}") from error


def _generation_config(folder: Path) -> Mapping[str, Any]:
    path = folder / "generation_config.json"
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: must be an object")
    return values
