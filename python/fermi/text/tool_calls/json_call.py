"""A call as a JSON object, ``{"name": …, "arguments": {…}}``: its arguments are passed on while they come."""

from __future__ import annotations

import json
from collections.abc import Callable

from fermi.text.tool_calls.json_scanner import JsonScanner
from fermi.text.tool_calls.reply import Reply, Steps

__all__ = ["Accepts", "json_arguments", "json_call", "json_calls"]

NAMES = ("name", "function", "tool_name")
ARGUMENTS = ("arguments", "parameters")

Accepts = Callable[[str], bool]  # whether a name is that of a function that may be called


def json_calls(reply: Reply, accepts: Accepts) -> Steps[None]:
    """A call or a list of calls."""
    if not (yield from reply.word("[")):
        yield from json_call(reply, accepts)
        return
    calls = reply.calls
    while True:
        yield from reply.space()
        yield from json_call(reply, accepts)
        if reply.calls == calls or reply.completed < reply.calls:
            return
        calls = reply.calls
        yield from reply.space()
        reply.attempt()
        if not (yield from reply.word(",")):
            break
    yield from reply.word("]")
    reply.drop()


def json_call(reply: Reply, accepts: Accepts) -> Steps[None]:
    """One call, if it is one.

    The name may come behind the arguments; members of other names are passed over.
    """
    calls = reply.calls
    name = held = None
    if not (yield from reply.word("{")):
        return
    yield from reply.space()
    while not (yield from reply.word("}")):
        key = _string((yield from _json(reply)))
        yield from reply.space()
        if key is None or not (yield from reply.word(":")):
            return
        yield from reply.space()
        if key in ARGUMENTS and held is None and reply.calls == calls:
            if name is None:
                held = yield from _whole_arguments(reply)
            else:
                yield from json_arguments(reply, name)
            if held is None and reply.completed <= calls:
                return
        else:
            value = yield from _json(reply)
            if value is None:
                return
            if key in NAMES and name is None and (name := _string(value)) is not None:
                if not accepts(name) or not name.isprintable():
                    return
                if held is not None:
                    _call(reply, name, held)
        yield from reply.space()
        yield from reply.word(",")
        yield from reply.space()
    if name is not None and reply.calls == calls:
        _call(reply, name, "{}")


def json_arguments(reply: Reply, name: str) -> Steps[None]:
    """The arguments of a call: an object, or one that is quoted once more as a string."""
    if (yield from reply.peek()) != "{":
        arguments = yield from _whole_arguments(reply)
        if arguments is not None:
            _call(reply, name, arguments)
        return
    scanner, held, begun = JsonScanner(), "", False
    while not scanner.ended:
        held += yield from reply.scan(scanner)
        if scanner.begun and not begun:
            begun = True
            reply.call(name)
        if begun:
            reply.arguments(held)
            held = ""
    if begun and (scanner.complete or (yield from _is_mended(reply, scanner))):
        reply.complete()


def _is_mended(reply: Reply, scanner: JsonScanner) -> Steps[bool]:
    """Where the call was closed but for some of its brackets, add these."""
    missing = scanner.missing
    if missing is None or (scanner.cut and reply.cut) or (scanner.broken and not (yield from reply.closes())):
        return False
    reply.arguments(missing)
    return True


def _call(reply: Reply, name: str, arguments: str) -> None:
    """A call that came whole."""
    reply.call(name)
    reply.arguments(arguments)
    reply.complete()


def _json(reply: Reply) -> Steps[str | None]:
    """A JSON value, None where there is none."""
    scanner, texts = JsonScanner(), []
    while not scanner.ended:
        texts.append((yield from reply.scan(scanner)))
    return "".join(texts) if scanner.complete else None


def _whole_arguments(reply: Reply) -> Steps[str | None]:
    """The arguments, however they are quoted, as the text of an object."""
    value = yield from _json(reply)
    quoted = _string(value)
    if quoted is not None:
        scanner = JsonScanner()
        end, text = scanner.feed(quoted)
        value = text if scanner.complete and not quoted[end:].strip() else None if quoted.strip() else "{}"
    if value == "null":
        return "{}"
    return value if value is not None and value.lstrip().startswith("{") else None


def _string(value: str | None) -> str | None:
    """The text of a JSON value that is a string."""
    return json.loads(value) if value is not None and value.startswith('"') else None
