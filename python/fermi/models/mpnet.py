"""MPNet (arXiv 2004.09297): RoBERTa without token types, and with a bias by relative distance in every attention."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fermi import _C
from fermi.models.encoder import EncoderConfig, Int32, Names, PostNormEncoder
from fermi.models.fields import Fields
from fermi.models.roberta import ROBERTA_CLASSIFIER, ROBERTA_HEADS, positions_behind
from fermi.models.weights import Weights

__all__ = ["MPNet", "MPNetConfig", "distance_buckets"]

#: Transformers writes these into the model's code, whatever config.json says of padding and buckets.
PADDING = 1
BUCKETS = 32

#: From this distance on, all share a bucket.
FARTHEST = 128


@dataclass(frozen=True, kw_only=True)
class MPNetConfig(EncoderConfig):
    """Of an MPNet: how many rows the table of biases has; the first 32 are in use."""

    relative_attention_num_buckets: int


class MPNet(PostNormEncoder[MPNetConfig]):
    """Learned absolute positions, and learned biases for each head and bucket of distances, shared by all layers."""

    prefix = "mpnet"
    layers = "encoder.layer"
    names = Names(
        query="attention.attn.q",
        key="attention.attn.k",
        value="attention.attn.v",
        output="attention.attn.o",
        attention_norm="attention.LayerNorm",
        up="intermediate.dense",
        down="output.dense",
        mlp_norm="output.LayerNorm",
    )
    heads = ROBERTA_HEADS
    classifier = ROBERTA_CLASSIFIER

    def __init__(self, config: MPNetConfig, weights: Weights) -> None:
        super().__init__(config, weights)
        self.max_seq_length = config.max_position_embeddings - PADDING - 1
        rows = config.relative_attention_num_buckets
        buckets = weights.table("encoder.relative_attention_bias.weight", rows, config.num_attention_heads)
        if buckets.shape[0] == rows:  # else it is missing, which `Weights.check` will tell
            self.bias = by_distance(buckets, weights.backend)

    @classmethod
    def read_config(cls, config: Fields) -> MPNetConfig:
        config.expect("type_vocab_size", 0)
        common = EncoderConfig.common(config, type_vocab_size=0)
        if common["max_position_embeddings"] <= PADDING + 1:
            raise config.malformed("max_position_embeddings", f"must be more than {PADDING + 1}")
        return MPNetConfig(
            **common,
            relative_attention_num_buckets=config.integer(
                "relative_attention_num_buckets", default=BUCKETS, minimum=BUCKETS, maximum=2**16
            ),
        )

    def table_positions(self, token_ids: Int32) -> Int32:
        return positions_behind(PADDING, token_ids)


def by_distance(buckets: _C.Weight, backend: _C.Backend) -> _C.Tensor:
    """The biases [buckets, heads] laid out by distance: [heads, 2 · reach + 1], key before query first."""
    distances = np.arange(-FARTHEST, FARTHEST + 1)
    with backend:
        rows = _C.embed(_C.Tensor.from_numpy(distance_buckets(distances)), buckets).float32()
    return _C.Tensor.from_numpy(np.ascontiguousarray(rows.T))


def distance_buckets(distances: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Int32:
    """The bucket of each distance, key's position - query's: exact up to 7, then logarithmic; keys behind the query
    have buckets of their own (arXiv 1910.10683). Rounded as in PyTorch: float32, cut to an integer."""
    half = BUCKETS // 2
    exact = half // 2
    far = np.abs(distances)
    logarithm = np.log(np.maximum(far, 1).astype(np.float32) / np.float32(exact))
    share = logarithm / np.float32(math.log(FARTHEST / exact)) * np.float32(half - exact)
    coarse = np.minimum(exact + share.astype(np.int64), half - 1)
    return (np.where(far < exact, far, coarse) + np.where(distances > 0, half, 0)).astype(np.int32)
