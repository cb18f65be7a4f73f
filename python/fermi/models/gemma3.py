"""Gemma 3 (arXiv 2503.19786), its text model: norms over heads, windows in most layers, and two rotary embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import ClassVar, cast

from fermi.models.benign_fields import BENIGN_FIELDS
from fermi.models.config import FULL, SLIDING, DecoderConfig, layer_kinds
from fermi.models.fields import Fields
from fermi.models.gemma2 import SPELLING, Gemma2Config, Gemma2Family
from fermi.models.layers import Attention, Rope
from fermi.models.quantization_config import QuantizationConfig
from fermi.models.rope import RopeParameters
from fermi.models.weights import Weights

__all__ = ["Gemma3", "Gemma3Config", "Gemma3Text"]


#: What a config.json of the models that see has to say of images.
IMAGES = frozenset(
    {"vision_config", "mm_tokens_per_image", "boi_token_index", "eoi_token_index", "image_token_index"}
    | {"boi_token_id", "eoi_token_id", "image_token_id"}
)

#: What a text_config need not say.
ABSENT: Mapping[str, object] = MappingProxyType({"vocab_size": 262_208, "num_attention_heads": 8})


@dataclass(frozen=True, kw_only=True)
class Gemma3Config(Gemma2Config):
    """Of a Gemma 3: ``rope_parameters`` are those of layers that see everything, ``sliding_rope`` of the others."""

    sliding_rope: RopeParameters


class Gemma3Text(Gemma2Family[Gemma3Config]):
    """Of a checkpoint of the text model."""

    classes: ClassVar[tuple[str, ...]] = ("Gemma3ForCausalLM",)

    @classmethod
    def read_config(cls, fields: Fields) -> Gemma3Config:
        sizes = DecoderConfig.sizes(
            fields.spelled(SPELLING),
            max_position_embeddings=131_072,
            num_key_value_heads=4,
            head_dim=256,
            hidden_act="gelu_pytorch_tanh",
            tie_word_embeddings=True,
        )
        pattern = fields.integer("sliding_window_pattern", default=6)
        if "layer_types" in fields:
            fields.ignore(frozenset({"_sliding_window_pattern"}))  # from which they were made
        else:
            fields.expect("_sliding_window_pattern", pattern)
        kinds = layer_kinds(
            fields, [SLIDING if (layer + 1) % pattern else FULL for layer in range(sizes["num_hidden_layers"])]
        )
        full, sliding = _ropes(fields, sizes["head_dim"], sizes["max_position_embeddings"])
        own = Gemma2Config.own(fields, kinds, attention_cap=0.0, final_cap=0.0)
        if own["attn_logit_softcapping"]:  # read by Transformers, which does nothing with it
            raise fields.unsupported("attn_logit_softcapping", "is set, which Gemma 3 does not honour")
        return Gemma3Config(**sizes, **own, rope_parameters=full, sliding_rope=sliding)

    def attention(self, config: Gemma3Config, layer: int, weights: Weights) -> Attention:
        return Attention(
            weights,
            config,
            bias=config.attention_bias,
            output_bias=config.attention_bias,
            norm_epsilon=config.norm_epsilon,
            norm_offset=1.0,
            scale=config.query_pre_attn_scalar**-0.5,
            window=config.windows[layer],
        )

    def layer_ropes(self, config: Gemma3Config) -> Sequence[Rope]:
        assert config.rope_parameters is not None
        full, sliding = Rope(config.rope_parameters), Rope(config.sliding_rope)
        return [sliding if window else full for window in config.windows]


class Gemma3(Gemma3Text):
    """Of a checkpoint whose config.json speaks of images too, but that holds the text model alone."""

    classes: ClassVar[tuple[str, ...]] = ("Gemma3ForConditionalGeneration", "Gemma3ForCausalLM")

    @classmethod
    def read_config(cls, fields: Fields) -> Gemma3Config:
        if fields.section("text_config") is None:
            raise fields.malformed("text_config", "is missing")
        fields.ignore(BENIGN_FIELDS | IMAGES)
        text = Fields({**ABSENT, **cast(dict[str, object], fields.raw("text_config"))}, fields.file, "text_config.")
        config = super().read_config(text)
        text.refuse_rest()
        return replace(
            config,
            tie_word_embeddings=fields.flag("tie_word_embeddings", default=config.tie_word_embeddings),
            quantization=QuantizationConfig.read(fields),
        )

    def body(self, weights: Weights) -> Weights:
        for prefix in ("language_model.model", "model.language_model"):
            if f"{prefix}.embed_tokens.weight" in weights:
                return weights.under(prefix)
        return super().body(weights)


def _ropes(fields: Fields, head_dim: int, positions: int) -> tuple[RopeParameters, RopeParameters]:
    """Of layers that see everything, and of those that slide.

    The newer form nests a section for each in rope_parameters; in the older one rope_scaling is only for the first, and
    the base of the second is rope_local_base_freq.
    """
    absent = Fields({}, fields.file)
    nested = fields.section("rope_parameters")
    older = fields.section("rope_scaling")
    if nested is not None and older is not None:
        raise fields.unsupported("rope_scaling", "stands beside rope_parameters; one of them must go")
    full = sliding = None
    if nested is not None:
        full, sliding = nested.section(FULL), nested.section(SLIDING)
        nested.refuse_rest()
    return (
        RopeParameters.of_section(
            full or older or absent,
            fields,
            head_dim=head_dim,
            max_position_embeddings=positions,
            rope_theta=1_000_000.0,
        ),
        RopeParameters.of_section(
            sliding or absent,
            fields.spelled({"rope_theta": "rope_local_base_freq"}),
            head_dim=head_dim,
            max_position_embeddings=positions,
        ),
    )
