"""Gemma (arXiv 2403.08295): a Llama with scaled embeddings, norms around 1 and a GeLU gate; and what its kin share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from fermi import _C
from fermi.models.config import DecoderConfig
from fermi.models.decoder import Decoder
from fermi.models.fields import Fields
from fermi.models.layers import Attention, RmsNorm
from fermi.models.weights import Weights

__all__ = ["Gemma", "GemmaConfig", "GemmaFamily"]

Config = TypeVar("Config", bound=DecoderConfig)


@dataclass(frozen=True, kw_only=True)
class GemmaConfig(DecoderConfig):
    """Of a Gemma."""

    attention_bias: bool


class GemmaFamily(Decoder[Config]):
    """Norms whose weights are stored less 1; embeddings scaled by the root of their size."""

    def __init__(self, config: Config, weights: Weights) -> None:
        super().__init__(config, weights)
        self.embedding.scale = rounded(math.sqrt(config.hidden_size), self.dtype)

    def make_norm(self, config: Config, weights: Weights) -> RmsNorm:
        return RmsNorm(weights, config.hidden_size, config.norm_epsilon, offset=1.0)


class Gemma(GemmaFamily[GemmaConfig]):
    """As the first Gemma."""

    @classmethod
    def read_config(cls, fields: Fields) -> GemmaConfig:
        # the first files say gelu and mean its approximation; later ones said so in a second field
        fields.expect("hidden_activation", "gelu_pytorch_tanh")
        common = DecoderConfig.common(
            fields,
            max_position_embeddings=8192,
            num_key_value_heads=16,
            head_dim=256,
            hidden_act="gelu_pytorch_tanh",
            tie_word_embeddings=True,
        )
        if common["hidden_act"] == "gelu":
            common["hidden_act"] = "gelu_tanh"
        return GemmaConfig(**common, attention_bias=fields.flag("attention_bias", default=False))

    def attention(self, config: GemmaConfig, layer: int, weights: Weights) -> Attention:
        return Attention(weights, config, bias=config.attention_bias, output_bias=config.attention_bias)


def rounded(value: float, dtype: _C.DTypeName) -> float:
    """A number as a tensor of this dtype would hold it, as Transformers keeps the scale of the embeddings."""
    if dtype == "f16":
        return float(np.float16(value))
    single = np.array(value, np.float32)
    if dtype == "bf16":
        bits = single.view(np.uint32)
        return float(((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32))
    return float(single)
