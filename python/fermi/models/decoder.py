"""The decoder that most models share: pre-norm blocks of attention and gated MLP, written once."""

from __future__ import annotations

from abc import abstractmethod
from typing import Generic, TypeVar

from fermi import _C
from fermi.models.config import DecoderConfig
from fermi.models.fields import Fields
from fermi.models.inputs import Batch, KVCache, KVSpec, LayerCache
from fermi.models.layers import Attention, Embedding, GatedMlp, RmsNorm, Rope
from fermi.models.model import Model
from fermi.models.weights import Weights

__all__ = ["Block", "Decoder"]

Config = TypeVar("Config", bound=DecoderConfig)


class Block:
    """x += attention(norm(x)); x += mlp(norm(x))."""

    def __init__(self, weights: Weights, config: DecoderConfig, attention: Attention, mlp: GatedMlp) -> None:
        def norm(name: str) -> RmsNorm:
            return RmsNorm(weights.under(name), config.hidden_size, config.rms_norm_eps)

        self.attention_norm = norm("input_layernorm")
        self.attention = attention
        self.mlp_norm = norm("post_attention_layernorm")
        self.mlp = mlp

    def __call__(
        self,
        x: _C.Tensor,  # [tokens, hidden], updated in place
        angles: _C.Tensor,
        batch: Batch,
        cache: LayerCache,
        *,
        rows: _C.Tensor | None = None,
    ) -> _C.Tensor:
        """x, or those of its ``rows`` that are still wanted after the attention."""
        self.attention(x, self.attention_norm, angles, batch, cache)
        if rows is not None:
            x = _C.gather_rows(x, rows)
        self.mlp(x, self.mlp_norm)
        return x


class Decoder(Model, Generic[Config]):
    """Embedding, blocks, norm, head. An architecture says how its attention and its MLP differ."""

    def __init__(self, config: Config, weights: Weights) -> None:
        body = weights.under("model")
        self.config = config
        self.embedding = Embedding(body.under("embed_tokens"), config.vocab_size, config.hidden_size)
        self.rope = Rope(config.rope_parameters)
        self.blocks = [
            self.block(config, layer, body.under(f"layers.{layer}")) for layer in range(config.num_hidden_layers)
        ]
        self.norm = RmsNorm(body.under("norm"), config.hidden_size, config.rms_norm_eps)
        self.head = self.embedding.table
        if not config.tie_word_embeddings or "lm_head.weight" in weights:
            self.head = weights.matrix("lm_head.weight", config.vocab_size, config.hidden_size, role="head")

        self.backend = weights.backend
        self.vocab_size = config.vocab_size
        self.max_position_embeddings = config.rope_parameters.reach
        table = self.embedding.table
        projection = self.blocks[0].attention.output.weights[0]
        self.weight_format = projection.data.dtype if projection.format == "dense" else projection.format
        self.dtype = table.data.dtype if table.format == "dense" else self.norm.weight.dtype
        self.kv_spec = KVSpec(config.num_hidden_layers, config.num_key_value_heads, config.head_dim, self.dtype)
        self.parameters, self.weight_bytes = weights.parameters, weights.nbytes
        self.rope_depends_on_length = self.rope.table.rule != "fixed"
        self.rope_original_length = self.rope.table.original_length

    def block(self, config: Config, layer: int, weights: Weights) -> Block:
        attention, mlp = weights.under("self_attn"), weights.under("mlp")
        return Block(weights, config, self.attention(config, layer, attention), self.mlp(config, mlp))

    @classmethod
    @abstractmethod
    def read_config(cls, fields: Fields) -> Config:
        """The config of a config.json. Raises CheckpointError naming the field."""

    @abstractmethod
    def attention(self, config: Config, layer: int, weights: Weights) -> Attention: ...

    def mlp(self, config: Config, weights: Weights) -> GatedMlp:
        return GatedMlp(weights, config)

    def __call__(self, batch: Batch, kv: KVCache) -> _C.Tensor:
        x = self.embedding(batch.token_ids)
        angles = self.rope(batch)
        *most, last = zip(self.blocks, kv, strict=True)
        for block, cache in most:
            block(x, angles, batch, cache)
        block, cache = last
        x = block(x, angles, batch, cache, rows=batch.logit_rows)
        return _C.linear(x, self.head, norm=self.norm.weight, epsilon=self.norm.epsilon)  # [rows, vocab]
