"""BERT (arXiv 1810.04805), and its architecture's users: MiniLM, E5, BGE, GTE, MS MARCO rerankers."""

from __future__ import annotations

from fermi.models.encoder import EncoderConfig, Names, PostNormEncoder
from fermi.models.fields import Fields

__all__ = ["BERT_NAMES", "Bert"]

BERT_NAMES = Names(
    query="attention.self.query",
    key="attention.self.key",
    value="attention.self.value",
    output="attention.output.dense",
    attention_norm="attention.output.LayerNorm",
    up="intermediate.dense",
    down="output.dense",
    mlp_norm="output.LayerNorm",
)


class Bert(PostNormEncoder[EncoderConfig]):
    """Learned absolute positions and token types."""

    prefix = "bert"
    layers = "encoder.layer"
    names = BERT_NAMES
    classifier = (("pooler.dense", "tanh"), ("classifier", None))
    heads = (
        "embeddings.position_ids",
        "pooler.dense.weight",
        "pooler.dense.bias",
        "classifier.weight",
        "classifier.bias",
        "cls.seq_relationship.weight",
        "cls.seq_relationship.bias",
        "cls.predictions.bias",
        "cls.predictions.decoder.weight",
        "cls.predictions.decoder.bias",
        "cls.predictions.transform.dense.weight",
        "cls.predictions.transform.dense.bias",
        "cls.predictions.transform.LayerNorm.weight",
        "cls.predictions.transform.LayerNorm.bias",
    )

    @classmethod
    def read_config(cls, config: Fields) -> EncoderConfig:
        config.expect("position_embedding_type", "absolute")
        return EncoderConfig(**EncoderConfig.common(config))
