"""Mistral (arXiv 2310.06825): a Llama whose every layer attends within a sliding window."""

from __future__ import annotations

from dataclasses import dataclass

from fermi.models.config import DecoderConfig
from fermi.models.decoder import Decoder
from fermi.models.fields import Fields
from fermi.models.layers import Attention
from fermi.models.weights import Weights

__all__ = ["Mistral", "MistralConfig"]


@dataclass(frozen=True, kw_only=True)
class MistralConfig(DecoderConfig):
    """Of a Mistral: ``sliding_window`` counts the tokens that a query sees, itself included; None: all."""

    sliding_window: int | None


class Mistral(Decoder[MistralConfig]):
    """No biases; the same window in every layer."""

    @classmethod
    def read_config(cls, fields: Fields) -> MistralConfig:
        fields.expect("attention_bias", False)
        fields.expect("mlp_bias", False)
        common = DecoderConfig.common(fields, max_position_embeddings=4096 * 32, num_key_value_heads=8)
        window = fields.optional_integer("sliding_window", absent=4096)
        kind = "full_attention" if window is None else "sliding_attention"
        fields.expect("layer_types", [kind] * common["num_hidden_layers"])
        return MistralConfig(**common, sliding_window=window)

    def attention(self, config: MistralConfig, layer: int, weights: Weights) -> Attention:
        return Attention(weights, config, window=config.sliding_window or 0)
