"""The part of config.json that decoders share, under the checkpoint's field names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from fermi import _C
from fermi.models.benign_fields import BENIGN_FIELDS
from fermi.models.fields import Fields
from fermi.models.quantization_config import QuantizationConfig
from fermi.models.rope import RopeParameters

__all__ = ["DecoderConfig", "layer_windows"]

#: Transformers' names of activations, and ours. Its three writings of the tanh approximation are one function.
ACTIVATIONS: Mapping[str, _C.ActivationName] = MappingProxyType(
    {
        "silu": "silu",
        "swish": "silu",
        "gelu": "gelu",
        "gelu_new": "gelu_tanh",
        "gelu_fast": "gelu_tanh",
        "gelu_pytorch_tanh": "gelu_tanh",
        "relu": "relu",
    }
)

#: Switches that must stand as these models know them.
EXPECTED: Mapping[str, object] = MappingProxyType(
    {
        "is_encoder_decoder": False,
        "add_cross_attention": False,
        "is_causal": True,
        "use_bidirectional_attention": False,
        "use_mrope": False,
        "rope_interleaved": False,
        "pretraining_tp": 1,
        "pruned_heads": {},
    }
)

#: More layers than any model has; a loop over them stays short.
MOST_LAYERS = 4096


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """A decoder of pre-norm blocks with rotary, grouped-query attention and a gated MLP."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    hidden_act: _C.ActivationName
    max_position_embeddings: int
    rms_norm_eps: float
    tie_word_embeddings: bool
    rope_parameters: RopeParameters
    quantization: QuantizationConfig | None

    @staticmethod
    def common(
        fields: Fields,
        *,
        max_position_embeddings: int,
        num_key_value_heads: int | None = None,
        head_dim: int | None = None,
    ) -> dict[str, Any]:
        """The attributes of this class, read and checked; the arguments are what Transformers takes for absent fields.

        Raises CheckpointError naming a malformed field, UnsupportedModelError naming one that is not honoured.
        """
        fields.ignore(BENIGN_FIELDS)
        for name, value in EXPECTED.items():
            fields.expect(name, value)
        hidden_size = fields.integer("hidden_size", maximum=2**20)
        heads = fields.integer("num_attention_heads", maximum=2**16)
        kv_heads = fields.optional_integer("num_key_value_heads", absent=num_key_value_heads) or heads
        if heads % kv_heads:
            raise fields.malformed("num_key_value_heads", f"must divide num_attention_heads ({heads}), not {kv_heads}")
        if head_dim is None and "head_dim" not in fields and hidden_size % heads:
            raise fields.malformed("num_attention_heads", f"must divide hidden_size ({hidden_size}), not {heads}")
        head_dim = fields.integer("head_dim", default=head_dim or hidden_size // heads, maximum=2**16)
        positions = fields.integer("max_position_embeddings", default=max_position_embeddings)
        return {
            "vocab_size": fields.integer("vocab_size", maximum=2**24),
            "hidden_size": hidden_size,
            "intermediate_size": fields.integer("intermediate_size", maximum=2**24),
            "num_hidden_layers": fields.integer("num_hidden_layers", maximum=MOST_LAYERS),
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "head_dim": head_dim,
            "hidden_act": fields.choice("hidden_act", ACTIVATIONS, default="silu"),
            "max_position_embeddings": positions,
            "rms_norm_eps": fields.number("rms_norm_eps", default=1e-6),
            "tie_word_embeddings": fields.flag("tie_word_embeddings", default=False),
            "rope_parameters": RopeParameters.read(fields, head_dim=head_dim, max_position_embeddings=positions),
            "quantization": QuantizationConfig.read(fields),
        }


def layer_windows(fields: Fields, layers: int) -> tuple[int, ...]:
    """The attention window of each layer, 0 where it sees everything, as Qwen models write it.

    layer_types says it layer by layer; without it, layers from max_window_layers on slide if use_sliding_window is set.
    """
    sliding = fields.flag("use_sliding_window", default=False)
    window = (fields.optional_integer("sliding_window", absent=4096) or 0) if sliding else 0
    first = fields.integer("max_window_layers", default=28, minimum=0)
    kinds = fields.raw("layer_types")
    if not sliding:
        fields.raw("sliding_window")
    if kinds is None:
        return tuple(window if layer >= first else 0 for layer in range(layers))
    if not isinstance(kinds, list) or len(kinds) != layers:
        raise fields.malformed("layer_types", f"must be a list of {layers} names, one for each layer")
    for layer, kind in enumerate(kinds):
        if kind not in ("full_attention", "sliding_attention"):
            raise fields.unsupported(f"layer_types[{layer}]", "is neither full_attention nor sliding_attention")
        if kind == "sliding_attention" and not window:
            raise fields.malformed(f"layer_types[{layer}]", "is sliding_attention, but there is no sliding_window")
    return tuple(window if kind == "sliding_attention" else 0 for kind in kinds)
