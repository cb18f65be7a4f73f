"""StarCoder2 (arXiv 2402.19173): layer norms, biases, an MLP without a gate, the same window in every layer."""

from __future__ import annotations

from dataclasses import dataclass

from fermi.models.config import DecoderConfig
from fermi.models.decoder import Decoder
from fermi.models.fields import Fields
from fermi.models.layers import Attention, LayerNorm, Linear, Mlp
from fermi.models.weights import Weights

__all__ = ["Starcoder2", "Starcoder2Config"]

#: Of the model that it grew from: hidden_act and norm_epsilon stand beside them, and hold.
OLDER = frozenset({"activation_function", "layer_norm_epsilon"})


@dataclass(frozen=True, kw_only=True)
class Starcoder2Config(DecoderConfig):
    """Of a StarCoder2: ``sliding_window`` counts the tokens that a query sees, itself included; None: all."""

    use_bias: bool
    sliding_window: int | None


class Starcoder2(Decoder[Starcoder2Config]):
    """Grouped-query attention and a plain MLP."""

    @classmethod
    def read_config(cls, fields: Fields) -> Starcoder2Config:
        # of Transformers' configs before the model became a part of it
        fields.expect("norm_type", "layer_norm")
        fields.expect("mlp_type", "default")
        fields.expect("scale_attention_softmax_in_fp32", True)
        fields.expect("scale_attn_weights", True)
        fields.expect("attention_softmax_in_fp32", True)
        fields.ignore(OLDER)
        common = DecoderConfig.common(
            fields.spelled({"rms_norm_eps": "norm_epsilon"}),
            max_position_embeddings=4096,
            num_key_value_heads=2,
            hidden_act="gelu_pytorch_tanh",
            rms_norm_eps=1e-5,
            tie_word_embeddings=True,
        )
        return Starcoder2Config(
            **common,
            use_bias=fields.flag("use_bias", default=True),
            sliding_window=fields.optional_integer("sliding_window"),
        )

    def attention(self, config: Starcoder2Config, layer: int, weights: Weights) -> Attention:
        bias = config.use_bias
        return Attention(weights, config, bias=bias, output_bias=bias, window=config.sliding_window or 0)

    def mlp(self, config: Starcoder2Config, layer: int, weights: Weights) -> Mlp:
        hidden, inner, bias = config.hidden_size, config.intermediate_size, config.use_bias
        return Mlp(
            Linear(weights, {"c_fc": inner}, hidden, bias=bias),
            Linear(weights, {"c_proj": hidden}, inner, bias=bias),
            config.hidden_act,
        )

    def make_norm(self, config: Starcoder2Config, weights: Weights) -> LayerNorm:
        return LayerNorm(weights, config.hidden_size, config.norm_epsilon)
