"""SmolLM3: a Llama in which some layers do not turn (arXiv 2501.18795), and may slide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fermi.models.config import FULL, SLIDING, DecoderConfig, layer_kinds, windows_of
from fermi.models.decoder import Decoder
from fermi.models.fields import Fields
from fermi.models.layers import Attention, GatedMlp, Rope
from fermi.models.weights import Weights

__all__ = ["SmolLM3", "SmolLM3Config"]


@dataclass(frozen=True, kw_only=True)
class SmolLM3Config(DecoderConfig):
    """Of a SmolLM3.

    Attributes:
        no_rope_layers: for each layer, in spite of the name, whether it turns.
        windows: of each layer, the tokens that a query sees, itself included; 0: all.
    """

    attention_bias: bool
    mlp_bias: bool
    no_rope_layers: tuple[bool, ...]
    windows: tuple[int, ...]


class SmolLM3(Decoder[SmolLM3Config]):
    """Every fourth layer knows positions only by what it may see."""

    @classmethod
    def read_config(cls, fields: Fields) -> SmolLM3Config:
        common = DecoderConfig.common(
            fields,
            max_position_embeddings=32768,
            num_key_value_heads=4,
            tie_word_embeddings=True,
            rope_theta=2_000_000.0,
        )
        turns = _turning(fields, common["num_hidden_layers"])
        window = fields.optional_integer("sliding_window") or 0
        sliding = fields.flag("use_sliding_window", default=False) and bool(window)
        kinds = layer_kinds(fields, [SLIDING if sliding and not turn else FULL for turn in turns])
        fields.raw("max_window_layers")  # of the Qwen code that it grew from
        return SmolLM3Config(
            **common,
            attention_bias=fields.flag("attention_bias", default=False),
            mlp_bias=fields.flag("mlp_bias", default=False),
            no_rope_layers=turns,
            windows=windows_of(fields, kinds, window),
        )

    def attention(self, config: SmolLM3Config, layer: int, weights: Weights) -> Attention:
        bias = config.attention_bias
        return Attention(weights, config, bias=bias, output_bias=bias, window=config.windows[layer])

    def mlp(self, config: SmolLM3Config, layer: int, weights: Weights) -> GatedMlp:
        return GatedMlp(weights, config, bias=config.mlp_bias)

    def layer_ropes(self, config: SmolLM3Config) -> Sequence[Rope | None]:
        ropes = super().layer_ropes(config)
        return [rope if turns else None for rope, turns in zip(ropes, config.no_rope_layers, strict=True)]


def _turning(fields: Fields, layers: int) -> tuple[bool, ...]:
    """Of each layer: a list of zeros and ones, or all but each of so many."""
    interval = fields.integer("no_rope_layer_interval", default=4)
    flags = fields.raw("no_rope_layers")
    if flags is None:
        return tuple((layer + 1) % interval != 0 for layer in range(layers))
    if not isinstance(flags, list) or len(flags) != layers or any(flag not in (0, 1) for flag in flags):
        raise fields.malformed("no_rope_layers", f"must be a list of {layers} zeros and ones")
    return tuple(bool(flag) for flag in flags)
