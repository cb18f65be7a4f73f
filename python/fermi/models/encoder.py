"""Encoders: every token sees its whole sequence; the sequences of a batch follow each other without padding."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from fermi import _C
from fermi.models.benign_fields import BENIGN_FIELDS
from fermi.models.checkpoint import PackedParts
from fermi.models.config import ACTIVATIONS, MOST_LAYERS
from fermi.models.fields import Fields
from fermi.models.layers import LayerNorm, Linear
from fermi.models.quantization_config import QuantizationConfig
from fermi.models.rope import RopeTable
from fermi.models.weights import TensorSource, Weights

__all__ = [
    "Encoder",
    "EncoderBatch",
    "EncoderConfig",
    "Int32",
    "ModernNames",
    "Names",
    "PostNormEncoder",
    "TokenSequence",
    "attend",
    "rotations",
]

Int32 = npt.NDArray[np.int32]

#: Fields of encoders that say how they were trained, or how Transformers once computed the same.
TRAINING_FIELDS = frozenset(
    {
        "hidden_dropout_prob",
        "attention_probs_dropout_prob",
        "classifier_dropout",
        "tie_word_embeddings",
        "output_past",
        "use_return_dict",
        # of a head that the first multilingual BERT named and nobody computed
        "directionality",
        "pooler_fc_size",
        "pooler_num_attention_heads",
        "pooler_num_fc_layers",
        "pooler_size_per_head",
        "pooler_type",
        # of a classifier: `classifier` reads them
        "sentence_transformers",
        "sbert_ce_default_activation_function",
    }
)


class TokenSequence(NamedTuple):
    """What is encoded: tokens, special ones included.

    Attributes:
        token_ids: [tokens].
        type_ids: [tokens], which of two texts a token belongs to; None: all to the first.
    """

    token_ids: Sequence[int]
    type_ids: Sequence[int] | None = None


@dataclass(frozen=True)
class EncoderBatch:
    """The tokens of several sequences, one after the other. All tensors are int32.

    Attributes:
        token_ids, type_ids: [tokens].
        table_positions: [tokens], rows of the table of positions.
        positions: [tokens], from 0 in each sequence.
        lengths: [tokens], of the sequence that a token belongs to.
        starts: [sequences + 1], the first token of each sequence, then the number of tokens.
    """

    token_ids: _C.Tensor
    type_ids: _C.Tensor
    table_positions: _C.Tensor
    positions: _C.Tensor
    lengths: _C.Tensor
    starts: _C.Tensor


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """What encoders share, under BERT's field names. ``type_vocab_size`` 0: tokens have no types."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    hidden_act: _C.ActivationName
    max_position_embeddings: int
    type_vocab_size: int
    layer_norm_eps: float
    quantization: QuantizationConfig | None

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @staticmethod
    def common(
        config: Fields, *, intermediate_size: int = 3072, max_position_embeddings: int = 512, type_vocab_size: int = 2
    ) -> dict[str, Any]:
        """The attributes of this class, read and checked; the arguments are what Transformers takes for absent fields.

        Raises CheckpointError naming a malformed field, UnsupportedModelError naming one that is not honoured.
        """
        for name in ("is_decoder", "add_cross_attention", "is_encoder_decoder", "is_causal", "causal"):
            config.expect(name, False)
        config.expect("pruned_heads", {})
        config.ignore(BENIGN_FIELDS | TRAINING_FIELDS)
        hidden_size = config.integer("hidden_size", maximum=2**20)
        heads = config.integer("num_attention_heads", maximum=2**16)
        if hidden_size % heads:
            raise config.malformed("num_attention_heads", f"must divide the hidden size ({hidden_size}), not {heads}")
        return {
            "vocab_size": config.integer("vocab_size", maximum=2**24),
            "hidden_size": hidden_size,
            "intermediate_size": config.integer("intermediate_size", default=intermediate_size, maximum=2**24),
            "num_hidden_layers": config.integer("num_hidden_layers", maximum=MOST_LAYERS),
            "num_attention_heads": heads,
            "hidden_act": config.choice("hidden_act", ACTIVATIONS, default="gelu"),
            "max_position_embeddings": config.integer("max_position_embeddings", default=max_position_embeddings),
            "type_vocab_size": config.integer("type_vocab_size", default=type_vocab_size, minimum=0, maximum=2**16),
            "layer_norm_eps": config.number("layer_norm_eps", default=1e-12),
            "quantization": QuantizationConfig.read(config),
        }


Config = TypeVar("Config", bound=EncoderConfig)


