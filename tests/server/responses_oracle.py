"""The openai package's own types as the judge of responses and their events."""

from __future__ import annotations

import json
from typing import Any, get_args

import httpx
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel

#: Ours beside OpenAI's: what it took, and what their own servers send and their types leave out.
OURS = {"performance", "store", "bytes", "name", "obfuscation", "logprobs"}

_EVENTS: dict[str, type[BaseModel]] = {
    get_args(event.model_fields["type"].annotation)[0]: event for event in get_args(get_args(ResponseStreamEvent)[0])
}


def check_response(document: dict[str, Any]) -> Response:
    """The response, whose every field must be known and of the right type."""
    response = Response.model_validate(document, strict=True)
    _know_every_field(response)
    return response


def check_event(event: dict[str, Any]) -> BaseModel:
    """The event, whose every field must be known and of the right type."""
    checked = _EVENTS[event["type"]].model_validate(event, strict=True)
    _know_every_field(checked)
    return checked


def events_of(reply: httpx.Response) -> list[dict[str, Any]]:
    """The events of a stream, each checked; they are numbered from the first one's number on."""
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    events = []
    for block in reply.text.split("\n\n"):
        if not block or block.startswith(":"):
            continue
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        check_event(event)
        events.append(event)
    numbers = [event["sequence_number"] for event in events]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    return events


def rebuilt(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The output that a client makes of the events; each must fit what came before it."""
    items: list[dict[str, Any]] = []
    for event in events:
        kind = event["type"]
        if kind == "response.output_item.added":
            assert event["output_index"] == len(items)
            assert event["item"]["status"] == "in_progress"
            items.append(json.loads(json.dumps(event["item"])))
            continue
        if "output_index" not in event:
            continue
        item = items[event["output_index"]]
        assert event["output_index"] == len(items) - 1, "an item that has ended gets no more events"
        if kind == "response.output_item.done":
            done = {**event["item"]}
            done.pop("encrypted_content", None)
            assert {**item, "status": done["status"]} == done
            items[event["output_index"]] = event["item"]
            continue
        assert event["item_id"] == item["id"]
        if kind == "response.content_part.added":
            assert event["content_index"] == len(item["content"])
            item["content"].append(dict(event["part"]))
        elif kind == "response.content_part.done":
            assert event["part"] == item["content"][event["content_index"]]
        elif kind == "response.function_call_arguments.delta":
            item["arguments"] += event["delta"]
        elif kind == "response.function_call_arguments.done":
            assert (event["arguments"], event["name"]) == (item["arguments"], item["name"])
        elif kind.endswith(".delta"):
            part = item["content"][event["content_index"]]
            part["text"] += event["delta"]
            if "logprobs" in event:
                part["logprobs"] = part["logprobs"] + event["logprobs"]
        else:
            part = item["content"][event["content_index"]]
            assert event["text"] == part["text"]
            assert event.get("logprobs") == part.get("logprobs")
    return items


def _know_every_field(model: BaseModel) -> None:
    unknown = set(model.model_extra or {}) - OURS
    assert not unknown, f"{type(model).__name__} has no {unknown}"
    for name in type(model).model_fields:
        value = getattr(model, name)
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, BaseModel):
                _know_every_field(each)
