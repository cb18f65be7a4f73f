"""What may follow what in a grammar: where a lexer that takes the longest match would take too much."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping

from fermi.text.grammar.gbnf import Characters, Either, Node, Reference, Repeat, Row, Text, Token

__all__ = ["Alphabet", "Automaton", "Follows", "characters_of", "parts_of"]

#: Copies that a counted repetition is unrolled into; beyond them it counts as one without an end.
UNROLLED = 16
#: States that an automaton may have, and sets of them that are looked at.
MAX_STATES = 2000
MAX_SETS = 200


class Alphabet:
    """The characters of a grammar in classes that it does not tell apart; sets of them are bits of an integer."""

    def __init__(self, nodes: Iterable[Node]) -> None:
        bounds = {0}
        for node in nodes:
            for first, last in characters_of(node):
                bounds |= {first, last + 1}
        self._bounds = sorted(bounds)

    def of(self, ranges: Iterable[tuple[int, int]]) -> int:
        """The set of these characters."""
        found = 0
        for first, last in ranges:
            low, high = bisect_right(self._bounds, first) - 1, bisect_left(self._bounds, last + 1)
            found |= (1 << high) - (1 << low)
        return found


def parts_of(node: Node) -> Iterable[Node]:
    """A node and all in it."""
    todo = [node]
    while todo:
        node = todo.pop()
        yield node
        match node:
            case Row() | Either():
                todo += node.nodes
            case Repeat():
                todo.append(node.node)


def characters_of(node: Node) -> Iterable[tuple[int, int]]:
    """The ranges of characters that a node itself names."""
    match node:
        case Text():
            return ((ord(each), ord(each)) for each in node.text)
        case Characters():
            return node.ranges
    return ()


class Automaton:
    """A regular part of a grammar, step by step: states are numbers, 0 is the first."""

    def __init__(self, node: Node, rules: Mapping[str, Node], alphabet: Alphabet) -> None:
        """OverflowError where it would have too many states."""
        self._rules = rules
        self._alphabet = alphabet
        self._steps: list[list[tuple[int, int]]] = [[]]  # of each state: characters, next state
        self._free: list[list[int]] = [[]]  # of each state: those reached without a character
        self._end = self._add(node, 0)

    def extensions(self) -> int:
        """The characters by which a text that matches may go on and still be the beginning of one that does.

        OverflowError where there are too many to look at.
        """
        start = self._closed({0})
        seen, todo, found = {start}, [start], 0
        while todo:
            states = todo.pop()
            steps = [step for state in states for step in self._steps[state]]
            if self._end in states:
                for characters, _ in steps:
                    found |= characters
            for part in _apart([characters for characters, _ in steps]):
                reached = self._closed({target for characters, target in steps if characters & part})
                if reached not in seen:
                    if len(seen) >= MAX_SETS:
                        raise OverflowError
                    seen.add(reached)
                    todo.append(reached)
        return found

    def _closed(self, states: set[int]) -> frozenset[int]:
        todo = list(states)
        while todo:
            for target in self._free[todo.pop()]:
                if target not in states:
                    states.add(target)
                    todo.append(target)
        return frozenset(states)

    def _state(self) -> int:
        if len(self._steps) >= MAX_STATES:
            raise OverflowError
        self._steps.append([])
        self._free.append([])
        return len(self._steps) - 1

    def _add(self, node: Node, state: int) -> int:
        """The state that is reached from one through a node."""
        match node:
            case Text():
                for each in node.text:
                    state = self._step(state, ((ord(each), ord(each)),))
                return state
            case Characters():
                return self._step(state, node.ranges)
            case Reference():
                return self._add(self._rules[node.rule], state)
            case Row():
                for part in node.nodes:
                    state = self._add(part, state)
                return state
            case Either():
                end = self._state()
                for part in node.nodes:
                    self._free[self._add(part, state)].append(end)
                return end
            case Repeat():
                return self._repeat(node, state)
        raise AssertionError("a token is no part of a regular text")

    def _repeat(self, node: Repeat, state: int) -> int:
        for _ in range(min(node.least, UNROLLED)):
            state = self._add(node.node, state)
        end = self._state()
        self._free[state].append(end)
        if node.most is None or node.most > UNROLLED:
            loop = self._state()
            self._free[state].append(loop)
            self._free[self._add(node.node, loop)] += [loop, end]
            return end
        for _ in range(node.least, node.most):
            state = self._add(node.node, state)
            self._free[state].append(end)
        return end

    def _step(self, state: int, ranges: Iterable[tuple[int, int]]) -> int:
        target = self._state()
        self._steps[state].append((self._alphabet.of(ranges), target))
        return target


def _apart(sets: list[int]) -> list[int]:
    """The parts of sets that each of them has wholly or not at all."""
    parts: list[int] = []
    for each in sets:
        split: list[int] = []
        for part in parts:
            split += [kept for kept in (part & each, part & ~each) if kept]
            each &= ~part
        parts = split + ([each] if each else [])
    return parts


class Follows:
    """For each rule the characters that a text may begin with, whether it may be empty, and what may come behind it."""

    def __init__(self, rules: Mapping[str, Node], alphabet: Alphabet) -> None:
        self._rules = rules
        self._alphabet = alphabet
        self._first = dict.fromkeys(rules, 0)
        self._empty = dict.fromkeys(rules, False)
        self.behind = dict.fromkeys(rules, 0)
        self._grow_first()
        self._grow_behind()

    def begin(self, node: Node) -> tuple[int, bool]:
        """The characters that a node's texts begin with, and whether it may be empty."""
        match node:
            case Text():
                return self._alphabet.of(((ord(node.text[0]), ord(node.text[0])),)) if node.text else 0, not node.text
            case Characters():
                return self._alphabet.of(node.ranges), False
            case Token():
                return 0, False
            case Reference():
                return self._first[node.rule], self._empty[node.rule]
            case Row():
                return self.begin_of_row(node.nodes)
            case Either():
                parts = [self.begin(part) for part in node.nodes]
                return _union(first for first, _ in parts), any(empty for _, empty in parts)
            case Repeat():
                first, empty = self.begin(node.node)
                return first, empty or node.least == 0

    def begin_of_row(self, nodes: Iterable[Node]) -> tuple[int, bool]:
        """The same of nodes one after the other."""
        found = 0
        for node in nodes:
            first, empty = self.begin(node)
            found |= first
            if not empty:
                return found, False
        return found, True

    def inside(self, node: Node, behind: int) -> Iterable[tuple[Node, int]]:
        """The parts of a node, each with the characters that may come behind it."""
        match node:
            case Row():
                for part in reversed(node.nodes):
                    yield part, behind
                    first, empty = self.begin(part)
                    behind = first | (behind if empty else 0)
            case Either():
                for part in node.nodes:
                    yield part, behind
            case Repeat():
                again = self.begin(node.node)[0] if node.most is None or node.most > 1 else 0
                yield node.node, again | behind

    def _grow_first(self) -> None:
        users: dict[str, set[str]] = {name: set() for name in self._rules}
        for name, node in self._rules.items():
            for each in parts_of(node):
                if isinstance(each, Reference):
                    users[each.rule].add(name)
        todo = dict.fromkeys(self._rules)
        while todo:
            name, _ = todo.popitem()
            found = self.begin(self._rules[name])
            if found != (self._first[name], self._empty[name]):
                self._first[name], self._empty[name] = found
                todo |= dict.fromkeys(users[name])

    def _grow_behind(self) -> None:
        todo = dict.fromkeys(self._rules)
        while todo:
            name, _ = todo.popitem()
            within = [(self._rules[name], self.behind[name])]
            while within:
                node, behind = within.pop()
                if isinstance(node, Reference) and behind & ~self.behind[node.rule]:
                    self.behind[node.rule] |= behind
                    todo[node.rule] = None
                within += self.inside(node, behind)


def _union(sets: Iterable[int]) -> int:
    found = 0
    for each in sets:
        found |= each
    return found
