"""From hidden states to what a model answers: pooling and the steps behind it, as sentence-transformers names them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeAlias

import numpy as np

from fermi import _C
from fermi.models.encoder import Int32
from fermi.models.fields import Fields
from fermi.models.weights import Weights

__all__ = ["SCORES", "Dense", "Normalize", "Pooling", "Step", "read_activation"]

#: The modes in which sentence-transformers lays them side by side, by their older fields.
MODES: Mapping[str, str] = MappingProxyType(
    {
        "pooling_mode_cls_token": "cls",
        "pooling_mode_max_tokens": "max",
        "pooling_mode_mean_tokens": "mean",
        "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
        "pooling_mode_weightedmean_tokens": "weightedmean",
        "pooling_mode_lasttoken": "lasttoken",
    }
)

POOLINGS: Mapping[str, _C.PoolingName] = MappingProxyType(
    {"max": "max", "mean": "mean", "mean_sqrt_len_tokens": "mean_sqrt_length", "weightedmean": "weighted_mean"}
)

#: PyTorch's names of activations, and ours; None: there is none.
ACTIVATIONS: Mapping[str, _C.ActivationName | None] = MappingProxyType(
    {
        "torch.nn.modules.linear.Identity": None,
        "torch.nn.modules.activation.Tanh": "tanh",
        "torch.nn.modules.activation.Sigmoid": "sigmoid",
        "torch.nn.modules.activation.ReLU": "relu",
        "torch.nn.modules.activation.GELU": "gelu",
        "torch.nn.modules.activation.SiLU": "silu",
    }
)

#: Where a module of a cross-encoder puts what it computes.
SCORES = "scores"

#: Far below any embedding's square, so that only zeros are not scaled to length 1.
SMALLEST_SQUARE = 1e-30

#: What comes after pooling: [sequences, size] -> [sequences, other size].
Step: TypeAlias = Callable[[_C.Tensor], _C.Tensor]


class Pooling:
    """One vector of each sequence, or several side by side.

    Attributes:
        modes: cls, lasttoken, max, mean, mean_sqrt_len_tokens or weightedmean, as they follow each other.
    """

    def __init__(self, *modes: str) -> None:
        self.modes = modes

    @classmethod
    def read(cls, fields: Fields, size: int) -> Pooling:
        """Of a config.json of sentence-transformers, in its older form or its newer one, over states of ``size``.

        Raises CheckpointError for a malformed field, UnsupportedModelError for a mode that is not known.
        """
        for name in ("word_embedding_dimension", "embedding_dimension"):
            if fields.raw(name) not in (None, size):
                raise fields.malformed(name, f"is not the model's hidden size, {size}")
        fields.expect("include_prompt", True)
        older = tuple(mode for name, mode in MODES.items() if fields.flag(name, default=False))
        named = fields.raw("pooling_mode")
        modes = (named,) if isinstance(named, str) else fields.strings("pooling_mode")
        for mode in modes:
            if mode not in MODES.values():
                raise fields.unsupported("pooling_mode", f"is {mode!r:.40}; supported: {', '.join(MODES.values())}")
        fields.refuse_rest()
        return cls(*(modes or older or ("mean",)))

    def rows(self, starts: Int32) -> Int32 | None:
        """The only token of each sequence that is needed, if there is one; None: all. ``starts``: [sequences + 1]."""
        if self.modes == ("cls",):
            return starts[:-1]
        return starts[1:] - 1 if self.modes == ("lasttoken",) else None

    def __call__(self, x: _C.Tensor, starts: Int32) -> _C.Tensor:
        """[tokens, size] -> [sequences, modes · size]."""
        cuts = _C.Tensor.from_numpy(starts)
        vectors = [self._vector(mode, x, starts, cuts) for mode in self.modes]
        if len(vectors) == 1:
            return vectors[0]
        sequences, size = vectors[0].shape
        together = _C.Tensor.empty((sequences, len(vectors) * size))
        for place, vector in enumerate(vectors):
            _C.copy(together.narrow(1, place * size, size), vector)
        return together

    @staticmethod
    def _vector(mode: str, x: _C.Tensor, starts: Int32, cuts: _C.Tensor) -> _C.Tensor:
        if mode in POOLINGS:
            return _C.pool(x, cuts, pooling=POOLINGS[mode])
        rows = starts[:-1] if mode == "cls" else starts[1:] - 1
        return _C.gather_rows(x, _C.Tensor.from_numpy(np.ascontiguousarray(rows)))


class Dense:
    """activation(x · Wᵀ + b), of ``size`` numbers. Its weights are few, and every result hangs on them: they are never
    packed."""

    def __init__(
        self,
        weights: Weights,
        name: str,
        rows: int,
        columns: int,
        *,
        bias: bool = True,
        activation: _C.ActivationName | None = None,
    ) -> None:
        self.size = rows
        self.weight = weights.table(f"{name}.weight", rows, columns)
        self.bias = weights.vector(f"{name}.bias", rows) if bias else None
        self.activation = activation

    @classmethod
    def read(cls, fields: Fields, weights: Callable[[], Weights], size: int) -> Dense:
        """Of a config.json of sentence-transformers. ``size``: of what it is given; ``weights``: opens the module's."""
        if fields.integer("in_features") != size:
            raise fields.malformed("in_features", f"is not {size}, what the module before it puts out")
        rows = fields.integer("out_features", maximum=2**20)
        fields.expect("module_input_name", "sentence_embedding")
        fields.expect("module_output_name", "sentence_embedding", SCORES)
        fields.expect("use_residual", False)
        activation = read_activation(fields, "activation_function", "tanh")
        bias = fields.flag("bias", default=True)
        fields.refuse_rest()
        return cls(weights(), "linear", rows, size, bias=bias, activation=activation)

    def __call__(self, x: _C.Tensor) -> _C.Tensor:
        return _C.linear(x, self.weight, self.bias, activation=self.activation)


class Normalize:
    """x / |x|"""

    def __init__(self, size: int) -> None:
        # x / sqrt(mean(x²)) · 1 / sqrt(size)
        self.weight = _C.Tensor.from_numpy(np.full(size, size**-0.5, dtype=np.float32))

    def __call__(self, x: _C.Tensor) -> _C.Tensor:
        return _C.rms_norm(x, self.weight, SMALLEST_SQUARE)


def read_activation(fields: Fields, name: str, default: _C.ActivationName | None) -> _C.ActivationName | None:
    """An activation by PyTorch's name; None: none."""
    return fields.choice(name, ACTIVATIONS) if name in fields else default
