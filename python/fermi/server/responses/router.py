"""POST /v1/responses, and GET, DELETE, cancel and the input of those that are kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request
from pydantic import Field, ValidationError
from pydantic_core import to_json
from starlette.responses import Response

from fermi.errors import RequestError
from fermi.server.body import DirectRoute, body_of, documented
from fermi.server.errors import request_error_of
from fermi.server.responses.items import InputItem, Item, ItemReference, Message, complete, new_id, sealed
from fermi.server.responses.kept import Responses, no_response, responses_of
from fermi.server.responses.reply import Background, Follower, Reply
from fermi.server.responses.request import PATH, Conversation, input_tokens, start
from fermi.server.responses.schema import INCLUDED, Include, ResponseBody
from fermi.server.schema.common import Body
from fermi.server.sse import EventStream, hang_up
from fermi.server.state import state_of

router = APIRouter(tags=["responses"])


class GetQuery(Body):
    """What GET /v1/responses/{id} takes behind the question mark."""

    include: list[Include] = Field(default_factory=list)
    stream: bool = False
    starting_after: Annotated[int, Field(ge=-1)] | None = None
    include_obfuscation: bool = False


class ListQuery(Body):
    """What GET /v1/responses/{id}/input_items takes behind the question mark."""

    include: list[Include] = Field(default_factory=list)
    limit: Annotated[int, Field(ge=1, le=100)] = 20
    order: Literal["asc", "desc"] = "desc"
    after: str | None = None


async def create(body: Annotated[ResponseBody, Depends(body_of(ResponseBody))], request: Request) -> Response:
    """A model's response, whole, as events, or in the background."""
    state, responses, owner = state_of(request), responses_of(request), _owner(request)
    store = responses.store_for(body.store)
    if body.background and store is None:
        raise RequestError("background: a response in the background must be stored", param="background")
    conversation = await _conversation(body, responses, owner)
    run = await start(body, conversation, state)
    reply = Reply(body, run, conversation, owner, store, new_id("resp"))
    if body.background and store is not None:
        background = Background(reply, store, state)
        await responses.start(background)
        return _followed(background, Follower()) if body.stream else _json(reply.growing.response())
    if body.stream:
        return EventStream(reply.events(), run.generation.cancel)
    async with hang_up(request.receive, run.generation.cancel):
        document = await reply.whole()
    return _json(document)


async def count(body: Annotated[ResponseBody, Depends(body_of(ResponseBody))], request: Request) -> Response:
    """How many tokens a request's prompt has; nothing is generated."""
    conversation = await _conversation(body, responses_of(request), _owner(request))
    tokens = await input_tokens(body, conversation, state_of(request))
    return _json({"object": "response.input_tokens", "input_tokens": tokens})


for path, answer in ((PATH, create), (f"{PATH}/input_tokens", count)):
    router.add_api_route(
        path, answer, methods=["POST"], openapi_extra=documented(ResponseBody), route_class_override=DirectRoute
    )


def _documented_query(schema: type[Body]) -> dict[str, Any]:
    """What stands behind the question mark, for the OpenAPI page."""
    fields = schema.model_json_schema()["properties"]
    return {"parameters": [{"name": name, "in": "query", "schema": field} for name, field in fields.items()]}


@router.get(f"{PATH}/{{response_id}}", openapi_extra=_documented_query(GetQuery))
async def get(response_id: str, request: Request) -> Response:
    """A response that is kept, or one that runs in the background; with ?stream=true the latter's events."""
    query, responses, owner = _query(GetQuery, request), responses_of(request), _owner(request)
    if query.include_obfuscation:
        raise RequestError(
            "include_obfuscation: what was not obfuscated at first is not later", param="include_obfuscation"
        )
    if not query.stream:
        if query.starting_after is not None:
            raise RequestError("starting_after needs stream=true", param="starting_after")
        document = await responses.get(owner, response_id)
        return _json({**document, "output": _included(document["output"], query)})
    background = responses.in_background(owner, response_id)
    if background is None or background.events is None:
        await responses.get(owner, response_id)  # it may be unknown
        message = "stream: only a response that was created with background and stream can be followed, and not forever"
        raise RequestError(message, param="stream")
    after = -1 if query.starting_after is None else query.starting_after
    return _followed(background, Follower(after))


@router.delete(f"{PATH}/{{response_id}}")
async def delete(response_id: str, request: Request) -> dict[str, Any]:
    """Forget a response."""
    await responses_of(request).delete(_owner(request), response_id)
    return {"id": response_id, "object": "response", "deleted": True}


