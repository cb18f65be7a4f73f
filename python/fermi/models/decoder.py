"""What decoders share: an embedding, blocks, a norm and a head, and the names that most checkpoints give them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

from fermi import _C
from fermi.models.blocks import Block, Layer, Mixer
from fermi.models.config import DecoderConfig
from fermi.models.fields import Fields
from fermi.models.inputs import Batch, KVCache, KVSpec
from fermi.models.layers import CausalAttention, Embedding, GatedMlp, Head, Norm, RmsNorm, Rope
from fermi.models.model import Model
from fermi.models.weights import Weights

__all__ = ["Block", "Decoder", "Names"]

Config = TypeVar("Config", bound=DecoderConfig)


@dataclass(frozen=True)
class Names:
    """What a checkpoint calls the parts: ``body`` is the prefix of all but the head."""

    body: str = "model"
    embedding: str = "embed_tokens"
    layers: str = "layers"
    norm: str = "norm"
    head: str = "lm_head"


class Decoder(Model, Generic[Config]):
    """Embedding, blocks, norm, head. An architecture says how its parts differ.

    Attributes:
        classes: Transformers' names of it; none: the name of this class with ForCausalLM.
        names: what its checkpoints call the parts.
        ropes: by which rotary embedding the heads of each layer turn, if by any.
    """

    classes: ClassVar[tuple[str, ...]] = ()
    names: ClassVar[Names] = Names()

    def __init__(self, config: Config, weights: Weights) -> None:
        names, body = self.names, self.body(weights)
        self.config = config
        self.embedding = Embedding(body.under(names.embedding), config.vocab_size, config.hidden_size)
        self.ropes = tuple(self.layer_ropes(config))
        self.blocks: Sequence[Layer] = [
            self.block(config, layer, body.under(f"{names.layers}.{layer}"))
            for layer in range(config.num_hidden_layers)
        ]
        self.norm = self.make_norm(config, body.under(names.norm))
        self.head = self.make_head(config, weights)

        self.backend = weights.backend
        self.vocab_size = config.vocab_size
        self.max_position_embeddings = config.reach
        self.windows = tuple(block.attention.window for block in self.blocks)
        table = self.embedding.table
        projection = self.blocks[0].attention.output.weights[0]
        self.weight_format = projection.data.dtype if projection.format == "dense" else projection.format
        self.dtype = table.data.dtype if table.format == "dense" else self.norm.dtype
        self.kv_spec = KVSpec(config.num_hidden_layers, config.num_key_value_heads, config.head_dim, self.dtype)
        self.parameters, self.weight_bytes = weights.parameters, weights.nbytes
        changing = [rope.table.original_length for rope in self.ropes if rope and rope.table.rule != "fixed"]
        self.rope_depends_on_length = bool(changing)
        self.rope_original_length = min(changing, default=0)

    @classmethod
    @abstractmethod
    def read_config(cls, fields: Fields) -> Config:
        """The config of a config.json. Raises CheckpointError naming the field."""

    @abstractmethod
    def attention(self, config: Config, layer: int, weights: Weights) -> CausalAttention:
        """Of a layer; ``weights``: under self_attn."""

    def mlp(self, config: Config, layer: int, weights: Weights) -> Mixer:
        """Of a layer; ``weights``: under mlp."""
        return GatedMlp(weights, config)

    def block(self, config: Config, layer: int, weights: Weights) -> Layer:
        """A layer; ``weights``: all of its own."""
        return Block(
            self.make_norm(config, weights.under("input_layernorm")),
            self.attention(config, layer, weights.under("self_attn")),
            self.make_norm(config, weights.under("post_attention_layernorm")),
            self.mlp(config, layer, weights.under("mlp")),
        )

    def body(self, weights: Weights) -> Weights:
        """All but the head."""
        return weights.body(self.names.body, f"{self.names.embedding}.weight")

    def make_norm(self, config: Config, weights: Weights) -> Norm:
        """One over hidden states."""
        return RmsNorm(weights, config.hidden_size, config.norm_epsilon)

    def make_head(self, config: Config, weights: Weights) -> Head:
        return Head(self.head_matrix(config, weights))

    def head_matrix(self, config: Config, weights: Weights) -> _C.Weight:
        """The table of the embedding, where it is tied and no other stands in the checkpoint."""
        names = [f"{name}.weight" for name in dict.fromkeys((self.names.head, "lm_head"))]
        there = [name for name in names if name in weights]
        if config.tie_word_embeddings and not there:
            return self.embedding.table
        return weights.matrix((there or names)[0], config.vocab_size, config.hidden_size, role="head")

    def layer_ropes(self, config: Config) -> Sequence[Rope | None]:
        """`ropes`."""
        rope = None if config.rope_parameters is None else Rope(config.rope_parameters)
        return [rope] * config.num_hidden_layers

    def embed(self, batch: Batch) -> _C.Tensor:
        """What enters the first block, [tokens, hidden]."""
        return self.embedding(batch.token_ids)

    def angles(self, batch: Batch) -> list[_C.Tensor | None]:
        """What the heads of each layer turn by."""
        made = {rope: None if rope is None else rope(batch) for rope in dict.fromkeys(self.ropes)}
        return [made[rope] for rope in self.ropes]

    def hidden_states(self, batch: Batch, kv: KVCache) -> _C.Tensor:
        """Writes the batch's keys and values to the cache; returns what the head would be given of every token, after
        the last norm: f32 [tokens, hidden]."""
        return self.norm(self._run(batch, kv, None))

    def __call__(self, batch: Batch, kv: KVCache) -> _C.Tensor:
        return self.head(self._run(batch, kv, batch.logit_rows), self.norm)  # [rows, vocab]

    def _run(self, batch: Batch, kv: KVCache, rows: _C.Tensor | None) -> _C.Tensor:
        """The residual stream after all blocks, of all tokens or of ``rows``."""
        x = self.embed(batch)
        *most, last = zip(self.blocks, self.angles(batch), kv, strict=True)
        for block, angles, cache in most:
            block(x, angles, batch, cache)
        block, angles, cache = last
        return block(x, angles, batch, cache, rows=rows)
