"""The items of a conversation: as clients send them, as they are kept, and as chat messages."""

from __future__ import annotations

import base64
import itertools
import os
import random
import zlib
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Discriminator, Field, Tag

from fermi.errors import RequestError
from fermi.server.schema.common import Body, Many

Item = dict[str, Any]  # one that is complete: with its id, its status, and its content as parts
Status = Literal["in_progress", "completed", "incomplete"]
Thoughts = Literal["kept", "of the last turn"]
Name = Annotated[str, Field(min_length=1)]

SYSTEM = ("system", "developer")
SEAL = "fermi-1."
_SECRET = os.urandom(32)
LONGEST_SEALED = 2**22  # bytes of thoughts that one item may unfold to


class Text(Body):
    """A part that is text; the three names mean the same."""

    type: Literal["input_text", "output_text", "text"]
    text: str


class Refusal(Body):
    """A part in which a model refused to answer."""

    type: Literal["refusal"]
    refusal: str


class OtherPart(Body):
    """A part that is no text."""

    type: str


def _part_kind(part: Any) -> str | None:
    kind = part.get("type", "") if isinstance(part, dict) else getattr(part, "type", None)
    if kind in ("input_text", "output_text", "text"):
        return "a text"
    return None if kind is None else "a refusal" if kind == "refusal" else "another part"


Part = Annotated[
    Annotated[Text, Tag("a text")] | Annotated[Refusal, Tag("a refusal")] | Annotated[OtherPart, Tag("another part")],
    Discriminator(_part_kind, custom_error_type="part", custom_error_message="A part must be an object with a type"),
]
Parts = str | Many[Part]


class Message(Body):
    """What somebody said."""

    type: Literal["message"] | None = None
    role: Literal["user", "assistant", "system", "developer"]
    content: Parts
    id: Name | None = None
    status: Status | None = None
    phase: Literal["commentary", "final_answer"] | None = None


class FunctionCall(Body):
    """A call that a model made; ``arguments`` is JSON text."""

    type: Literal["function_call"]
    call_id: Name
    name: Name
    arguments: str
    id: Name | None = None
    status: Status | None = None


class FunctionCallOutput(Body):
    """What a call gave."""

    type: Literal["function_call_output"]
    call_id: Name
    output: Parts
    id: Name | None = None
    status: Status | None = None


class SummaryText(Body):
    """A part of a summary of thoughts."""

    type: Literal["summary_text"]
    text: str


class ReasoningText(Body):
    """A part of the thoughts themselves."""

    type: Literal["reasoning_text"]
    text: str


class Reasoning(Body):
    """What a model thought."""

    type: Literal["reasoning"]
    summary: Many[SummaryText] = Field(default_factory=list)
    content: Many[ReasoningText] | None = None
    encrypted_content: str | None = None
    id: Name | None = None
    status: Status | None = None


class ItemReference(Body):
    """An item that is kept, by its id."""

    type: Literal["item_reference"] | None = None
    id: Name


class OtherItem(Body):
    """An item of a tool that is not there."""

    type: str


_KINDS = ("message", "function_call", "function_call_output", "reasoning", "item_reference")


def _item_kind(item: Any) -> str | None:
    if not isinstance(item, dict):
        return None
    kind = item.get("type")
    if kind is None:
        kind = "item_reference" if "id" in item and "role" not in item else "message"
    return f"a {kind}" if kind in _KINDS else "another item"


InputItem = Annotated[
    Annotated[Message, Tag("a message")]
    | Annotated[FunctionCall, Tag("a function_call")]
    | Annotated[FunctionCallOutput, Tag("a function_call_output")]
    | Annotated[Reasoning, Tag("a reasoning")]
    | Annotated[ItemReference, Tag("a item_reference")]
    | Annotated[OtherItem, Tag("another item")],
    Discriminator(_item_kind, custom_error_type="item", custom_error_message="An item must be an object"),
]


def refuse_unsupported_items(items: Sequence[InputItem]) -> None:
    """RequestError naming the first item or part that is neither text nor a function call."""
    for at, item in enumerate(items):
        if isinstance(item, OtherItem):
            raise _unsupported(f"input.{at}.type", f"items of type {item.type!r} are")
        name = "output" if isinstance(item, FunctionCallOutput) else "content"
        parts = getattr(item, name, None)
        for number, part in enumerate(parts if isinstance(parts, list) else ()):
            if isinstance(part, OtherPart):
                raise _unsupported(f"input.{at}.{name}.{number}.type", f"parts of type {part.type!r} are")


