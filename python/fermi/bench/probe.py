"""Whether the machine was all there: processors and memory speed, sampled around what is timed."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

PRESENT = 0.97
"""CPU time over wall time from which on a machine counts as all there."""
STEADY = 0.85
"""Of the median read bandwidth, from which on memory counts as undisturbed."""


class Sample(NamedTuple):
    """One measurement: its value, and how much of the processors the process got meanwhile (1: all)."""

    value: float
    presence: float


def sample(measure: Callable[[], float], threads: int) -> Sample:
    """Runs ``measure``, all of whose threads are busy from start to end, against CPU time."""
    wall, cpu = time.perf_counter(), time.process_time()
    value = measure()
    return Sample(value, (time.process_time() - cpu) / ((time.perf_counter() - wall) * threads))


def undisturbed(samples: list[Sample]) -> list[float]:
    """Values of the samples during which the machine was all there; of the better half, where it never was."""
    present = [s.value for s in samples if s.presence > PRESENT]
    if present:
        return present
    samples = sorted(samples, key=lambda s: -s.presence)
    return [s.value for s in samples[: max(1, len(samples) // 2)]]


class Limits(Protocol):
    """What a probe measures with: `fermi.bench.ceiling.Ceiling`, or an example of it in a test."""

    threads: int

    def read(self) -> float:
        """Bytes per second of one pass over memory, by all threads."""

    def f32(self) -> float:
        """Operations per second in registers, by all threads."""


class Probe(NamedTuple):
    """The machine at one moment.

    Attributes:
        presence: share of the processors that this process got with all threads spinning.
        read: read bandwidth in bytes per second.
    """

    presence: float
    read: float


def probe(limits: Limits) -> Probe:
    """Spins all threads, then reads memory with all of them: some tens of milliseconds. The first spin wakes them."""
    limits.f32()
    spin = sample(limits.f32, limits.threads)
    read = sample(limits.read, limits.threads)
    return Probe(min(spin.presence, read.presence), read.value)


class Repetition(NamedTuple):
    """A value measured between two probes."""

    repeat: int
    value: float
    before: Probe
    after: Probe

    @property
    def presence(self) -> float:
        return min(self.before.presence, self.after.presence)

    @property
    def read(self) -> float:
        """Read bandwidth around the measurement: the mean of both probes."""
        return (self.before.read + self.after.read) / 2

    @property
    def undisturbed(self) -> bool:
        """Whether the machine was all there before and after."""
        return self.presence > PRESENT


def kept(repetitions: Sequence[Repetition], read: float) -> list[Repetition]:
    """The repetitions with the machine all there before and after; where there are none, the better half.

    ``read``: the usual read bandwidth. Repetitions that saw much less of it were disturbed, too.
    """
    good = [r for r in repetitions if r.undisturbed and min(r.before.read, r.after.read) > STEADY * read]
    if good:
        return good
    order = sorted(repetitions, key=lambda r: -r.presence * min(r.before.read, r.after.read))
    return order[: max(1, (len(order) + 1) // 2)]


def probe_when_there(limits: Limits, patience: float) -> Probe:
    """Probes until the machine is all there, for some seconds at most; the best probe."""
    end = time.monotonic() + patience
    best = probe(limits)
    while best.presence <= PRESENT and time.monotonic() < end:
        time.sleep(0.1)
        best = max(best, probe(limits))
    return best


def interleave(
    contestants: Sequence[Callable[[int], float]],
    repeats: int,
    limits: Limits,
    settle: Callable[[], None],
    patience: float = 0.0,
    deadline: float = math.inf,
) -> list[list[Repetition]]:
    """Times the contestants in turns, A B A B, with a probe before and after each.

    Each is called with the number of the repetition and returns its value; ``settle``, called before each probe, waits
    until no contestant is busy any more. Before a repetition the machine is given ``patience`` seconds to be all
    there. Past ``deadline``, of the monotonic clock, no further round begins. Returns the kept repetitions of each.
    """
    repetitions: list[list[Repetition]] = [[] for _ in contestants]
    for repeat in range(repeats):
        if repeat and time.monotonic() > deadline:
            break
        for index, measure in enumerate(contestants):
            settle()
            before = probe_when_there(limits, patience)
            value = measure(repeat)
            settle()
            repetitions[index].append(Repetition(repeat, value, before, probe(limits)))
    usual = statistics.median(r.read for each in repetitions for r in each)
    return [kept(each, usual) for each in repetitions]
