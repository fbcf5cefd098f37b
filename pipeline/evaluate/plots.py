"""Figures that read in black and white too: groups differ in hatch, line style and marker, not in colour alone.

Everything goes through matplotlib's object interface: no window, no global state, no backend to choose.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pipeline.stores.atomic import atomic_write

COLOURS = ("#2f5bd0", "#d0702f", "#12805c", "#8a4fbf")
LINES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D")
_BARS: tuple[dict[str, Any], ...] = (
    {"histtype": "stepfilled", "facecolor": "#c3d0ef", "edgecolor": "#50618f", "hatch": "////", "linewidth": 0.8},
    {"histtype": "step", "edgecolor": "#8a3d0c", "linewidth": 1.8},
)
BINS = 50
_FIXED: Any = {"svg.fonttype": "none", "svg.hashsalt": "figure", "font.family": "sans-serif", "hatch.linewidth": 0.5}


def panels(count: int = 1) -> tuple[Figure, list[Any]]:
    """A figure of `count` panels, two a row."""
    columns = min(count, 2)
    rows = -(-count // columns)
    figure = Figure(figsize=(4.6 * columns, 3.2 * rows), layout="constrained")
    return figure, list(np.ravel(figure.subplots(rows, columns)))


def dress(axes: Any, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def histograms(axes: Any, x: str, groups: Mapping[str, NDArray[Any]]) -> None:
    """Up to two groups of values over the same bins, as shares of each group; a line marks each mean."""
    bins = np.histogram_bin_edges(np.concatenate([np.ravel(values) for values in groups.values()]), bins=BINS)
    for bars, line, (label, values) in zip(_BARS, ("--", "-"), groups.items(), strict=False):
        weights = np.full(np.size(values), 100 / np.size(values))
        axes.hist(np.ravel(values), bins=bins, weights=weights, label=f"{label}, mean {np.mean(values):.3g}", **bars)
        axes.axvline(np.mean(values), ymax=0.8, color=bars["edgecolor"], linestyle=line, linewidth=1)
    dress(axes, x, "relevant pairs, %")
    axes.set_ylim(top=1.28 * axes.get_ylim()[1])  # room for the legend above the bars
    axes.legend(frameon=False, fontsize=8, loc="upper left")


def curves(
    axes: Any, x: str, y: str, lines: Mapping[str, tuple[Sequence[float], Sequence[float], Sequence[float]]]
) -> None:
    """{label: (places, means, standard deviations)}, each line in its own style, with error bars."""
    for i, (label, (places, means, spread)) in enumerate(lines.items()):
        axes.errorbar(
            places, means, yerr=spread, label=label, capsize=3, markersize=4, linewidth=1.4,
            color=COLOURS[i % 4], linestyle=LINES[i % 4], marker=MARKERS[i % 4],
        )  # fmt: skip
    dress(axes, x, y)
    if len(lines) > 1:
        axes.legend(frameon=False, fontsize=8)


def points(axes: Any, names: Sequence[str], texts: NDArray[Any], videos: NDArray[Any]) -> None:
    """Texts and their videos in a plane, (N, 2) each, `names` on its axes; a hairline joins each text to its video."""
    ends = np.stack([texts, videos], axis=1)  # (N, 2 ends, 2)
    for pair in ends:
        axes.plot(*pair.T, color="#9aa3b5", linewidth=0.3, zorder=1)
    axes.scatter(*texts.T, s=14, marker="o", facecolor="none", edgecolor=COLOURS[0], linewidth=0.8, label="text")
    axes.scatter(*videos.T, s=14, marker="x", color="#8a3d0c", linewidth=0.8, label="video v|t")
    dress(axes, *names)
    axes.legend(frameon=False, fontsize=8)


def save(figure: Figure, stem: Path) -> list[Path]:
    """`stem`.png and `stem`.svg; the same data give the same bytes."""
    written = []
    for suffix, options in ((".png", {"dpi": 200}), (".svg", {"metadata": {"Date": None, "Creator": None}})):
        path = stem.with_name(stem.name + suffix)
        with rc_context(_FIXED), atomic_write(path) as temporary:
            figure.savefig(temporary, **options)  # type: ignore[arg-type]
        written.append(path)
    return written