def new_id(prefix: str) -> str:
    """An id that no other has, and that cannot be guessed: who knows it may see what it names.

    ``prefix`` is resp, msg, fc, fco or rs. The kernel is not asked for each: see `fermi.server.ids`.
    """
    seed = random.getrandbits(128).to_bytes(16, "little")
    return f"{prefix}_{blake2b(seed, digest_size=16, key=_SECRET).hexdigest()}"


def complete(item: InputItem, where: str) -> Item:
    """An item with all that it has when it is listed. RequestError, named by ``where``, for a broken seal."""
    match item:
        case Message():
            phase = {"phase": item.phase} if item.phase else {}
            parts = [{"type": "input_text", "text": item.content}] if isinstance(item.content, str) else item.content
            content = [_complete_part(part, item.role) for part in parts]
            return {**_head(item, "message", "msg"), "role": item.role, "content": content, **phase}
        case FunctionCall():
            called = {"call_id": item.call_id, "name": item.name, "arguments": item.arguments}
            return {**_head(item, "function_call", "fc"), **called}
        case FunctionCallOutput():
            output = item.output
            if not isinstance(output, str):
                output = [_complete_part(part, "user") for part in output]  # type: ignore[misc]
            return {**_head(item, "function_call_output", "fco"), "call_id": item.call_id, "output": output}
        case Reasoning():
            return _complete_reasoning(item, where)
    raise AssertionError(f"{type(item).__name__} is replaced or refused before")


def function_call(call_id: str, name: str, arguments: str, *, item_id: str, status: Status) -> Item:
    """The item of a call."""
    head = {"type": "function_call", "id": item_id, "status": status}
    return {**head, "call_id": call_id, "name": name, "arguments": arguments}


def message(text: str, logprobs: list[dict[str, Any]], *, item_id: str, status: Status, empty: bool = False) -> Item:
    """The item of an answer; ``empty``: without its part, as it is when it begins."""
    content = [] if empty else [output_text(text, logprobs)]
    return {"type": "message", "id": item_id, "status": status, "role": "assistant", "content": content}