class Encoder(ABC, Generic[Config]):
    """An encoder whose weights are loaded.

    Attributes:
        prefix: what the tensors' names begin with where the checkpoint holds a task's head too, before a dot.
        words: the table of words, by which a checkpoint without that prefix is known.
        heads: tensors of heads, and buffers, that embeddings do not need.
        classifier: the layers of a classifier's head, with the activations behind them.
        max_seq_length: tokens of the longest sequence.
    """

    prefix: ClassVar[str]
    words: ClassVar[str] = "embeddings.word_embeddings.weight"
    heads: ClassVar[tuple[str, ...]]
    classifier: ClassVar[tuple[tuple[str, _C.ActivationName | None], ...]]
    max_seq_length: int

    def __init__(self, config: Config, weights: Weights) -> None:
        """``weights``: of the body (see `body`)."""
        self.config = config
        self.backend = weights.backend
        self.max_seq_length = config.max_position_embeddings

    @classmethod
    def body(cls, weights: Weights) -> Weights:
        """The weights of the encoder in those of a checkpoint, whose heads need not be used."""
        body = weights.body(cls.prefix, cls.words)
        body.tolerate(*cls.heads)
        weights.tolerate(*cls.heads)
        return body

    @classmethod
    @abstractmethod
    def read_config(cls, config: Fields) -> Config:
        """The config of a config.json. Raises CheckpointError naming the field."""

    @abstractmethod
    def __call__(self, batch: EncoderBatch, rows: _C.Tensor | None = None) -> _C.Tensor:
        """The hidden states, f32 [tokens, hidden_size], or those of the tokens in ``rows`` only."""

    def table_positions(self, token_ids: Int32) -> Int32:
        """The rows of the table of positions for one sequence."""
        return np.arange(len(token_ids), dtype=np.int32)

    def batch(self, sequences: Iterable[TokenSequence]) -> EncoderBatch:
        """The sequences packed. Raises ValueError for one that is longer than ``max_seq_length``, or has a token of a
        type that there is not."""
        token_ids, type_ids, table, positions, lengths = [], [], [], [], []
        for sequence in sequences:
            ids = np.asarray(sequence.token_ids, dtype=np.int32)
            types = np.zeros_like(ids) if sequence.type_ids is None else np.asarray(sequence.type_ids, dtype=np.int32)
            if len(ids) > self.max_seq_length:
                raise ValueError(f"a sequence of {len(ids)} tokens is longer than the model's {self.max_seq_length}")
            if len(types) != len(ids):
                raise ValueError(f"{len(types)} type_ids for {len(ids)} tokens")
            if self.config.type_vocab_size and types.size and types.max() >= self.config.type_vocab_size:
                raise ValueError(f"type_ids reach {types.max()}; the model has {self.config.type_vocab_size} types")
            token_ids.append(ids)
            type_ids.append(types)
            table.append(self.table_positions(ids))
            positions.append(np.arange(len(ids), dtype=np.int32))
            lengths.append(len(ids))
        starts = np.cumsum([0, *lengths], dtype=np.int32)
        return EncoderBatch(
            token_ids=packed(token_ids),
            type_ids=packed(type_ids),
            table_positions=packed(table),
            positions=packed(positions),
            lengths=_C.Tensor.from_numpy(np.repeat(np.asarray(lengths, dtype=np.int32), lengths)),
            starts=_C.Tensor.from_numpy(starts),
        )


def packed(parts: Sequence[Int32]) -> _C.Tensor:
    return _C.Tensor.from_numpy(np.concatenate([np.empty(0, np.int32), *parts]))


def attend(
    qkv: _C.Tensor,  # [tokens, 3 · hidden]: queries, keys, values side by side
    batch: EncoderBatch,
    config: EncoderConfig,
    *,
    angles: _C.Tensor | None = None,
    window: int = 0,
    bias: _C.Tensor | None = None,
) -> _C.Tensor:
    """What the heads have read, [tokens, hidden]. ``angles`` turn queries and keys; ``window`` and ``bias``: see
    `_C.encoder_attention`."""
    head_dim = config.head_dim
    if angles is not None:
        turning = qkv.narrow(1, 0, 2 * config.hidden_size)
        _C.rope(turning.unflatten(1, (2 * config.num_attention_heads, head_dim)), angles)
    q, k, v = (part.unflatten(1, (-1, head_dim)) for part in qkv.split([config.hidden_size] * 3))
    return _C.encoder_attention(q, k, v, batch.starts, scale=head_dim**-0.5, window=window, bias=bias)


def rotations(table: RopeTable, batch: EncoderBatch) -> _C.Tensor:
    """Each token's angles, [tokens, elements of a head that turn]."""
    return _C.rope_angles(
        batch.positions,
        batch.lengths,
        _C.Tensor.from_numpy(table.frequencies),
        rule=table.rule,
        attention_factor=table.attention_factor,
        base=table.base,
        factor=table.factor,
        original_length=table.original_length,
    )