@router.post(f"{PATH}/{{response_id}}/cancel")
async def cancel(response_id: str, request: Request) -> Response:
    """End a response that runs in the background."""
    return _json(await responses_of(request).cancel(_owner(request), response_id))


@router.get(f"{PATH}/{{response_id}}/input_items", openapi_extra=_documented_query(ListQuery))
async def input_items(response_id: str, request: Request) -> Response:
    """What a response answered: the items of the conversation before it, and of its own input."""
    query, store = _query(ListQuery, request), responses_of(request).store
    items = None if store is None else await store.input_items(_owner(request), response_id)
    if items is None:
        raise no_response(response_id)
    if query.order == "desc":
        items.reverse()
    begin = 0
    if query.after is not None:
        begin = next((at + 1 for at, item in enumerate(items) if item["id"] == query.after), -1)
        if begin < 0:
            raise RequestError(f"after: there is no item {query.after!r} in this response", param="after")
    page = _included(items[begin : begin + query.limit], query)
    first, last = (page[0]["id"], page[-1]["id"]) if page else ("", "")
    more = begin + len(page) < len(items)
    return _json({"object": "list", "data": page, "first_id": first, "last_id": last, "has_more": more})


def _included(items: list[Item], query: GetQuery | ListQuery) -> list[Item]:
    """Items with what was asked for besides; log-probabilities are there if they were asked for at first."""
    return sealed(items) if "reasoning.encrypted_content" in query.include else items


async def _conversation(body: ResponseBody, responses: Responses, owner: str) -> Conversation:
    """What is to be answered. RequestError for an id that nobody knows, or an item that is none."""
    history: list[Item] = []
    if body.previous_response_id is not None:
        running = responses.in_background(owner, body.previous_response_id)
        if running is not None and not running.task.done():
            message = f"Previous response with id {body.previous_response_id!r} has not ended yet."
            raise RequestError(message, param="previous_response_id", code="previous_response_not_ready")
        store = responses.store
        before = None if store is None else await store.conversation(owner, body.previous_response_id)
        if before is None:
            message = f"Previous response with id {body.previous_response_id!r} not found."
            raise RequestError(message, param="previous_response_id", code="previous_response_not_found")
        history = before
    given: Sequence[tuple[InputItem, str]] = [(item, f"input.{at}") for at, item in enumerate(body.items)]
    if isinstance(body.input, str):
        given = [(Message(role="user", content=body.input), "input")]
    own: list[tuple[Item, str]] = []
    known: dict[str, Item] = {}
    for item, where in given:
        if isinstance(item, ItemReference):
            meant = known.get(item.id) or await _kept(item.id, where, responses, owner)
        else:
            meant = complete(item, where)
        known.setdefault(meant["id"], meant)
        own.append((meant, where))
    return Conversation(body.instructions, history, own)


async def _kept(item_id: str, where: str, responses: Responses, owner: str) -> Item:
    """The item of an id that a reference in the input means."""
    found = None if responses.store is None else await responses.store.item(owner, item_id)
    if found is None:
        message = f"Item with id {item_id!r} not found: only items of responses that are stored can be referred to."
        raise RequestError(message, param=f"{where}.id", code="item_not_found")
    return found


def _followed(background: Background, follower: Follower) -> EventStream:
    return EventStream(background.follow(follower), follower.leave)


def _owner(request: Request) -> str:
    """Names the key that a request carries; "" where it needs none."""
    return str(request.scope["state"].get("key_id", ""))


def _json(document: dict[str, Any]) -> Response:
    return Response(to_json(document, inf_nan_mode="null"), media_type="application/json")


def _query(schema: type[Any], request: Request) -> Any:
    """What stands behind the question mark. RequestError naming what is wrong with it."""
    given: dict[str, Any] = dict(request.query_params)
    include = [name for key in ("include", "include[]") for name in request.query_params.getlist(key)]
    given.pop("include[]", None)
    if include:
        given["include"] = include
    try:
        query = schema.model_validate(given, strict=False)
    except ValidationError as invalid:
        raise request_error_of(invalid, to_json(given)) from None
    for at, name in enumerate(query.include):
        if name not in INCLUDED:
            message = f"include.{at}: {name!r} is of a tool or an input that is not supported"
            raise RequestError(message, param=f"include.{at}", code="unsupported_parameter")
    return query
