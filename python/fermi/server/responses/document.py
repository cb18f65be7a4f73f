"""The response object: what was asked for, told back, and what came of it."""

from __future__ import annotations

import time
from typing import Any, Literal

from fermi.server.chat_run import ChatRun
from fermi.server.generation import Usage
from fermi.server.responses.schema import FunctionTool, ResponseBody

State = Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]

#: What does not change any more.
FINAL: tuple[State, ...] = ("completed", "incomplete", "failed", "cancelled")


def new_document(response_id: str, body: ResponseBody, run: ChatRun, *, stored: bool) -> dict[str, Any]:
    """The response as it begins: of the request, and of the model that answers it; without ``usage``."""
    document: dict[str, Any] = {
        "id": response_id,
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "completed_at": None,
        "background": bool(body.background),
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": body.max_tool_calls,
        "metadata": body.metadata or {},
        "model": run.served.name,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "prompt_cache_key": body.prompt_cache_key,
        "reasoning": _reasoning(body),
        "safety_identifier": body.safety_identifier,
        "service_tier": "default",
        "store": stored,
        "temperature": run.params.temperature,
        "text": {"format": _format(body), "verbosity": "medium"},
        "tool_choice": _choice(body),
        "tools": [_tool(tool) for tool in body.functions],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": run.params.top_p,
        "truncation": body.truncation or "disabled",
    }
    if body.user is not None:
        document["user"] = body.user
    return document


def usage_of(usage: Usage) -> dict[str, Any]:
    """The ``usage`` object."""
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def _reasoning(body: ResponseBody) -> dict[str, Any]:
    asked = {} if body.reasoning is None else body.reasoning.model_dump(exclude_none=True)
    return {"effort": None, "summary": None, **asked}


def _format(body: ResponseBody) -> dict[str, Any]:
    if body.text is None or body.text.format is None:
        return {"type": "text"}
    return body.text.format.model_dump(exclude_none=True, by_alias=True)


def _choice(body: ResponseBody) -> Any:
    choice = "auto" if body.tool_choice is None else body.tool_choice
    return choice if isinstance(choice, str) else choice.model_dump(exclude_unset=True)


def _tool(tool: FunctionTool) -> dict[str, Any]:
    named = {"type": "function", "name": tool.name, "description": tool.description}
    return {**named, "parameters": tool.parameters, "strict": bool(tool.strict)}
