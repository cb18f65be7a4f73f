"""A model's reply, read while it comes by a generator that waits where the text ends: content here, calls there."""

from __future__ import annotations

import itertools
import re
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from fermi.text.tool_calls.json_scanner import JsonScanner

__all__ = ["CallPiece", "Markers", "Reply", "Steps", "ToolCallDelta"]

Result = TypeVar("Result")
Steps = Generator[None, None, Result]  # yields where it waits for more text

#: Characters of arguments that are kept until it is certain that they go on well: what is wrong in a short call is
#: seen before any of it was given away.
KEPT = 64

_SPACE = re.compile(r"\s+")


@dataclass(frozen=True, slots=True)
class CallPiece:
    """A bit of the ``index``-th call: its name with the first, its arguments, JSON text, with the others."""

    index: int
    name: str | None = None
    arguments: str = ""


class ToolCallDelta(NamedTuple):
    """A bit of content, and of calls."""

    content: str
    calls: tuple[CallPiece, ...]


class Markers:
    """Texts to find in a stream."""

    def __init__(self, *texts: str) -> None:
        self.texts = texts
        self._whole = re.compile("|".join(map(re.escape, texts)) or r"(?!)")
        self._beginning = re.compile("(?:" + "|".join(map(_beginnings, texts)) + r")\Z" if texts else r"(?!)")

    def find(self, text: str, at: int) -> tuple[int, int] | None:
        """Where the first of them stands."""
        found = self._whole.search(text, at)
        return None if found is None else found.span()

    def safe(self, text: str, at: int) -> int:
        """How far the text, which holds none of them, is none of one's beginning."""
        found = self._beginning.search(text, at)
        return len(text) if found is None else found.start()


