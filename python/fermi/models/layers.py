"""The pieces that models are made of: a constructor names its weights, a call is its math."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from fermi import _C
from fermi.models.config import DecoderConfig
from fermi.models.inputs import Batch, LayerCache
from fermi.models.rope import RopeParameters
from fermi.models.weights import Weights

__all__ = [
    "Attention",
    "CausalAttention",
    "Embedding",
    "FusedLinear",
    "GatedMlp",
    "Head",
    "LayerNorm",
    "Linear",
    "Mlp",
    "Norm",
    "Projections",
    "RmsNorm",
    "Rope",
    "TransposedLinear",
]


class Embedding:
    """A row of the table for each token, times ``scale``."""

    def __init__(self, weights: Weights, vocab_size: int, hidden_size: int, *, scale: float = 1.0) -> None:
        self.table = weights.matrix("weight", vocab_size, hidden_size, role="embedding")
        self.scale = scale

    def __call__(self, token_ids: _C.Tensor) -> _C.Tensor:
        return _C.embed(token_ids, self.table, scale=self.scale)  # [tokens, hidden]


class Norm(Protocol):
    """A norm over the last dimension, as an op of its own or before a product.

    Attributes:
        weight, bias: [size].
        dtype: that of the weight in the checkpoint.
    """

    kind: _C.NormName
    weight: _C.Tensor
    bias: _C.Tensor | None
    epsilon: float
    dtype: _C.DTypeName

    def __call__(self, x: _C.Tensor, residual: _C.Tensor | None = None) -> _C.Tensor:
        """norm(x); with a ``residual`` it is added to that, in place, and that is returned."""


class RmsNorm:
    """Root mean square layer normalization (arXiv 1910.07467). ``offset``: what is added to the weight, once."""

    kind: _C.NormName = "rms"
    bias: _C.Tensor | None = None

    def __init__(self, weights: Weights, size: int, epsilon: float, *, offset: float = 0.0) -> None:
        weight = weights.vector("weight", size)
        self.weight = _C.Tensor.from_numpy(weight.float32() + offset) if offset else weight
        self.dtype = weight.dtype
        self.epsilon = epsilon

    def __call__(self, x: _C.Tensor, residual: _C.Tensor | None = None) -> _C.Tensor:
        return _C.rms_norm(x, self.weight, self.epsilon, residual=residual)


class LayerNorm:
    """Layer normalization (arXiv 1607.06450)."""

    kind: _C.NormName = "layer"

    def __init__(self, weights: Weights, size: int, epsilon: float, *, bias: bool = True) -> None:
        self.weight = weights.vector("weight", size)
        self.bias = weights.vector("bias", size) if bias else None
        self.dtype = self.weight.dtype
        self.epsilon = epsilon

    def __call__(self, x: _C.Tensor, residual: _C.Tensor | None = None) -> _C.Tensor:
        return _C.layer_norm(x, self.weight, self.bias, self.epsilon, residual=residual)


class Projections:
    """Projections of the same input, side by side: one op over the weights as they lie in the checkpoint.

    Attributes:
        sizes: out features of each projection.
        names: of the matrices in the checkpoint.
        weights: these matrices, or what a fused one is cut into; ``biases``: of each, if there are any.
        scale: what the result is multiplied by.
    """

    def __init__(
        self,
        weights: Weights,
        names: Sequence[str],
        sizes: Sequence[int],
        matrices: Sequence[_C.Weight],
        biases: Sequence[_C.Tensor] | None,
        scale: float,
    ) -> None:
        self.names = [weights.full_name(name) for name in names]
        self.sizes = list(sizes)
        self.weights = list(matrices)
        self.biases = biases
        self.scale = scale
        self.tap = weights.tap

    def __call__(
        self,
        x: _C.Tensor,
        *,
        norm: Norm | None = None,
        activation: _C.ActivationName | None = None,
        residual: _C.Tensor | None = None,
    ) -> _C.Tensor:
        """The projections, [tokens, sum of sizes], of x or of its ``norm``.

        ``activation``: with two matrices a gate, activation(first) * second, [tokens, size]. ``residual``: what the
        result is added to, in place.
        """
        if self.tap is not None:
            self.tap(self.names, x if norm is None else norm(x))
        return _C.linear(
            x,
            self.weights,
            self.biases,
            norm=None if norm is None else norm.weight,
            epsilon=0.0 if norm is None else norm.epsilon,
            norm_kind="rms" if norm is None else norm.kind,
            norm_bias=None if norm is None else norm.bias,
            activation=activation,
            scale=self.scale,
            residual=residual,
        )


class Linear(Projections):
    """Matrices that the checkpoint holds one by one."""

    def __init__(
        self, weights: Weights, sizes: dict[str, int], columns: int, *, bias: bool = False, scale: float = 1.0
    ) -> None:
        """``sizes``: the out features of each projection, by name."""
        super().__init__(
            weights,
            [f"{name}.weight" for name in sizes],
            list(sizes.values()),
            [weights.matrix(f"{name}.weight", rows, columns) for name, rows in sizes.items()],
            [weights.vector(f"{name}.bias", rows) for name, rows in sizes.items()] if bias else None,
            scale,
        )


class FusedLinear(Projections):
    """Projections that are one matrix in the checkpoint, one after the other."""

    def __init__(self, weights: Weights, name: str, sizes: Sequence[int], columns: int, *, bias: bool = False) -> None:
        fused = weights.vector(f"{name}.bias", sum(sizes)) if bias else None
        super().__init__(
            weights,
            [f"{name}.weight"],
            sizes,
            weights.matrices(f"{name}.weight", sizes, columns),
            fused.split(sizes) if fused is not None and fused.shape == (sum(sizes),) else None,
            1.0,
        )


class TransposedLinear(Projections):
    """Projections in one matrix that the checkpoint holds as [in, out], which Transformers calls Conv1D."""

    def __init__(self, weights: Weights, name: str, sizes: Sequence[int], columns: int) -> None:
        super().__init__(
            weights,
            [f"{name}.weight"],
            sizes,
            [weights.transposed(f"{name}.weight", sum(sizes), columns)],
            [weights.vector(f"{name}.bias", sum(sizes))],
            1.0,
        )


class Head:
    """From hidden states to logits."""

    def __init__(
        self, weight: _C.Weight, bias: _C.Tensor | None = None, *, scale: float = 1.0, soft_cap: float = 0.0
    ) -> None:
        self.weight = weight
        self.bias = bias
        self.scale = scale
        self.soft_cap = soft_cap

    def __call__(self, x: _C.Tensor, norm: Norm) -> _C.Tensor:
        """[rows, hidden] -> [rows, vocabulary], of norm(x)."""
        return _C.linear(
            x,
            self.weight,
            self.bias,
            norm=norm.weight,
            epsilon=norm.epsilon,
            norm_kind=norm.kind,
            norm_bias=norm.bias,
            scale=self.scale,
            soft_cap=self.soft_cap,
        )


class Rope:
    """The rotary embedding: each token's angles, once per step for all layers."""

    def __init__(self, parameters: RopeParameters) -> None:
        self.table = parameters.table()
        self.frequencies = _C.Tensor.from_numpy(self.table.frequencies)

    def __call__(self, batch: Batch) -> _C.Tensor:
        return _C.rope_angles(  # [tokens, dimensions that turn]
            batch.positions,
            batch.rope_lengths,
            self.frequencies,
            rule=self.table.rule,
            attention_factor=self.table.attention_factor,
            base=self.table.base,
            factor=self.table.factor,
            original_length=self.table.original_length,
        )


