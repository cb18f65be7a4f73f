"""Phi-3, Phi-3.5 and Phi-4-mini (arXiv 2404.14219, 2503.01743): a Llama whose projections are stored fused."""

from __future__ import annotations

from dataclasses import dataclass

from fermi.models.config import DecoderConfig
from fermi.models.decoder import Decoder
from fermi.models.fields import Fields
from fermi.models.layers import CausalAttention, FusedLinear, Linear, Mlp
from fermi.models.rope import LONGROPE_ONLY, RopeParameters
from fermi.models.weights import Weights

__all__ = ["Phi3", "Phi3Config"]

#: Switches of Microsoft's own code, as its published models have them.
EXPECTED: dict[str, object] = {
    "attention_bias": False,
    "mlp_bias": False,
    "lm_head_bias": False,
    "full_attn_mod": 1,
    "interpolate_factor": 1,
}


@dataclass(frozen=True, kw_only=True)
class Phi3Config(DecoderConfig):
    """Of a Phi-3: ``sliding_window`` counts the tokens that a query sees, itself included; None: all."""

    sliding_window: int | None


class Phi3(Decoder[Phi3Config]):
    """No biases; parts of a head turn; the same window in every layer. As in Transformers, a sequence that outgrows
    LongRoPE's original context is computed anew, with the long factors for all its tokens."""

    rope_switches = True

    @classmethod
    def read_config(cls, fields: Fields) -> Phi3Config:
        for name, value in EXPECTED.items():
            fields.expect(name, value)
        sizes = DecoderConfig.sizes(fields, max_position_embeddings=4096, rms_norm_eps=1e-5)
        rope = RopeParameters.read(
            fields,
            head_dim=sizes["head_dim"],
            max_position_embeddings=sizes["max_position_embeddings"],
            original_max_position_embeddings=4096,
            scalings=LONGROPE_ONLY,
        )
        return Phi3Config(**sizes, rope_parameters=rope, sliding_window=fields.optional_integer("sliding_window"))

    def attention(self, config: Phi3Config, layer: int, weights: Weights) -> CausalAttention:
        queries, keys = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        return CausalAttention(
            FusedLinear(weights, "qkv_proj", [queries, keys, keys], config.hidden_size),
            Linear(weights, {"o_proj": config.hidden_size}, queries),
            config.head_dim,
            window=config.sliding_window or 0,
        )

    def mlp(self, config: Phi3Config, layer: int, weights: Weights) -> Mlp:
        hidden, inner = config.hidden_size, config.intermediate_size
        return Mlp(
            FusedLinear(weights, "gate_up_proj", [inner, inner], hidden),
            Linear(weights, {"down_proj": hidden}, inner),
            config.hidden_act,
        )
