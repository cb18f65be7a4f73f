"""Which layers of a model share the blocks of a sequence."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fermi.models.inputs import KVSpec

__all__ = ["LayerGroups"]

#: Every group costs a block table, and time in each step.
MOST_GROUPS = 8


@dataclass(frozen=True)
class LayerGroups:
    """Layers in groups that see equally far: a sequence has a block table for each, whose blocks go when it sees them
    no more.

    All groups take blocks from one pool, so that memory goes to the one that needs it (as in Jenga, arXiv 2503.18292).
    A block therefore holds the keys and values of any one group, of as many layers as the largest has.

    Attributes:
        windows: of each group, the tokens that a query sees, itself included; 0: all. The widest are first.
        of_layers: the group of each layer.
    """

    windows: tuple[int, ...]
    of_layers: tuple[int, ...]

    @classmethod
    def of(cls, windows: Sequence[int], length: int) -> LayerGroups:
        """The groups by which a sequence of ``length`` tokens takes least memory; the fewest of those.

        ``windows``: of each layer. In one group of all layers the window is that of the layer which sees most.
        """
        joined = cls((max(windows) if min(windows) else 0,), (0,) * len(windows))
        parted = (cls._of_size(windows, size) for size in range(1, len(windows) + 1))
        few = [joined, *(groups for groups in parted if len(groups.windows) <= MOST_GROUPS)]
        return min(few, key=lambda groups: (groups._held(length), len(groups.windows)))

    @classmethod
    def _of_size(cls, windows: Sequence[int], size: int) -> LayerGroups:
        """Groups of ``size`` layers with the same window, and of what is left."""
        group_windows: list[int] = []
        of_layers = [0] * len(windows)
        for window in sorted(set(windows), key=lambda window: -window if window else -math.inf):
            layers = [layer for layer, other in enumerate(windows) if other == window]
            for start in range(0, len(layers), size):
                for layer in layers[start : start + size]:
                    of_layers[layer] = len(group_windows)
                group_windows.append(window)
        return cls(tuple(group_windows), tuple(of_layers))

    def _held(self, length: int) -> int:
        """What a sequence of that length takes, in tokens of one layer."""
        return self.size * sum(min(window or length, length) for window in self.windows)

    def block_bytes(self, spec: KVSpec, block_size: int) -> int:
        """What a block of ``block_size`` tokens takes; ``spec``: of all layers."""
        return replace(spec, layers=self.size).bytes_per_token * block_size

    @property
    def size(self) -> int:
        """Layers of the largest group."""
        return max(Counter(self.of_layers).values())
