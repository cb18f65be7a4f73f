"""Every setting of fermi: its section, type, default, meaning, environment variables and flags."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator
from typing_extensions import Self

from fermi.config.values import (
    Address,
    AddressValue,
    Count,
    Limit,
    MemoryValue,
    Number,
    StoreValue,
    ThinkingValue,
    Words,
)


def setting(default: Any, meaning: str, *, env: str = "", flag: str = "", alias: str = "", secret: bool = False) -> Any:
    """Declare one setting.

    ``env`` and ``flag`` are space-separated names, the first wins; ``alias`` is a second name of the key.
    """
    return Field(
        default,
        description=meaning,
        json_schema_extra={"env": env, "flag": flag, "alias": alias, "secret": secret},
    )


class Section(BaseModel):
    """A table of the configuration file; unknown keys are errors, nothing is written back."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=False)


class ModelSettings(Section):
    """Which model, and how its files are had."""

    id: str = setting(
        "Qwen/Qwen3-1.7B",
        "Model: a folder, an id on the Hugging Face hub, or `demo` (embedded); [alias=]PATH_OR_ID also names it. The "
        "folder in FERMI_MODEL_DIR wins over FERMI_MODEL.",
        env="FERMI_MODEL MODEL_PATH",
        flag="--model -m",
    )
    also: Words = setting((), "Further models to serve, each [alias=]PATH_OR_ID.")
    task: Literal["auto", "generate", "embed", "score"] = setting(
        "auto",
        "What the first model is for; auto is what its files say. embed: a decoder by its last token; score: one that "
        "answers yes or no about pairs, as Qwen3-Reranker.",
        env="FERMI_TASK",
    )
    revision: str | None = setting(None, "Branch, tag or commit on the hub.", env="FERMI_REVISION")
    offline: bool = setting(
        False,
        "Use only files that are already here; never touch the network.",
        env="FERMI_OFFLINE HF_HUB_OFFLINE",
        flag="--offline/--online",
    )
    token: str | None = setting(None, "Access token for gated or private models.", env="HF_TOKEN", secret=True)
    endpoint: str | None = setting(None, "Address of the hub or of a mirror of it.", env="HF_ENDPOINT")


class EngineSettings(Section):
    """How the model runs."""

    device: str = setting("auto", "Device: auto, cpu, cuda, cuda:N, metal.", env="FERMI_DEVICE DEVICE")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = setting(
        "auto", "Type of the weights that are not quantized; auto keeps the checkpoint's.", env="FERMI_DTYPE"
    )
    quantization: Literal["none", "int8", "int4"] = setting(
        "none",
        "Pack the weights while the model loads; none takes them as they are, those of fermi quantize too.",
        env="FERMI_QUANTIZATION",
    )
    threads: Count | None = setting(None, "Threads on the CPU; by default one per physical core.", env="FERMI_THREADS")
    isa: Literal["auto", "portable", "avx2", "avx512", "neon"] = setting(
        "auto", "Instruction set on the CPU; auto is the best that the machine has.", env="FERMI_ISA"
    )
    max_model_len: Count | None = setting(
        None, "Longest prompt and reply together, in tokens; by default the model's own."
    )
    max_num_seqs: Count = setting(64, "Sequences that run at the same time.")
    max_num_batched_tokens: Count = setting(512, "Tokens per step; longer prompts are prefilled in chunks.")
    block_size: Count = setting(16, "Tokens per block of the KV cache.")
    prefix_cache: bool = setting(True, "Keep the KV blocks of prompts and reuse them for prompts that begin alike.")
    eviction: Literal["lru", "lfu", "fifo"] = setting("lru", "Which kept blocks leave first when memory is needed.")
    max_restarts: Limit = setting(
        3, "Restarts of a crashed engine in a row, without a request served in between; 0 is none."
    )
    batch_invariant: bool = setting(
        False, "Make logits bitwise independent of what else runs in the batch, at some cost in speed."
    )


