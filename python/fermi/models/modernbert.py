"""ModernBERT (arXiv 2412.13663): pre-norm blocks, rotary positions of two bases, local attention in most layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from fermi import _C
from fermi.models.config import FULL, SLIDING, layer_kinds
from fermi.models.encoder import Encoder, EncoderBatch, EncoderConfig, attend, rotations
from fermi.models.fields import Fields
from fermi.models.layers import FusedLinear, LayerNorm, Linear
from fermi.models.rope import RopeParameters, RopeTable
from fermi.models.weights import Weights

__all__ = ["ModernBert", "ModernBertConfig"]

#: The base of each kind of layer's rotary embedding: its older field, and what it is where it is absent.
BASES: Mapping[str, tuple[str, float]] = MappingProxyType(
    {FULL: ("global_rope_theta", 160_000.0), SLIDING: ("local_rope_theta", 10_000.0)}
)

#: How it was trained, of another task's head, how Transformers once ran it, and of BERT's that it carries unused.
UNUSED_FIELDS = frozenset(
    {
        "embedding_dropout",
        "mlp_dropout",
        "initializer_cutoff_factor",
        "decoder_bias",
        "sparse_prediction",
        "sparse_pred_ignore_index",
        "deterministic_flash_attn",
        "reference_compile",
        "repad_logits_with_grad",
        "cls_token_id",
        "mask_token_id",
        "unk_token_id",
        "layer_norm_eps",
        "position_embedding_type",
        # of a classifier: `classifier` reads them
        "classifier_pooling",
        "classifier_bias",
        "classifier_activation",
    }
)


@dataclass(frozen=True, kw_only=True)
class ModernBertConfig(EncoderConfig):
    """Of a ModernBERT.

    Attributes:
        attention_bias, mlp_bias, norm_bias: which parts have biases.
        layer_types: full_attention or sliding_attention, for each layer.
        window: the farthest that a query of a sliding layer sees, before and after it.
        rope: of each kind of layer.
    """

    attention_bias: bool
    mlp_bias: bool
    norm_bias: bool
    layer_types: tuple[str, ...]
    window: int
    rope: Mapping[str, RopeParameters]


class Block:
    """x += attention(norm(x)); x += mlp(norm(x)); the first attention takes x as it is: normed already."""

    def __init__(self, weights: Weights, config: ModernBertConfig, layer: int) -> None:
        def norm(name: str) -> LayerNorm:
            return LayerNorm(weights.under(name), hidden, config.layer_norm_eps, bias=config.norm_bias)

        hidden, inner = config.hidden_size, config.intermediate_size
        attention, mlp = weights.under("attn"), weights.under("mlp")
        self.config = config
        self.kind = config.layer_types[layer]
        self.window = config.window if self.kind == SLIDING else 0
        self.attention_norm = norm("attn_norm") if layer else None
        self.qkv = Linear(attention, {"Wqkv": 3 * hidden}, hidden, bias=config.attention_bias)
        self.output = Linear(attention, {"Wo": hidden}, hidden, bias=config.attention_bias)
        self.mlp_norm = norm("mlp_norm")
        self.gate_up = FusedLinear(mlp, "Wi", [inner, inner], hidden, bias=config.mlp_bias)
        self.down = Linear(mlp, {"Wo": hidden}, inner, bias=config.mlp_bias)

    def __call__(
        self,
        x: _C.Tensor,  # [tokens, hidden], updated in place
        batch: EncoderBatch,
        angles: _C.Tensor,
        *,
        rows: _C.Tensor | None = None,
    ) -> _C.Tensor:
        """x, or those of its ``rows`` that are still wanted after the attention."""
        qkv = self.qkv(x, norm=self.attention_norm)
        attended = attend(qkv, batch, self.config, angles=angles, window=self.window)
        if rows is not None:
            x, attended = _C.gather_rows(x, rows), _C.gather_rows(attended, rows)
        self.output(attended, residual=x)
        return self.down(self.gate_up(x, norm=self.mlp_norm, activation=self.config.hidden_act), residual=x)


class ModernBert(Encoder[ModernBertConfig]):
    """Embeddings, normed; blocks; norm."""

    prefix = "model"
    words = "embeddings.tok_embeddings.weight"
    heads = (
        "head.dense.weight",
        "head.dense.bias",
        "head.norm.weight",
        "head.norm.bias",
        "decoder.weight",
        "decoder.bias",
        "classifier.weight",
        "classifier.bias",
    )

    def __init__(self, config: ModernBertConfig, weights: Weights) -> None:
        def norm(name: str) -> LayerNorm:
            return LayerNorm(weights.under(name), config.hidden_size, config.layer_norm_eps, bias=config.norm_bias)

        super().__init__(config, weights)
        self.table = weights.matrix(self.words, config.vocab_size, config.hidden_size, role="embedding")
        self.embedding_norm = norm("embeddings.norm")
        self.blocks = [
            Block(weights.under(f"layers.{layer}"), config, layer) for layer in range(config.num_hidden_layers)
        ]
        self.norm = norm("final_norm")
        self.rope: Mapping[str, RopeTable] = {kind: config.rope[kind].table() for kind in set(config.layer_types)}

    @classmethod
    def read_config(cls, config: Fields) -> ModernBertConfig:
        config.ignore(UNUSED_FIELDS)
        config.expect("type_vocab_size", 0)
        common = EncoderConfig.common(
            config.spelled({"hidden_act": "hidden_activation", "layer_norm_eps": "norm_eps"}),
            intermediate_size=1152,
            max_position_embeddings=8192,
            type_vocab_size=0,
        )
        if "norm_eps" not in config:
            common["layer_norm_eps"] = 1e-5
        every = config.integer("global_attn_every_n_layers", default=3)
        kinds = [SLIDING if layer % every else FULL for layer in range(common["num_hidden_layers"])]
        head_dim = common["hidden_size"] // common["num_attention_heads"]
        return ModernBertConfig(
            **common,
            attention_bias=config.flag("attention_bias", default=False),
            mlp_bias=config.flag("mlp_bias", default=False),
            norm_bias=config.flag("norm_bias", default=False),
            layer_types=tuple(layer_kinds(config, kinds)),
            window=config.integer("local_attention", default=128, minimum=2) // 2,
            rope=rope_of_layers(config, head_dim, common["max_position_embeddings"]),
        )

    def __call__(self, batch: EncoderBatch, rows: _C.Tensor | None = None) -> _C.Tensor:
        angles = {kind: rotations(table, batch) for kind, table in self.rope.items()}
        x = self.embedding_norm(_C.embed(batch.token_ids, self.table))
        *most, last = self.blocks
        for block in most:
            block(x, batch, angles[block.kind])
        return self.norm(last(x, batch, angles[last.kind], rows=rows))


def rope_of_layers(config: Fields, head_dim: int, positions: int) -> Mapping[str, RopeParameters]:
    """The rotary embedding of each kind of layer, in the newer form (rope_parameters by kind) or the older one."""
    config.expect("rope_scaling", {})
    section = config.section("rope_parameters") or Fields({}, config.file)
    parameters = {}
    for kind, (older, base) in BASES.items():
        parameters[kind] = RopeParameters.of_section(
            section.section(kind) or Fields({}, config.file),
            Fields({}, config.file),
            head_dim=head_dim,
            max_position_embeddings=positions,
            rope_theta=config.optional_number(older) or base,
        )
    section.refuse_rest()
    return MappingProxyType(parameters)
