"""What a request says of tools: which the model is shown, which it may or must call, and how that is enforced."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fermi.errors import RequestError
from fermi.server.schema.chat import ChatBody, Tool
from fermi.server.served import ServedModel
from fermi.server.structured import Structure
from fermi.text.grammar import JsonObject, JsonSchema, Lark
from fermi.text.tool_calls import ToolCallParser, answer_rules

MODES = ("none", "auto", "required")


@dataclass(frozen=True, slots=True)
class ToolPlan:
    """What was decided for one request.

    Attributes:
        shown: the tools that the template shows the model: all, so that prompts begin alike whatever the choice is.
        callable: those that it may call.
        required: the reply is calls and nothing else.
        parallel: it may be several.
    """

    shown: list[dict[str, Any]]
    callable: list[dict[str, Any]]
    required: bool = False
    parallel: bool = True

    @classmethod
    def of(cls, body: ChatBody) -> ToolPlan:
        """RequestError naming what makes no sense."""
        tools = [tool.model_dump(exclude_unset=True) for tool in body.tools or ()]
        _check_names(body.tools or ())
        choice = body.tool_choice
        if choice is None or choice == "none":
            offered = [] if choice == "none" else tools
            return cls(_shown(offered), offered, parallel=body.parallel_tool_calls is not False)
        if not tools:
            raise RequestError("tool_choice needs tools", param="tool_choice")
        required, names = _wish(choice)
        known = {tool["function"]["name"]: tool for tool in tools}
        for name in sorted(names or ()):
            if name not in known:
                raise RequestError(f"tool_choice: there is no function {name!r} among the tools", param="tool_choice")
        allowed = [tool for name, tool in known.items() if names is None or name in names]
        return cls(_shown(tools), allowed, required, body.parallel_tool_calls is not False)

    @property
    def bounded(self) -> bool:
        """Whether a grammar enforces it; otherwise the model is trusted to write calls as it has learned."""
        strict = any(tool["function"].get("strict") for tool in self.callable)
        return bool(self.callable) and (self.required or strict or len(self.callable) < len(self.shown))

    def parser(self, served: ServedModel) -> ToolCallParser | None:
        """A parser for one reply, None where it cannot hold calls."""
        return served.replies.tools.parser(self.callable) if self.callable else None

    async def structure(self, served: ServedModel, wanted: Structure | None) -> Structure | None:
        """The form of the reply where it may be calls: these alone, or else what is ``wanted`` of an answer.

        RequestError where that cannot be combined with calls.
        """
        if not self.bounded and (wanted is None or not self.callable):
            return wanted
        answer = "" if wanted is None or self.required else _answer(wanted)

        def work() -> str:
            format, vocabulary = served.replies.tools, served.grammars.vocabulary
            ids = {marker: vocabulary.special(marker) for marker in format.markers()}
            return format.lark(
                self.callable,
                required=self.required,
                parallel=self.parallel,
                tokens={marker: at for marker, at in ids.items() if at is not None},
                answer=answer,
            )

        try:
            text = await asyncio.wrap_future(served.grammars.in_background(work))
        except RequestError as error:
            raise RequestError(f"tools: {error}", param="tools") from None
        except (ValueError, TypeError, RecursionError) as error:
            raise RequestError(f"tools: cannot be made into a grammar: {error}", param="tools") from error
        return Structure("tools" if wanted is None else wanted.field, Lark(text))


def _check_names(tools: list[Tool] | tuple[()]) -> None:
    seen: set[str] = set()
    for at, tool in enumerate(tools):
        name, param = tool.function.name, f"tools.{at}.function.name"
        if name in seen:
            raise RequestError(f"{param}: there are two functions {name!r}", param=param)
        if not name.isprintable():
            raise RequestError(f"{param}: must be printable", param=param)
        seen.add(name)


def _shown(tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Tools as models know them; how they are enforced is not for them."""
    return [
        {**tool, "function": {key: value for key, value in tool["function"].items() if key != "strict"}}
        for tool in tools
    ]


def _wish(choice: str | Mapping[str, Any]) -> tuple[bool, set[str] | None]:
    """Whether there must be a call, and of which functions one may be; None is of all."""
    if isinstance(choice, str):
        if choice not in MODES:
            raise RequestError(f"tool_choice must be one of {', '.join(MODES)}, or an object", param="tool_choice")
        return choice == "required", None
    kind = choice.get("type")
    if kind == "function":
        return True, {_name_in(choice, "tool_choice")}
    if kind != "allowed_tools":
        message = f"tool_choice.type must be function or allowed_tools, not {kind!r}"
        raise RequestError(message, param="tool_choice.type", code="unsupported_parameter")
    allowed, param = choice.get("allowed_tools"), "tool_choice.allowed_tools"
    if not isinstance(allowed, Mapping):
        raise RequestError(f"{param} must be an object", param=param)
    mode, tools = allowed.get("mode"), allowed.get("tools")
    if mode not in ("auto", "required"):
        raise RequestError(f"{param}.mode must be auto or required", param=f"{param}.mode")
    if not isinstance(tools, list) or not tools:
        raise RequestError(f"{param}.tools must be a list of tools", param=f"{param}.tools")
    return mode == "required", {_name_in(tool, f"{param}.tools.{at}") for at, tool in enumerate(tools)}


def _name_in(tool: object, param: str) -> str:
    function = tool.get("function") if isinstance(tool, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str):
        raise RequestError(f"{param}.function.name must be a string", param=f"{param}.function.name")
    return name


def _answer(wanted: Structure) -> str:
    """The rules of an answer of that form."""
    spec = wanted.spec
    if isinstance(spec, JsonObject):
        return answer_rules({"type": "object"}, strict=True)
    if isinstance(spec, JsonSchema) and isinstance(spec.schema, Mapping):
        return answer_rules(spec.schema, strict=spec.strict)
    message = f"{wanted.field}: cannot be combined with tools; only JSON can"
    raise RequestError(message, param=wanted.field, code="unsupported_parameter")
