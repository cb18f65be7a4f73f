"""GPT-NeoX (arXiv 2204.06745) and Pythia (arXiv 2304.01373): attention and MLP side by side, each behind a norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fermi import _C
from fermi.models.blocks import Block, Layer, ParallelBlock
from fermi.models.config import DecoderConfig, expect_plain_heads
from fermi.models.decoder import Decoder, Names
from fermi.models.fields import Fields
from fermi.models.layers import CausalAttention, LayerNorm, Linear, Mlp, Norm
from fermi.models.weights import Weights

__all__ = ["GPTNeoX", "GPTNeoXConfig"]

SPELLING = {
    "rms_norm_eps": "layer_norm_eps",
    "rope_theta": "rotary_emb_base",
    "partial_rotary_factor": "rotary_pct",
}


@dataclass(frozen=True, kw_only=True)
class GPTNeoXConfig(DecoderConfig):
    """Of a GPT-NeoX: ``use_parallel_residual`` says whether the MLP sees what the attention saw, or what it left."""

    attention_bias: bool
    use_parallel_residual: bool


class InterleavedAttention(CausalAttention):
    """One matrix brings forth query, key and value of the first head, then those of the second, and so on."""

    def heads(self, x: _C.Tensor, norm: Norm | None) -> list[_C.Tensor]:
        together = self.qkv(x, norm=norm).unflatten(1, (-1, 3 * self.head_dim))
        return together.split([self.head_dim] * 3)


class GPTNeoX(Decoder[GPTNeoXConfig]):
    """Layer norms and biases; a quarter of a head turns."""

    classes: ClassVar[tuple[str, ...]] = ("GPTNeoXForCausalLM",)
    names = Names(body="gpt_neox", embedding="embed_in", norm="final_layer_norm", head="embed_out")

    @classmethod
    def read_config(cls, fields: Fields) -> GPTNeoXConfig:
        common = DecoderConfig.common(
            fields.spelled(SPELLING),
            max_position_embeddings=2048,
            hidden_act="gelu",
            rms_norm_eps=1e-5,
            partial_rotary_factor=0.25,
        )
        expect_plain_heads(fields, common)
        _expect_one_rope(fields)
        return GPTNeoXConfig(
            **common,
            attention_bias=fields.flag("attention_bias", default=True),
            use_parallel_residual=fields.flag("use_parallel_residual", default=True),
        )

    def block(self, config: GPTNeoXConfig, layer: int, weights: Weights) -> Layer:
        kind = ParallelBlock if config.use_parallel_residual else Block
        return kind(
            self.make_norm(config, weights.under("input_layernorm")),
            self.attention(config, layer, weights.under("attention")),
            self.make_norm(config, weights.under("post_attention_layernorm")),
            self.mlp(config, layer, weights.under("mlp")),
        )

    def attention(self, config: GPTNeoXConfig, layer: int, weights: Weights) -> InterleavedAttention:
        weights.tolerate("bias", "masked_bias")  # the causal mask, once saved beside the weights
        hidden, bias = config.hidden_size, config.attention_bias
        return InterleavedAttention(
            Linear(weights, {"query_key_value": 3 * hidden}, hidden, bias=bias),
            Linear(weights, {"dense": hidden}, hidden, bias=bias),
            config.head_dim,
        )

    def mlp(self, config: GPTNeoXConfig, layer: int, weights: Weights) -> Mlp:
        hidden, inner = config.hidden_size, config.intermediate_size
        return Mlp(
            Linear(weights, {"dense_h_to_4h": inner}, hidden, bias=True),
            Linear(weights, {"dense_4h_to_h": hidden}, inner, bias=True),
            config.hidden_act,
        )

    def make_norm(self, config: GPTNeoXConfig, weights: Weights) -> LayerNorm:
        return LayerNorm(weights, config.hidden_size, config.norm_epsilon)


def _expect_one_rope(fields: Fields) -> None:
    """Refuses rotary fields under two names that say different things: some versions of Transformers wrote both."""
    for name, older in (("rope_theta", "rotary_emb_base"), ("partial_rotary_factor", "rotary_pct")):
        if name in fields and (older not in fields or fields.number(name) != fields.number(older)):
            raise fields.unsupported(name, f"does not stand beside the same {older}, which would hold")
