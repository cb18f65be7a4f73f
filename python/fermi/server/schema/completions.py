"""The body of POST /v1/completions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field

from fermi.server.schema.common import GenerationBody, Many, Natural

Prompts = str | Many[str] | Many[int] | Many[Many[int]]  # which token ids there are only the engine knows


class CompletionBody(GenerationBody):
    """Text to continue, without a chat template."""

    prompt: Prompts
    max_tokens: Natural | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool | None = None
    best_of: Annotated[int, Field(ge=1)] | None = None
    add_special_tokens: bool | None = None

    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **GenerationBody.refused,
        "suffix": ("",),
        "prompt_embeds": (),
    }
