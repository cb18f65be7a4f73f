"""Qwen1.5-MoE and Qwen2-MoE (arXiv 2407.10671): a Qwen2 with experts, and a shared one beside them."""

from __future__ import annotations

from dataclasses import dataclass

from fermi.models.blocks import Mixer
from fermi.models.config import FULL, SLIDING, DecoderConfig, layer_kinds, windows_of
from fermi.models.decoder import Decoder
from fermi.models.experts import Experts, Mixture, MixtureConfig, Router, SharedExpert
from fermi.models.fields import Fields
from fermi.models.layers import Attention, GatedMlp
from fermi.models.weights import Weights

__all__ = ["Qwen2Moe", "Qwen2MoeConfig"]


@dataclass(frozen=True, kw_only=True)
class Qwen2MoeConfig(MixtureConfig):
    """Of a Qwen2-MoE: ``windows`` holds, for each layer, the tokens that a query sees, itself included; 0: all."""

    shared_expert_intermediate_size: int
    qkv_bias: bool
    windows: tuple[int, ...]


class Qwen2Moe(Decoder[Qwen2MoeConfig]):
    """Biases on queries, keys and values only; some layers may slide."""

    @classmethod
    def read_config(cls, fields: Fields) -> Qwen2MoeConfig:
        fields.expect("mlp_bias", False)
        common = DecoderConfig.common(fields, max_position_embeddings=32768, num_key_value_heads=16)
        layers = common["num_hidden_layers"]
        return Qwen2MoeConfig(
            **common,
            **MixtureConfig.mixture(fields, layers, experts=60, per_token=4, inner=1408),
            shared_expert_intermediate_size=fields.integer(
                "shared_expert_intermediate_size", default=5632, maximum=2**24
            ),
            qkv_bias=fields.flag("qkv_bias", default=True),
            windows=_windows(fields, layers),
        )

    def attention(self, config: Qwen2MoeConfig, layer: int, weights: Weights) -> Attention:
        return Attention(weights, config, bias=config.qkv_bias, window=config.windows[layer])

    def mlp(self, config: Qwen2MoeConfig, layer: int, weights: Weights) -> Mixer:
        if not config.sparse_layers[layer]:
            return GatedMlp(weights, config)
        shared = SharedExpert(weights, config, config.shared_expert_intermediate_size)
        return Mixture(Router(weights, config), Experts(weights.under("experts"), config), shared)


def _windows(fields: Fields, layers: int) -> tuple[int, ...]:
    """The window of each layer: without layer_types every other one slides, up to max_window_layers."""
    sliding = fields.flag("use_sliding_window", default=False)
    last = fields.integer("max_window_layers", default=28, minimum=0)
    if not sliding:
        fields.raw("sliding_window")  # written as 0 then
    window = (fields.optional_integer("sliding_window", absent=4096) or 0) if sliding else 0
    absent = [SLIDING if window and layer % 2 == 0 and layer < last else FULL for layer in range(layers)]
    return windows_of(fields, layer_kinds(fields, absent), window)
