"""Cross-encoders: what a model puts upon hidden states to score a pair of texts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fermi import _C
from fermi.errors import CheckpointError, UnsupportedModelError
from fermi.models.config import ACTIVATIONS
from fermi.models.decoder import Decoder
from fermi.models.encoder import Encoder
from fermi.models.fields import Fields
from fermi.models.json_file import read_json
from fermi.models.layers import LayerNorm
from fermi.models.modernbert import ModernBert, ModernBertConfig
from fermi.models.pooling import Dense, Pooling, Step, read_activation
from fermi.models.weights import Weights

__all__ = [
    "ActivationOf",
    "Head",
    "answer_head",
    "answer_settings",
    "decoder_label_head",
    "label_count",
    "label_head",
    "score_activation",
]

#: What becomes of the logits of so many labels; None: nothing.
ActivationOf: TypeAlias = "Callable[[int], _C.ActivationName | None]"

#: What a reranker that generates answers with, where nothing else is said.
YES, NO = "yes", "no"


@dataclass(frozen=True)
class Head:
    """From hidden states to ``size`` numbers for each sequence."""

    pooling: Pooling
    steps: tuple[Step, ...]
    size: int


def label_count(fields: Fields) -> int:
    """How many labels a classifier tells apart, as Transformers reads it."""
    if "num_labels" in fields:
        return fields.integer("num_labels", maximum=2**20)
    labels = fields.raw("id2label")
    return len(labels) if isinstance(labels, dict) and labels else 2


def score_activation(fields: Fields, settings: Fields, labels: int) -> _C.ActivationName | None:
    """What sentence-transformers' CrossEncoder makes of logits: what a file names, else a sigmoid of a single one.

    ``settings``: config_sentence_transformers.json, which comes before config.json.
    """
    default: _C.ActivationName | None = "sigmoid" if labels == 1 else None
    section = fields.section("sentence_transformers") or Fields({}, fields.file)
    older = "sbert_ce_default_activation_function"
    for place, name in ((settings, "activation_fn"), (section, "activation_fn"), (fields, older)):
        if name in place:
            return read_activation(place, name, default)
    return default


def label_head(encoder: Encoder[Any], fields: Fields, weights: Weights, activation: ActivationOf) -> Head:
    """That of Transformers' model for sequence classification upon an encoder. ``weights``: of the whole checkpoint;
    ``activation``: of what comes out."""
    if isinstance(encoder, ModernBert):
        return _modernbert_head(encoder.config, fields, weights, activation)
    hidden, labels = encoder.config.hidden_size, label_count(fields)
    body = encoder.body(weights)
    (inner, inner_activation), (outer, _) = parts = encoder.classifier
    places = [body if f"{name}.weight" in body else weights for name, _ in parts]
    steps = (
        Dense(places[0], inner, hidden, hidden, activation=inner_activation),
        Dense(places[1], outer, labels, hidden, activation=activation(labels)),
    )
    return Head(Pooling("cls"), steps, labels)


def _modernbert_head(config: ModernBertConfig, fields: Fields, weights: Weights, activation: ActivationOf) -> Head:
    hidden, labels = config.hidden_size, label_count(fields)
    pooling = fields.choice("classifier_pooling", {"cls": "cls", "mean": "mean"}, default="cls")
    bias = fields.flag("classifier_bias", default=False)
    inner_activation = fields.choice("classifier_activation", ACTIVATIONS, default="gelu")
    steps = (
        Dense(weights, "head.dense", hidden, hidden, bias=bias, activation=inner_activation),
        LayerNorm(weights.under("head.norm"), hidden, config.layer_norm_eps, bias=config.norm_bias),
        Dense(weights, "classifier", labels, hidden, activation=activation(labels)),
    )
    return Head(Pooling(pooling), steps, labels)


def decoder_label_head(decoder: Decoder[Any], fields: Fields, weights: Weights, activation: ActivationOf) -> Head:
    """That of Transformers' model for sequence classification upon a decoder: ``score`` of the last token."""
    labels = label_count(fields)
    score = Dense(weights, "score", labels, decoder.config.hidden_size, bias=False, activation=activation(labels))
    return Head(Pooling("lasttoken"), (score,), labels)


def answer_head(decoder: Decoder[Any], settings: Fields, activation: _C.ActivationName | None) -> Head:
    """How much likelier a decoder's next token is the one answer than the other: the difference of their logits.

    ``settings``: of sentence-transformers' LogitScore: true_token_id, and perhaps false_token_id.
    """
    settings.expect("module_input_name", "causal_logits")
    true = settings.integer("true_token_id", minimum=0, maximum=decoder.vocab_size - 1)
    false: int | None = None
    if "false_token_id" in settings:
        false = settings.integer("false_token_id", minimum=0, maximum=decoder.vocab_size - 1)
    settings.refuse_rest()
    head = decoder.head
    if head.bias is not None or head.scale != 1 or head.soft_cap:
        raise UnsupportedModelError(f"{settings.file}: LogitScore is not supported for heads that change their logits")
    answers = np.array([true] if false is None else [true, false], dtype=np.int32)
    with decoder.backend:
        rows = _C.embed(_C.Tensor.from_numpy(answers), head.weight).float32()
    weight = rows[:1] if false is None else rows[:1] - rows[1:]
    return Head(Pooling("lasttoken"), (Product(weight, activation),), 1)


class Product:
    """activation(x · Wᵀ) by a matrix that no checkpoint holds."""

    def __init__(self, weight: npt.NDArray[np.float32], activation: _C.ActivationName | None) -> None:
        self.weight = _C.Weight(_C.Tensor.from_numpy(weight))
        self.activation = activation

    def __call__(self, x: _C.Tensor) -> _C.Tensor:
        return _C.linear(x, self.weight, activation=self.activation)


def answer_settings(folder: Path) -> Fields:
    """What LogitScore would say of a reranker whose folder has no modules.json: the tokens "yes" and "no"."""
    file = folder / "tokenizer.json"
    model = read_json(file).get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocabulary, dict) or not {YES, NO} <= vocabulary.keys():
        raise CheckpointError(f"{file}: has no tokens {YES!r} and {NO!r} to rerank by")
    return Fields({"true_token_id": vocabulary[YES], "false_token_id": vocabulary[NO]}, file)
