"""Which layers share blocks: those that see equally far, in groups by which sequences take least memory."""

from __future__ import annotations

import pytest

from fermi.engine.layer_groups import LayerGroups
from fermi.models.inputs import KVSpec


@pytest.mark.parametrize(
    ("windows", "length", "groups", "size"),
    [
        ((0, 0, 0), 100, (0,), 3),
        ((4, 4), 100, (4,), 2),
        ((4096, 0) * 13, 8192, (0, 4096), 13),  # Gemma 2, 2B
        ((4096, 0) * 13, 4096, (0,), 26),  # nothing ever slides
        (((512,) * 5 + (0,)) * 4 + (512, 512), 32768, (0,) + (512,) * 6, 4),  # Gemma 3, 1B
        (((1024,) * 5 + (0,)) * 10 + (1024, 1024), 131072, (0,) + (1024,) * 6, 10),  # Gemma 3, 27B
        ((0,) * 21 + (4096,) * 7, 32768, (0, 0, 0, 4096), 7),
        ((0,) * 23 + (4096,), 32768, (0,), 24),  # what one layer would give back, others would have to pad
        ((0, 9, 4), 100, (0, 9, 4), 1),
        ((9, 4, 4), 100, (9, 4, 4), 1),
    ],
    ids=str,
)
def test_layers_that_see_equally_far_are_together(
    windows: tuple[int, ...], length: int, groups: tuple[int, ...], size: int
) -> None:
    made = LayerGroups.of(windows, length)
    assert (made.windows, made.size) == (groups, size)
    for window, group in zip(windows, made.of_layers, strict=True):
        assert made.windows[group] == (window if len(groups) > 1 else groups[0])


def test_many_windows_are_no_reason_for_many_groups() -> None:
    made = LayerGroups.of(tuple(range(1, 21)), 1000)
    assert (made.windows, set(made.of_layers)) == ((20,), {0})


def test_a_block_holds_one_group() -> None:
    spec = KVSpec(layers=3, kv_heads=2, head_dim=4, dtype="f32")
    assert LayerGroups((0,), (0, 0, 0)).block_bytes(spec, 16) == 3 * 64 * 16
    assert LayerGroups((0, 4), (0, 1, 0)).block_bytes(spec, 16) == 2 * 64 * 16
