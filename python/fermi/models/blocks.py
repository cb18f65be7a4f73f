"""How a layer's attention and MLP are joined to the residual stream."""

from __future__ import annotations

from typing import Protocol

from fermi import _C
from fermi.models.inputs import Batch, LayerCache
from fermi.models.layers import CausalAttention, Mlp, Norm

__all__ = ["Block", "Layer", "Mixer", "ParallelBlock", "PostNormBlock"]


class Mixer(Protocol):
    """What a block may do after its attention: an MLP, or experts."""

    def __call__(self, x: _C.Tensor, norm: Norm | None) -> None:
        """x += mixer(norm(x))"""


class Layer(Protocol):
    """A block as a decoder runs it."""

    @property
    def attention(self) -> CausalAttention: ...

    def __call__(
        self,
        x: _C.Tensor,  # [tokens, hidden], updated in place
        angles: _C.Tensor | None,
        batch: Batch,
        cache: LayerCache,
        *,
        rows: _C.Tensor | None = None,
    ) -> _C.Tensor:
        """x, or those of its ``rows`` that are still wanted after the attention."""


class Block:
    """x += attention(norm(x)); x += mlp(norm(x))."""

    def __init__(self, attention_norm: Norm, attention: CausalAttention, mlp_norm: Norm, mlp: Mixer) -> None:
        self.attention_norm = attention_norm
        self.attention = attention
        self.mlp_norm = mlp_norm
        self.mlp = mlp

    def __call__(
        self,
        x: _C.Tensor,
        angles: _C.Tensor | None,
        batch: Batch,
        cache: LayerCache,
        *,
        rows: _C.Tensor | None = None,
    ) -> _C.Tensor:
        self.attention(x, self.attention_norm, angles, batch, cache)
        x = _wanted(x, rows)
        self.mlp(x, self.mlp_norm)
        return x


class PostNormBlock:
    """x += norm(attention(x)); x += norm(mlp(x)), where x may be normed before each, too."""

    def __init__(
        self,
        attention_norm: Norm | None,
        attention: CausalAttention,
        attended_norm: Norm,
        mlp_norm: Norm | None,
        mlp: Mlp,
        inner_norm: Norm,
    ) -> None:
        """``attended_norm``: over what the attention brings forth; ``inner_norm``: the MLP."""
        self.attention_norm = attention_norm
        self.attention = attention
        self.attended_norm = attended_norm
        self.mlp_norm = mlp_norm
        self.mlp = mlp
        self.inner_norm = inner_norm

    def __call__(
        self,
        x: _C.Tensor,
        angles: _C.Tensor | None,
        batch: Batch,
        cache: LayerCache,
        *,
        rows: _C.Tensor | None = None,
    ) -> _C.Tensor:
        attended = _wanted(self.attention.attend(x, self.attention_norm, angles, batch, cache), rows)
        x = _wanted(x, rows)
        self.attended_norm(self.attention.output(attended), residual=x)
        self.inner_norm(self.mlp.down(self.mlp.inner(x, self.mlp_norm)), residual=x)
        return x


class ParallelBlock:
    """x += attention(norm(x)) + mlp(norm(x)), both of the same x."""

    def __init__(self, attention_norm: Norm, attention: CausalAttention, mlp_norm: Norm, mlp: Mlp) -> None:
        self.attention_norm = attention_norm
        self.attention = attention
        self.mlp_norm = mlp_norm
        self.mlp = mlp

    def __call__(
        self,
        x: _C.Tensor,
        angles: _C.Tensor | None,
        batch: Batch,
        cache: LayerCache,
        *,
        rows: _C.Tensor | None = None,
    ) -> _C.Tensor:
        attended = _wanted(self.attention.attend(x, self.attention_norm, angles, batch, cache), rows)
        x = _wanted(x, rows)
        inner = self.mlp.inner(x, self.mlp_norm)
        self.attention.output(attended, residual=x)
        self.mlp.down(inner, residual=x)
        return x


def _wanted(x: _C.Tensor, rows: _C.Tensor | None) -> _C.Tensor:
    """Some rows of x, or all."""
    return x if rows is None else _C.gather_rows(x, rows)
