"""The bodies of POST /tokenize and /detokenize."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from fermi.server.schema.chat import Tool
from fermi.server.schema.common import Body, Many, TokenId


class TokenizeBody(Body):
    """A text, or a conversation for the model's chat template."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[Many[dict[str, Any]], Field(min_length=1)] | None = None
    tools: Many[Tool] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_strs: bool | None = None


class DetokenizeBody(Body):
    """Token ids."""

    model: str | None = None
    tokens: Many[TokenId]
    skip_special_tokens: bool = False
