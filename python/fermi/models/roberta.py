"""RoBERTa (arXiv 1907.11692) and XLM-R (arXiv 1911.02116): BERT whose positions begin behind the padding token's id."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fermi import _C
from fermi.models.bert import BERT_NAMES
from fermi.models.encoder import EncoderConfig, Int32, PostNormEncoder
from fermi.models.fields import Fields
from fermi.models.weights import Weights

__all__ = ["ROBERTA_CLASSIFIER", "ROBERTA_HEADS", "Roberta", "RobertaConfig", "positions_behind"]

ROBERTA_HEADS = (
    "embeddings.position_ids",
    "pooler.dense.weight",
    "pooler.dense.bias",
    "classifier.dense.weight",
    "classifier.dense.bias",
    "classifier.out_proj.weight",
    "classifier.out_proj.bias",
    "lm_head.bias",
    "lm_head.dense.weight",
    "lm_head.dense.bias",
    "lm_head.layer_norm.weight",
    "lm_head.layer_norm.bias",
    "lm_head.decoder.weight",
    "lm_head.decoder.bias",
)

ROBERTA_CLASSIFIER: tuple[tuple[str, _C.ActivationName | None], ...] = (
    ("classifier.dense", "tanh"),
    ("classifier.out_proj", None),
)


@dataclass(frozen=True, kw_only=True)
class RobertaConfig(EncoderConfig):
    """Of a RoBERTa: ``pad_token_id`` is the row of the table of positions behind which they begin."""

    pad_token_id: int


class Roberta(PostNormEncoder[RobertaConfig]):
    """Learned absolute positions from ``pad_token_id`` + 1 on, and token types."""

    prefix = "roberta"
    layers = "encoder.layer"
    names = BERT_NAMES
    heads = ROBERTA_HEADS
    classifier = ROBERTA_CLASSIFIER

    def __init__(self, config: RobertaConfig, weights: Weights) -> None:
        super().__init__(config, weights)
        self.max_seq_length = config.max_position_embeddings - config.pad_token_id - 1

    @classmethod
    def read_config(cls, config: Fields) -> RobertaConfig:
        config.expect("position_embedding_type", "absolute")
        common = EncoderConfig.common(config)
        padding = config.integer("pad_token_id", default=1, minimum=0)
        if padding + 1 >= common["max_position_embeddings"]:
            raise config.malformed("pad_token_id", f"leaves no positions behind {padding}")
        return RobertaConfig(**common, pad_token_id=padding)

    def table_positions(self, token_ids: Int32) -> Int32:
        return positions_behind(self.config.pad_token_id, token_ids)


def positions_behind(padding: int, token_ids: Int32) -> Int32:
    """Positions from ``padding`` + 1 on; padding tokens count none, and all sit at ``padding``."""
    real = token_ids != padding
    return np.where(real, np.cumsum(real) + padding, padding).astype(np.int32)
