"""The pieces that decoders are made of: a constructor names its weights, a call is its math."""

from __future__ import annotations

from fermi import _C
from fermi.models.config import DecoderConfig
from fermi.models.inputs import Batch, LayerCache
from fermi.models.rope import RopeParameters
from fermi.models.weights import Weights

__all__ = ["Attention", "Embedding", "GatedMlp", "Linear", "RmsNorm", "Rope"]


class Embedding:
    """A row of the table for each token."""

    def __init__(self, weights: Weights, vocab_size: int, hidden_size: int) -> None:
        self.table = weights.matrix("weight", vocab_size, hidden_size, role="embedding")

    def __call__(self, token_ids: _C.Tensor) -> _C.Tensor:
        return _C.embed(token_ids, self.table)  # [tokens, hidden]


class RmsNorm:
    """Root mean square layer normalization (arXiv 1910.07467)."""

    def __init__(self, weights: Weights, size: int, epsilon: float) -> None:
        self.weight = weights.vector("weight", size)
        self.epsilon = epsilon

    def __call__(self, x: _C.Tensor) -> _C.Tensor:
        return _C.rms_norm(x, self.weight, self.epsilon)


class Linear:
    """Projections of the same input, side by side: one op over the weights as they lie in the checkpoint."""

    def __init__(self, weights: Weights, sizes: dict[str, int], columns: int, *, bias: bool = False) -> None:
        """``sizes``: the out features of each projection, by name."""
        self.sizes = list(sizes.values())
        self.weights = [weights.matrix(f"{name}.weight", rows, columns) for name, rows in sizes.items()]
        self.names = [weights.full_name(f"{name}.weight") for name in sizes]
        self.tap = weights.tap
        self.biases = [weights.vector(f"{name}.bias", rows) for name, rows in sizes.items()] if bias else None

    def __call__(
        self,
        x: _C.Tensor,
        *,
        norm: RmsNorm | None = None,
        activation: _C.ActivationName | None = None,
        residual: _C.Tensor | None = None,
    ) -> _C.Tensor:
        """The projections, [tokens, sum of sizes], of x or of its ``norm``.

        ``activation``: with two projections a gate, activation(first) * second, [tokens, size]. ``residual``: what the
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
            activation=activation,
            residual=residual,
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


class Attention:
    """Causal grouped-query attention over the paged cache, with rotary positions."""

    def __init__(
        self,
        weights: Weights,
        config: DecoderConfig,
        *,
        bias: bool = False,
        output_bias: bool = False,
        norm_epsilon: float | None = None,
        window: int = 0,
    ) -> None:
        """``norm_epsilon``: of the norms over each query's and key's head, where there are such. ``window``: tokens
        that a query sees, itself included; 0: all."""
        self.head_dim = config.head_dim
        self.window = window
        queries, keys = config.num_attention_heads * self.head_dim, config.num_key_value_heads * self.head_dim
        self.qkv = Linear(weights, {"q_proj": queries, "k_proj": keys, "v_proj": keys}, config.hidden_size, bias=bias)
        self.output = Linear(weights, {"o_proj": config.hidden_size}, queries, bias=output_bias)
        self.q_norm: _C.Tensor | None = None
        self.k_norm: _C.Tensor | None = None
        self.norm_epsilon = norm_epsilon or 0.0
        if norm_epsilon is not None:
            self.q_norm = weights.vector("q_norm.weight", self.head_dim)
            self.k_norm = weights.vector("k_norm.weight", self.head_dim)

    def __call__(self, x: _C.Tensor, norm: RmsNorm, angles: _C.Tensor, batch: Batch, cache: LayerCache) -> None:
        """x += attention(norm(x))"""
        parts = self.qkv(x, norm=norm).split(self.qkv.sizes)
        q, k, v = (part.unflatten(1, (-1, self.head_dim)) for part in parts)  # [tokens, heads, head_dim]
        _C.rope_append(
            q,
            k,
            v,
            angles,
            batch.slots,
            cache.keys,
            cache.values,
            key_scales=cache.key_scales,
            value_scales=cache.value_scales,
            q_norm=self.q_norm,
            k_norm=self.k_norm,
            epsilon=self.norm_epsilon,
        )
        attended = _C.attention(
            q,
            cache.keys,
            cache.values,
            batch.block_tables,
            batch.query_starts,
            batch.context_lengths,
            scale=self.head_dim**-0.5,
            window=self.window,
            key_scales=cache.key_scales,
            value_scales=cache.value_scales,
        )
        self.output(attended, residual=x)


class GatedMlp:
    """down(activation(gate(x)) * up(x)) (arXiv 2002.05202)."""

    def __init__(self, weights: Weights, config: DecoderConfig, *, bias: bool = False) -> None:
        hidden, inner = config.hidden_size, config.intermediate_size
        self.gate_up = Linear(weights, {"gate_proj": inner, "up_proj": inner}, hidden, bias=bias)
        self.down = Linear(weights, {"down_proj": hidden}, inner, bias=bias)
        self.activation = config.hidden_act

    def __call__(self, x: _C.Tensor, norm: RmsNorm) -> None:
        """x += mlp(norm(x))"""
        self.down(self.gate_up(x, norm=norm, activation=self.activation), residual=x)