def output_text(text: str, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
    """The part of an answer."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def reasoning(text: str, *, item_id: str, status: Status, sealed: bool, empty: bool = False) -> Item:
    """The item of thoughts; ``sealed``: with them a second time in the form that clients keep without looking."""
    content = [] if empty else [{"type": "reasoning_text", "text": text}]
    item = {"type": "reasoning", "id": item_id, "status": status, "summary": [], "content": content}
    return {**item, "encrypted_content": seal(text)} if sealed and not empty else item


def seal(text: str) -> str:
    """Thoughts in one opaque word. No secret: the same text stands in the item's content beside it."""
    return SEAL + base64.urlsafe_b64encode(zlib.compress(text.encode())).decode()


def sealed(items: Iterable[Item]) -> list[Item]:
    """The items, every thought with its seal."""
    return [
        {**item, "encrypted_content": seal("\n".join(part["text"] for part in item["content"]))}
        if item["type"] == "reasoning" and item["content"] and "encrypted_content" not in item
        else item
        for item in items
    ]


def unseal(word: str, where: str) -> str:
    """What `seal` was given. RequestError, named by ``where``, for a word that it did not make."""
    try:
        if not word.startswith(SEAL):
            raise ValueError
        inflate = zlib.decompressobj()
        text = inflate.decompress(base64.b64decode(word[len(SEAL) :], b"-_", validate=True), LONGEST_SEALED)
        if not inflate.eof:
            raise ValueError
        return text.decode()
    except (ValueError, zlib.error):
        message = f"{where}.encrypted_content could not be verified: it was not made by this server"
        raise RequestError(message, param=f"{where}.encrypted_content", code="invalid_encrypted_content") from None


class Turn(NamedTuple):
    """A chat message and the request field that it came from."""

    message: dict[str, Any]
    origin: str


def turns(items: Iterable[tuple[Item, str]], instructions: str | None, *, thoughts: Thoughts = "kept") -> list[Turn]:
    """The chat messages of items, each item with the field that it came from.

    What an assistant thought, said and called in a row becomes one message. Instructions and the system messages at
    the beginning become one, because many templates take but one.

    Raises:
        RequestError: an output belongs to no call before it.
    """
    found = list(items)
    last_user = max((at for at, (item, _) in enumerate(found) if item.get("role") == "user"), default=-1)
    answered = {item["call_id"] for item, _ in found if item["type"] == "function_call_output"}
    lead = list(itertools.takewhile(lambda each: each[0].get("role") in SYSTEM, found))
    made = _system(lead, instructions)
    names: dict[str, str] = {}
    for at, (item, origin) in enumerate(found[len(lead) :], len(lead)):
        kind = item["type"]
        if kind == "message" and item["role"] != "assistant":
            made.append(_said(item, origin))
        elif kind == "message":
            _assistant(made, origin, fresh=("content",))["content"] = _joined(item["content"])
        elif kind == "reasoning":
            text = "\n".join(part["text"] for part in item["content"] or item["summary"])
            if text and (thoughts == "kept" or at > last_user):
                said = _assistant(made, origin, fresh=("content", "tool_calls"))
                said["reasoning_content"] = "\n".join(filter(None, (said.get("reasoning_content"), text)))
        elif kind == "function_call":
            if item["status"] == "incomplete" and item["call_id"] not in answered:
                continue  # a limit cut it off: it was never made, and its arguments are no JSON
            names[item["call_id"]] = item["name"]
            function = {"name": item["name"], "arguments": item["arguments"]}
            call = {"id": item["call_id"], "type": "function", "function": function}
            _assistant(made, origin).setdefault("tool_calls", []).append(call)
        else:
            made.append(Turn(_tool_message(item, names, origin), origin))
    for turn in made:
        if turn.message["role"] == "assistant":
            turn.message.setdefault("content", None)
    return made


def _system(items: Iterable[tuple[Item, str]], instructions: str | None) -> list[Turn]:
    """Instructions and the system messages at the beginning as one message, if there are any."""
    made = [Turn({"role": "system", "content": instructions}, "instructions")] if instructions else []
    made += [_said(item, origin) for item, origin in items]
    if len(made) < 2:
        return made
    content = "\n\n".join(_joined(turn.message["content"]) for turn in made)
    return [Turn({"role": made[0].message["role"], "content": content}, made[0].origin)]


def _said(item: Item, origin: str) -> Turn:
    """A message of a user, or of the system."""
    return Turn({"role": item["role"], "content": _content(item["content"])}, origin)


def _tool_message(item: Item, names: dict[str, str], origin: str) -> dict[str, Any]:
    """What a call gave, for a call that ``names`` knows."""
    call_id, output = item["call_id"], item["output"]
    if call_id not in names:
        message = f"No tool call found for function call output with call_id {call_id}."
        raise RequestError(message, param=f"{origin}.call_id")
    content = output if isinstance(output, str) else _content(output)
    return {"role": "tool", "tool_call_id": call_id, "name": names[call_id], "content": content}


def _assistant(made: list[Turn], origin: str, fresh: tuple[str, ...] = ()) -> dict[str, Any]:
    """The message that an assistant's item belongs to: a new one where it would follow one of ``fresh``."""
    if not made or made[-1].message["role"] != "assistant" or any(name in made[-1].message for name in fresh):
        made.append(Turn({"role": "assistant"}, origin))
    return made[-1].message


def _content(parts: list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    return parts[0]["text"] if len(parts) == 1 and "text" in parts[0] else parts


def _joined(content: str | list[dict[str, Any]]) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(part.get("text", part.get("refusal", "")) for part in content)


def _head(item: Any, kind: str, prefix: str) -> Item:
    return {"type": kind, "id": item.id or new_id(prefix), "status": item.status or "completed"}


def _complete_part(part: Any, role: str) -> dict[str, Any]:
    if isinstance(part, Refusal):
        return {"type": "refusal", "refusal": part.refusal}
    text = part["text"] if isinstance(part, dict) else part.text
    return output_text(text, []) if role == "assistant" else {"type": "input_text", "text": text}


def _complete_reasoning(item: Reasoning, where: str) -> Item:
    content = [{"type": "reasoning_text", "text": part.text} for part in item.content or ()]
    sealed = {}
    if item.encrypted_content is not None:
        text = unseal(item.encrypted_content, where)
        content = content or [{"type": "reasoning_text", "text": text}]
        sealed = {"encrypted_content": item.encrypted_content}
    summary = [{"type": "summary_text", "text": part.text} for part in item.summary]
    return {**_head(item, "reasoning", "rs"), "summary": summary, "content": content, **sealed}


def _unsupported(param: str, what: str) -> RequestError:
    message = f"{param}: {what} not supported by this server, which knows text and functions"
    return RequestError(message, param=param, code="unsupported_parameter")
