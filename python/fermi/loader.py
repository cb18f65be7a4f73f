"""From settings to a loaded model: files, device, weights, tokenizer and engine, in that order.

Both front doors start here: `fermi.LLM` and the server. Errors are ConfigError, HubError or CheckpointError.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from fermi import _C
from fermi.config import Settings, load_settings
from fermi.engine.embedder import MAX_BATCH_TOKENS, Embedder
from fermi.engine.engine import Engine, EngineConfig
from fermi.errors import CheckpointError, ConfigError, FermiError
from fermi.hub import resolve
from fermi.models import Model, load_model, quantization_of, read_config
from fermi.models.embedding import EmbeddingModel, Task, is_embedding_model, load_embedding_model
from fermi.models.fields import Fields
from fermi.models.sentence_modules import SentenceModules
from fermi.quantization import (
    WINDOW,
    Packer,
    Quantized,
    Recipe,
    Survey,
    pack_calibrated,
    progress_bar,
    quantize_folder,
    quantized_once,
)
from fermi.sampled_text import sampled_text
from fermi.text.sentences import PairFormat, Prompts, Sentences, TemplateFormat, YesOrNo
from fermi.text.tokenizer import Tokenizer

__all__ = [
    "AUTO",
    "NONE",
    "FileFacts",
    "LoadedEmbedder",
    "LoadedModel",
    "engine_config",
    "file_bytes",
    "file_facts",
    "is_quantized",
    "load",
    "load_generator",
    "quantize",
    "read_settings",
    "reference_settings",
]

_log = logging.getLogger(__name__)

#: In place of a calibration text: one that the model makes up.
AUTO = "auto"
#: None.
NONE = "none"

#: Weights of a model that is calibrated unasked.
_SMALL = 2_500_000

#: How many texts a model makes up, and where their seeds begin: far from those of `fermi evaluate`.
_TEXTS = 64
_SEED = 1_000_000

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
        replicas: further engines with the same weights, each with its own threads and KV cache.
    """

    source: str
    folder: Path
    tokenizer: Tokenizer
    model: Model
    engine: Engine
    generation_config: Mapping[str, Any]
    replicas: tuple[Engine, ...] = ()

    @property
    def memory(self) -> int:
        """Bytes of the weights and of all KV caches when they are full."""
        caches = (engine.stats().blocks.total * engine.block_bytes for engine in (self.engine, *self.replicas))
        return self.model.weight_bytes + sum(caches)


@dataclass(frozen=True, slots=True)
class LoadedEmbedder:
    """A model that embeds texts, or a cross-encoder that scores pairs of them.

    Attributes:
        source: the folder or hub id that it was asked for by.
    """

    source: str
    folder: Path
    sentences: Sentences
    model: EmbeddingModel
    embedder: Embedder

    @property
    def tokenizer(self) -> Tokenizer:
        return self.sentences.tokenizer

    @property
    def scores_pairs(self) -> bool:
        """Whether it is a cross-encoder."""
        return self.model.task == "score"

    @property
    def kind(self) -> str:
        """What it is, for messages."""
        return "a cross-encoder" if self.scores_pairs else "an embedding model"


