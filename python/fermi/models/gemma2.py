"""Gemma 2 (arXiv 2408.00118): capped scores and logits, norms behind attention and MLP, every other layer slides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

from fermi.models.blocks import PostNormBlock
from fermi.models.config import ACTIVATIONS, FULL, SLIDING, DecoderConfig, layer_kinds, windows_of
from fermi.models.fields import Fields
from fermi.models.gemma import GemmaFamily
from fermi.models.layers import Attention, GatedMlp, Head
from fermi.models.weights import Weights

__all__ = ["Gemma2", "Gemma2Config", "Gemma2Family"]

#: Gemma 2 and 3 have a field of their own for the activation.
SPELLING = {"hidden_act": "hidden_activation"}


@dataclass(frozen=True, kw_only=True)
class Gemma2Config(DecoderConfig):
    """Of a Gemma 2.

    Attributes:
        query_pre_attn_scalar: scores are divided by its root.
        attn_logit_softcapping, final_logit_softcapping: of scores and of logits; 0: none.
        windows: of each layer, the tokens that a query sees, itself included; 0: all.
    """

    attention_bias: bool
    query_pre_attn_scalar: float
    attn_logit_softcapping: float
    final_logit_softcapping: float
    windows: tuple[int, ...]

    @staticmethod
    def own(fields: Fields, kinds: list[str], *, attention_cap: float, final_cap: float) -> dict[str, Any]:
        """The attributes of this class; the arguments are what absent fields mean, ``kinds`` layer_types."""
        if "hidden_act" in fields and "hidden_activation" in fields:
            fields.expect("hidden_act", *(name for name in ACTIVATIONS if name.startswith("gelu")))
        window = fields.optional_integer("sliding_window", absent=4096) or 0
        fields.expect("sliding_window_size", window)
        return {
            "attention_bias": fields.flag("attention_bias", default=False),
            "query_pre_attn_scalar": fields.number("query_pre_attn_scalar", default=256.0),
            "attn_logit_softcapping": fields.optional_number("attn_logit_softcapping", absent=attention_cap) or 0.0,
            "final_logit_softcapping": fields.optional_number("final_logit_softcapping", absent=final_cap) or 0.0,
            "windows": windows_of(fields, kinds, window),
        }


Config = TypeVar("Config", bound=Gemma2Config)


class Gemma2Family(GemmaFamily[Config]):
    """Blocks with four norms."""

    def block(self, config: Config, layer: int, weights: Weights) -> PostNormBlock:
        return PostNormBlock(
            self.make_norm(config, weights.under("input_layernorm")),
            self.attention(config, layer, weights.under("self_attn")),
            self.make_norm(config, weights.under("post_attention_layernorm")),
            self.make_norm(config, weights.under("pre_feedforward_layernorm")),
            GatedMlp(weights.under("mlp"), config),
            self.make_norm(config, weights.under("post_feedforward_layernorm")),
        )

    def attention(self, config: Config, layer: int, weights: Weights) -> Attention:
        return Attention(
            weights,
            config,
            bias=config.attention_bias,
            output_bias=config.attention_bias,
            scale=config.query_pre_attn_scalar**-0.5,
            soft_cap=config.attn_logit_softcapping,
            window=config.windows[layer],
        )

    def make_head(self, config: Config, weights: Weights) -> Head:
        return Head(self.head_matrix(config, weights), soft_cap=config.final_logit_softcapping)


class Gemma2(Gemma2Family[Gemma2Config]):
    """As Gemma 2."""

    @classmethod
    def read_config(cls, fields: Fields) -> Gemma2Config:
        common = DecoderConfig.common(
            fields.spelled(SPELLING),
            max_position_embeddings=8192,
            num_key_value_heads=4,
            head_dim=256,
            hidden_act="gelu_pytorch_tanh",
            tie_word_embeddings=True,
        )
        layers = common["num_hidden_layers"]
        kinds = layer_kinds(fields, [FULL if layer % 2 else SLIDING for layer in range(layers)])
        return Gemma2Config(**common, **Gemma2Config.own(fields, kinds, attention_cap=50.0, final_cap=30.0))
