"""Mixtral (arXiv 2401.04088): a Mistral whose every MLP is a mixture of experts."""

from __future__ import annotations

from dataclasses import dataclass

from fermi.models.blocks import Block
from fermi.models.config import DecoderConfig
from fermi.models.decoder import Decoder
from fermi.models.experts import TRAINING, Experts, Mixture, MixtureConfig, Router, read_per_token
from fermi.models.fields import Fields
from fermi.models.layers import Attention
from fermi.models.weights import Weights

__all__ = ["Mixtral", "MixtralConfig"]


@dataclass(frozen=True, kw_only=True)
class MixtralConfig(MixtureConfig):
    """Of a Mixtral: ``sliding_window`` counts the tokens that a query sees, itself included; None: all."""

    sliding_window: int | None


class Mixtral(Decoder[MixtralConfig]):
    """No biases; the same window in every layer; the weights of a token's experts add up to one."""

    @classmethod
    def read_config(cls, fields: Fields) -> MixtralConfig:
        fields.expect("attention_bias", False)
        fields.expect("mlp_bias", False)
        fields.ignore(TRAINING)
        common = DecoderConfig.common(
            fields,
            max_position_embeddings=4096 * 32,
            num_key_value_heads=8,
            rms_norm_eps=1e-5,
            rope_theta=1e6,
        )
        experts = fields.integer("num_local_experts", default=8, maximum=2**16)
        return MixtralConfig(
            **common,
            num_experts=experts,
            num_experts_per_tok=read_per_token(fields, default=2, experts=experts),
            moe_intermediate_size=common["intermediate_size"],
            norm_topk_prob=True,
            sparse_layers=(True,) * common["num_hidden_layers"],
            sliding_window=fields.optional_integer("sliding_window"),
        )

    def attention(self, config: MixtralConfig, layer: int, weights: Weights) -> Attention:
        return Attention(weights, config, window=config.sliding_window or 0)

    def block(self, config: MixtralConfig, layer: int, weights: Weights) -> Block:
        # Transformers writes the second name where it stacks experts.
        mixture = weights.under("mlp" if "mlp.gate.weight" in weights else "block_sparse_moe")
        return Block(
            self.make_norm(config, weights.under("input_layernorm")),
            self.attention(config, layer, weights.under("self_attn")),
            self.make_norm(config, weights.under("post_attention_layernorm")),
            Mixture(Router(mixture, config), Experts(mixture.under("experts"), config, ("w1", "w3", "w2"))),
        )