class CacheSettings(Section):
    """Memory and disk."""

    kv_cache_memory: MemoryValue | None = setting(
        None,
        "Hard bound of the KV cache: bytes (2GiB) or a share of the free memory (25%). By default 25%, but no more "
        "than max_num_seqs sequences of max_model_len tokens need.",
        env="FERMI_KV_CACHE_MEMORY",
    )
    kv_cache_dtype: Literal["auto", "float32", "bfloat16", "float16", "int8"] = setting(
        "auto",
        "Type of the KV cache; auto is that of the weights' floats. int8 takes half of the memory of bfloat16, with a "
        "scale for each head and token.",
        env="FERMI_KV_CACHE_DTYPE",
    )
    hub_dir: Path | None = setting(
        None, "Where downloaded models are kept; by default huggingface_hub's own cache.", env="HF_HUB_CACHE"
    )
    quantization_cache: bool = setting(True, "Keep what --quantization packs, so that it is mapped the next time.")
    quantization_dir: Path | None = setting(
        None, "Where it is kept; by default ~/.cache/fermi/quantized.", env="FERMI_QUANTIZATION_DIR"
    )


class GenerationSettings(Section):
    """What a request gets that does not say."""

    default_max_new_tokens: Count = setting(
        256,
        "Tokens per reply where the request names no limit.",
        env="FERMI_DEFAULT_MAX_NEW_TOKENS MAX_TOKENS",
        flag="--default-max-new-tokens --max-tokens",
    )
    max_new_tokens_cap: Count = setting(
        9056, "The most tokens that a request may ask for.", env="FERMI_MAX_NEW_TOKENS_CAP"
    )
    default_temperature: Annotated[Number, Field(ge=0, le=2)] | None = setting(
        None,
        "Temperature; by default the model's generation_config, else 0.2.",
        env="FERMI_DEFAULT_TEMPERATURE",
        flag="--temperature --default-temperature",
        alias="temperature",
    )
    default_top_p: Annotated[Number, Field(gt=0, le=1)] | None = setting(
        None,
        "Nucleus sampling; by default the model's generation_config, else 1.0.",
        env="FERMI_DEFAULT_TOP_P",
        flag="--top-p --default-top-p",
        alias="top_p",
    )
    default_repeat_penalty: Annotated[Number, Field(ge=1, le=2)] | None = setting(
        None,
        "Repetition penalty; by default the model's generation_config, else 1.1. Never applied to greedy requests.",
        env="FERMI_DEFAULT_REPEAT_PENALTY",
        flag="--repeat-penalty --default-repeat-penalty",
        alias="repeat_penalty",
    )

    @model_validator(mode="after")
    def _default_within_cap(self) -> Self:
        if self.default_max_new_tokens > self.max_new_tokens_cap:
            raise ValueError(
                f"default_max_new_tokens ({self.default_max_new_tokens}) is above "
                f"max_new_tokens_cap ({self.max_new_tokens_cap})"
            )
        return self


class FrontDoor(Section):
    """What the command line, the HTTP server and the gRPC server share."""

    timeout_ms: Limit = setting(60000, "Time for one request, queue included; 0 is none.", env="FERMI_TIMEOUT_MS")
    default_system_prompt: str | None = setting(
        None, "System prompt of conversations that bring none.", env="FERMI_DEFAULT_SYSTEM_PROMPT"
    )
    default_system_prompt_file: Path | None = setting(
        None, "File with that system prompt.", env="FERMI_DEFAULT_SYSTEM_PROMPT_FILE"
    )
    disable_think: bool = setting(False, "Never think, whatever a request says.", env="FERMI_DISABLE_THINK")


class CliSettings(FrontDoor):
    """The command line's own conversations."""


