"""Rows for people: lines, a table, a plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["HEADER", "Row", "line", "plot"]

Row = dict[str, Any]
HEADER = (
    f"{'model':12} {'format':6} {'case':15} {'peer':24} {'fermi':>8} {'peer':>8} {'unit':5} {'ratio':>6} {'share':>6}"
    f" {'kept':>5} {'GB/s':>5}  {'tokens':17}  peer's note"
)


def line(row: Row) -> str:
    """One row. ``share``: of the read bandwidth, by fermi; ``kept``: repetitions that count, ~ where none was quiet."""
    own, other = row["fermi_details"], row["peer_details"]
    ratio = "-" if row["ratio"] is None else f"{row['ratio']:.2f}"
    share = f"{own['share']:.0%}" if "share" in own else ""
    counts = [each["kept"] for each in (own, other) if "kept" in each]
    quiet = own.get("undisturbed", True) and other.get("undisturbed", True)
    kept = f"{'' if quiet else '~'}{min(counts)}/{row['repeats']}" if counts else ""
    read = own.get("read") or other.get("read")
    texts = [
        f"{row['model']:12} {row['format']:6} {row['case']:15} {row['peer'] or '-':24}",
        f"{number(row['fermi']):>8} {number(row['peer_value']):>8} {row['unit']:5} {ratio:>6} {share:>6} {kept:>5}",
        f"{read / 1e9 if read else 0:5.0f}  {own.get('tokens', ''):8} {other.get('tokens', ''):8}",
        f" {other.get('note', '')}",
    ]
    return " ".join(texts).rstrip()


def number(value: float | None) -> str:
    """Three digits or more."""
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def plot(rows: Sequence[Row], title: str, path: Path) -> None:
    """Ratios as bars: a panel for each model and format, a group for each case, a colour for each peer."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import patches, pyplot, ticker

    rows = [row for row in rows if row["ratio"] is not None]
    if not rows:
        return
    panels = list(dict.fromkeys((row["model"], row["format"]) for row in rows))
    peers = list(dict.fromkeys(row["peer"] for row in rows))
    colours = {peer: pyplot.get_cmap("tab20")(index % 20) for index, peer in enumerate(peers)}
    figure, axes = pyplot.subplots(len(panels), 1, figsize=(12, 3.2 * len(panels)), squeeze=False, layout="constrained")
    for axis, panel in zip(axes[:, 0], panels, strict=True):
        mine = [row for row in rows if (row["model"], row["format"]) == panel]
        cases = list(dict.fromkeys(row["case"] for row in mine))
        for index, case in enumerate(cases):
            group = [row for row in mine if row["case"] == case]
            width = 0.8 / len(group)
            for place, row in enumerate(group):
                left = index - 0.4 + (place + 0.5) * width
                axis.bar(left, row["ratio"] - 1, width * 0.95, color=colours[row["peer"]], bottom=1)
                axis.text(left, row["ratio"], f"{row['ratio']:.2f}", ha="center", va="bottom", fontsize=7)
        axis.set_yscale("log", base=2)
        axis.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
        axis.margins(y=0.15)
        axis.axhline(1, color="black", linewidth=0.8)
        axis.set_xticks(range(len(cases)), cases)
        axis.set_ylabel("fermi : peer")
        axis.set_title(f"{panel[0]}, {panel[1]}", fontsize=10)
    handles = [patches.Rectangle((0, 0), 1, 1, color=colours[peer]) for peer in peers]
    figure.legend(handles, peers, loc="outside upper center", ncols=min(6, len(peers)), fontsize=8)
    figure.supxlabel(title, fontsize=8)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
