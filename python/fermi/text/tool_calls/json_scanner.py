"""One JSON value, followed through a text that comes in pieces to its end or to the first mistake."""

from __future__ import annotations

import re
from collections.abc import Callable

__all__ = ["JsonScanner"]

_SPACE = re.compile(r"[ \t\r\n]+")
_RUN = re.compile(r'[^"\\\x00-\x1f]+')
_WORD = re.compile(r"[-+.0-9A-Za-z_]+")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
_WORDS = {"true": "true", "false": "false", "null": "null", "True": "true", "False": "false", "None": "null"}
_DEPTH = 128  # json.loads of Python, which clients use, recurses
_LONGEST_WORD = 400  # digits; a double needs no more

_State = Callable[[str, int], int]


class JsonScanner:
    """Scans one value.

    What can only be meant in one way is put right: control characters and unknown escapes in strings are escaped, a
    comma before a closing bracket is left out, Python's ``True``, ``False`` and ``None`` become JSON's.

    Attributes:
        begun: the value is an object whose first member's value has begun, or it is complete.
        complete: the value has ended.
        broken: what stands at the position cannot belong to JSON.
        cut: the text has ended before the value.
    """

    def __init__(self) -> None:
        self.begun = self.complete = self.broken = self.cut = False
        self._state: _State = self._value
        self._stack: list[str] = []  # the brackets that must still be closed
        self._out: list[str] = []
        self._comma = ""  # and the space after it, until it is certain that something follows
        self._word = ""
        self._escape = ""
        self._in_key = False
        self._may_close = False

    @property
    def ended(self) -> bool:
        """Whether it takes no more text."""
        return self.complete or self.broken or self.cut

    @property
    def missing(self) -> str | None:
        """The brackets that would complete the value, None where more than brackets is missing."""
        between = self._state == self._next or (self._may_close and bool(self._stack))
        return "".join(reversed(self._stack)) if between else None

    def feed(self, text: str, at: int = 0) -> tuple[int, str]:
        """Go on with the text from there. How far it belongs to the value, and what to pass on of it."""
        self._out = []
        while at < len(text) and not self.ended:
            at = self._state(text, at)
        return at, "".join(self._out)

    def finish(self) -> str:
        """What is left to pass on when the text has ended: a number alone ends with it."""
        self._out = []
        if self._state == self._in_word and not self._end_word():
            self.broken = True
        self.cut = not self.complete
        return "".join(self._out)

    def _value(self, text: str, at: int) -> int:
        character = text[at]
        if character in " \t\r\n":
            return self._space(text, at)
        if self._may_close and character == self._stack[-1]:
            return self._close(at)
        if character == '"':
            self._begin(character)
            self._in_key, self._state = False, self._in_string
            return at + 1
        if character in "{[":
            return self._open(character, at)
        if _WORD.match(character) is None:
            return self._break(at)
        self._word, self._may_close, self._state = "", False, self._in_word
        return at

    def _key(self, text: str, at: int) -> int:
        character = text[at]
        if character in " \t\r\n":
            return self._space(text, at)
        if self._may_close and character == "}":
            return self._close(at)
        if character != '"':
            return self._break(at)
        self._pass_on(character)
        self._in_key, self._may_close, self._state = True, False, self._in_string
        return at + 1

    def _colon(self, text: str, at: int) -> int:
        if text[at] in " \t\r\n":
            return self._space(text, at)
        if text[at] != ":":
            return self._break(at)
        self._out.append(":")
        self._state = self._value
        return at + 1

    def _next(self, text: str, at: int) -> int:
        """Behind a member."""
        character = text[at]
        if character in " \t\r\n":
            return self._space(text, at)
        if character == self._stack[-1]:
            return self._close(at)
        if character != ",":
            return self._break(at)
        self._comma, self._may_close = ",", True
        self._state = self._key if self._stack[-1] == "}" else self._value
        return at + 1

    def _in_string(self, text: str, at: int) -> int:
        run = _RUN.match(text, at)
        if run is not None:
            self._out.append(run[0])
            return run.end()
        character = text[at]
        if character == "\\":
            self._escape, self._state = "", self._in_escape
        elif character == '"':
            self._out.append(character)
            if self._in_key:
                self._state = self._colon
            else:
                self._ended_value()
        else:
            self._out.append(_escaped(character))
        return at + 1

    def _in_escape(self, text: str, at: int) -> int:
        """Behind a backslash, which is passed on with what follows."""
        character = text[at]
        if not self._escape and character in '"\\/bfnrt':
            self._out.append("\\" + character)
        elif not self._escape and character == "u":
            self._escape = "u"
            return at + 1
        elif self._escape and character in "0123456789abcdefABCDEF":
            self._escape += character
            if len(self._escape) < 5:
                return at + 1
            self._out.append("\\" + self._escape)
        elif self._escape:  # \u and too few digits
            self._out.append("\\\\" + self._escape)
            self._state = self._in_string
            return at
        elif character == "'":
            self._out.append("'")
        else:
            self._out.append("\\\\")
            self._state = self._in_string
            return at
        self._state = self._in_string
        return at + 1

    def _in_word(self, text: str, at: int) -> int:
        run = _WORD.match(text, at)
        if run is None:
            return at if self._end_word() else self._break(at)
        room = _LONGEST_WORD - len(self._word)
        self._word += run[0][:room]
        return run.end() if len(run[0]) <= room else self._break(at + room)

    def _end_word(self) -> bool:
        word = self._word if _NUMBER.fullmatch(self._word) else _WORDS.get(self._word)
        if word is None:
            self._pass_on(self._word)
            return False
        self._begin(word)
        self._ended_value()
        return True

    def _open(self, bracket: str, at: int) -> int:
        if len(self._stack) == _DEPTH:
            return self._break(at)
        self._begin(bracket)
        self._stack.append("}" if bracket == "{" else "]")
        self._state = self._key if bracket == "{" else self._value
        self._may_close = True
        return at + 1

    def _close(self, at: int) -> int:
        self._comma = ""
        self._out.append(self._stack.pop())
        self._ended_value()
        return at + 1

    def _ended_value(self) -> None:
        self._state, self._may_close = self._next, False
        if not self._stack:
            self.complete = self.begun = True

    def _begin(self, text: str) -> None:
        self.begun |= self._stack == ["}"]
        self._may_close = False
        self._pass_on(text)

    def _pass_on(self, text: str) -> None:
        self._out.append(self._comma + text)
        self._comma = ""

    def _space(self, text: str, at: int) -> int:
        run = _SPACE.match(text, at)
        assert run is not None
        if self._comma:
            self._comma += run[0]
        else:
            self._out.append(run[0])
        return run.end()

    def _break(self, at: int) -> int:
        self.broken = True
        return at


def _escaped(control: str) -> str:
    return {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(control, f"\\u{ord(control):04x}")