class CausalAttention:
    """Causal grouped-query attention over the paged cache.

    Attributes:
        window: tokens that a query sees, itself included; 0: all.
        norms: over each query's and each key's head, where there are such.
        scale, soft_cap: of the scores: see `_C.attention`.
    """

    def __init__(
        self,
        qkv: Projections,
        output: Projections,
        head_dim: int,
        *,
        scale: float | None = None,
        soft_cap: float = 0.0,
        window: int = 0,
        norms: tuple[RmsNorm, RmsNorm] | None = None,
    ) -> None:
        """``scale``: head_dim ** -0.5, if nothing else is said."""
        self.qkv = qkv
        self.output = output
        self.head_dim = head_dim
        self.scale = head_dim**-0.5 if scale is None else scale
        self.soft_cap = soft_cap
        self.window = window
        self.norms = norms

    def heads(self, x: _C.Tensor, norm: Norm | None) -> list[_C.Tensor]:
        """Queries, keys and values, [tokens, heads, head_dim] each, before they turn."""
        parts = self.qkv(x, norm=norm).split(self.qkv.sizes)
        return [part.unflatten(1, (-1, self.head_dim)) for part in parts]

    def attend(
        self, x: _C.Tensor, norm: Norm | None, angles: _C.Tensor | None, batch: Batch, cache: LayerCache
    ) -> _C.Tensor:
        """What the heads gather, [tokens, heads * head_dim], before the output projection."""
        q, k, v = self.heads(x, norm)
        q_norm, k_norm = self.norms or (None, None)
        _C.rope_append(
            q,
            k,
            v,
            angles,
            batch.slots[cache.group],
            cache.keys,
            cache.values,
            key_scales=cache.key_scales,
            value_scales=cache.value_scales,
            q_norm=None if q_norm is None else q_norm.weight,
            k_norm=None if k_norm is None else k_norm.weight,
            epsilon=0.0 if q_norm is None else q_norm.epsilon,
        )
        return _C.attention(
            q,
            cache.keys,
            cache.values,
            batch.block_tables[cache.group],
            batch.query_starts,
            batch.context_lengths,
            scale=self.scale,
            window=self.window,
            soft_cap=self.soft_cap,
            key_scales=cache.key_scales,
            value_scales=cache.value_scales,
        )

    def __call__(
        self, x: _C.Tensor, norm: Norm | None, angles: _C.Tensor | None, batch: Batch, cache: LayerCache
    ) -> None:
        """x += attention(norm(x))"""
        self.output(self.attend(x, norm, angles, batch, cache), residual=x)


