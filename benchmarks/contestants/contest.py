"""One model in one format: opens the contestants, times them in turns, and makes rows of what came out."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NamedTuple

from contestants import FERMI
from contestants.case import Case
from contestants.contestant import NotSupportedError
from contestants.page_cache import read_again
from contestants.process import Process, settle
from contestants.report import Row, line
from contestants.turn import Turn, figure_of
from fermi.bench.ceiling import Ceiling
from fermi.bench.probe import Repetition, interleave

__all__ = ["Contest", "Entrant"]


class Entrant(NamedTuple):
    """Who takes part: a contestant's name, its variant, and the converted model."""

    name: str
    variant: str
    path: str

    @property
    def label(self) -> str:
        return self.name if self.name == FERMI else f"{self.name} {self.variant}"


@dataclass
class Contest:
    """One model in one format.

    Attributes:
        absent: (case, contestant, reason) of everything that could not be measured.
    """

    model: str
    format: str
    checkpoint: Path
    vocabulary: int
    threads: int
    repeats: int
    tokens: int
    patience: float
    deadline: float
    limits: Ceiling
    log: IO[str]
    say: Callable[[str], None]
    rows: list[Row] = field(default_factory=list)
    absent: list[tuple[str, str, str]] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)

    def enter(self, names: Sequence[str]) -> list[Entrant]:
        """fermi and the peers in all their variants of this format, with their models converted."""
        entrants = []
        for name in (FERMI, *names):
            try:
                with Process(name, self.threads, self.log) as process:
                    self.versions[name] = process.call("version")
                    variants = process.call("variants", format=self.format)
                    if not variants:
                        self.miss("all", name, f"has no {self.format} on the CPU")
                    for variant in variants:
                        try:
                            path = process.call("prepare", checkpoint=str(self.checkpoint), variant=variant)
                            read_again(Path(path))
                            entrants.append(Entrant(name, variant, path))
                        except NotSupportedError as error:
                            self.miss("all", f"{name} {variant}", str(error))
            except NotSupportedError as error:
                self.miss("all", name, str(error))
        return entrants

    def timed(self, entrants: Sequence[Entrant], cases: Sequence[Case]) -> None:
        """Prefill, decode and batches. All stay open; only one is at work."""
        if not cases:
            return
        setting = {
            "threads": self.threads,
            "context": -(-max(case.context(self.tokens) for case in cases) // 256) * 256,
            "sequences": max(case.sequences for case in cases),
        }
        opened: list[tuple[Entrant, Process]] = []
        try:
            for entrant in entrants:
                process = self._open(entrant, setting, "all")
                if process is not None:
                    opened.append((entrant, process))
            for case in cases:
                if not self.late(case):
                    self._time(case, opened)
        finally:
            for _, process in opened:
                process.close()

    def _time(self, case: Case, opened: Sequence[tuple[Entrant, Process]]) -> None:
        turns = []
        for entrant, process in opened:
            turn = Turn(entrant.label, process, case, 0 if case.kind == "prefill" else self.tokens)
            try:
                turn.warm_up(self.vocabulary)
                turns.append(turn)
                own = case.reference
                if entrant.name == FERMI and own is not None:
                    turns.append(Turn(f"{FERMI} {own}", process, own, self.tokens))
                    turns[-1].warm_up(self.vocabulary)
            except NotSupportedError as error:
                self.miss(str(case), entrant.label, str(error))
        if not turns:
            return
        everyone = [process for _, process in opened]

        def measure(turn: Turn) -> Callable[[int], float]:
            return lambda repeat: turn.run(self.vocabulary, repeat)

        results = self.interleave([measure(each) for each in turns], lambda: settle(everyone))
        figures = {}
        for turn, kept in zip(turns, results, strict=True):
            if turn.failure:
                self.miss(str(case), turn.label, turn.failure)
                continue
            figure = figures[turn.label] = figure_of(kept)
            figure |= {"note": turn.note, "tokens": turn.digest()}
            if case.kind == "decode" and turn.label == FERMI:
                moved = turn.process.call("decode_bytes", context=case.number + self.tokens // 2)
                figure["share"] = statistics.median(each.value * moved / each.read for each in kept)
        self.add_rows(str(case), "tok/s", figures)

    def fresh(self, entrants: Sequence[Entrant], cases: Sequence[Case]) -> None:
        """Load and memory: every repetition in a process that has not opened the model before."""
        wanted = {case.kind: case for case in cases if not self.late(case)}
        if not wanted:
            return
        setting = {"threads": self.threads, "context": 512, "sequences": 1}
        sizes: dict[str, dict[str, float]] = {}
        present: list[Entrant] = []
        for entrant in entrants:  # the first brings the files into the page cache
            process = self._open(entrant, setting, "load")
            if process is not None:
                present.append(entrant)
                process.call("prefill", prompt=Case("prefill", 128).prompts(self.vocabulary, 0)[0])
                process.call("decode", prompts=[[1]], tokens=8)
                sizes[entrant.label] = process.call("memory")
                process.close()
        if "load" in wanted and present:

            def measure(entrant: Entrant) -> Callable[[int], float]:
                def run(_: int) -> float:
                    with Process(entrant.name, self.threads, self.log, entrant.variant) as process:
                        return float(process.call("open", path=entrant.path, variant=entrant.variant, **setting))

                return run

            results = self.interleave([measure(each) for each in present], lambda: None)
            figures = {entrant.label: figure_of(kept) for entrant, kept in zip(present, results, strict=True)}
            self.add_rows("load", "s", figures)
        if "memory" in wanted:
            figures = {
                label: {
                    "value": sum(size.values()) / 1e6,
                    "note": f"{size['private'] / 1e6:.0f} MB its own, {size['shared'] / 1e6:.0f} MB pages of files",
                }
                for label, size in sizes.items()
            }
            self.add_rows("memory", "MB", figures)

    def miss(self, case: str, label: str, reason: str) -> None:
        """Notes why somebody does not take part."""
        self.absent.append((case, label, reason))
        self.say(f"{self.model} {self.format} {case}: {label} does not take part: {reason}")

    def _open(self, entrant: Entrant, setting: dict[str, int], case: str) -> Process | None:
        try:
            process = Process(entrant.name, self.threads, self.log, entrant.variant)
        except NotSupportedError as error:
            self.miss(case, entrant.label, str(error))
            return None
        try:
            process.call("open", path=entrant.path, variant=entrant.variant, **setting)
        except NotSupportedError as error:
            self.miss(case, entrant.label, str(error))
            process.close()
            return None
        return process

    def late(self, case: Case) -> bool:
        """Whether there is no time left for a case."""
        if time.monotonic() > self.deadline:
            self.miss(str(case), "everybody", "no time was left")
            return True
        return False

    def interleave(self, turns: Sequence[Callable[[int], float]], settle: Callable[[], None]) -> list[list[Repetition]]:
        """The kept repetitions of each turn."""
        return interleave(turns, self.repeats, self.limits, settle, patience=self.patience, deadline=self.deadline)

    def add_rows(self, case: str, unit: str, figures: dict[str, Row]) -> None:
        """A row for each other one: fermi's own figure beside it."""
        own = figures.pop(FERMI, None)
        if own is not None and not figures:
            figures = {"": {"value": None}}
        for label, figure in figures.items():
            pair = None if own is None or figure["value"] is None else (own["value"], figure["value"])
            row = {
                "model": self.model,
                "format": self.format,
                "case": case,
                "peer": label or None,
                "fermi": own["value"] if own else None,
                "peer_value": figure["value"],
                "ratio": None if pair is None else pair[0] / pair[1] if unit == "tok/s" else pair[1] / pair[0],
                "unit": unit,
                "repeats": self.repeats,
                "fermi_details": {key: value for key, value in (own or {}).items() if key != "value"},
                "peer_details": {key: value for key, value in figure.items() if key != "value"},
            }
            self.rows.append(row)
            self.say(line(row))
