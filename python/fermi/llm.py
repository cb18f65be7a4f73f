"""The offline API: load a model, then generate, chat, embed and score. It needs no server and no event loop."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from fermi.defaults import Defaults
from fermi.embedding import Text, TextEmbedder
from fermi.engine.engine import Engine
from fermi.engine.event import Event
from fermi.engine.sequence import Request
from fermi.errors import ConfigError, EngineError, RequestError
from fermi.loader import LoadedEmbedder, LoadedModel, load, read_settings
from fermi.outputs import CompletionOutput, EmbeddingOutput, Perplexity, RequestOutput
from fermi.sampling_params import SamplingParams
from fermi.text.chat import normalise_messages
from fermi.text.grammar import Grammar, GrammarCompiler, ThinkingBudget, Thoughts, bounds
from fermi.text.output import TextStream
from fermi.text.reasoning import ReasoningSplitter, reasoning_markers
from fermi.text.tokenizer import Tokenizer

__all__ = ["LLM"]

Message: TypeAlias = Mapping[str, Any]
Prompt: TypeAlias = "str | Sequence[int]"


class LLM:
    """A loaded model. Threads take turns; a server for many is ``python -m fermi.serve``.

    Args:
        model: a folder with a checkpoint, an id on the Hugging Face hub, or ``"demo"``, the embedded toy.
        device: ``"auto"``, ``"cpu"``, ``"cuda:0"``…
        dtype: of the weights: ``"auto"`` (the checkpoint's), ``"float32"``, ``"bfloat16"``, ``"float16"``.
        quantization: pack the weights while they load: ``"int8"`` or ``"int4"``. What ``fermi quantize`` wrote needs
            no asking.
        max_model_len: tokens of prompt and reply together; the model's own limit by default.
        kv_cache_memory: hard bound of the KV cache: bytes, or a share of the free memory (``0.25``, ``"2GiB"``).
        kv_cache_dtype: of the KV cache: ``"auto"`` (the weights'), ``"float32"``, ``"bfloat16"``, ``"float16"``,
            ``"int8"``.
        threads: on the CPU; one per physical core by default.
        revision: branch, tag or commit on the hub.
        offline: use only files that are already here.
        settings: any other setting by its name in the configuration (see README), as ``max_num_seqs=8``.

    Raises:
        ConfigError: an argument is unknown or bad; it is named.
        HubError: the model's files cannot be had.
        CheckpointError: they are malformed, or of a model that fermi does not know.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        device: str = "auto",
        dtype: str = "auto",
        quantization: str | None = None,
        max_model_len: int | None = None,
        kv_cache_memory: int | float | str | None = None,
        kv_cache_dtype: str | None = None,
        threads: int | None = None,
        revision: str | None = None,
        offline: bool | None = None,
        **settings: Any,
    ) -> None:
        if not isinstance(model, (str, os.PathLike)):
            raise ConfigError(f"model must be a folder or an id, got {model!r:.80}")
        model = str(os.fspath(model))
        named = {
            "model.id": model,
            "model.revision": revision,
            "model.offline": offline,
            "engine.device": device,
            "engine.dtype": dtype,
            "engine.quantization": quantization,
            "engine.max_model_len": max_model_len,
            "engine.threads": threads,
            "cache.kv_cache_memory": kv_cache_memory,
            "cache.kv_cache_dtype": kv_cache_dtype,
        }
        read = read_settings(named, settings)
        self._loaded: LoadedModel | LoadedEmbedder = load(model, read)
        generation_config = self._loaded.generation_config if isinstance(self._loaded, LoadedModel) else {}
        self._defaults = Defaults.of(read.generation, generation_config)
        self._ids = itertools.count()
        self._turn = threading.Lock()
        self._grammars: GrammarCompiler | None = None  # made when the first is asked for

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer and chat template."""
        return self._loaded.tokenizer

    @property
    def engine(self) -> Engine:
        """The engine underneath. RequestError where the model does not generate text, and so has none."""
        if isinstance(self._loaded, LoadedEmbedder):
            instead = "LLM.score" if self._loaded.scores_pairs else "LLM.embed or LLM.score"
            raise RequestError(f"{self._loaded.source} is {self._loaded.kind} and generates no text: use {instead}")
        return self._loaded.engine

    @property
    def _embedder(self) -> TextEmbedder:
        if isinstance(self._loaded, LoadedModel):
            raise RequestError(
                f"{self._loaded.source} generates text and has no pooling (modules.json of sentence-transformers) by "
                "which it would embed: use LLM.generate or LLM.chat, or load an embedding model"
            )
        return TextEmbedder(self._loaded)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Continue each prompt: a text, or its token ids as they are.

        ``sampling_params``: for all prompts or one for each; by default what the settings of generation and the model's
        generation_config say.
        Prompts run together, and each gets the text it would get alone.

        Raises:
            RequestError: an argument is bad, a prompt does not fit the context, or what the texts shall be (see
                ``SamplingParams.structured_outputs``) cannot be compiled; nothing was generated. Or a grammar became
                too large while a text was generated by it.
            EngineError: the engine failed while a request ran.
        """
        self._expect_generator()
        listed = _listed_prompts(prompts)
        params = self._params_for(len(listed), sampling_params)
        requests = []
        for prompt, each in zip(listed, params, strict=True):
            text, token_ids = prompt if isinstance(prompt, str) else None, self._encode(prompt)
            requests.append(_Asked(text, token_ids, each, self._bounds(each, text, token_ids)))
        return self._run(requests, use_tqdm, continues=True)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Answer one conversation, or several: lists of ``{"role": …, "content": …}``.

        ``chat_template_kwargs`` are variables of the model's chat template, such as ``{"enable_thinking": False}``.

        Raises:
            ChatTemplateError: the template refuses the conversation.
            RequestError, EngineError: as ``generate``.
        """
        self._expect_generator()
        for name, value in (
            ("add_generation_prompt", add_generation_prompt),
            ("continue_final_message", continue_final_message),
        ):
            if not isinstance(value, bool):
                raise RequestError(f"{name} must be True or False, got {value!r:.80}", param=name)
        conversations = _listed_conversations(messages)
        params = self._params_for(len(conversations), sampling_params)
        variables = _variables(chat_template_kwargs)
        template = self.tokenizer.chat_template
        thinks = template.supports_thinking and variables.get("enable_thinking") is not False
        requests = []
        for conversation, each in zip(conversations, params, strict=True):
            text = template.render(
                normalise_messages(conversation),
                tools,
                add_generation_prompt and not continue_final_message,
                continue_final_message=continue_final_message,
                **variables,
            )
            token_ids = self.tokenizer.encode(text, add_special_tokens=False)
            bound = self._bounds(each, text, token_ids, thinks=thinks and not continue_final_message)
            requests.append(_Asked(text, token_ids, each, bound))
        return self._run(requests, use_tqdm, continues=continue_final_message)

    def embed(
        self,
        texts: Text | Sequence[Text],
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        normalize: bool | None = None,
        dimensions: int | None = None,
        truncate: bool = True,
        use_tqdm: bool = True,
    ) -> list[EmbeddingOutput]:
        """Each text, or its token ids as they are, as a vector: what sentence-transformers' ``encode`` gives.

        Args:
            prompt_name: of the checkpoint's prompts the one to put before each text, such as ``"query"``; by default
                the checkpoint's own default, mostly none.
            prompt: that text itself; wins over its name.
            normalize: bring each vector to length 1. None leaves that to the checkpoint's modules, and to
                ``dimensions``.
            dimensions: keep only so many numbers of each vector, for models trained to bear that (Matryoshka), and
                bring it to length 1 unless ``normalize`` is False.
            truncate: cut texts that are longer than the model takes, as sentence-transformers does; False refuses them.

        Raises:
            RequestError: an argument is bad, or the model does not embed; nothing was computed.
            ContextLengthError: a text is too long and not to be cut.
        """
        embedder = self._embedder
        listed = _listed_texts(texts)
        before = self._prompt(prompt_name, prompt)
        if dimensions is not None:
            _integer("dimensions", dimensions)
        with self._turn:
            return embedder.embed(
                listed,
                prompt=before,
                normalize=normalize,
                dimensions=dimensions,
                truncate=truncate,
                use_tqdm=use_tqdm,
            )

    def score(
        self,
        queries: str | Sequence[str],
        documents: str | Sequence[str],
        *,
        truncate: bool = True,
        use_tqdm: bool = True,
    ) -> npt.NDArray[np.float32]:
        """How well each document answers its query: float32 [pairs].

        As many queries as documents, or one of either that meets all of the other. By a cross-encoder its score of
        the pair (float32 [pairs, labels] where it has several labels); by an embedding model the cosine of their
        embeddings, with the checkpoint's prompts for queries and documents.

        Raises: as ``embed``.
        """
        embedder = self._embedder
        listed = [_listed_strings(name, given) for name, given in (("queries", queries), ("documents", documents))]
        with self._turn:
            return embedder.score(*listed, truncate=truncate, use_tqdm=use_tqdm)

    def logits(self, token_ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """The model's own scores of the next token after each of these: float32 [len(token_ids), vocabulary].

        Raises:
            RequestError: no tokens, too many for the context, or ids outside the vocabulary.
        """
        listed = _token_ids(token_ids)
        with self._turn:
            return self.engine.logits(listed)

    def perplexity(self, text: str, *, window: int | None = None, stride: int | None = None) -> Perplexity:
        """How well the model foretells a text of any length, in overlapping windows.

        Each token but the first is scored once, with at least ``window - stride`` tokens before it where there are so
        many. ``window``: tokens, the context by default; ``stride``: half of it by default.

        Raises:
            RequestError: the text has fewer than two tokens, or window and stride do not fit.
        """
        longest = self.engine.max_model_len
        token_ids = self.tokenizer.encode(text)
        window = longest if window is None else _integer("window", window)
        if not 2 <= window <= longest:
            raise RequestError(f"window must be from 2 to {longest} tokens, got {window}", param="window")
        stride = max(1, window // 2) if stride is None else _integer("stride", stride)
        if not 1 <= stride < window:
            raise RequestError(f"stride must be from 1 to window - 1, got {stride}", param="stride")
        if len(token_ids) < 2:
            raise RequestError("perplexity needs a text of at least two tokens", param="text")
        spans = _windows(len(token_ids), window, stride)
        params = SamplingParams(temperature=0.0, max_tokens=0, prompt_logprobs=0)
        outputs = self._run([_Asked(None, token_ids[start:end], params) for start, _, end in spans], use_tqdm=False)
        nats = 0.0
        for (start, scored, _), output in zip(spans, outputs, strict=True):
            nats -= sum(each.logprob for each in (output.prompt_logprobs or [])[scored - start :] if each is not None)
        return Perplexity(nats, len(token_ids) - 1)

    def _expect_generator(self) -> None:
        """RequestError where the model generates no text."""
        _ = self.engine

    def _prompt(self, name: str | None, text: str | None) -> str:
        """What to put before texts that are embedded."""
        assert isinstance(self._loaded, LoadedEmbedder)
        for param, value in (("prompt_name", name), ("prompt", text)):
            if value is not None and not isinstance(value, str):
                raise RequestError(f"{param} must be a string, got {value!r:.80}", param=param)
        return self._loaded.sentences.prompt(name, text)

    def _encode(self, prompt: Prompt) -> list[int]:
        return self.tokenizer.encode(prompt) if isinstance(prompt, str) else _token_ids(prompt)

    def _bounds(
        self, params: SamplingParams, prompt: str | None, token_ids: list[int], *, thinks: bool = False
    ) -> Grammar | ThinkingBudget | None:
        """What bounds a reply. ``thinks``: it may begin with its thoughts where the prompt does not open them."""
        structured = params.structured_outputs
        if structured is None and params.thinking_budget is None:
            return None
        if self._grammars is None:
            self._grammars = GrammarCompiler(self.tokenizer, self.engine.vocab_size)
        end = self.tokenizer.decode(token_ids[-16:], skip_special_tokens=False) if prompt is None else prompt
        markers = reasoning_markers(self.tokenizer.chat_template.source)
        opened = markers is not None and ReasoningSplitter.opened_by(end, markers.opening)
        begins = opened or thinks or structured is None
        thoughts = Thoughts(opened, *markers) if begins and markers is not None else None
        return bounds(self._grammars, None if structured is None else structured.spec, thoughts, params.thinking_budget)

    def _params_for(
        self, count: int, given: SamplingParams | Sequence[SamplingParams] | None
    ) -> Sequence[SamplingParams]:
        if given is None:
            return [self._defaults.sampling_params()] * count
        if isinstance(given, SamplingParams):
            return [given] * count
        if not isinstance(given, (list, tuple)) or not all(isinstance(each, SamplingParams) for each in given):
            raise RequestError("sampling_params must be a SamplingParams or a list of them", param="sampling_params")
        if len(given) != count:
            raise RequestError(f"{count} prompts, but {len(given)} sampling_params", param="sampling_params")
        return given

    def _run(
        self,
        requests: Sequence[_Asked],
        use_tqdm: bool,
        *,
        continues: bool = False,
    ) -> list[RequestOutput]:
        """Run requests together. If one is refused, or the caller interrupts, none is left behind in the engine.

        ``continues``: the text goes on from the prompt's, so that a space at its beginning stays.
        """
        with self._turn:
            return self._run_alone(requests, use_tqdm, continues=continues)

    def _run_alone(self, requests: Sequence[_Asked], use_tqdm: bool, *, continues: bool) -> list[RequestOutput]:
        running: dict[str, _Running] = {}
        bar = tqdm(total=len(requests), desc="generating", unit="prompt", disable=not use_tqdm, leave=False)
        try:
            for asked in requests:
                each = _Running(f"llm-{next(self._ids)}", asked, self.tokenizer, continues=continues)
                running[each.output.request_id] = each  # first, so that an interrupt leaves nothing behind
                self.engine.add(each.request(self.tokenizer, self.engine.max_model_len))
            outputs = [each.output for each in running.values()]
            while running:
                for event in self.engine.step():
                    each = running[event.request_id]
                    for index in each.take(event):
                        self.engine.abort(event.request_id, index)
                    if each.finished:
                        del running[event.request_id]
                        bar.update()
            return outputs
        finally:
            bar.close()
            for request_id in running:
                self.engine.abort(request_id)
            if running:
                self.engine.step()


class _Asked(NamedTuple):
    """One request of a call: a prompt, how it is continued, and what bounds the text."""

    prompt: str | None
    token_ids: list[int]
    params: SamplingParams
    bounds: Grammar | ThinkingBudget | None = None


class _Running:
    """One request of a call and what has come of it."""

    def __init__(self, request_id: str, asked: _Asked, tokenizer: Tokenizer, *, continues: bool) -> None:
        params, token_ids = asked.params, asked.token_ids
        completions = [CompletionOutput(index) for index in range(params.n)]
        self.output = RequestOutput(request_id, asked.prompt, token_ids, completions)
        self.params = params
        self.bounds = asked.bounds
        self.open = set(range(params.n))  # sequences that the engine has not ended
        self.texts = [
            TextStream(
                tokenizer,
                params.stop_strings,
                skip_special_tokens=params.skip_special_tokens,
                include_stop=params.include_stop_str_in_output,
                min_tokens=params.min_tokens,
                continues=continues and tokenizer.holds_text(token_ids),
            )
            for _ in completions
        ]

    def request(self, tokenizer: Tokenizer, max_model_len: int) -> Request:
        """What the engine is asked for."""
        length = len(self.output.prompt_token_ids)
        return Request(
            id=self.output.request_id,
            prompt_token_ids=self.output.prompt_token_ids,
            sampling=self.params.sampling(max_tokens=max(1, max_model_len - length)),
            eos_token_ids=tokenizer.eos_token_ids,
            grammar=self.bounds,
        )

    @property
    def finished(self) -> bool:
        return not self.open

    def take(self, event: Event) -> list[int]:
        """Take in the news; returns the sequences that a stop string has ended and the engine has not."""
        completion, text = self.output.outputs[event.index], self.texts[event.index]
        if event.finish_reason is not None:
            self.open.discard(event.index)
        if completion.finish_reason is not None:
            return []
        if event.finish_reason == "error":
            raise (RequestError if event.refused else EngineError)(event.error or "the engine failed")
        self.output.cached_tokens = event.cached_tokens
        if event.prompt_logprobs is not None:
            self.output.prompt_logprobs = event.prompt_logprobs
        completion.token_ids += event.token_ids
        if event.logprobs is not None:
            completion.logprobs = (completion.logprobs or []) + event.logprobs
        shown = event.token_ids if event.stop_token_id is None else event.token_ids[:-1]
        text.push(shown)
        if event.finish_reason is not None:
            text.finish()
        completion.text = text.text if event.finish_reason or text.stopped_by else ""
        if text.stopped_by is not None:
            completion.finish_reason, completion.stop_reason = "stop", text.stopped_by
            return [event.index] if event.finish_reason is None else []
        completion.finish_reason = event.finish_reason
        if event.stop_token_id in self.params.stop_token_ids:
            completion.stop_reason = event.stop_token_id
        return []


def _integer(name: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise RequestError(f"{name} must be an integer, got {value!r:.80}", param=name)
    return value


def _variables(given: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """What a caller may hand to the chat template: anything but what ``chat`` has arguments for."""
    if given is not None and (not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given)):
        raise RequestError("chat_template_kwargs must map names to values", param="chat_template_kwargs")
    own = {"messages", "tools", "add_generation_prompt", "continue_final_message"} & set(given or {})
    if own:
        raise RequestError(
            f"chat_template_kwargs must not hold {', '.join(sorted(own))}: chat() has arguments for them",
            param="chat_template_kwargs",
        )
    return given or {}


def _windows(length: int, window: int, stride: int) -> list[tuple[int, int, int]]:
    """(start, first scored, end) of windows over ``length`` tokens; every token but the first is scored once."""
    spans, scored, start = [], 1, 0
    while scored < length:
        end = min(start + window, length)
        spans.append((start, scored, end))
        scored, start = end, start + stride
    return spans


def _listed_prompts(prompts: Any) -> list[Prompt]:
    if isinstance(prompts, str):
        return [prompts]
    if not isinstance(prompts, (list, tuple)):
        raise RequestError(
            f"prompts must be texts or lists of token ids, got {type(prompts).__name__}", param="prompts"
        )
    if prompts and all(isinstance(each, (int, np.integer)) for each in prompts):
        return [prompts]
    return list(prompts)


def _listed_texts(texts: Any) -> list[Text]:
    """Texts to embed, each a string or checked token ids."""
    if isinstance(texts, np.ndarray):
        texts = texts.tolist()
    if not isinstance(texts, (str, list, tuple)):
        raise RequestError(f"texts must be texts or lists of token ids, got {type(texts).__name__}", param="texts")
    return [each if isinstance(each, str) else _token_ids(each, "texts") for each in _listed_prompts(texts)]


def _listed_strings(name: str, given: Any) -> list[str]:
    listed = [given] if isinstance(given, str) else given
    if not isinstance(listed, (list, tuple)) or not all(isinstance(each, str) for each in listed):
        raise RequestError(f"{name} must be a text or a list of texts", param=name)
    return list(listed)


def _listed_conversations(messages: Any) -> list[Sequence[Message]]:
    if not isinstance(messages, (list, tuple)) or not messages:
        raise RequestError("messages must be a list of messages, or a list of such lists", param="messages")
    if all(isinstance(each, Mapping) for each in messages):
        return [messages]
    return list(messages)


def _token_ids(values: Any, param: str = "prompts") -> list[int]:
    if isinstance(values, np.ndarray):
        values = values.tolist()
    if not isinstance(values, (list, tuple)) or not all(
        isinstance(each, (int, np.integer)) and not isinstance(each, bool) for each in values
    ):
        raise RequestError(f"{param} must be texts or lists of token ids, got {values!r:.80}", param=param)
    return [int(each) for each in values]
