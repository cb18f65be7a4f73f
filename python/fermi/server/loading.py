"""From a name on the command line to a model that is served."""

from __future__ import annotations

from collections.abc import Mapping

from fermi.config import Settings
from fermi.defaults import Defaults
from fermi.engine.embedding_service import EmbeddingService
from fermi.engine.pool import Pool, Replica
from fermi.engine.service import Service
from fermi.loader import LoadedEmbedder, LoadedModel, file_bytes, file_facts, load
from fermi.server.configured import names_of, split_alias
from fermi.server.registry import Facts
from fermi.server.served import EMBEDDING, GENERATING, Served, ServedEmbedder, ServedModel, can_think
from fermi.text.grammar import GrammarCompiler


def load_served(given: str, settings: Settings) -> Served:
    """Load a model and start its engine. Raises ConfigError, HubError or CheckpointError, which say what to do."""
    _, source = split_alias(given)
    settings = _settings_of(given, settings)
    loaded = load(
        source, settings, stream_slowdown=settings.openai.stream_slowdown, engines=settings.openai.engine_pool
    )
    name, aliases = names_of(given)
    if isinstance(loaded, LoadedEmbedder):
        return _serve_embedder(name, aliases, loaded, settings)
    return _serve_generator(name, aliases, loaded, settings)


def facts_of(given: str, settings: Settings) -> Facts | None:
    """What a model's files tell of it, as far as they are here."""
    found = file_facts(split_alias(given)[1], _settings_of(given, settings))
    if found is None:
        return None
    if found.embeds:
        return Facts("an embedding model", EMBEDDING)
    return Facts("a model that generates text", GENERATING, found.context)


def weight_of(given: str, settings: Settings) -> int:
    """About how many bytes a model will take: those of its weights' files, as far as they are here."""
    return file_bytes(split_alias(given)[1], settings)


def _serve_generator(name: str, aliases: frozenset[str], loaded: LoadedModel, settings: Settings) -> ServedModel:
    grammars = GrammarCompiler(loaded.tokenizer, loaded.model.vocab_size)
    grammars.prepare()
    service = _service(loaded, settings)
    service.start()
    template = loaded.tokenizer.chat_template
    wished = settings.openai.supports_thinking
    return ServedModel(
        name=name,
        aliases=aliases,
        tokenizer=loaded.tokenizer,
        template=template,
        grammars=grammars,
        service=service,
        max_model_len=loaded.engine.max_model_len,
        defaults=Defaults.of(settings.generation, loaded.generation_config),
        thinks=can_think(template) if wished is None else wished,
        memory=loaded.memory,
        facts=_facts(name, loaded, settings),
        tool_parser=_named(settings.openai.tool_parser),
        reasoning_parser=_named(settings.openai.reasoning_parser),
    )


def _named(parser: str) -> str | None:
    return None if parser == "auto" else parser


def _settings_of(given: str, settings: Settings) -> Settings:
    """A model's own: the revision and the task are the first model's."""
    if given == settings.model.id:
        return settings
    own = settings.model.model_copy(update={"revision": None, "task": "auto"})
    return settings.model_copy(update={"model": own})


def _service(loaded: LoadedModel, settings: Settings) -> Service | Pool:
    """What runs the model: a thread for each of its engines."""
    engines = (loaded.engine, *loaded.replicas)
    services = [
        Service(
            engine,
            max_running=settings.engine.max_num_seqs,
            max_queued_requests=-(-settings.openai.max_queue // len(engines)),
            max_queued_tokens=-(-settings.openai.max_queue_tokens // len(engines)),
            max_restarts=settings.engine.max_restarts,
        )
        for engine in engines
    ]
    if len(services) == 1:
        return services[0]
    return Pool([Replica(service, engine) for service, engine in zip(services, engines, strict=True)])


def _serve_embedder(name: str, aliases: frozenset[str], loaded: LoadedEmbedder, settings: Settings) -> ServedEmbedder:
    service = EmbeddingService(
        loaded.embedder,
        max_queued_requests=settings.openai.max_queue,
        max_queued_tokens=settings.openai.max_queue_tokens,
        max_restarts=settings.engine.max_restarts,
    )
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
        memory=model.weight_bytes,
        facts={
            "model": f"{name}{source}",
            "format": f"{loaded.kind}, {model.parameters / 1e6:,.1f} M parameters, {gives}",
            "device": model.backend.description,
            "memory": f"weights {_size(model.weight_bytes)}",
            "context": f"{loaded.embedder.max_seq_length:,} tokens",
        },
    )


def _facts(name: str, loaded: LoadedModel, settings: Settings) -> Mapping[str, str]:
    """What the banner says."""
    model, backend = loaded.model, loaded.model.backend
    engines = (loaded.engine, *loaded.replicas)
    blocks = sum(engine.stats().blocks.total for engine in engines)
    tokens = blocks // len(loaded.engine.layer_groups.windows) * settings.engine.block_size
    cache = blocks * loaded.engine.block_bytes
    replicas = f" × {len(engines)} engines" if len(engines) > 1 else ""
    source = "" if name == loaded.source else f" ({loaded.source})"
    parameters = f"{model.parameters / 1e6:,.1f} M parameters"
    return {
        "model": f"{name}{source}",
        "format": f"{type(model).__name__}, {parameters}, {model.weight_format} safetensors",
        "device": f"{backend.description}{replicas}",
        "memory": f"weights {_size(model.weight_bytes)}, KV cache {_size(cache)} = {tokens:,} tokens",
        "context": f"{loaded.engine.max_model_len:,} tokens",
    }


def _size(count: int) -> str:
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"
