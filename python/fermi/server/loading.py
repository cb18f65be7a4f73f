"""From a name on the command line to a model that is served."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fermi.config import Settings
from fermi.defaults import Defaults
from fermi.engine.embedding_service import EmbeddingService
from fermi.engine.service import Service
from fermi.errors import ConfigError
from fermi.loader import LoadedEmbedder, LoadedModel, load
from fermi.server.served import Served, ServedEmbedder, ServedModel, can_think


def model_names(settings: Settings) -> list[str]:
    """What to serve, each as it was given: ``[alias=]PATH_OR_ID``."""
    return [settings.model.id, *settings.model.also]


def load_served(given: str, settings: Settings) -> Served:
    """Load a model and start its engine. Raises ConfigError, HubError or CheckpointError, which say what to do."""
    alias, source = split_alias(given)
    if given != settings.model.id:  # the revision and the task are the first model's
        own = settings.model.model_copy(update={"revision": None, "task": "auto"})
        settings = settings.model_copy(update={"model": own})
    if settings.openai.engine_pool != 1:
        raise ConfigError("openai.engine_pool: only 1 replica of the engine is supported")
    loaded = load(source, settings, stream_slowdown=settings.openai.stream_slowdown)
    folder_name = loaded.folder.name if Path(source).expanduser().is_dir() else source
    name = alias or folder_name
    aliases = frozenset({source, folder_name} - {name})
    if isinstance(loaded, LoadedEmbedder):
        return _serve_embedder(name, aliases, loaded, settings)
    return _serve_generator(name, aliases, loaded, settings)


def _serve_generator(name: str, aliases: frozenset[str], loaded: LoadedModel, settings: Settings) -> ServedModel:
    service = Service(
        loaded.engine, max_running=settings.engine.max_num_seqs, max_queued_requests=settings.openai.max_queue
    )
    service.start()
    template = loaded.tokenizer.chat_template
    wished = settings.openai.supports_thinking
    return ServedModel(
        name=name,
        aliases=aliases,
        tokenizer=loaded.tokenizer,
        template=template,
        service=service,
        max_model_len=loaded.engine.max_model_len,
        defaults=Defaults.of(settings.generation, loaded.generation_config),
        thinks=can_think(template) if wished is None else wished,
        facts=_facts(name, loaded, settings),
    )


def _serve_embedder(name: str, aliases: frozenset[str], loaded: LoadedEmbedder, settings: Settings) -> ServedEmbedder:
    service = EmbeddingService(loaded.embedder, max_queued_requests=settings.openai.max_queue)
    service.start()
    model, source = loaded.model, "" if name == loaded.source else f" ({loaded.source})"
    gives = f"{model.dim} scores" if loaded.scores_pairs else f"vectors of {model.dim} numbers"
    return ServedEmbedder(
        name=name,
        aliases=aliases,
        tokenizer=loaded.tokenizer,
        sentences=loaded.sentences,
        service=service,
        max_model_len=loaded.embedder.max_seq_length,
        size=model.dim,
        scores_pairs=loaded.scores_pairs,
        facts={
            "model": f"{name}{source}",
            "format": f"{loaded.kind}, {model.parameters / 1e6:,.1f} M parameters, {gives}",
            "device": model.backend.description,
            "memory": f"weights {_size(model.weight_bytes)}",
            "context": f"{loaded.embedder.max_seq_length:,} tokens",
        },
    )


def split_alias(given: str) -> tuple[str | None, str]:
    """Tell ``alias=source`` apart; a folder that has a = in its name is a source."""
    alias, equals, source = given.partition("=")
    if equals and alias and source and not Path(given).expanduser().exists():
        return alias, source
    return None, given


def _facts(name: str, loaded: LoadedModel, settings: Settings) -> Mapping[str, str]:
    """What the banner says."""
    model, backend = loaded.model, loaded.model.backend
    tokens = loaded.engine.stats().blocks.total * settings.engine.block_size
    cache = tokens * loaded.engine.kv_spec.bytes_per_token
    source = "" if name == loaded.source else f" ({loaded.source})"
    parameters = f"{model.parameters / 1e6:,.1f} M parameters"
    return {
        "model": f"{name}{source}",
        "format": f"{type(model).__name__}, {parameters}, {model.weight_format} safetensors",
        "device": backend.description,
        "memory": f"weights {_size(model.weight_bytes)}, KV cache {_size(cache)} = {tokens:,} tokens",
        "context": f"{loaded.engine.max_model_len:,} tokens",
    }


def _size(count: int) -> str:
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"