class Reply:
    """The text as far as it came, the place in it, and what was made of it.

    What is read from ``attempt`` on may be a call or, after ``give_up``, content, word for word. It is a call for good
    when it is complete, when so many characters of its arguments have come that it is given away, or when the reply is
    cut off in it. White space beside a call belongs to neither. All decisions depend on the text alone, never on where
    it was cut.
    """

    def __init__(self, *, closing: Sequence[str] = (), hidden: Sequence[str] = ()) -> None:
        """``closing``: what stands behind a call. ``hidden``: special tokens, which are never content."""
        self.ended = False
        self.cut = False  # the reply was cut off, so that what is open was not to be closed here
        self.calls = 0  # begun so far
        self.completed = 0
        self.behind_call = False  # nothing but white space and markup since: it belongs to the call
        self._closing = closing
        self._hidden = hidden
        self._text = ""
        self._at = 0
        self._kept: list[str] | None = None  # what was read since `attempt`
        self._space: list[str] = []  # content, if more content follows
        self._content: list[str] = []
        self._pieces: list[CallPiece] = []
        self._begun: list[CallPiece] = []  # of a call that may still be given up

    def feed(self, text: str) -> None:
        """More text."""
        self._text = self._text[self._at :] + text
        self._at = 0

    def take(self) -> ToolCallDelta:
        """What was made of the text since the last time."""
        delta = ToolCallDelta("".join(self._content), _merged(self._pieces))
        self._content, self._pieces = [], []
        return delta

    def end(self) -> None:
        """Nothing follows: what is undecided is content."""
        self.give_up()
        if not self.behind_call:
            self._content += self._space
        self._space = []

    # Reading: each primitive takes what the text alone decides.

    def peek(self) -> Steps[str]:
        """The next character, "" at the end."""
        while self._at == len(self._text):
            if self.ended:
                return ""
            yield
        return self._text[self._at]

    def space(self) -> Steps[str]:
        """Read white space."""
        return (yield from self._class(_SPACE, None))

    def word(self, *options: str) -> Steps[str]:
        """Read the one of these texts that stands here, the longest if several do; "" if none does."""
        options = tuple(sorted(options, key=len, reverse=True))
        while True:
            rest = self._text[self._at : self._at + len(options[0])]
            longer = any(len(option) > len(rest) and option.startswith(rest) for option in options)
            if self.ended or not longer:
                found = next((option for option in options if rest.startswith(option)), "")
                self._read(len(found))
                return found
            yield

    def run(self, characters: re.Pattern[str], limit: int) -> Steps[str]:
        """Read the characters of a class (a pattern of one or more), so many at most."""
        return (yield from self._class(characters, limit))

    def some(self, characters: re.Pattern[str]) -> str:
        """Read those that are there already, to be passed on."""
        run = characters.match(self._text, self._at)
        text = "" if run is None else run[0]
        self._read(len(text))
        return text

    def scan(self, scanner: JsonScanner) -> Steps[str]:
        """Read on in a JSON value: a piece to pass on; the value is ended, or the reply, where the scanner says so."""
        if not (yield from self.peek()):
            return scanner.finish()
        end, text = scanner.feed(self._text, self._at)
        self._read(end - self._at)
        return text

    def until(self, markers: Markers) -> Steps[tuple[str, str]]:
        """Read a piece of what stands before one of the markers, and with the last piece the marker: (text, marker).

        ("", "") is the reply's end.
        """
        while True:
            found = markers.find(self._text, self._at)
            if found is not None:
                text, marker = self._text[self._at : found[0]], self._text[slice(*found)]
                self._read(found[1] - self._at)
                return text, marker
            safe = len(self._text) if self.ended else markers.safe(self._text, self._at)
            if safe > self._at:
                text = self._text[self._at : safe]
                self._read(len(text))
                return text, ""
            if self.ended:
                return "", ""
            yield

    def closes(self) -> Steps[bool]:
        """Whether what closes a call stands here; it is not read."""
        found = (yield from self.word(*self._closing)) if self._closing else ""
        self.unread(len(found))
        return bool(found)

    def unread(self, characters: int) -> None:
        """Go back; right after reading only."""
        self._at -= characters

    # Writing.

    def content_until(self, markers: Markers) -> Steps[str]:
        """Read content up to a marker, which is read and returned; "" at the end."""
        while True:
            text, marker = yield from self.until(markers)
            self.content(text)
            if marker or not text:
                return marker

    def content(self, text: str) -> None:
        """Text that is not of a call."""
        body = text.strip()
        if not body:
            self._space.append(text)
            return
        start = text.index(body)
        if self.behind_call:
            self.behind_call = False
        else:
            self._content += [*self._space, text[:start]]
        self._content.append(body)
        self._space = [text[start + len(body) :]]

    def attempt(self, marker: str = "") -> None:
        """What is read from here on, and the marker read before it, may be a call."""
        if self._kept is None:
            self._kept = [marker]

    def drop(self) -> None:
        """It was markup of a call."""
        if not self._begun:
            self._kept = None

    def give_up(self) -> None:
        """It is none, or goes on no further."""
        if self._begun and self.ended and self.cut:
            self._commit()
        elif self._begun:
            self._begun = []
            self.calls -= 1
        if self._kept is not None:
            text = "".join(self._kept)
            for marker in self._hidden:
                text = text.replace(marker, "")
            self._kept = None
            self.content(text)

    def call(self, name: str) -> None:
        """It is one, as far as can be seen."""
        self._begun = [CallPiece(self.calls, name)]
        self.calls += 1

    def arguments(self, text: str) -> None:
        """More of the last call's arguments."""
        if not text:
            return
        piece = CallPiece(self.calls - 1, None, text)
        if not self._begun:
            self._pieces.append(piece)
            return
        self._begun.append(piece)
        if sum(len(each.arguments) for each in self._begun) >= KEPT:
            self._commit()

    def complete(self) -> None:
        """The last call is complete."""
        self.completed = self.calls
        self._commit()

    def _commit(self) -> None:
        if self._begun:
            self._pieces += self._begun
            self._begun = []
            self._kept = None
            self._space, self.behind_call = [], True

    def _class(self, characters: re.Pattern[str], limit: int | None) -> Steps[str]:
        found: list[str] = []
        length = 0
        while (yield from self.peek()):
            run = characters.match(self._text, self._at)
            text = "" if run is None else run[0] if limit is None else run[0][: limit - length]
            if not text:
                break
            found.append(text)
            length += len(text)
            self._read(len(text))
        return "".join(found)

    def _read(self, characters: int) -> None:
        if self._kept is not None and characters:
            self._kept.append(self._text[self._at : self._at + characters])
        self._at += characters


def _beginnings(text: str) -> str:
    """A pattern of what a text can begin with, itself excluded, one character at least."""
    pattern = ""
    for character in reversed(text[1:-1]):
        pattern = f"(?:{re.escape(character)}{pattern})?"
    return re.escape(text[0]) + pattern if len(text) > 1 else "(?!)"


def _merged(pieces: list[CallPiece]) -> tuple[CallPiece, ...]:
    """Pieces of the same arguments as one."""
    merged: list[CallPiece] = []
    for (index, name), group in itertools.groupby(pieces, key=lambda piece: (piece.index, piece.name)):
        merged.append(CallPiece(index, name, "".join(piece.arguments for piece in group)))
    return tuple(merged)
