"""POST /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from pydantic_core import to_json
from starlette.responses import Response

from fermi.errors import RequestError
from fermi.server.body import DirectRoute, body_of, documented
from fermi.server.chat_run import read_chat, start_chat
from fermi.server.messages.events import PING, MessageReply
from fermi.server.messages.schema import CountBody, MessagesBody
from fermi.server.messages.translation import chat_of, renamed
from fermi.server.sse import EventStream, hang_up
from fermi.server.state import state_of

router = APIRouter(route_class=DirectRoute, tags=["messages"])

PATH = "/v1/messages"


@router.post(PATH, openapi_extra=documented(MessagesBody))
async def messages(body: Annotated[MessagesBody, Depends(body_of(MessagesBody))], request: Request) -> Response:
    """The assistant's reply to a conversation, in Anthropic's dialect."""
    try:
        run = await start_chat(chat_of(body), state_of(request), PATH, most_tokens=body.max_tokens)
    except RequestError as error:
        raise renamed(error) from None
    reply = MessageReply(run, body.max_tokens, show_thoughts=not (body.thinking and body.thinking.display == "omitted"))
    if body.stream:
        return EventStream(reply.events(), run.generation.cancel, ping=PING)
    async with hang_up(request.receive, run.generation.cancel):
        document = await reply.whole()
    return Response(to_json(document), media_type="application/json")


@router.post(f"{PATH}/count_tokens", openapi_extra=documented(CountBody))
async def count_tokens(body: Annotated[CountBody, Depends(body_of(CountBody))], request: Request) -> Response:
    """How many tokens the prompt of a message has; nothing is generated."""
    try:
        read = await read_chat(chat_of(body), state_of(request), PATH)
    except RequestError as error:
        raise renamed(error) from None
    return Response(to_json({"input_tokens": len(read.prompt.token_ids)}), media_type="application/json")
