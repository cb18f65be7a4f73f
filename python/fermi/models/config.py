"""The part of config.json that decoders share, under the checkpoint's field names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from fermi import _C
from fermi.models.benign_fields import BENIGN_FIELDS
from fermi.models.fields import Fields
from fermi.models.quantization_config import QuantizationConfig
from fermi.models.rope import RopeParameters

__all__ = [
    "ACTIVATIONS",
    "FULL",
    "SLIDING",
    "DecoderConfig",
    "expect_plain_heads",
    "layer_kinds",
    "layer_windows",
    "windows_of",
]

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
        "pruned_heads": {},
    }
)

#: More layers than any model has; a loop over them stays short.
MOST_LAYERS = 4096

FULL, SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """A decoder of blocks of attention and MLP.

    Attributes:
        norm_epsilon: of its norms: the checkpoint's rms_norm_eps, layer_norm_eps, norm_epsilon …
        rope_parameters: None where heads do not turn.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    hidden_act: _C.ActivationName
    max_position_embeddings: int
    norm_epsilon: float
    tie_word_embeddings: bool
    rope_parameters: RopeParameters | None
    quantization: QuantizationConfig | None

    @staticmethod
    def common(
        fields: Fields,
        *,
        max_position_embeddings: int,
        num_key_value_heads: int | None = None,
        head_dim: int | None = None,
        hidden_act: str = "silu",
        rms_norm_eps: float = 1e-6,
        tie_word_embeddings: bool = False,
        rope_theta: float = 10_000.0,
        partial_rotary_factor: float = 1.0,
    ) -> dict[str, Any]:
        """The attributes of this class, read and checked; the arguments are what Transformers takes for absent fields.

        Raises CheckpointError naming a malformed field, UnsupportedModelError naming one that is not honoured.
        """
        sizes = DecoderConfig.sizes(
            fields,
            max_position_embeddings=max_position_embeddings,
            num_key_value_heads=num_key_value_heads,
            head_dim=head_dim,
            hidden_act=hidden_act,
            rms_norm_eps=rms_norm_eps,
            tie_word_embeddings=tie_word_embeddings,
        )
        rope = RopeParameters.read(
            fields,
            head_dim=sizes["head_dim"],
            max_position_embeddings=sizes["max_position_embeddings"],
            rope_theta=rope_theta,
            partial_rotary_factor=partial_rotary_factor,
        )
        return {**sizes, "rope_parameters": rope}

    @staticmethod
    def sizes(
        fields: Fields,
        *,
        max_position_embeddings: int,
        intermediate_size: int | None = None,
        num_key_value_heads: int | None = None,
        head_dim: int | None = None,
        hidden_act: str = "silu",
        rms_norm_eps: float = 1e-6,
        tie_word_embeddings: bool = False,
    ) -> dict[str, Any]:
        """The same without rope_parameters."""
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
        return {
            "vocab_size": fields.integer("vocab_size", maximum=2**24),
            "hidden_size": hidden_size,
            "intermediate_size": fields.integer("intermediate_size", default=intermediate_size, maximum=2**24),
            "num_hidden_layers": fields.integer("num_hidden_layers", maximum=MOST_LAYERS),
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "head_dim": fields.integer("head_dim", default=head_dim or hidden_size // heads, maximum=2**16),
            "hidden_act": fields.choice("hidden_act", ACTIVATIONS, default=hidden_act),
            "max_position_embeddings": fields.integer("max_position_embeddings", default=max_position_embeddings),
            "norm_epsilon": fields.number("rms_norm_eps", default=rms_norm_eps),
            "tie_word_embeddings": fields.flag("tie_word_embeddings", default=tie_word_embeddings),
            "quantization": QuantizationConfig.read(fields),
        }

    @property
    def reach(self) -> int:
        """Tokens of the longest context."""
        return self.max_position_embeddings if self.rope_parameters is None else self.rope_parameters.reach


def expect_plain_heads(fields: Fields, sizes: Mapping[str, Any]) -> None:
    """Refuses fields that would make of hidden_size other heads than num_attention_heads equal ones, where such models
    know none."""
    heads = sizes["num_attention_heads"]
    fields.expect("num_key_value_heads", heads)
    fields.expect("head_dim", sizes["hidden_size"] // heads)
    if sizes["hidden_size"] % heads:
        raise fields.malformed("num_attention_heads", f"must divide hidden_size ({sizes['hidden_size']}), not {heads}")


def layer_windows(fields: Fields, layers: int) -> tuple[int, ...]:
    """The attention window of each layer, 0 where it sees everything, as Qwen models write it.

    layer_types says it layer by layer; without it, layers from max_window_layers on slide if use_sliding_window is set.
    """
    sliding = fields.flag("use_sliding_window", default=False)
    window = (fields.optional_integer("sliding_window", absent=4096) or 0) if sliding else 0
    first = fields.integer("max_window_layers", default=28, minimum=0)
    if not sliding:
        fields.raw("sliding_window")
    kinds = layer_kinds(fields, [SLIDING if window and layer >= first else FULL for layer in range(layers)])
    return windows_of(fields, kinds, window)


def layer_kinds(fields: Fields, absent: Sequence[str]) -> list[str]:
    """layer_types: for each layer, full_attention or sliding_attention; ``absent``: what holds without it."""
    kinds = fields.raw("layer_types")
    if kinds is None:
        return list(absent)
    if not isinstance(kinds, list) or len(kinds) != len(absent):
        raise fields.malformed("layer_types", f"must be a list of {len(absent)} names, one for each layer")
    for layer, kind in enumerate(kinds):
        if kind not in (FULL, SLIDING):
            raise fields.unsupported(f"layer_types[{layer}]", f"is neither {FULL} nor {SLIDING}")
    return kinds


def windows_of(fields: Fields, kinds: Sequence[str], window: int) -> tuple[int, ...]:
    """The window of each layer. Raises CheckpointError where one slides and there is no window."""
    for layer, kind in enumerate(kinds):
        if kind == SLIDING and not window:
            raise fields.malformed(f"layer_types[{layer}]", f"is {SLIDING}, but there is no sliding_window")
    return tuple(window if kind == SLIDING else 0 for kind in kinds)
