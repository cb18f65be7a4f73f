"""nomic-bert (arXiv 2402.01613): BERT with rotary positions, a gated MLP and hardly a bias."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from fermi import _C
from fermi.models.config import ACTIVATIONS
from fermi.models.encoder import Encoder, EncoderBatch, EncoderConfig, attend, rotations
from fermi.models.fields import Fields
from fermi.models.layers import LayerNorm, Linear
from fermi.models.rope import RopeParameters
from fermi.models.weights import Weights

__all__ = ["NomicBert", "NomicBertConfig"]

#: The fields of the first checkpoints, by BERT's names. Newer files may hold both.
SPELLING: Mapping[str, str] = MappingProxyType(
    {
        "hidden_size": "n_embd",
        "intermediate_size": "n_inner",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "layer_norm_eps": "layer_norm_epsilon",
        "max_position_embeddings": "max_trained_positions",
    }
)

#: Their names of a gated MLP's activation.
GATES: Mapping[str, _C.ActivationName] = MappingProxyType({"swiglu": "silu", "geglu": "gelu", "glu": "sigmoid"})

#: Switches of theirs that must stand as this model knows them.
EXPECTED: Mapping[str, object] = MappingProxyType(
    {
        "prenorm": False,
        "parallel_block": False,
        "parallel_block_tied_norm": False,
        "use_rms_norm": False,
        "rotary_emb_interleaved": False,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "moe_every_n_layers": 0,
    }
)

UNUSED_FIELDS = frozenset(
    {
        "dense_seq_output",
        "fused_bias_fc",
        "fused_dropout_add_ln",
        "reorder_and_upcast_attn",
        "summary_activation",
        "summary_first_dropout",
        "summary_proj_to_labels",
        "summary_type",
        "summary_use_proj",
        "use_xentropy",
    }
)


@dataclass(frozen=True, kw_only=True)
class NomicBertConfig(EncoderConfig):
    """Of a nomic-bert.

    Attributes:
        reach: tokens of the longest sequence, which may exceed the positions that the model was trained on.
        attention_bias, up_bias, down_bias: which projections have biases.
    """

    reach: int
    attention_bias: bool
    up_bias: bool
    down_bias: bool
    rope_parameters: RopeParameters


class Block:
    """x = norm(x + attention(x)); x = norm(x + mlp(x))"""

    def __init__(self, weights: Weights, config: NomicBertConfig) -> None:
        def norm(name: str) -> LayerNorm:
            return LayerNorm(weights.under(name), hidden, config.layer_norm_eps)

        hidden, inner = config.hidden_size, config.intermediate_size
        attention, mlp = weights.under("attn"), weights.under("mlp")
        self.config = config
        self.qkv = Linear(attention, {"Wqkv": 3 * hidden}, hidden, bias=config.attention_bias)
        self.output = Linear(attention, {"out_proj": hidden}, hidden, bias=config.attention_bias)
        self.attention_norm = norm("norm1")
        self.gate_up = Linear(mlp, {"fc12": inner, "fc11": inner}, hidden, bias=config.up_bias)
        self.down = Linear(mlp, {"fc2": hidden}, inner, bias=config.down_bias)
        self.mlp_norm = norm("norm2")

    def __call__(
        self,
        x: _C.Tensor,  # [tokens, hidden], overwritten
        batch: EncoderBatch,
        angles: _C.Tensor,
        *,
        rows: _C.Tensor | None = None,
    ) -> _C.Tensor:
        """The new x, or those of its ``rows`` that are still wanted after the attention."""
        attended = attend(self.qkv(x), batch, self.config, angles=angles)
        if rows is not None:
            x, attended = _C.gather_rows(x, rows), _C.gather_rows(attended, rows)
        x = self.attention_norm(self.output(attended, residual=x))
        return self.mlp_norm(self.down(self.gate_up(x, activation=self.config.hidden_act), residual=x))


class NomicBert(Encoder[NomicBertConfig]):
    """Embeddings of words and types, normed; blocks."""

    prefix = "nomic_bert"
    classifier = (("pooler.dense", "tanh"), ("classifier", None))
    heads = (
        "pooler.dense.weight",
        "pooler.dense.bias",
        "classifier.weight",
        "classifier.bias",
        "cls.predictions.bias",
        "cls.predictions.decoder.weight",
        "cls.predictions.decoder.bias",
        "cls.predictions.transform.dense.weight",
        "cls.predictions.transform.dense.bias",
        "cls.predictions.transform.layer_norm.weight",
        "cls.predictions.transform.layer_norm.bias",
        "cls.predictions.transform.LayerNorm.weight",
        "cls.predictions.transform.LayerNorm.bias",
    )

    def __init__(self, config: NomicBertConfig, weights: Weights) -> None:
        super().__init__(config, weights)
        self.max_seq_length = config.reach
        self.table = weights.matrix(self.words, config.vocab_size, config.hidden_size, role="embedding")
        self.types: _C.Weight | None = None
        if config.type_vocab_size:
            types = "embeddings.token_type_embeddings.weight"
            self.types = weights.table(types, config.type_vocab_size, config.hidden_size)
        self.embedding_norm = LayerNorm(weights.under("emb_ln"), config.hidden_size, config.layer_norm_eps)
        self.blocks = [
            Block(weights.under(f"encoder.layers.{layer}"), config) for layer in range(config.num_hidden_layers)
        ]
        self.rope = config.rope_parameters.table()

    @classmethod
    def read_config(cls, config: Fields) -> NomicBertConfig:
        for name, value in EXPECTED.items():
            config.expect(name, value)
        config.expect("rotary_emb_scale_base")  # null is the only value
        config.ignore(UNUSED_FIELDS)
        older = {name: spelled for name, spelled in SPELLING.items() if name not in config}
        for name, spelled in SPELLING.items():
            if name in config:
                config.expect(spelled, config.raw(name))
        common = EncoderConfig.common(config.spelled(older), max_position_embeddings=2048)
        if "activation_function" in config:
            common["hidden_act"] = config.choice("activation_function", GATES)
        else:
            common["hidden_act"] = config.choice("hidden_act", ACTIVATIONS, default="silu")
        multiple = config.integer("pad_vocab_size_multiple", default=1, maximum=2**16)
        common["vocab_size"] = -(-common["vocab_size"] // multiple) * multiple
        head_dim = common["hidden_size"] // common["num_attention_heads"]
        config.expect("head_dim", head_dim)
        older_form = "n_embd" in config
        return NomicBertConfig(
            **common,
            reach=config.integer("n_positions", default=common["max_position_embeddings"]),
            attention_bias=config.flag("qkv_proj_bias", default=older_form),
            up_bias=config.flag("mlp_fc1_bias", default=older_form),
            down_bias=config.flag("mlp_fc2_bias", default=older_form),
            rope_parameters=read_rope(config, head_dim, common["max_position_embeddings"]),
        )

    def __call__(self, batch: EncoderBatch, rows: _C.Tensor | None = None) -> _C.Tensor:
        angles = rotations(self.rope, batch)
        x = _C.embed(batch.token_ids, self.table)
        if self.types is not None:
            _C.embed(batch.type_ids, self.types, residual=x)
        x = self.embedding_norm(x)
        *most, last = self.blocks
        for block in most:
            x = block(x, batch, angles)
        return last(x, batch, angles, rows=rows)


def read_rope(config: Fields, head_dim: int, trained: int) -> RopeParameters:
    """The rotary embedding in the form of Transformers' own model, else in that of the first checkpoints."""
    base = config.optional_number("rotary_emb_base")
    factor = config.optional_number("rotary_scaling_factor")
    if "n_embd" in config and not config.raw("rotary_emb_fraction"):
        raise config.unsupported("rotary_emb_fraction", "is absent or 0, which asks for learned positions")
    fraction = config.optional_number("rotary_emb_fraction")
    section: dict[str, object] = {"rope_theta": base or 1000.0, "partial_rotary_factor": fraction or 1.0}
    if factor is not None:
        section |= {"rope_type": "dynamic", "factor": factor}
    own = config.section("rope_parameters")
    return RopeParameters.of_section(
        own or Fields(section, config.file),
        Fields({}, config.file),
        head_dim=head_dim,
        max_position_embeddings=trained,
        rope_theta=1000.0,
    )
