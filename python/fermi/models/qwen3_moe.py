"""Qwen3-MoE (arXiv 2505.09388): a Qwen3 whose MLPs, or some of them, are mixtures of experts."""

from __future__ import annotations

from dataclasses import dataclass

from fermi.models.blocks import Mixer
from fermi.models.config import DecoderConfig
from fermi.models.decoder import Decoder
from fermi.models.experts import Experts, Mixture, MixtureConfig, Router
from fermi.models.fields import Fields
from fermi.models.layers import Attention, GatedMlp
from fermi.models.weights import Weights

__all__ = ["Qwen3Moe", "Qwen3MoeConfig"]

#: Switches that Transformers does not know, as published models have them.
EXPECTED: dict[str, object] = {
    "mlp_bias": False,
    "qkv_bias": False,
    "use_qk_norm": True,
    "shared_expert_intermediate_size": 0,
}


@dataclass(frozen=True, kw_only=True)
class Qwen3MoeConfig(MixtureConfig):
    """Of a Qwen3-MoE: ``window`` counts the tokens that a query sees, itself included; 0: all."""

    attention_bias: bool
    window: int


class Qwen3Moe(Decoder[Qwen3MoeConfig]):
    """Norms over each query's and key's head, before they turn; the same window in every layer."""

    @classmethod
    def read_config(cls, fields: Fields) -> Qwen3MoeConfig:
        for name, value in EXPECTED.items():
            fields.expect(name, value)
        common = DecoderConfig.common(fields, max_position_embeddings=32768, num_key_value_heads=4)
        window = fields.optional_integer("sliding_window", absent=4096)
        fields.ignore(frozenset({"max_window_layers"}))  # of other models of the family
        return Qwen3MoeConfig(
            **common,
            **MixtureConfig.mixture(fields, common["num_hidden_layers"], experts=128, per_token=8, inner=768),
            attention_bias=fields.flag("attention_bias", default=False),
            window=(window or 0) if fields.flag("use_sliding_window", default=False) else 0,
        )

    def attention(self, config: Qwen3MoeConfig, layer: int, weights: Weights) -> Attention:
        return Attention(
            weights,
            config,
            bias=config.attention_bias,
            output_bias=config.attention_bias,
            norm_epsilon=config.norm_epsilon,
            window=config.window,
        )

    def mlp(self, config: Qwen3MoeConfig, layer: int, weights: Weights) -> Mixer:
        if not config.sparse_layers[layer]:
            return GatedMlp(weights, config)
        return Mixture(Router(weights, config), Experts(weights.under("experts"), config))
