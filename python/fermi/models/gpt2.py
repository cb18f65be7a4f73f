"""GPT-2 (Radford et al. 2019) and DialoGPT (arXiv 1911.00536): learned positions, matrices stored as [in, out]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fermi import _C
from fermi.models.blocks import Block
from fermi.models.config import DecoderConfig, expect_plain_heads
from fermi.models.decoder import Decoder, Names
from fermi.models.fields import Fields
from fermi.models.inputs import Batch
from fermi.models.layers import CausalAttention, LayerNorm, Mlp, TransposedLinear
from fermi.models.weights import Weights

__all__ = ["GPT2", "GPT2Config"]

SPELLING = {
    "hidden_size": "n_embd",
    "intermediate_size": "n_inner",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
    "hidden_act": "activation_function",
    "rms_norm_eps": "layer_norm_epsilon",
}

#: Of heads of other tasks, and of how Transformers computes the same.
BENIGN = frozenset(
    {"n_ctx", "reorder_and_upcast_attn", "summary_activation", "summary_first_dropout", "summary_proj_to_labels"}
    | {"summary_type", "summary_use_proj", "output_past", "n_special", "predict_special_tokens"}
)


@dataclass(frozen=True, kw_only=True)
class GPT2Config(DecoderConfig):
    """Of a GPT-2: scores are divided by the root of a head's size, and by the number of the layer, if these say so."""

    scale_attn_weights: bool
    scale_attn_by_inverse_layer_idx: bool


class GPT2(Decoder[GPT2Config]):
    """Layer norms and biases everywhere; no rotary embedding."""

    classes: ClassVar[tuple[str, ...]] = ("GPT2LMHeadModel",)
    names = Names(body="transformer", embedding="wte", layers="h", norm="ln_f")

    def __init__(self, config: GPT2Config, weights: Weights) -> None:
        self.positions = self.body(weights).table("wpe.weight", config.max_position_embeddings, config.hidden_size)
        super().__init__(config, weights)

    @classmethod
    def read_config(cls, fields: Fields) -> GPT2Config:
        fields.ignore(BENIGN)
        sizes = DecoderConfig.sizes(
            fields.spelled(SPELLING),
            max_position_embeddings=1024,
            intermediate_size=4 * fields.integer("n_embd", maximum=2**20),
            hidden_act="gelu_new",
            rms_norm_eps=1e-5,
            tie_word_embeddings=True,
        )
        expect_plain_heads(fields, sizes)
        return GPT2Config(
            **sizes,
            rope_parameters=None,
            scale_attn_weights=fields.flag("scale_attn_weights", default=True),
            scale_attn_by_inverse_layer_idx=fields.flag("scale_attn_by_inverse_layer_idx", default=False),
        )

    def embed(self, batch: Batch) -> _C.Tensor:
        return _C.embed(batch.positions, self.positions, residual=super().embed(batch))

    def block(self, config: GPT2Config, layer: int, weights: Weights) -> Block:
        return Block(
            self.make_norm(config, weights.under("ln_1")),
            self.attention(config, layer, weights.under("attn")),
            self.make_norm(config, weights.under("ln_2")),
            self.mlp(config, layer, weights.under("mlp")),
        )

    def attention(self, config: GPT2Config, layer: int, weights: Weights) -> CausalAttention:
        weights.tolerate("bias", "masked_bias")  # the causal mask, once saved beside the weights
        hidden = config.hidden_size
        scale = config.head_dim**-0.5 if config.scale_attn_weights else 1.0
        return CausalAttention(
            TransposedLinear(weights, "c_attn", [hidden] * 3, hidden),
            TransposedLinear(weights, "c_proj", [hidden], hidden),
            config.head_dim,
            scale=scale / (layer + 1) if config.scale_attn_by_inverse_layer_idx else scale,
        )

    def mlp(self, config: GPT2Config, layer: int, weights: Weights) -> Mlp:
        hidden, inner = config.hidden_size, config.intermediate_size
        return Mlp(
            TransposedLinear(weights, "c_fc", [inner], hidden),
            TransposedLinear(weights, "c_proj", [hidden], inner),
            config.hidden_act,
        )

    def make_norm(self, config: GPT2Config, weights: Weights) -> LayerNorm:
        return LayerNorm(weights, config.hidden_size, config.norm_epsilon)