def load(
    source: str, settings: Settings, *, stream_slowdown: float = 0.0, engines: int = 1
) -> LoadedModel | LoadedEmbedder:
    """Loads a model and makes its engine, or its embedder where its files say that it embeds texts or scores pairs.

    ``stream_slowdown``: see `EngineConfig`; for front doors whose clients read while others' prompts come. ``engines``:
    how many a model that generates gets; they share its weights, the threads and the memory of the KV cache.
    Raises ConfigError, HubError or CheckpointError, which say what to do.
    """
    folder = _resolve(source, settings)
    task = settings.model.task
    if task in ("embed", "score") or (task == "auto" and is_embedding_model(folder)):
        return _load_embedder(source, folder, settings)
    tokenizer = Tokenizer.from_folder(folder)
    if engines > 1 and settings.engine.threads is None:
        threads = max(1, _open_backend(settings).threads // engines)
        settings = settings.model_copy(update={"engine": settings.engine.model_copy(update={"threads": threads})})
    model = _load_model(folder, settings)
    config = replace(engine_config(settings), stream_slowdown=stream_slowdown, replicas=engines)
    engine = Engine(model, config)
    replicas = tuple(Engine(model.on(_open_backend(settings)), config) for _ in range(engines - 1))
    return LoadedModel(source, folder, tokenizer, model, engine, _generation_config(folder), replicas)


class FileFacts(NamedTuple):
    """What a model's files tell before it is loaded.

    Attributes:
        embeds: it embeds texts or scores pairs, rather than generating.
        context: tokens that a model that generates reaches, if there is the memory.
    """

    embeds: bool
    context: int | None


def file_facts(source: str, settings: Settings) -> FileFacts | None:
    """What the files tell; None where they are not here yet, or the model cannot be had."""
    try:
        folder = _resolve(source, _offline(settings))
        task = settings.model.task
        if task in ("embed", "score") or (task == "auto" and is_embedding_model(folder)):
            return FileFacts(True, None)
        _, config = read_config(Fields.from_file(folder / "config.json"))
    except (FermiError, OSError, ValueError):
        return None
    return FileFacts(False, min(config.reach, settings.engine.max_model_len or config.reach))


def file_bytes(source: str, settings: Settings) -> int:
    """What the files of a model's weights take; 0 where they are not here yet, or the model cannot be had."""
    try:
        return sum(path.stat().st_size for path in _resolve(source, _offline(settings)).glob("*.safetensors"))
    except (FermiError, OSError):
        return 0


def _offline(settings: Settings) -> Settings:
    return settings.model_copy(update={"model": settings.model.model_copy(update={"offline": True})})


def load_generator(source: str, settings: Settings) -> LoadedModel:
    """Loads a model that generates text. Raises as `load`; ConfigError also for one that does not."""
    loaded = load(source, settings)
    if isinstance(loaded, LoadedEmbedder):
        raise ConfigError(
            f"{source} is {loaded.kind} and generates no text: use `fermi embed`, `fermi serve`, LLM.embed or LLM.score"
        )
    return loaded


def engine_config(settings: Settings) -> EngineConfig:
    """What the settings say of the engine."""
    return EngineConfig(
        max_num_seqs=settings.engine.max_num_seqs,
        max_num_batched_tokens=settings.engine.max_num_batched_tokens,
        max_model_len=settings.engine.max_model_len,
        block_size=settings.engine.block_size,
        prefix_cache=settings.engine.prefix_cache,
        eviction=settings.engine.eviction,
        kv_cache_memory=settings.cache.kv_cache_memory,
        kv_cache_dtype=_CACHE_DTYPES[settings.cache.kv_cache_dtype],
        batch_invariant=settings.engine.batch_invariant,
    )


def quantize(
    source: str, destination: Path, recipe: Recipe, settings: Settings, *, calibration: str | None = None
) -> Quantized:
    """Writes a model packed to a new folder (see `quantize_folder`).

    ``calibration``: a text as the model will see; AUTO: one that the model makes up; NONE: no text; None: AUTO where
    the format is int4, the model so small that this is a matter of seconds, and its blocks made for it, else NONE.
    Raises ConfigError, HubError or CheckpointError.
    """
    start = time.monotonic()
    folder = _resolve(source, settings)
    if os.path.lexists(destination):
        raise ConfigError(f"{destination} exists already")
    if is_embedding_model(folder):
        raise ConfigError(
            f"{source} embeds texts or scores them, and only models that generate are written to a folder: pack it "
            f"while it loads, by quantization={recipe.format!r}"
        )
    backend = _open_backend(settings)
    if calibration is None and recipe.format == "int4":
        survey = Survey.of(folder, backend)
        calibration = AUTO if survey.sequential and survey.elements(recipe) <= _SMALL else NONE
    ready = None
    if calibration is not None and calibration != NONE:
        if recipe.symmetric is None:
            recipe = replace(recipe, symmetric=recipe.format == "int8")
        ready = pack_calibrated(folder, _calibration_ids(source, settings, calibration), recipe, backend=backend)
    try:
        done = quantize_folder(folder, destination, recipe, backend=backend, ready=ready)
    except OSError as error:
        raise ConfigError(f"{destination} cannot be written: {error.strerror or error}") from error
    return done._replace(seconds=time.monotonic() - start)


def reference_settings(settings: Settings) -> Settings:
    """The same with float32 weights as they are in the checkpoint."""
    engine = settings.engine.model_copy(update={"dtype": "float32", "quantization": "none"})
    return settings.model_copy(update={"engine": engine})


def is_quantized(source: str, settings: Settings) -> bool:
    """Whether a model's files hold packed weights."""
    return quantization_of(_resolve(source, settings)) is not None


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


def _calibration_ids(source: str, settings: Settings, text: str) -> list[int]:
    """The tokens of a calibration text."""
    if text != AUTO:
        return Tokenizer.from_folder(_resolve(source, settings)).encode(text)
    loaded = load_generator(source, reference_settings(settings))
    texts = sampled_text(loaded.engine, loaded.tokenizer, texts=_TEXTS, tokens=WINDOW, seed=_SEED)
    return [token_id for text in texts for token_id in text]


def _resolve(source: str, settings: Settings) -> Path:
    return resolve(
        source,
        revision=settings.model.revision,
        token=settings.model.token,
        offline=settings.model.offline,
        cache_dir=settings.cache.hub_dir,
        endpoint=settings.model.endpoint,
    )


def _load_embedder(source: str, folder: Path, settings: Settings) -> LoadedEmbedder:
    backend, dtype, wanted = _open_backend(settings), _DTYPES[settings.engine.dtype], settings.engine.quantization
    packer = None if wanted == "none" else Packer(Recipe(format=wanted), backend=backend)
    task: Task | None = settings.model.task if settings.model.task in ("embed", "score") else None
    model = load_embedding_model(folder, backend=backend, dtype=dtype, transform=packer, task=task)
    modules = SentenceModules.read(folder)
    place = folder if modules is None else modules.transformer
    tokenizer = Tokenizer.from_folder(place, lower_case=model.do_lower_case)
    chosen = settings.origin("engine.max_num_batched_tokens").kind != "default"  # else it is for decoders
    embedder = Embedder(
        model,
        max_seq_length=settings.engine.max_model_len,
        max_batch_tokens=settings.engine.max_num_batched_tokens if chosen else MAX_BATCH_TOKENS,
    )
    prompts = Prompts.from_folder(folder)
    pair_format: PairFormat | None = None
    if model.task == "score" and _is_causal(place):
        fits = TemplateFormat.fits(tokenizer.chat_template)
        pair_format = TemplateFormat(tokenizer.chat_template, prompts.standard) if fits else YesOrNo()
    sentences = Sentences(tokenizer, prompts, max_length=embedder.max_seq_length, pair_format=pair_format)
    return LoadedEmbedder(source, folder, sentences, model, embedder)


def _is_causal(folder: Path) -> bool:
    """Whether a checkpoint's head foretells tokens."""
    classes = _json_object(folder / "config.json").get("architectures") or []
    return any(str(name).endswith("ForCausalLM") for name in classes)


def _load_model(folder: Path, settings: Settings) -> Model:
    """The model, packed where the settings ask for it and it is not so already."""
    backend, dtype, wanted = _open_backend(settings), _DTYPES[settings.engine.dtype], settings.engine.quantization
    there = quantization_of(folder)
    if wanted == "none" or (there is not None and there.format == wanted):
        return load_model(folder, backend=backend, dtype=dtype)
    if there is not None:
        raise ConfigError(f"engine.quantization: {folder} is quantized to {there.format} already, not to {wanted}")
    recipe = Recipe(format=wanted)
    if settings.cache.quantization_cache:
        cache = settings.cache.quantization_dir or Path.home() / ".cache" / "fermi" / "quantized"
        try:
            kept = quantized_once(folder, cache.expanduser(), recipe, backend=backend)
        except OSError as error:
            _log.warning("the quantized weights cannot be kept in %s: %s", cache, error.strerror or error)
        else:
            return load_model(kept, backend=backend, dtype=dtype)
    survey = Survey.of(folder, backend)
    with progress_bar(survey.elements(recipe), shown=True) as bar:
        packer = Packer(recipe, backend=backend, advance=bar.update)
        return load_model(folder, backend=backend, dtype=dtype, transform=packer)


def _open_backend(settings: Settings) -> _C.Backend:
    device = settings.engine.device
    if device == "auto":
        device = "cpu"
    try:
        return _C.open_backend(device, threads=settings.engine.threads or 0, architecture=settings.engine.isa)
    except (_C.BackendError, ValueError) as error:
        raise ConfigError(f"device {device}: {error}") from error


def _generation_config(folder: Path) -> Mapping[str, Any]:
    return _json_object(folder / "generation_config.json")


def _json_object(path: Path) -> Mapping[str, Any]:
    """What a JSON file holds, nothing where there is none."""
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: must be an object")
    return values