@dataclass(frozen=True)
class Names:
    """What a family calls the parts of a block."""

    query: str
    key: str
    value: str
    output: str
    attention_norm: str
    up: str
    down: str
    mlp_norm: str


class Embeddings:
    """norm(words[token] + positions[position] + types[type]), as far as the model has such tables."""

    def __init__(self, weights: Weights, config: EncoderConfig) -> None:
        hidden = config.hidden_size
        self.words = weights.matrix("word_embeddings.weight", config.vocab_size, hidden, role="embedding")
        self.positions = weights.table("position_embeddings.weight", config.max_position_embeddings, hidden)
        self.types: _C.Weight | None = None
        if config.type_vocab_size:
            self.types = weights.table("token_type_embeddings.weight", config.type_vocab_size, hidden)
        self.norm = LayerNorm(weights.under("LayerNorm"), config.hidden_size, config.layer_norm_eps)

    def __call__(self, batch: EncoderBatch) -> _C.Tensor:
        x = _C.embed(batch.token_ids, self.words)
        _C.embed(batch.table_positions, self.positions, residual=x)
        if self.types is not None:
            _C.embed(batch.type_ids, self.types, residual=x)
        return self.norm(x)


class PostNormBlock:
    """x = norm(x + attention(x)); x = norm(x + mlp(x)), with biases everywhere."""

    def __init__(self, weights: Weights, config: EncoderConfig, names: Names) -> None:
        def norm(name: str) -> LayerNorm:
            return LayerNorm(weights.under(name), hidden, config.layer_norm_eps)

        hidden, inner = config.hidden_size, config.intermediate_size
        qkv = dict.fromkeys((names.query, names.key, names.value), hidden)
        self.config = config
        self.qkv = Linear(weights, qkv, hidden, bias=True)
        self.output = Linear(weights, {names.output: hidden}, hidden, bias=True)
        self.attention_norm = norm(names.attention_norm)
        self.up = Linear(weights, {names.up: inner}, hidden, bias=True)
        self.down = Linear(weights, {names.down: hidden}, inner, bias=True)
        self.mlp_norm = norm(names.mlp_norm)

    def __call__(
        self,
        x: _C.Tensor,  # [tokens, hidden], overwritten
        batch: EncoderBatch,
        *,
        bias: _C.Tensor | None = None,
        rows: _C.Tensor | None = None,
    ) -> _C.Tensor:
        """The new x, or those of its ``rows`` that are still wanted after the attention."""
        attended = attend(self.qkv(x), batch, self.config, bias=bias)
        if rows is not None:
            x, attended = _C.gather_rows(x, rows), _C.gather_rows(attended, rows)
        x = self.attention_norm(self.output(attended, residual=x))
        return self.mlp_norm(self.down(self.up(x, activation=self.config.hidden_act), residual=x))


class PostNormEncoder(Encoder[Config]):
    """BERT's plan (arXiv 1810.04805): tables of words, positions and types; blocks that norm what they have added.

    Attributes:
        layers: what the names of the blocks begin with, before the layer's number.
        names: those of the parts of a block.
    """

    layers: ClassVar[str]
    names: ClassVar[Names]

    def __init__(self, config: Config, weights: Weights) -> None:
        super().__init__(config, weights)
        self.embeddings = Embeddings(weights.under("embeddings"), config)
        self.blocks = [
            PostNormBlock(weights.under(f"{self.layers}.{layer}"), config, self.names)
            for layer in range(config.num_hidden_layers)
        ]
        self.bias: _C.Tensor | None = None  # of the attention, f32 [heads, 2 · reach + 1]

    def __call__(self, batch: EncoderBatch, rows: _C.Tensor | None = None) -> _C.Tensor:
        x = self.embeddings(batch)
        *most, last = self.blocks
        for block in most:
            x = block(x, batch, bias=self.bias)
        return last(x, batch, bias=self.bias, rows=rows)


class ModernNames:
    """A source of tensors in which a norm's weight and bias are not called gamma and beta, as TensorFlow did."""

    def __init__(self, source: TensorSource) -> None:
        self._source = source
        self._originals = {OLD_NORM.sub(lambda match: NORM_PARTS[match[0]], name): name for name in source.names()}

    @property
    def origin(self) -> str:
        return self._source.origin

    def names(self) -> Iterable[str]:
        return self._originals.keys()

    def find(self, name: str, shape: tuple[int, ...]) -> _C.Tensor | None:
        return self._source.find(self._originals.get(name, name), shape)

    def find_packed(self, name: str) -> PackedParts | None:
        return self._source.find_packed(self._originals.get(name, name))


OLD_NORM = re.compile(r"(?<=LayerNorm\.)(gamma|beta)$")
NORM_PARTS = {"gamma": "weight", "beta": "bias"}
