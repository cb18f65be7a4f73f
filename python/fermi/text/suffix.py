"""A string searched for in a stream: how much of the text's end might be its beginning."""

from __future__ import annotations


def held_back(text: str, pattern: str) -> int:
    """The length of the longest end of ``text`` that ``pattern`` begins with, the whole pattern excluded."""
    for length in range(min(len(text), len(pattern) - 1), 0, -1):
        if pattern.startswith(text[-length:]):
            return length
    return 0
