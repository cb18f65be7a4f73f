"""Packs a model block by block while a text runs through it, each matrix for the inputs that it meets there.

Two streams run side by side: the model as it was, and the model as far as it is packed. Each projection is packed for
the inputs of the second stream, and so that what it brings forth is what it is in the first, as far as it can be. So
errors are made up for by what comes after them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fermi import _C
from fermi.errors import ConfigError
from fermi.models import Batch, KVCache, MatrixRole, Transform, load_model
from fermi.models.blocks import Block
from fermi.models.decoder import Decoder
from fermi.models.inputs import LayerCache
from fermi.models.layers import Mlp, Projections
from fermi.models.weights import STRIP
from fermi.quantization.gptq import Doubles, fit_to, pack_for
from fermi.quantization.packer import Packer, progress_bar
from fermi.quantization.recipe import Recipe
from fermi.quantization.survey import Survey

__all__ = ["WINDOW", "pack_calibrated"]

Singles: TypeAlias = npt.NDArray[np.float32]

BLOCK_SIZE = 16

#: Tokens of a sequence.
WINDOW = 256

#: Sequences that run together.
TOGETHER = 8


def pack_calibrated(
    folder: Path, token_ids: Sequence[int], recipe: Recipe, *, backend: _C.Backend, progress: bool = True
) -> Mapping[str, _C.Weight]:
    """Every projection of a model packed for a text, by name. All of them are in memory.

    Raises ConfigError for an empty text, a model that is packed already or one whose blocks are not made of two halves
    that add to the residual one after the other, and what `load_model` raises.
    """
    if not token_ids:
        raise ConfigError("the calibration text is empty")
    survey = Survey.of(folder, backend)
    if not survey.sequential:
        raise ConfigError(f"calibration: the blocks of {folder} are not made for it; quantize without a text")
    taps = _Taps(), _Taps()
    original = load_model(folder, backend=backend, tap=taps[0])
    tables = _tables_only(Packer(recipe, backend=backend))
    packed = load_model(folder, backend=backend, transform=tables, tap=taps[1])
    size = min(WINDOW, original.max_position_embeddings)
    sequences = [token_ids[start : start + size] for start in range(0, len(token_ids), size)]
    windows = [_Window(sequences[start : start + TOGETHER]) for start in range(0, len(sequences), TOGETHER)]
    elements = sum(matrix.elements for matrix in survey.matrices if matrix.role == "projection")
    with progress_bar(elements, progress) as bar:
        walk = _Walk({original: taps[0], packed: taps[1]}, windows, recipe, bar.update)
        return {name: weight for layer in range(len(packed.blocks)) for name, weight in walk.pack_block(layer)}


def _tables_only(packer: Packer) -> Transform:
    """Packs what is no projection."""

    def transform(name: str, role: MatrixRole, weight: _C.Weight) -> _C.Weight:
        return weight if role == "projection" else packer(name, role, weight)

    return transform


class _Taps:
    """Keeps what recordings multiply each matrix with, by the matrix's name."""

    def __init__(self) -> None:
        self.inputs: dict[str, _C.Tensor] = {}

    def __call__(self, names: Sequence[str], x: _C.Tensor) -> None:
        for name in names:
            self.inputs[name] = x


class _Sums:
    """Σ xᵀx and Σ xᵀy over tokens."""

    def __init__(self) -> None:
        self.squares: Doubles = np.zeros(())
        self.products: Doubles = np.zeros(())

    def add(self, x: Singles, y: Singles) -> None:
        """[tokens, columns] and [tokens, any]."""
        wide = x.astype(np.float64)
        self.squares = self.squares + wide.T @ wide
        self.products = self.products + wide.T @ y


class _Window:
    """A part of the text, some sequences, that runs on its own, and where the two streams stand in it."""

    def __init__(self, sequences: Sequence[Sequence[int]]) -> None:
        self.blocks = sum(_blocks_of(sequence) for sequence in sequences)
        self.batch = _batch_of(sequences)
        self.original: Singles = np.empty((0, 0), np.float32)  # [tokens, hidden]
        self.packed: Singles = np.empty((0, 0), np.float32)


