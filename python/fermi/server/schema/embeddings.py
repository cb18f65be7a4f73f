"""The bodies of POST /v1/embeddings, /v1/rerank, /v1/score and /v1/similarity."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AliasChoices, BeforeValidator, Field

from fermi.server.schema.common import Body, Many, Positive

#: Items of one request, as OpenAI has it.
MAX_INPUTS = 2048


def few_inputs(value: object) -> object:
    """Looks before the branches of the union do, none of which would know what is wrong with too many inputs."""
    if isinstance(value, list) and len(value) > MAX_INPUTS and not isinstance(value[0], int):
        raise ValueError(f"holds {len(value)} inputs, at most {MAX_INPUTS} are taken at once")
    return value


Texts = Annotated[Many[str], Field(min_length=1, max_length=MAX_INPUTS)]
Tokens = Annotated[Many[int], Field(min_length=1)]
ManyTokens = Annotated[Many[Many[int]], Field(min_length=1, max_length=MAX_INPUTS)]


class EncodingBody(Body):
    """What all requests to embedding models and cross-encoders share.

    Attributes:
        truncate_prompt_tokens: cut texts that are longer: at so many tokens, or for -1 at what the model takes.
        timeout: seconds, queue included.
    """

    model: str | None = None
    truncate_prompt_tokens: Annotated[int, Field(ge=-1)] | None = None
    timeout: Annotated[float, Field(gt=0)] | None = None
    user: str | None = None

    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "add_special_tokens": (True,),
        "mm_processor_kwargs": (),
        "chat_template": (),
        "messages": (),
    }


class EmbeddingBody(EncodingBody):
    """Texts, or their token ids, to embed.

    Attributes:
        prompt_name: of the model's own prompts the one to put before each text, such as query.
        normalize: bring vectors to length 1 where the model does not.
    """

    input: Annotated[str | Texts | Tokens | ManyTokens, BeforeValidator(few_inputs)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Positive | None = None
    prompt_name: str | None = None
    normalize: bool | None = None

    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **EncodingBody.refused,
        "embed_dtype": ("float32",),
        "endianness": ("native", "little"),
    }


class TextDocument(Body):
    """A document as Cohere and Jina know it."""

    text: str


class RerankBody(EncodingBody):
    """A query, and documents to bring into the order in which they answer it."""

    query: str
    documents: Annotated[Many[str | TextDocument], Field(min_length=1)]
    top_n: Positive | None = None
    return_documents: bool | None = None

    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **EncodingBody.refused,
        "max_tokens_per_doc": (),
        "max_chunks_per_doc": (),
        "rank_fields": (["text"],),
    }


class ScoreBody(EncodingBody):
    """Texts to compare: one with one, one with each of several, or each of several with its own."""

    text_1: str | Texts = Field(validation_alias=AliasChoices("text_1", "queries"))
    text_2: str | Texts = Field(validation_alias=AliasChoices("text_2", "documents", "items"))


class SentenceInputs(Body):
    """A sentence and others, as Hugging Face's sentence-similarity wraps them."""

    source_sentence: str
    sentences: Texts


class SimilarityBody(EncodingBody):
    """Texts whose meanings are compared: one with several, each with its own, or (``input``) all with all.

    Attributes:
        inputs: the sentences in Hugging Face's wrapping.
        metric: cosine of the angle between the vectors, or their dot product, which their lengths count in.
        dimensions, prompt_name: as in an embedding request.
    """

    source_sentence: str | Texts | None = Field(None, validation_alias=AliasChoices("source_sentence", "text_1"))
    sentences: str | Texts | None = Field(None, validation_alias=AliasChoices("sentences", "text_2"))
    inputs: SentenceInputs | None = None
    input: Texts | None = None
    metric: Literal["cosine", "dot"] | None = None
    dimensions: Positive | None = None
    prompt_name: str | None = None
