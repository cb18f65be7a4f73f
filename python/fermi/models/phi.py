"""Phi-1, Phi-1.5 and Phi-2 (arXiv 2306.11644, 2309.05463): attention and MLP side by side, behind one layer norm."""

from __future__ import annotations

from fermi.models.blocks import ParallelBlock
from fermi.models.config import DecoderConfig
from fermi.models.decoder import Decoder, Names
from fermi.models.fields import Fields
from fermi.models.layers import Attention, Head, LayerNorm, Linear, Mlp
from fermi.models.weights import Weights

__all__ = ["Phi"]


class Phi(Decoder[DecoderConfig]):
    """Biases everywhere, the head's too; half of a head turns."""

    names = Names(norm="final_layernorm")

    @classmethod
    def read_config(cls, fields: Fields) -> DecoderConfig:
        fields.expect("qk_layernorm", False)
        common = DecoderConfig.common(
            fields.spelled({"rms_norm_eps": "layer_norm_eps"}),
            max_position_embeddings=2048,
            hidden_act="gelu_new",
            rms_norm_eps=1e-5,
            partial_rotary_factor=0.5,
        )
        return DecoderConfig(**common)

    def block(self, config: DecoderConfig, layer: int, weights: Weights) -> ParallelBlock:
        norm = self.make_norm(config, weights.under("input_layernorm"))
        attention = self.attention(config, layer, weights.under("self_attn"))
        return ParallelBlock(norm, attention, norm, self.mlp(config, layer, weights.under("mlp")))

    def attention(self, config: DecoderConfig, layer: int, weights: Weights) -> Attention:
        return Attention(weights, config, bias=True, output="dense", output_bias=True)

    def mlp(self, config: DecoderConfig, layer: int, weights: Weights) -> Mlp:
        hidden, inner = config.hidden_size, config.intermediate_size
        return Mlp(
            Linear(weights, {"fc1": inner}, hidden, bias=True),
            Linear(weights, {"fc2": hidden}, inner, bias=True),
            config.hidden_act,
        )

    def make_norm(self, config: DecoderConfig, weights: Weights) -> LayerNorm:
        return LayerNorm(weights, config.hidden_size, config.norm_epsilon)

    def make_head(self, config: DecoderConfig, weights: Weights) -> Head:
        return Head(self.head_matrix(config, weights), weights.vector("lm_head.bias", config.vocab_size))
