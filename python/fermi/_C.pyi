"""The C++ core: tensors, weights, ops, recordings, backends, checkpoints.

Shapes are written [tokens, dim]; activations are float32. Every op checks its operands and raises ValueError naming
itself and what does not fit.
"""

from collections.abc import Sequence
from os import PathLike
from types import TracebackType
from typing import Any, Literal, final

import numpy as np
import numpy.typing as npt

__version__: str

DTypeName = Literal["f32", "f16", "bf16", "f64", "i8", "u8", "i16", "i32", "i64", "bool"]
ActivationName = Literal["silu", "gelu", "gelu_tanh", "relu", "tanh", "sigmoid"]
NormName = Literal["rms", "layer"]
PoolingName = Literal["mean", "max", "mean_sqrt_length", "weighted_mean"]
WeightFormatName = Literal["dense", "int8", "int4"]
PackedFormatName = Literal["int8", "int4"]
RopeRuleName = Literal["fixed", "dynamic_ntk", "longrope"]

class FormatError(ValueError):
    """A checkpoint file that breaks its format; the message starts with the file's name."""

class BackendError(RuntimeError):
    """A backend that cannot be loaded or that failed at run time."""

@final
class Tensor:
    """A strided view over memory of one device. No arithmetic: ops do that."""

    @staticmethod
    def empty(shape: Sequence[int], dtype: DTypeName = "f32", backend: Backend | None = None) -> Tensor: ...
    @staticmethod
    def zeros(shape: Sequence[int], dtype: DTypeName = "f32", backend: Backend | None = None) -> Tensor: ...
    @staticmethod
    def from_numpy(array: npt.NDArray[Any], dtype: DTypeName | None = None) -> Tensor:
        """Zero-copy view of the array, which is kept alive. ``dtype="bf16"`` reads a uint16 array as bfloat16."""
    @staticmethod
    def from_dlpack(source: Any) -> Tensor:
        """Zero-copy view of another library's tensor on the CPU, bfloat16 too."""
    def numpy(self) -> npt.NDArray[Any]:
        """Zero-copy view (CPU). bf16 comes as uint16: NumPy has no bfloat16."""
    def float32(self) -> npt.NDArray[np.float32]:
        """A float32 copy of a float tensor of any device."""
    def __dlpack__(
        self,
        *,
        stream: None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """BufferError where a copy is asked for, and for read-only memory to consumers of before DLPack 1.0."""
    def __dlpack_device__(self) -> tuple[int, int]: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def strides(self) -> tuple[int, ...]:
        """In elements."""
    @property
    def dtype(self) -> DTypeName: ...
    @property
    def device(self) -> str: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def contiguous(self) -> bool: ...
    @property
    def writable(self) -> bool: ...
    @property
    def address(self) -> int:
        """Address of the first element (tests of zero copy)."""
    def narrow(self, axis: int, start: int, length: int) -> Tensor: ...
    def unflatten(self, axis: int, sizes: Sequence[int]) -> Tensor: ...
    def reshape(self, shape: Sequence[int]) -> Tensor: ...
    def transpose(self, first: int, second: int) -> Tensor: ...
    def split(self, sizes: Sequence[int], axis: int = -1) -> list[Tensor]:
        """Consecutive views along an axis."""

@final
class Weight:
    """A matrix of parameters, [out features, in features], in one of the formats fermi computes with."""

    def __init__(self, data: Tensor) -> None:
        """A dense weight over a float matrix whose rows are contiguous."""
    @staticmethod
    def packed(data: Tensor, scales: Tensor, zeros: Tensor | None, rows: int, columns: int, group: int) -> Weight:
        """Integers with a scale for each row and ``group`` columns (0: all): scale * (q - zero), in strips of 16 rows.

        int8: data i8 [strips, ceil(columns / 4), 16, 4], zero 0. int4: data u8 [strips, ceil(columns / 8), 16, 4], of
        each byte j the low half column 8i + j, the high half column 8i + 4 + j; zero 8 where zeros is None. scales f16
        or f32, zeros u8: [strips, groups, 16]. ValueError where a part has another shape or dtype."""
    @staticmethod
    def packed_shapes(
        format: PackedFormatName, rows: int, columns: int, group: int
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Of the data, and of the scales and zeros."""
    def narrow(self, first_row: int, rows: int) -> Weight:
        """A view of some rows. ValueError where they are not there, or where packed ones begin or end within a strip of
        16 rows that is not the last."""
    @property
    def format(self) -> WeightFormatName: ...
    @property
    def group(self) -> int:
        """Columns that share a scale; 0: all of a row, or a dense weight."""
    @property
    def scales(self) -> Tensor | None: ...
    @property
    def zeros(self) -> Tensor | None: ...
    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def data(self) -> Tensor: ...

@final
class Backend:
    """A device that runs recordings."""

    @property
    def device(self) -> str: ...
    @property
    def description(self) -> str: ...
    @property
    def architecture(self) -> str: ...
    @property
    def threads(self) -> int: ...
    def memory(self) -> tuple[int, int]:
        """(free, total) bytes."""
    def synchronize(self) -> None: ...
    def __enter__(self) -> Backend:
        """Makes the backend current for eager ops of this thread."""
    def __exit__(self, *exception: object) -> None: ...

def open_backend(device: str = "cpu", *, threads: int = 0, architecture: str = "auto") -> Backend:
    """Opens a device. ``threads`` 0: physical cores. ``architecture`` forces a CPU instruction set."""

def cpu_architectures() -> list[str]:
    """CPU instruction sets present and usable, best first: of avx512, avx2, neon, portable."""

def devices() -> list[str]: ...
def physical_cores() -> int: ...

@final
class OpCost:
    """One op of a recording: what it must move and do at the least."""

    @property
    def name(self) -> str: ...
    @property
    def text(self) -> str:
        """The op as one line."""
    @property
    def bytes(self) -> int:
        """Read and written, each operand once."""
    @property
    def operations(self) -> int:
        """A multiply-add counts as two."""

@final
class Recording:
    """Ops described once and run as often as wanted."""

    def compile(self) -> None:
        """Lowers for repeated runs (``run`` does it on demand)."""
    def run(self) -> None:
        """Runs every op; the GIL is released once. Inputs are read from their tensors at this moment.

        ValueError when an index (token id, slot, block, row) points outside what it indexes."""
    @property
    def costs(self) -> list[OpCost]: ...
    @property
    def workspace_bytes(self) -> int:
        """Memory of all intermediate results together."""
    def __enter__(self) -> Recording: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...
    def __len__(self) -> int: ...
    def __str__(self) -> str: ...

def record(backend: Backend, *, batch_invariant: bool = False) -> Recording:
    """``with record(backend) as step:`` appends every op called on this thread to the recording instead of running it."""

@final
class Safetensors:
    """A memory-mapped checkpoint file."""

    def __init__(self, path: str | PathLike[str]) -> None:
        """Raises FormatError (malformed) or OSError (cannot be opened)."""
    @property
    def metadata(self) -> dict[str, str]: ...
    def keys(self) -> list[str]: ...
    def __contains__(self, name: str) -> bool: ...
    def __getitem__(self, name: str) -> Tensor: ...
    def __len__(self) -> int: ...

def embed(token_ids: Tensor, table: Weight, *, scale: float = 1.0, residual: Tensor | None = None) -> Tensor:
    """[tokens] i32, [vocabulary, hidden] -> [tokens, hidden]: the tokens' rows times ``scale``.

    residual, as the result: what it is added to in place; it is returned."""

def rms_norm(x: Tensor, weight: Tensor, epsilon: float, *, residual: Tensor | None = None) -> Tensor:
    """[.., dim], [dim] -> [.., dim] contiguous; rank 2 or 3 (arXiv 1910.07467). residual: as for embed."""

def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor | None, epsilon: float, *, residual: Tensor | None = None
) -> Tensor:
    """[.., dim], [dim], [dim] -> [.., dim] contiguous; rank 2 or 3 (arXiv 1607.06450). residual: as for embed."""

def linear(
    x: Tensor,
    weights: Weight | Sequence[Weight],
    biases: Sequence[Tensor | None] | Tensor | None = None,
    *,
    norm: Tensor | None = None,
    epsilon: float = 0.0,
    norm_kind: NormName = "rms",
    norm_bias: Tensor | None = None,
    activation: ActivationName | None = None,
    scale: float = 1.0,
    soft_cap: float = 0.0,
    residual: Tensor | None = None,
) -> Tensor:
    """[tokens, in] and weights [out_i, in] that share it -> [tokens, sum(out_i)]: x @ W.T + b, side by side.

    norm [in]: x is rms_norm(x) or layer_norm(x) first. activation: of the output of one weight; with two weights of
    equal out features a gate, activation(first) * second. Then the result is multiplied by ``scale``, and becomes
    soft_cap * tanh(result / soft_cap) where that is not 0. residual [tokens, out]: the result is added to it in place,
    and it is returned.
    """

def rope_angles(
    positions: Tensor,
    lengths: Tensor,
    frequencies: Tensor,
    *,
    rule: RopeRuleName = "fixed",
    attention_factor: float = 1.0,
    base: float = 0.0,
    factor: float = 1.0,
    original_length: int = 0,
) -> Tensor:
    """[tokens] i32 twice, [1 or 2, half] f32 -> [tokens, 2 * half]: cosines, then sines, of position * frequency.

    ``lengths`` is the sequence length each token's frequencies are chosen for (dynamic_ntk, longrope)."""

def rope_append(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    angles: Tensor | None,
    slots: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    *,
    key_scales: Tensor | None = None,
    value_scales: Tensor | None = None,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    epsilon: float = 0.0,
) -> None:
    """Rotates q [tokens, heads, head_dim] in place; writes rotated k and v [tokens, kv_heads, head_dim] to their slots of
    the caches [blocks, kv_heads, block_size, head_dim]. slots [tokens] i32 = block * block_size + offset; negative: skip.
    Without angles nothing turns.

    ``key_scales``, ``value_scales``, f32 [blocks, kv_heads, block_size], belong to i8 caches: x = scale * round(x / scale),
    scale = max |x| / 127 of each row. ``q_norm``, ``k_norm`` [head_dim]: weights of an rms_norm of each head before it
    turns."""

def attention(
    q: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_tables: Tensor,
    query_starts: Tensor,
    context_lengths: Tensor,
    *,
    scale: float,
    window: int = 0,
    soft_cap: float = 0.0,
    key_scales: Tensor | None = None,
    value_scales: Tensor | None = None,
) -> Tensor:
    """Causal grouped-query attention of ragged queries over the paged cache -> [tokens, heads * head_dim].

    q [tokens, heads, head_dim]; block_tables [sequences, max_blocks], query_starts [sequences + 1],
    context_lengths [sequences], all i32. ``window``: keys a query sees, itself included; 0: all. ``soft_cap``: scores
    become soft_cap * tanh(score / soft_cap) where it is not 0. Scales: of i8 caches."""

def rope(x: Tensor, angles: Tensor) -> None:
    """Rotates [tokens, heads, head_dim] in place."""

def encoder_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    starts: Tensor,
    *,
    scale: float,
    window: int = 0,
    bias: Tensor | None = None,
) -> Tensor:
    """Grouped-query attention of every token to its whole sequence -> [tokens, heads * head_dim]. No padding, no cache.

    q [tokens, heads, head_dim], k and v [tokens, kv_heads, head_dim]; starts [sequences + 1] i32, from 0 to tokens.
    ``window``: how far a query sees, before and after it; 0: everything. bias [heads, 2 * reach + 1] f32: added to the
    score of query i and key j is bias[head, clip(j - i, -reach, reach) + reach]."""

def pool(x: Tensor, starts: Tensor, *, pooling: PoolingName) -> Tensor:
    """[tokens, dim], [sequences + 1] i32 -> [sequences, dim]; zeros for an empty sequence."""

def route(
    logits: Tensor,
    k: int,
    *,
    scoring: Literal["softmax", "sigmoid"] = "softmax",
    normalize: bool = True,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """[tokens, experts] -> the k best of each token, i32 [tokens, k] in falling order, and their weights [tokens, k].

    Weights are softmax or sigmoid of the logits, over all experts; normalize: divided by the sum of the k; then times
    ``scale``."""

def expert_linear(
    x: Tensor,
    weights: Sequence[Sequence[Weight]],
    experts: Tensor,
    *,
    activation: ActivationName | None = None,
    route_weights: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """x [tokens, in] by the weights of each token's experts, i32 [tokens, k] -> [tokens * k, out].

    weights: of each expert one matrix [out, in], or two: a gate, activation(first) * second. With route_weights
    [tokens, k], x is [tokens * k, in], and the results of a token, each times its weight, are added to residual
    [tokens, out], which is returned."""

def gather_rows(x: Tensor, rows: Tensor) -> Tensor:
    """[tokens, dim], [n] i32 -> [n, dim]."""

def copy(destination: Tensor, source: Tensor) -> None:
    """Elementwise over equal shapes; converts between float dtypes."""

def quantize(
    x: Tensor,
    format: PackedFormatName,
    *,
    group: int = 0,
    symmetric: bool = True,
    scales: Literal["f16", "f32"] = "f16",
    candidates: int = 1,
    importance: Tensor | None = None,
) -> Weight:
    """Packs a float matrix [rows, columns]. Of ``candidates`` scales for each row and group the one with the least
    squared error, weighted by importance [columns] f32 where given; 1: the scale that reaches the largest element."""
