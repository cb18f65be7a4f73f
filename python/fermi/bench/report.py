"""A benchmark's results as a table for people and as rows for programs."""

from __future__ import annotations

from typing import Any

from fermi.bench.case import Case
from fermi.bench.measure import Result

__all__ = ["HEADER", "line", "row", "skipped"]

HEADER = (
    f"{'case':<22}{'tok/s':>10}{'ms':>10}{'GB/s':>8}{'GFLOP/s':>10}{'of read':>9}{'of peak':>9}{'kept':>6}"
    "  hash of tokens"
)


def line(result: Result) -> str:
    """One row of the table under HEADER."""
    return (
        f"{result.case!s:<22}{result.tokens_per_second:>10.1f}{1e3 * result.seconds:>10.2f}"
        f"{result.bytes / result.seconds / 1e9:>8.1f}{result.operations / result.seconds / 1e9:>10.1f}"
        f"{result.share_of_read:>9.0%}{result.share_of_peak:>9.0%}{result.repetitions:>6}  {result.tokens_sha256}"
    )


def skipped(case: Case, why: str) -> str:
    """The row of a case that was not measured."""
    return f"{case!s:<22}{'-':>10}  {why}"


def row(result: Result) -> dict[str, Any]:
    """Numbers by name: seconds, bytes, tokens, shares from 0 to 1."""
    case = result.case
    return {
        "phase": case.phase,
        "tokens": case.tokens,
        "batch": case.batch,
        "tokens_per_second": result.tokens_per_second,
        "seconds": result.seconds,
        "bytes": result.bytes,
        "operations": result.operations,
        "read_bytes_per_second": result.read,
        "peak_operations_per_second": result.peak,
        "share_of_read": result.share_of_read,
        "share_of_peak": result.share_of_peak,
        "repetitions": result.repetitions,
        "tokens_sha256": result.tokens_sha256,
    }
