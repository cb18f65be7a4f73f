"""What a caller asks of generation: the names that vLLM's users know, checked when made."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from fermi.engine.sampling import Sampling
from fermi.errors import RequestError
from fermi.text.grammar import Choice, GrammarSpec, JsonObject, JsonSchema, Regex, written_grammar

__all__ = ["SamplingParams", "StructuredOutputs"]

MAX_STOP_STRINGS = 16
#: More than any vocabulary has; what is beyond does not fit the sampler's numbers.
MOST_TOKENS = 2**31 - 1
MAX_LOGPROBS = 20


@dataclass(frozen=True, kw_only=True)
class StructuredOutputs:
    """The form that a text must have, by one of these. RequestError (a ValueError) where there is none or several.

    Attributes:
        json: a JSON schema: an object, the text of one, or a pydantic model's class.
        regex: a regular expression for the whole text: Rust's syntax, without look-around and back references.
        choice: texts, one of which it is.
        grammar: GBNF as llama.cpp's (``root ::= …``), or llguidance's dialect of Lark (``start: …``).
        json_object: True for any JSON object.
    """

    json: Mapping[str, Any] | str | type | None = None
    regex: str | None = None
    choice: Sequence[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None

    def __post_init__(self) -> None:
        """Raises RequestError where not exactly one form is asked for, or it has not its type."""
        given = [field.name for field in fields(self) if getattr(self, field.name) not in (None, False)]
        if len(given) != 1:
            names = ", ".join(field.name for field in fields(self))
            found = ", ".join(given) or "none"
            raise RequestError(f"structured_outputs needs one of {names}; got {found}", param="structured_outputs")
        for name in ("regex", "grammar"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise RequestError(f"{name} must be a string, got {value!r:.80}", param="structured_outputs")
        choice = self.choice
        if choice is not None and (
            not isinstance(choice, (list, tuple)) or not choice or not all(isinstance(each, str) for each in choice)
        ):
            raise RequestError(f"choice must be a list of strings, got {choice!r:.80}", param="structured_outputs")

    @property
    def spec(self) -> GrammarSpec:
        """What is compiled of it."""
        if self.json is not None:
            schema: Any = self.json
            return JsonSchema(schema.model_json_schema() if hasattr(schema, "model_json_schema") else schema)
        if self.regex is not None:
            return Regex(self.regex)
        if self.choice is not None:
            return Choice(tuple(self.choice))
        return JsonObject() if self.grammar is None else written_grammar(self.grammar)


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How to choose tokens and when to stop. Every value is checked: RequestError (a ValueError) names the bad one.

    Attributes:
        n: completions of each prompt; the prompt is computed once.
        temperature: 0 is greedy; 1 samples from the model's own distribution.
        top_k: sample among the k most likely tokens; 0 or -1: all.
        top_p: … among the fewest tokens whose probabilities reach p (arXiv 1904.09751).
        min_p: … among tokens at least this fraction as likely as the likeliest (arXiv 2407.01082).
        repetition_penalty: divides positive (multiplies negative) logits of tokens seen in prompt or output
            (arXiv 1909.05858); 1 is off.
        presence_penalty, frequency_penalty: subtracted from the logits of tokens in the output, once and for each
            occurrence.
        logit_bias: added to the logits of these token ids, each in [-100, 100].
        seed: the same seed and request give the same text, whatever else runs. None draws a fresh one.
        stop: strings that end the text; they are not part of it.
        stop_token_ids: ids that end it, besides the model's own.
        include_stop_str_in_output: keep the stop string at the end of the text.
        max_tokens: at most this many new tokens; None: as many as the context holds.
        min_tokens: no end before this many.
        ignore_eos: the model's own end of text does not end it.
        logprobs: log-probabilities of each new token and of this many likeliest ones, of the model's own distribution.
        prompt_logprobs: the same for the tokens of the prompt.
        skip_special_tokens: leave special tokens out of the text.
        structured_outputs: the form that the text must have, its thoughts (``<think>…</think>``) excepted. A text that
            is complete ends, whatever ``min_tokens`` and ``ignore_eos`` say.
        thinking_budget: tokens of its thoughts at most; then they are ended.
    """

    n: int = 1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | None = None
    seed: int | None = None
    stop: Sequence[str] | str = ()
    stop_token_ids: Sequence[int] = ()
    include_stop_str_in_output: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool = True
    structured_outputs: StructuredOutputs | None = None
    thinking_budget: int | None = None

    def __post_init__(self) -> None:
        """Raises RequestError (a ValueError) that names the first unusable argument."""
        self._normalise()
        self._check()

    def _normalise(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        for name in ("stop", "stop_token_ids"):
            value = getattr(self, name)
            if not isinstance(value, (list, tuple, set, frozenset)):
                raise RequestError(f"{name} must be a list, got {value!r}", param=name)
            object.__setattr__(self, name, tuple(value))
        if self.top_k == -1:
            object.__setattr__(self, "top_k", 0)

    def _check(self) -> None:
        self._integer("n", 1, 128)
        self._number("temperature", 0.0, 100.0)
        self._integer("top_k", 0, None)
        self._number("top_p", 0.0, 1.0, above=True)
        self._number("min_p", 0.0, 1.0)
        self._number("repetition_penalty", 0.0, 100.0, above=True)
        self._number("presence_penalty", -2.0, 2.0)
        self._number("frequency_penalty", -2.0, 2.0)
        self._integer("seed", None, None, optional=True)
        self._integer("max_tokens", 0, None, optional=True)
        self._integer("min_tokens", 0, None)
        self._integer("logprobs", 0, MAX_LOGPROBS, optional=True)
        self._integer("prompt_logprobs", 0, MAX_LOGPROBS, optional=True)
        self._integer("thinking_budget", 0, None, optional=True)
        structured: object = self.structured_outputs
        if structured is not None and not isinstance(structured, StructuredOutputs):
            message = f"structured_outputs must be a StructuredOutputs, got {structured!r:.80}"
            raise RequestError(message, param="structured_outputs")
        for name in ("include_stop_str_in_output", "ignore_eos", "skip_special_tokens"):
            if not isinstance(getattr(self, name), bool):
                raise RequestError(f"{name} must be True or False, got {getattr(self, name)!r}", param=name)
        if len(self.stop) > MAX_STOP_STRINGS or not all(isinstance(stop, str) and stop for stop in self.stop):
            raise RequestError(f"stop must be at most {MAX_STOP_STRINGS} strings that are not empty", param="stop")
        for token_id in self.stop_token_ids:
            if not _is_integer(token_id) or token_id < 0:
                raise RequestError(f"stop_token_ids must be token ids, got {token_id!r}", param="stop_token_ids")
        biases = {} if self.logit_bias is None else self.logit_bias
        if not isinstance(biases, Mapping):
            raise RequestError(f"logit_bias must map token ids to numbers, got {self.logit_bias!r}", param="logit_bias")
        for token_id, bias in biases.items():
            if not _is_integer(token_id) or token_id < 0 or not _is_finite(bias) or abs(bias) > 100:
                raise RequestError(
                    f"logit_bias must map token ids to numbers in [-100, 100], got {token_id!r}: {bias!r}",
                    param="logit_bias",
                )
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise RequestError(
                f"min_tokens ({self.min_tokens}) is more than max_tokens ({self.max_tokens})", param="min_tokens"
            )

    def _integer(self, name: str, low: int | None, high: int | None, *, optional: bool = False) -> None:
        value = getattr(self, name)
        if value is None and optional:
            return
        if not _is_integer(value) or (low is not None and value < low) or (high is not None and value > high):
            raise RequestError(f"{name} must be an integer{_bounds(low, high)}, got {value!r}", param=name)

    def _number(self, name: str, low: float, high: float, *, above: bool = False) -> None:
        value = getattr(self, name)
        if not _is_finite(value) or value < low or value > high or (above and value == low):
            left = "(" if above else "["
            raise RequestError(f"{name} must be a number in {left}{low:g}, {high:g}], got {value!r}", param=name)

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """``stop`` as it was normalised."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    def replace(self, **values: Any) -> SamplingParams:
        """A copy with other values, checked anew."""
        return replace(self, **values)

    def sampling(self, *, max_tokens: int) -> Sampling:
        """What the engine needs of it. ``max_tokens`` is used where none was given: what the context leaves."""
        return Sampling(
            n=self.n,
            temperature=float(self.temperature),
            top_k=min(self.top_k, MOST_TOKENS),
            top_p=float(self.top_p),
            min_p=float(self.min_p),
            repetition_penalty=float(self.repetition_penalty),
            presence_penalty=float(self.presence_penalty),
            frequency_penalty=float(self.frequency_penalty),
            logit_bias={int(token): float(bias) for token, bias in (self.logit_bias or {}).items()},
            seed=self.seed,
            logprobs=self.logprobs,
            prompt_logprobs=self.prompt_logprobs,
            stop_token_ids=frozenset(self.stop_token_ids),
            max_tokens=max_tokens if self.max_tokens is None else self.max_tokens,
            min_tokens=self.min_tokens,
            ignore_eos=self.ignore_eos,
        )


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _bounds(low: int | None, high: int | None) -> str:
    if low is not None and high is not None:
        return f" in [{low}, {high}]"
    if low is not None:
        return f" ≥ {low}"
    return ""