class OpenAISettings(FrontDoor):
    """The HTTP server."""

    addr: AddressValue = setting(Address("0.0.0.0", 8000), "Address to listen on.", env="FERMI_OPENAI_ADDR")
    engine_pool: Count = setting(
        1,
        "Replicas of the engine of each model that generates: they share its weights, the threads and the KV cache's "
        "memory.",
        env="FERMI_ENGINE_POOL",
    )
    lazy: bool = setting(False, "Load each model when a request first names it, not at the start.", env="FERMI_LAZY")
    keep_alive_ms: Limit = setting(
        0,
        "Idle time after which a model leaves memory, until a request names it again; 0 is never.",
        env="FERMI_KEEP_ALIVE_MS",
    )
    max_loaded_memory: MemoryValue | None = setting(
        None,
        "Bound of all models in memory, KV caches included: bytes (8GiB) or a share of the machine's memory (50%). "
        "The least recently used idle model leaves for one that is asked for.",
        env="FERMI_MAX_LOADED_MEMORY",
    )
    default_thinking: ThinkingValue = setting(
        "off",
        "Thinking where a request does not say: on, off, or auto (where supported).",
        env="FERMI_DEFAULT_THINKING",
    )
    supports_thinking: bool | None = setting(
        None, "Whether the model can think; by default read from its chat template.", env="FERMI_SUPPORTS_THINKING"
    )
    tool_parser: Literal[
        "auto",
        "hermes",
        "qwen3_coder",
        "llama3",
        "pythonic",
        "lfm2",
        "mistral",
        "mistral_args",
        "phi4",
        "functools",
        "deepseek",
        "deepseek_v31",
        "granite",
        "nemotron",
        "cohere",
        "json",
    ] = setting(
        "auto", "Format of tool calls in replies; auto is what the chat template shows.", env="FERMI_TOOL_PARSER"
    )
    reasoning_parser: Literal[
        "auto", "seed", "cohere", "mistral", "granite", "think", "thinking", "thought", "reasoning", "none"
    ] = setting(
        "auto",
        "What stands around the thoughts in replies; auto is what the chat template shows, none tells nothing apart.",
        env="FERMI_REASONING_PARSER",
    )
    api_keys: Words = setting(
        (),
        "Keys, one of which every request must carry; none opens the server.",
        env="FERMI_API_KEYS FERMI_API_KEY",
        flag="--api-key",
        secret=True,
    )
    api_keys_file: Path | None = setting(
        None, "File with the keys, one per line; read again when it changes.", env="FERMI_API_KEYS_FILE"
    )
    admin_key: str | None = setting(
        None,
        "Key that may also load and unload models; without it nobody may.",
        env="FERMI_ADMIN_KEY",
        secret=True,
    )
    admin_key_file: Path | None = setting(None, "File with that key.", env="FERMI_ADMIN_KEY_FILE")
    salt_cache_per_key: bool = setting(
        True,
        "Share cached prompts only between requests of one key, so that none can tell by the time what others sent.",
    )
    requests_per_minute: Limit = setting(
        0, "Requests that each key (without keys: each address) may send in a minute; 0 is no bound."
    )
    tokens_per_minute: Limit = setting(
        0, "Tokens of prompts and replies that each key (or address) may use in a minute; 0 is no bound."
    )
    trusted_proxies: Words = setting(
        (), "Addresses or networks of proxies whose X-Forwarded-For and -Proto are believed; * is all."
    )
    cors_origins: Words = setting(
        (), "Origins whose pages may call the server from a browser (CORS), as https://example.com; * is all."
    )
    ssl_certfile: Path | None = setting(None, "Certificate (PEM, the chain after it); with it the server talks TLS.")
    ssl_keyfile: Path | None = setting(None, "Private key of the certificate, where it is in a file of its own.")
    ssl_keyfile_password: str | None = setting(None, "Password of that private key.", secret=True)
    response_store: StoreValue | None = setting(
        None,
        "Where /v1/responses keeps what it answered: a file, `:memory:`, or `off`; by default responses.sqlite in the "
        "user's data folder (~/.local/share/fermi).",
        env="FERMI_RESPONSE_STORE",
    )
    response_store_max: Limit = setting(
        10_000, "Responses kept at most, the least recently used leave first; 0 is no bound."
    )
    response_store_max_bytes: Limit = setting(2**30, "Bytes that they may take; 0 is no bound.")
    response_store_ttl_ms: Limit = setting(
        30 * 24 * 3600 * 1000, "Time after which a response that is not used is forgotten; 0 is never."
    )
    max_body_bytes: Count = setting(16 * 2**20, "Largest request body; longer ones get 413.")
    max_queue: Count = setting(1024, "Requests that may wait; further ones get 429.")
    max_queue_tokens: Count = setting(2**22, "Tokens of prompts that may wait; further ones get 429.")
    stream_slowdown: Annotated[Number, Field(ge=0)] = setting(
        1.7,
        "How many times longer the prompts of others may make a stream wait for its tokens, above 1, until half of a "
        "prompt's time is over; 0 is no bound and the shortest time to the first token.",
        env="FERMI_STREAM_SLOWDOWN",
    )
    drain_ms: Limit = setting(30000, "Time that running requests have to finish after SIGTERM.")


