"""Qwen2 and Qwen2.5 (arXiv 2407.10671, 2412.15115): queries, keys and values have biases; some layers may slide."""

from __future__ import annotations

from dataclasses import dataclass

from fermi.models.config import DecoderConfig, layer_windows
from fermi.models.decoder import Decoder
from fermi.models.fields import Fields
from fermi.models.layers import Attention
from fermi.models.weights import Weights

__all__ = ["Qwen2", "Qwen2Config"]


@dataclass(frozen=True, kw_only=True)
class Qwen2Config(DecoderConfig):
    """Of a Qwen2: ``windows`` holds, for each layer, the tokens that a query sees, itself included; 0: all."""

    windows: tuple[int, ...]


class Qwen2(Decoder[Qwen2Config]):
    """Biases on queries, keys and values only."""

    @classmethod
    def read_config(cls, fields: Fields) -> Qwen2Config:
        fields.expect("attention_bias", True)
        fields.expect("mlp_bias", False)
        common = DecoderConfig.common(fields, max_position_embeddings=32768, num_key_value_heads=32)
        return Qwen2Config(**common, windows=layer_windows(fields, common["num_hidden_layers"]))

    def attention(self, config: Qwen2Config, layer: int, weights: Weights) -> Attention:
        return Attention(weights, config, bias=True, window=config.windows[layer])
