"""GBNF as llguidance's dialect of Lark.

llguidance reads text in lexemes, each a regular expression that takes the longest match; llama.cpp has none. So every
regular part of a grammar becomes a lexeme, which is fast, unless what comes behind it could begin with what the lexeme
would take: ``[0-9]+ ws`` before a line end that ``ws`` takes too. Such a part is written out in smaller ones.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from fermi.errors import RequestError
from fermi.text.grammar.automaton import Alphabet, Automaton, Follows, parts_of
from fermi.text.grammar.gbnf import Characters, Either, Node, Reference, Repeat, Row, Text, Token, read_gbnf

__all__ = ["lark_of_gbnf"]

#: Characters of a class that is read one by one where that is needed: more would take too long at each token.
FEW = 256
#: Rules of a grammar; nodes one after the other that are tried as one lexeme; lexemes whose ends are looked into.
MAX_RULES = 1000
MAX_RUN = 16
MAX_AUTOMATA = 300


def lark_of_gbnf(text: str) -> str:
    """The same grammar as Lark. RequestError where it is malformed, or too large."""
    try:
        return _Writer(_reachable(read_gbnf(text))).text()
    except RecursionError:
        raise RequestError("the rules of the GBNF grammar are nested too deep") from None


def _reachable(rules: Mapping[str, Node]) -> dict[str, Node]:
    """The rules that the root needs. RequestError for one that there is not."""
    found: dict[str, Node] = {}
    todo = ["root"]
    while todo:
        name = todo.pop()
        if name in found:
            continue
        if name not in rules:
            raise RequestError(f"the GBNF grammar has no rule {name}")
        if len(found) == MAX_RULES:
            raise RequestError(f"the GBNF grammar has more than {MAX_RULES:,} rules")
        found[name] = rules[name]
        todo += [node.rule for node in parts_of(rules[name]) if isinstance(node, Reference)]
    return found


def _regular(rules: Mapping[str, Node]) -> set[str]:
    """The rules that refer neither to themselves, however far, nor to tokens."""
    needs = {name: set(_needs(node)) for name, node in rules.items()}
    users: dict[str, list[str]] = {name: [] for name in ["", *rules]}
    for name, needed in needs.items():
        for each in needed:
            users[each].append(name)
    regular: set[str] = set()
    todo = [name for name, needed in needs.items() if not needed]
    while todo:
        found = todo.pop()
        regular.add(found)
        for user in users[found]:
            needs[user].discard(found)
            if not needs[user]:
                todo.append(user)
    return regular


def _needs(node: Node) -> Iterable[str]:
    """The rules that must be regular for a node to be, "" among them where it never is."""
    for part in parts_of(node):
        if isinstance(part, Reference):
            yield part.rule
        elif isinstance(part, Token):
            yield ""


class _Writer:
    def __init__(self, rules: Mapping[str, Node]) -> None:
        self._rules = rules
        alphabet = Alphabet(each for node in rules.values() for each in parts_of(node))
        self._alphabet = alphabet
        self._follows = Follows(rules, alphabet)
        self._regular = _regular(rules)
        self._numbers = {name: number for number, name in enumerate(rules)}
        self._extensions: dict[Node, int] = {}  # of lexemes that were looked into
        self._lexemes: dict[str, str] = {}  # by what they are made of, their names
        self._lexemes_of_rules: dict[str, str] = {}
        self._written: list[str] = []

    def text(self) -> str:
        """The whole grammar."""
        written: set[str] = set()
        todo = ["root"]
        while todo:
            name = todo.pop()
            if name in written:
                continue
            written.add(name)
            needed: list[str] = []
            body = self._rule(self._rules[name], self._follows.behind[name], needed)
            self._written.append(f"{self._name(name)}: {body}")
            todo += needed
        return "\n".join(["start: r0", *self._written]) + "\n"

    def _name(self, rule: str) -> str:
        return f"r{self._numbers[rule]}"

    def _rule(self, node: Node, behind: int, needed: list[str]) -> str:
        """A node in a rule; ``behind``: what may come after it. Adds the rules that it needs."""
        if self._is_regular(node) and self._ends_in_time(node, behind):
            return self._lexeme(node)
        match node:
            case Reference():
                needed.append(node.rule)
                return self._name(node.rule)
            case Token():
                return node.name
            case Row():
                return self._row(node, behind, needed)
        parts = [self._rule(part, after, needed) for part, after in self._follows.inside(node, behind)]
        match node:
            case Either():
                return f"({' | '.join(parts)})"
            case Repeat():
                return f"({parts[0]}){_times(node)}"
        return self._lexeme(node)  # one class of many characters

    def _row(self, row: Row, behind: int, needed: list[str]) -> str:
        """Nodes one after the other, many of them in one lexeme where that may be."""
        parts: list[str] = []
        nodes = row.nodes
        behinds = [each for _, each in self._follows.inside(row, behind)][::-1]
        at = 0
        while at < len(nodes):
            regular = at
            while regular < min(len(nodes), at + MAX_RUN) and self._is_regular(nodes[regular]):
                regular += 1
            for end in range(regular, at + 1, -1):
                run = Row(nodes[at:end])
                if run != row and self._ends_in_time(run, behinds[end - 1]):
                    parts.append(self._lexeme(run))
                    at = end
                    break
            else:
                parts.append(self._rule(nodes[at], behinds[at], needed))
                at += 1
        return f"({' '.join(parts)})" if parts else '""'

    def _is_regular(self, node: Node) -> bool:
        return all(each in self._regular for each in _needs(node))

    def _ends_in_time(self, node: Node, behind: int) -> bool:
        """Whether the longest match of a regular node is the only one that can go on as the grammar does."""
        if not behind or isinstance(node, (Text, Characters)) or self._is_wide(node):
            return True
        if node not in self._extensions:
            if len(self._extensions) == MAX_AUTOMATA:
                return True
            try:
                self._extensions[node] = Automaton(node, self._rules, self._alphabet).extensions()
            except OverflowError:  # so large a lexeme is taken as it is
                self._extensions[node] = 0
        return not self._extensions[node] & behind

    def _is_wide(self, node: Node) -> bool:
        """Whether a node repeats a class of so many characters that they cannot be read one by one."""
        match node:
            case Repeat() if isinstance(node.node, Characters):
                return sum(last - first + 1 for first, last in node.node.ranges) > FEW
        return False

    def _lexeme(self, node: Node) -> str:
        match node:
            case Text():
                return json.dumps(node.text)
            case Characters():
                return _class(node)
        pattern = self._pattern(node)
        if pattern not in self._lexemes:
            self._lexemes[pattern] = f"L{len(self._lexemes)}"
            self._written.append(f"{self._lexemes[pattern]}: {pattern}")
        return self._lexemes[pattern]

    def _pattern(self, node: Node) -> str:
        """What a lexeme is made of; rules in it are lexemes of their own."""
        match node:
            case Reference():
                if node.rule not in self._lexemes_of_rules:
                    self._lexemes_of_rules[node.rule] = self._lexeme(self._rules[node.rule])
                return self._lexemes_of_rules[node.rule]
            case Row():
                return f"({' '.join(map(self._pattern, node.nodes))})" if node.nodes else '""'
            case Either():
                return f"({' | '.join(map(self._pattern, node.nodes))})"
            case Repeat():
                return f"({self._pattern(node.node)}){_times(node)}"
        return self._lexeme(node)


def _times(node: Repeat) -> str:
    most = "" if node.most is None else node.most
    return {"0,": "*", "1,": "+", "0,1": "?"}.get(f"{node.least},{most}", f"{{{node.least},{most}}}")


def _class(node: Characters) -> str:
    if not node.ranges:
        raise RequestError("the GBNF grammar has a class without characters")
    ranges = "".join(f"\\x{{{first:X}}}-\\x{{{last:X}}}" for first, last in node.ranges)
    return f"/[{ranges}]/"