class GrpcSettings(FrontDoor):
    """The gRPC server."""

    addr: AddressValue = setting(Address("0.0.0.0", 50051), "Address to listen on.", env="FERMI_GRPC_ADDR")
    engine_pool: Count = setting(1, "Replicas of the engine.", env="FERMI_ENGINE_POOL")
    session_ttl_ms: Limit = setting(0, "Idle time after which a session ends; 0 is never.", env="FERMI_SESSION_TTL_MS")
    session_max: Limit = setting(0, "Sessions kept at most; 0 is no bound.", env="FERMI_SESSION_MAX")


class LogSettings(Section):
    """What is logged, and how."""

    level: Literal["debug", "info", "warning", "error"] = setting(
        "info", "Least level that is logged.", env="FERMI_LOG_LEVEL", flag="--log-level"
    )
    format: Literal["auto", "json", "text"] = setting(
        "auto", "JSON lines or readable text; auto is text on a terminal.", env="FERMI_LOG_FORMAT", flag="--log-format"
    )
    prompts: bool = setting(False, "Log the text of prompts, too.", flag="--log-prompts")
    traces_endpoint: str | None = setting(
        None,
        "Address of an OpenTelemetry collector (OTLP over HTTP); needs the packages of fermi-infer[otel].",
        env="FERMI_TRACES_ENDPOINT OTEL_EXPORTER_OTLP_ENDPOINT",
    )


SECTIONS: Mapping[str, type[Section]] = MappingProxyType(
    {
        "model": ModelSettings,
        "engine": EngineSettings,
        "cache": CacheSettings,
        "generation": GenerationSettings,
        "cli": CliSettings,
        "openai": OpenAISettings,
        "grpc": GrpcSettings,
        "log": LogSettings,
    }
)


class Origin(NamedTuple):
    """Where a value came from: kind is flag, environment, file or default; name is the flag, variable or file."""

    kind: Literal["flag", "environment", "file", "default"]
    name: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.name}".strip()


class Settings(Section):
    """All settings, read once and frozen."""

    model: ModelSettings = ModelSettings()
    engine: EngineSettings = EngineSettings()
    cache: CacheSettings = CacheSettings()
    generation: GenerationSettings = GenerationSettings()
    cli: CliSettings = CliSettings()
    openai: OpenAISettings = OpenAISettings()
    grpc: GrpcSettings = GrpcSettings()
    log: LogSettings = LogSettings()

    _origins: Mapping[str, Origin] = PrivateAttr(default_factory=dict)

    def origin(self, name: str) -> Origin:
        """Where the value of ``section.key`` came from."""
        return self._origins.get(name, Origin("default"))

    def table(self) -> list[tuple[str, str, Origin]]:
        """Each setting as (``section.key``, value, origin); secrets are starred."""
        rows = []
        for info in known_settings():
            value = getattr(getattr(self, info.section), info.key)
            rows.append((info.name, "***" if info.secret and value else str(value), self.origin(info.name)))
        return rows


class SettingInfo(NamedTuple):
    """One setting as the reader and the command line see it."""

    section: str
    key: str
    meaning: str
    default: Any
    kind: Any  # the annotated type
    env: tuple[str, ...]  # flat names, the first wins; the nested names always exist
    flags: tuple[str, ...]
    keys: tuple[str, ...]  # the key, and a second name of it where there is one
    secret: bool

    @property
    def name(self) -> str:
        return f"{self.section}.{self.key}"

    @property
    def nested_env(self) -> tuple[str, ...]:
        return tuple(f"FERMI_{self.section}__{key}".upper() for key in self.keys)


def known_settings() -> Iterator[SettingInfo]:
    """Every setting there is, in order."""
    for section, table in SECTIONS.items():
        for key, field in table.model_fields.items():
            extra = field.json_schema_extra
            names: Mapping[str, Any] = extra if isinstance(extra, dict) else {}
            yield SettingInfo(
                section=section,
                key=key,
                meaning=field.description or "",
                default=field.default,
                kind=field.annotation,
                env=tuple(names["env"].split()),
                flags=tuple(names["flag"].split()) or (f"--{key.replace('_', '-')}",),
                keys=(key, *names["alias"].split()),
                secret=names["secret"],
            )
