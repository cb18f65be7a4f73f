"""What the bodies of all generating requests share: sampling, streaming, limits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import AliasChoices, BeforeValidator, Field

from fermi.errors import RequestError
from fermi.server.schema.body import Body as Body
from fermi.server.schema.body import Many as Many
from fermi.server.schema.structured import StructuredBody

Positive = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
Seed = Annotated[int, Field(ge=-(2**63), le=2**64 - 1)]


def few(most: int) -> BeforeValidator:
    """Refuses an object of too many entries before it is told what is wrong with each of millions."""

    def look(value: Any) -> Any:
        if isinstance(value, dict) and len(value) > most:
            raise ValueError(f"holds {len(value)} entries, at most {most} are taken")
        return value

    return BeforeValidator(look)


Metadata = Annotated[dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], few(16)]
#: More than vocabularies have of tokens.
MAX_BIASES = 2**18
Biases = Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], few(MAX_BIASES)]


def _one_or_many(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


MAX_STOP = 4096  # characters
Stops = Annotated[
    Many[Annotated[str, Field(min_length=1, max_length=MAX_STOP)]], BeforeValidator(_one_or_many), Field(max_length=16)
]


class StreamOptions(Body):
    """What a stream carries besides its chunks."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None

    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {"include_obfuscation": (False,)}


class GenerationBody(StructuredBody):
    """How to generate; None leaves it to the server's settings, then to the model's, then to fermi."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=2)] | None = Field(
        None, validation_alias=AliasChoices("repetition_penalty", "repeat_penalty")
    )
    logit_bias: Biases | None = None
    seed: Seed | None = None
    stop: Stops | None = None
    stop_token_ids: Many[TokenId] | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    min_tokens: Natural | None = None
    ignore_eos: bool | None = None
    timeout: Annotated[float, Field(gt=0)] | None = None  # seconds, queue included
    priority: Annotated[int, Field(ge=-(2**31), le=2**31 - 1)] | None = None  # lower runs first
    cache_salt: Annotated[str, Field(min_length=1)] | None = None  # prompts share cached blocks only with equal salt
    allowed_token_ids: Many[TokenId] | None = None
    bad_words: Annotated[Many[Annotated[str, Field(min_length=1, max_length=256)]], Field(max_length=1024)] | None = (
        None
    )
    truncate_prompt_tokens: Annotated[int, Field(ge=-1)] | None = None  # the last so many; -1: as many as fit
    prompt_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None  # in logprobs: token_id:123 in place of the text
    user: str | None = None
    safety_identifier: str | None = None
    metadata: Metadata | None = None
    prompt_cache_key: str | None = None

    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "use_beam_search": (False,),
        "length_penalty": (1.0,),
        "logits_processors": ([],),
        "guided_whitespace_pattern": (),
        "grammar_lazy": (False,),
        "grammar_triggers": ([],),
        "structural_tag": (),
        "moderation": (),
        "prompt_cache_options": (),
        "prompt_cache_retention": ("in_memory", "in-memory"),
        "typical_p": (1, 1.0),
        "tfs_z": (1, 1.0),
        "top_a": (0, 0.0),
        "mirostat": (0,),
        "mirostat_mode": (0,),
        "dry_multiplier": (0, 0.0),
        "xtc_probability": (0, 0.0),
        "dynatemp_range": (0, 0.0),
        "ebnf": (),
        "regex": (),
    }

    def refuse_unsupported(self) -> None:
        """As every body; also what a stream alone could honour."""
        super().refuse_unsupported()
        options = self.stream_options
        if options is None:
            return
        if not self.stream and (options.include_usage or options.continuous_usage_stats):
            raise RequestError("stream_options: only streams have options: set stream to true", param="stream_options")
        try:
            options.refuse_unsupported()
        except RequestError as error:
            param = f"stream_options.{error.param}"
            raise RequestError(f"stream_options.{error}", param=param, code=error.code) from None

    @property
    def include_usage(self) -> bool:
        """Whether the stream ends with a chunk that holds the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def continuous_usage(self) -> bool:
        """Whether every chunk holds the usage so far."""
        return bool(self.stream_options and self.stream_options.continuous_usage_stats)
