"""Llama (arXiv 2302.13971, 2307.09288, 2407.21783), and its architecture's users: TinyLlama, SmolLM2, R1 distills."""

from __future__ import annotations

from dataclasses import dataclass

from fermi.models.config import DecoderConfig
from fermi.models.decoder import Decoder
from fermi.models.fields import Fields
from fermi.models.layers import Attention, GatedMlp
from fermi.models.weights import Weights

__all__ = ["Llama", "LlamaConfig"]


@dataclass(frozen=True, kw_only=True)
class LlamaConfig(DecoderConfig):
    """Of a Llama: every projection may have a bias."""

    attention_bias: bool
    mlp_bias: bool


class Llama(Decoder[LlamaConfig]):
    """Rotary grouped-query attention and a gated MLP."""

    @classmethod
    def read_config(cls, fields: Fields) -> LlamaConfig:
        common = DecoderConfig.common(fields, max_position_embeddings=2048)
        fields.expect("use_sliding_window", False)
        fields.expect("layer_types", ["full_attention"] * common["num_hidden_layers"])
        return LlamaConfig(
            **common,
            attention_bias=fields.flag("attention_bias", default=False),
            mlp_bias=fields.flag("mlp_bias", default=False),
        )

    def attention(self, config: LlamaConfig, layer: int, weights: Weights) -> Attention:
        return Attention(weights, config, bias=config.attention_bias, output_bias=config.attention_bias)

    def mlp(self, config: LlamaConfig, layer: int, weights: Weights) -> GatedMlp:
        return GatedMlp(weights, config, bias=config.mlp_bias)
