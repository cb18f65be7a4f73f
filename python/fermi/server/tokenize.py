"""POST /tokenize and /detokenize, GET /tokenizer_info: what evaluation harnesses ask of a tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request

from fermi.errors import RequestError
from fermi.server.body import body_of, documented
from fermi.server.prompts import off_loop, template_variables
from fermi.server.schema.tokenize import DetokenizeBody, TokenizeBody
from fermi.server.served import ServedModel
from fermi.server.state import state_of
from fermi.text.conversation import fitted
from fermi.text.messages import normalise_messages

router = APIRouter(tags=["tokenizer"])


@router.post("/tokenize", openapi_extra=documented(TokenizeBody))
@router.post("/v1/tokenize", include_in_schema=False)
async def tokenize(body: Annotated[TokenizeBody, Depends(body_of(TokenizeBody))], request: Request) -> dict[str, Any]:
    """The token ids of a text, or of a conversation in the model's chat format."""
    served = await state_of(request).model(body.model)
    template = served.template if isinstance(served, ServedModel) else served.tokenizer.chat_template
    if (body.prompt is None) == (body.messages is None):
        raise RequestError("either prompt or messages is needed", param="prompt")

    def work() -> list[int]:
        if body.messages is None:
            return served.tokenizer.encode(body.prompt or "", body.add_special_tokens is not False)
        messages = normalise_messages(body.messages)
        tools: Sequence[Mapping[str, Any]] = [tool.model_dump(exclude_unset=True) for tool in body.tools or ()]
        if isinstance(served, ServedModel):
            messages, tools = fitted(messages, tools, template.abilities, served.replies.tools)
        text = template.render(
            messages,
            tools=tools or None,
            add_generation_prompt=body.add_generation_prompt and not body.continue_final_message,
            continue_final_message=body.continue_final_message,
            **template_variables(body.chat_template_kwargs or {}),
        )
        return served.tokenizer.encode(text, add_special_tokens=bool(body.add_special_tokens))

    tokens = await off_loop(len(body.prompt or "") or sum(len(str(each)) for each in body.messages or ()), work)
    document = {"tokens": tokens, "count": len(tokens), "max_model_len": served.max_model_len}
    if body.return_token_strs:
        document["token_strs"] = [served.tokenizer.token_text(token) for token in tokens]
    return document


@router.post("/detokenize", openapi_extra=documented(DetokenizeBody))
@router.post("/v1/detokenize", include_in_schema=False)
async def detokenize(
    body: Annotated[DetokenizeBody, Depends(body_of(DetokenizeBody))], request: Request
) -> dict[str, str]:
    """The text of token ids."""
    served = await state_of(request).model(body.model)
    size = served.tokenizer.vocab_size
    if max(body.tokens, default=0) >= size:
        raise RequestError(f"tokens: not all are in the vocabulary, 0 … {size - 1}", param="tokens")
    text = await off_loop(len(body.tokens), lambda: served.tokenizer.decode(body.tokens, body.skip_special_tokens))
    return {"prompt": text}


@router.get("/tokenizer_info")
async def tokenizer_info(request: Request, model: str | None = None) -> dict[str, Any]:
    """The tokenizer's facts under the names of tokenizer_config.json."""
    served = await state_of(request).model(model)
    tokenizer = served.tokenizer
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "tokenizer_name_or_path": served.name,
        "vocab_size": tokenizer.vocab_size,
        "model_max_length": served.max_model_len,
        "max_model_len": served.max_model_len,
        **tokenizer.special_tokens,
        "bos_token": tokenizer.bos_token,
        "eos_token": tokenizer.eos_token,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_ids": sorted(tokenizer.eos_token_ids),
        "chat_template": served.template.source if isinstance(served, ServedModel) else None,
    }