class _Walk:
    """Goes through the blocks."""

    def __init__(
        self,
        taps: Mapping[Decoder[Any], _Taps],  # of the original and of the packed model
        windows: Sequence[_Window],
        recipe: Recipe,
        advance: Callable[[int], object],
    ) -> None:
        self._original, self._packed = taps
        self._taps = taps
        self._windows = windows
        self._recipe = recipe
        self._advance = advance
        self._backend = self._packed.backend
        for window in windows:
            window.original = self._embedded(self._original, window)
            window.packed = self._embedded(self._packed, window)

    def pack_block(self, layer: int) -> Iterator[tuple[str, _C.Weight]]:
        """The projections of a block, in the order in which they run."""
        block = _block(self._packed, layer)
        assert isinstance(block.mlp, Mlp)
        yield from self._pack_half(layer, _attend, block.attention.qkv, block.attention.output)
        yield from self._pack_half(layer, _think, block.mlp.up, block.mlp.down)

    def _pack_half(
        self, layer: int, half: _Half, entry: Projections, exit_: Projections
    ) -> Iterator[tuple[str, _C.Weight]]:
        """Packs what takes the residual in, then what adds to it, and lets both streams pass.

        What the first brings forth shall be what it is in the original; what the second adds shall bring the residual
        to where it is in the original.
        """
        there = _Sums()  # with the original's inputs
        for window in self._windows:
            x = self._input(self._packed, layer, half, entry, window, window.packed)
            there.add(x, self._input(self._original, layer, half, entry, window, window.original))
        yield from self._pack(entry, there.squares, lambda matrix: there.products @ matrix.T)

        for window in self._windows:
            self._run(self._original, layer, half, window, window.original)
        bias = 0.0 if exit_.biases is None else exit_.biases[0].float32()
        lacking = _Sums()  # with what is still lacking behind it
        for window in self._windows:
            x = self._input(self._packed, layer, half, exit_, window, window.packed)
            lacking.add(x, (window.original - window.packed) / exit_.scale - bias)
        yield from self._pack(exit_, lacking.squares, lambda matrix: lacking.products)
        for window in self._windows:
            self._run(self._packed, layer, half, window, window.packed)

    def _input(
        self, model: Decoder[Any], layer: int, half: _Half, linear: Projections, window: _Window, x: Singles
    ) -> Singles:
        """What one of the streams brings to a projection; the stream stays where it is."""
        self._run(model, layer, half, window, x.copy())
        return self._taps[model].inputs[linear.names[0]].float32()

    def _pack(
        self, linear: Projections, squares: Doubles, products: Callable[[Doubles], Doubles]
    ) -> Iterator[tuple[str, _C.Weight]]:
        """Packs projections of one input. ``products``: of the input and what each matrix shall bring forth.

        A matrix that the model holds in parts stays as it is where it could not be cut into them.
        """
        packing = self._recipe.packing("projection")
        assert packing is not None
        cut = len(linear.names) < len(linear.weights)
        if cut and any(start % STRIP for start in accumulate(linear.sizes[:-1])):
            return
        for index, name in enumerate(linear.names):
            parts = linear.weights if cut else linear.weights[index : index + 1]
            matrix: Doubles = np.concatenate([part.data.float32() for part in parts]).astype(np.float64)
            fitted = fit_to(matrix, squares, products(matrix))
            weight = pack_for(fitted, squares, packing, candidates=self._recipe.candidates, backend=self._backend)
            if cut:
                starts = [0, *accumulate(linear.sizes[:-1])]
                linear.weights = [weight.narrow(*rows) for rows in zip(starts, linear.sizes, strict=True)]
            else:
                linear.weights[index] = weight
            self._advance(matrix.size)
            yield name, weight

    def _embedded(self, model: Decoder[Any], window: _Window) -> Singles:
        with self._backend:
            return model.embed(window.batch).float32()

    def _run(self, model: Decoder[Any], layer: int, half: _Half, window: _Window, x: Singles) -> None:
        """Half a block of one of the models, which changes x, [tokens, hidden], in place."""
        cache = KVCache.allocate(replace(model.kv_spec, layers=1), window.blocks, BLOCK_SIZE, self._backend)
        with _C.record(self._backend) as step:
            half(model, layer, _C.Tensor.from_numpy(x), window.batch, cache[0])
        step.run()


_Half: TypeAlias = Callable[[Decoder[Any], int, _C.Tensor, Batch, LayerCache], None]


def _attend(model: Decoder[Any], layer: int, x: _C.Tensor, batch: Batch, cache: LayerCache) -> None:
    block = _block(model, layer)
    block.attention(x, block.attention_norm, model.angles(batch)[layer], batch, cache)


def _think(model: Decoder[Any], layer: int, x: _C.Tensor, batch: Batch, cache: LayerCache) -> None:
    block = _block(model, layer)
    block.mlp(x, block.mlp_norm)


def _block(model: Decoder[Any], layer: int) -> Block:
    block = model.blocks[layer]
    assert isinstance(block, Block)
    return block


def _blocks_of(sequence: Sequence[int]) -> int:
    return -(-len(sequence) // BLOCK_SIZE)


def _batch_of(sequences: Sequence[Sequence[int]]) -> Batch:
    """Sequences from their beginnings, each with blocks of its own."""
    lengths = [len(sequence) for sequence in sequences]
    block_tables = np.zeros((len(sequences), max(map(_blocks_of, sequences))), np.int32)
    slots = []
    first = 0
    for row, sequence in enumerate(sequences):
        count = _blocks_of(sequence)
        block_tables[row, :count] = np.arange(first, first + count)
        slots.append(first * BLOCK_SIZE + np.arange(len(sequence)))
        first += count

    def int32(values: npt.ArrayLike) -> _C.Tensor:
        return _C.Tensor.from_numpy(np.ascontiguousarray(values, np.int32))

    return Batch(
        token_ids=int32(np.concatenate([np.asarray(sequence) for sequence in sequences])),
        positions=int32(np.concatenate([np.arange(length) for length in lengths])),
        rope_lengths=int32(np.repeat(lengths, lengths)),
        slots=(int32(np.concatenate(slots)),),
        query_starts=int32(np.cumsum([0, *lengths])),
        context_lengths=int32(lengths),
        block_tables=(int32(block_tables),),
        logit_rows=int32([0]),
    )
