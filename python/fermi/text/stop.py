"""Stop strings in a stream of text: found across any borders, and no part of one given away before it is certain."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

__all__ = ["StopStrings"]


class StopStrings:
    """Ends a text where the first of several strings begins.

    The stop whose beginning comes first in the text wins, the shortest of those that begin there, however the text is
    split. Only text that may still turn out to be (part of) a stop is held back: the automaton of Aho and Corasick
    (1975) knows how much that is, at a constant cost per character.
    """

    def __init__(self, stops: Sequence[str], *, include: bool = False) -> None:
        """``include``: the stop string itself stays at the end of the text. ValueError for an empty stop."""
        if not all(stops):
            raise ValueError("a stop string must not be empty")
        self._include = include
        self._next, self._back, self._depth, self._found = _automaton(stops)
        self._node = 0
        self._held = ""
        self._match: tuple[int, str] | None = None  # where in the held text a stop begins, and which

    def push(self, text: str) -> tuple[str, str | None]:
        """The text that is safe to give away, and the stop that ended it or None. Not to be called after a stop."""
        held = self._held + text
        node = self._node
        for at, character in enumerate(text, len(self._held) + 1):  # at: characters of `held` seen
            while node and character not in self._next[node]:
                node = self._back[node]
            node = self._next[node].get(character, 0)
            stop = self._found[node]
            if stop is not None and (self._match is None or at - len(stop) < self._match[0]):
                self._match = at - len(stop), stop
            if self._match is not None and self._match[0] <= at - self._depth[node]:  # none can begin before it
                return self._end(held)
        self._node = node
        safe = len(held) - self._depth[node]
        self._held = held[safe:]
        if self._match is not None:
            self._match = self._match[0] - safe, self._match[1]
        return held[:safe], None

    def flush(self) -> tuple[str, str | None]:
        """The rest when the text has ended, and the stop found in it or None."""
        if self._match is not None:
            return self._end(self._held)
        held, self._held = self._held, ""
        return held, None

    def _end(self, held: str) -> tuple[str, str]:
        begin, stop = self._match or (0, "")
        self._held = ""
        return held[:begin] + (stop if self._include else ""), stop


def _automaton(stops: Sequence[str]) -> tuple[list[dict[str, int]], list[int], list[int], list[str | None]]:
    """For each node (0 is the root): children, node of its longest proper end, depth, longest stop it ends with."""
    children: list[dict[str, int]] = [{}]
    depth = [0]
    found: list[str | None] = [None]
    for stop in stops:
        node = 0
        for character in stop:
            if character not in children[node]:
                children[node][character] = len(children)
                children.append({})
                depth.append(depth[node] + 1)
                found.append(None)
            node = children[node][character]
        found[node] = stop
    back = [0] * len(children)
    queue = deque(children[0].values())
    while queue:
        node = queue.popleft()
        found[node] = found[node] if found[node] is not None else found[back[node]]
        for character, child in children[node].items():
            end = back[node]
            while end and character not in children[end]:
                end = back[end]
            back[child] = children[end].get(character, 0)
            queue.append(child)
    return children, back, depth, found