class Attention(CausalAttention):
    """The same where the checkpoint holds q_proj, k_proj, v_proj and o_proj."""

    def __init__(
        self,
        weights: Weights,
        config: DecoderConfig,
        *,
        bias: bool = False,
        output: str = "o_proj",
        output_bias: bool = False,
        output_scale: float = 1.0,
        norm_epsilon: float | None = None,
        norm_offset: float = 0.0,
        scale: float | None = None,
        soft_cap: float = 0.0,
        window: int = 0,
    ) -> None:
        """``norm_epsilon``, ``norm_offset``: of the norms over each query's and key's head, where there are such.
        ``output``: the name of the last projection, ``output_scale``: what its result is multiplied by."""
        head_dim, hidden = config.head_dim, config.hidden_size
        queries, keys = config.num_attention_heads * head_dim, config.num_key_value_heads * head_dim
        norms = None
        if norm_epsilon is not None:
            norms = (
                RmsNorm(weights.under("q_norm"), head_dim, norm_epsilon, offset=norm_offset),
                RmsNorm(weights.under("k_norm"), head_dim, norm_epsilon, offset=norm_offset),
            )
        super().__init__(
            Linear(weights, {"q_proj": queries, "k_proj": keys, "v_proj": keys}, hidden, bias=bias),
            Linear(weights, {output: hidden}, queries, bias=output_bias, scale=output_scale),
            head_dim,
            scale=scale,
            soft_cap=soft_cap,
            window=window,
            norms=norms,
        )


class Mlp:
    """down(activation(up(x))); where ``up`` are two matrices, down(activation(gate(x)) * up(x)) (arXiv 2002.05202)."""

    def __init__(self, up: Projections, down: Projections, activation: _C.ActivationName) -> None:
        self.up = up
        self.down = down
        self.activation = activation

    def inner(self, x: _C.Tensor, norm: Norm | None) -> _C.Tensor:
        """[tokens, intermediate], before the last projection."""
        return self.up(x, norm=norm, activation=self.activation)

    def __call__(self, x: _C.Tensor, norm: Norm | None) -> None:
        """x += mlp(norm(x))"""
        self.down(self.inner(x, norm), residual=x)


class GatedMlp(Mlp):
    """Gated, from gate_proj, up_proj and down_proj. ``scale``: what its result is multiplied by."""

    def __init__(self, weights: Weights, config: DecoderConfig, *, bias: bool = False, scale: float = 1.0) -> None:
        hidden, inner = config.hidden_size, config.intermediate_size
        super().__init__(
            Linear(weights, {"gate_proj": inner, "up_proj": inner}, hidden, bias=bias),
            Linear(weights, {"down_proj": hidden}, inner, bias=bias, scale=scale),
            config.hidden_act,
        )
