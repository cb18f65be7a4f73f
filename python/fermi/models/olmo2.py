"""OLMo 2 (arXiv 2501.00656): norms behind attention and MLP instead of before them, and over all queries and keys."""

from __future__ import annotations

from dataclasses import dataclass

from fermi import _C
from fermi.models.blocks import PostNormBlock
from fermi.models.config import DecoderConfig
from fermi.models.decoder import Decoder
from fermi.models.fields import Fields
from fermi.models.layers import Attention, GatedMlp, Norm, RmsNorm
from fermi.models.weights import Weights

__all__ = ["Olmo2", "Olmo2Config"]


@dataclass(frozen=True, kw_only=True)
class Olmo2Config(DecoderConfig):
    """Of an OLMo 2."""

    attention_bias: bool


class NormedAttention(Attention):
    """Queries and keys are normed over all heads together."""

    def __init__(self, weights: Weights, config: Olmo2Config) -> None:
        super().__init__(weights, config, bias=config.attention_bias, output_bias=config.attention_bias)
        queries, keys, _ = self.qkv.sizes
        self.q_norm = RmsNorm(weights.under("q_norm"), queries, config.norm_epsilon)
        self.k_norm = RmsNorm(weights.under("k_norm"), keys, config.norm_epsilon)

    def heads(self, x: _C.Tensor, norm: Norm | None) -> list[_C.Tensor]:
        q, k, v = self.qkv(x, norm=norm).split(self.qkv.sizes)
        return [part.unflatten(1, (-1, self.head_dim)) for part in (self.q_norm(q), self.k_norm(k), v)]


class Olmo2(Decoder[Olmo2Config]):
    """Nothing is normed on its way in."""

    @classmethod
    def read_config(cls, fields: Fields) -> Olmo2Config:
        common = DecoderConfig.common(fields, max_position_embeddings=2048, rms_norm_eps=1e-5)
        return Olmo2Config(**common, attention_bias=fields.flag("attention_bias", default=False))

    def attention(self, config: Olmo2Config, layer: int, weights: Weights) -> NormedAttention:
        return NormedAttention(weights, config)

    def block(self, config: Olmo2Config, layer: int, weights: Weights) -> PostNormBlock:
        return PostNormBlock(
            None,
            self.attention(config, layer, weights.under("self_attn")),
            self.make_norm(config, weights.under("post_attention_layernorm")),
            None,
            GatedMlp(weights.under("mlp"), config),
            self.make_norm(config, weights.under("post_feedforward_layernorm")),
        )
