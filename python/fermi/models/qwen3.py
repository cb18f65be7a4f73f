"""Qwen3 (arXiv 2505.09388): queries and keys are normed head by head; some layers may slide."""

from __future__ import annotations

from dataclasses import dataclass

from fermi.models.config import DecoderConfig, layer_windows
from fermi.models.decoder import Decoder
from fermi.models.fields import Fields
from fermi.models.layers import Attention
from fermi.models.weights import Weights

__all__ = ["Qwen3", "Qwen3Config"]


@dataclass(frozen=True, kw_only=True)
class Qwen3Config(DecoderConfig):
    """Of a Qwen3: ``windows`` holds, for each layer, the tokens that a query sees, itself included; 0: all."""

    attention_bias: bool
    windows: tuple[int, ...]


class Qwen3(Decoder[Qwen3Config]):
    """Norms over each query's and key's head, before they turn."""

    @classmethod
    def read_config(cls, fields: Fields) -> Qwen3Config:
        fields.expect("mlp_bias", False)
        common = DecoderConfig.common(fields, max_position_embeddings=32768, num_key_value_heads=32, head_dim=128)
        return Qwen3Config(
            **common,
            attention_bias=fields.flag("attention_bias", default=False),
            windows=layer_windows(fields, common["num_hidden_layers"]),
        )

    def attention(self, config: Qwen3Config, layer: int, weights: Weights) -> Attention:
        return Attention(
            weights,
            config,
            bias=config.attention_bias,
            output_bias=config.attention_bias,
            norm_epsilon=config.norm_epsilon,
            window=config.windows[layer],
        )
