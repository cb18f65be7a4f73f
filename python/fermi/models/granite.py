"""Granite 3 (arXiv 2405.04324): a Llama with constants before embeddings, scores, residuals and logits (muP)."""

from __future__ import annotations

from dataclasses import dataclass

from fermi.models.config import DecoderConfig
from fermi.models.decoder import Decoder
from fermi.models.fields import Fields
from fermi.models.layers import Attention, GatedMlp, Head
from fermi.models.weights import Weights

__all__ = ["Granite", "GraniteConfig"]


@dataclass(frozen=True, kw_only=True)
class GraniteConfig(DecoderConfig):
    """Of a Granite: scores are multiplied by ``attention_multiplier``, logits divided by ``logits_scaling``."""

    attention_bias: bool
    mlp_bias: bool
    embedding_multiplier: float
    attention_multiplier: float
    residual_multiplier: float
    logits_scaling: float


class Granite(Decoder[GraniteConfig]):
    """What attention and MLP bring forth is multiplied before it is added."""

    def __init__(self, config: GraniteConfig, weights: Weights) -> None:
        super().__init__(config, weights)
        self.embedding.scale = config.embedding_multiplier

    @classmethod
    def read_config(cls, fields: Fields) -> GraniteConfig:
        return GraniteConfig(
            **DecoderConfig.common(fields, max_position_embeddings=2048),
            attention_bias=fields.flag("attention_bias", default=False),
            mlp_bias=fields.flag("mlp_bias", default=False),
            embedding_multiplier=fields.number("embedding_multiplier", default=1.0),
            attention_multiplier=fields.number("attention_multiplier", default=1.0),
            residual_multiplier=fields.number("residual_multiplier", default=1.0),
            logits_scaling=fields.number("logits_scaling", default=1.0),
        )

    def attention(self, config: GraniteConfig, layer: int, weights: Weights) -> Attention:
        return Attention(
            weights,
            config,
            bias=config.attention_bias,
            output_bias=config.attention_bias,
            output_scale=config.residual_multiplier,
            scale=config.attention_multiplier,
        )

    def mlp(self, config: GraniteConfig, layer: int, weights: Weights) -> GatedMlp:
        return GatedMlp(weights, config, bias=config.mlp_bias, scale=config.residual_multiplier)

    def make_head(self, config: GraniteConfig, weights: Weights) -> Head:
        return Head(self.head_matrix(config, weights), scale=1 / config.logits_scaling)
