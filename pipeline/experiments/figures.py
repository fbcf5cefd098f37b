"""Draw the paper's figures for trained runs: the modality gap, and the tables of `reproduce`.

Over every caption of the test split with its own video (the relevant pairs), for each run: histograms of the gap's L2
and L1 norm and of the cosine, the change in cosine against another run (the paper's Figures 3 to 6), and texts and
videos in the plane of their first two principal components. From finished tables: R@1 against T', and against damage
to captions and frames. PNG and SVG, and the means (Table 9), lie in reports/<dataset>/figures/.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import MissingData
from pipeline.evaluate.corruption import DAMAGE
from pipeline.evaluate.modality_gap import PAPER, RelevantPairs, principal_plane, unit
from pipeline.evaluate.plots import curves, histograms, panels, points, save
from pipeline.experiments.paper import differences
from pipeline.experiments.reproduce import tables_dir
from pipeline.experiments.tables import TABLES
from pipeline.resolve import ResolvedHead, ResolvedStore
from pipeline.stores.atomic import atomic_write, write_json
from pipeline.stores.integrity import read_json
from pipeline.workspace import Workspace

log = logging.getLogger(__name__)
Means = dict[str, dict[str, float]]
SHOWN = 150  # pairs in the plane of principal components
DAMAGE_AXES = {
    "dropped": "words dropped, %",
    "swapped": "words swapped with the next, %",
    "even": "frames left, evenly",
    "random": "frames left, at random",
}
NORMS = {"gap-l2": ("L2", "||v - t||, L2 norm"), "gap-l1": ("L1", "||v - t||, L1 norm")}


@dataclass(frozen=True)
class Drawn:
    """The files written, the means of each run, and these as a Markdown table."""

    files: list[Path]
    means: dict[str, Means]
    table: str


def draw_figures(
    workspace: Workspace,
    chosen: ResolvedStore,
    heads: Sequence[ResolvedHead],
    against: ResolvedHead | None = None,
) -> Drawn:
    """Draw the figures that these runs and the finished tables provide data for.

    Raises MissingData without captions, BadInput for a head whose compared text depends on the video.
    """
    split = "test" if "test" in chosen.store.splits() else None
    videos, texts = chosen.store.videos(split, mmap=True), chosen.store.texts(split)
    if not len(texts):
        raise MissingData(f"{chosen.dataset} has no captions to measure a gap with", fix="extract it with --captions")
    folder = workspace.report_dir(chosen.dataset, "figures")
    base = RelevantPairs.of(against.head, videos, texts) if against else None
    files, means = [], {}
    for head in heads:
        pairs = RelevantPairs.of(head.head, videos, texts)
        means[head.run] = pairs.means()
        files += gap_figures(folder / head.run, pairs)
        if against and base:
            change = pairs.after["cosine"] - base.after["cosine"]
            files += change_figure(folder / head.run, change, f"{head.run} - {against.run}")
    tables = tables_dir(workspace, chosen)
    files += steps_figure(folder, tables) + robustness_figure(folder, tables, chosen.store.num_frames)
    table = means_table(means, papers=not differences(workspace, chosen))
    write_json(folder / "gaps.json", means)
    with atomic_write(folder / "gaps.md") as temporary:
        temporary.write_text(table, encoding="utf-8")
    return Drawn(files, means, table)


def gap_figures(folder: Path, pairs: RelevantPairs) -> list[Path]:
    """gap-l2, gap-l1 (unit-length vectors, raw ones beside them), cosine and plane, each as PNG and SVG."""
    values = pairs.histograms()
    files = []
    for name, (norm, label) in NORMS.items():
        figure, (left, right) = panels(2)
        histograms(left, f"{label}, unit-length vectors", values[f"{norm} unit"])
        histograms(right, f"{label}, raw vectors", values[f"{norm} raw"])
        files += save(figure, folder / name)
    figure, (axes,) = panels()
    histograms(axes, "cosine of a text and its video", values["cosine"])
    files += save(figure, folder / "cosine")
    return files + plane_figure(folder, pairs)


def plane_figure(folder: Path, pairs: RelevantPairs) -> list[Path]:
    rows = np.sort(np.random.default_rng(0).permutation(len(pairs.text))[:SHOWN])
    (text, aligned, video), parts = principal_plane(*(unit(x) for x in (pairs.text, pairs.aligned, pairs.video)))
    names = [f"component {i + 1}, {100 * part:.0f} % of variance" for i, part in enumerate(parts)]
    figure, axes = panels(2)
    for panel, title, texts in zip(axes, ("before alignment", "after alignment"), (text, aligned), strict=True):
        points(panel, names, texts[rows], video[rows])
        panel.set_title(title, fontsize=10)
    axes[1].sharex(axes[0])
    axes[1].sharey(axes[0])
    axes[0].autoscale()
    return save(figure, folder / "plane")


def change_figure(folder: Path, change: np.ndarray, what: str) -> list[Path]:
    figure, (axes,) = panels()
    histograms(axes, f"change in cosine, {what}", {f"rises in {100 * np.mean(change > 0):.0f} % of pairs": change})
    return save(figure, folder / "change")


def steps_figure(folder: Path, tables: Path) -> list[Path]:
    """R@1 against T', from Table 8 or 5a of `reproduce`, whichever is there."""
    found = [tables / f"table-{name}.json" for name in ("8", "5a") if (tables / f"table-{name}.json").exists()]
    if not found:
        log.info("no figure of R@1 against T': run `python cli.py reproduce --table 8` first")
        return []
    rows = read_json(found[0])
    steps = [int(row["row"].removeprefix("T' = ")) for row in rows]
    means, spread = ([row[name] for row in rows] for name in ("R@1", "R@1 sd"))
    figure, (axes,) = panels()
    curves(axes, "T', steps of the sampler", "R@1, %", {"DITS": (steps, means, spread)})
    return save(figure, folder / "steps")


def robustness_figure(folder: Path, tables: Path, num_frames: int) -> list[Path]:
    """R@1 against damage, one line a system, from the table `robustness` of `reproduce`."""
    path = tables / "table-robustness.json"
    if not path.exists():
        log.info("no figure of R@1 under damage: run `python cli.py reproduce --table robustness` first")
        return []
    rows = read_json(path)
    figure, axes = panels(len(DAMAGE_AXES))
    for panel, (kind, label) in zip(axes, DAMAGE_AXES.items(), strict=True):
        columns = {int(c.key.split()[1]): c.label for c in TABLES["robustness"].columns if c.key.split()[0] == kind}
        if kind not in DAMAGE:
            columns = {left: label for left, label in columns.items() if left < num_frames}
        places = {0 if kind in DAMAGE else num_frames: "R@1", **columns}  # the first: undamaged
        curves(panel, label, "R@1, %", {row["row"]: (list(places), *over(row, places.values())) for row in rows})
        if kind not in DAMAGE:
            panel.invert_xaxis()
        panel.set_ylim(bottom=0)
    return save(figure, folder / "robustness")


def over(row: dict[str, Any], names: Iterable[str]) -> tuple[list[float], list[float]]:
    """A row's means and standard deviations in these columns."""
    pairs = [(row[name], row[f"{name} sd"]) for name in names]
    return [mean for mean, _ in pairs], [sd for _, sd in pairs]


def means_table(means: dict[str, Means], papers: bool) -> str:
    """Table 9's means, before -> after; the paper's figures as rows of their own where they can be compared."""
    names = list(next(iter(means.values())))
    lines = [f"| mean over relevant pairs, before → after | {' | '.join(names)} |", "| --- |" + " ---: |" * len(names)]
    for run, of in means.items():
        cells = [f"{of[name]['before']:.3f} → {of[name]['after']:.3f}" for name in names]
        lines.append(f"| {run} | {' | '.join(cells)} |")
    for system, published in PAPER.items() if papers else ():
        cells = [
            f"{published[name.removesuffix(' unit')]:g}" if name in ("L1 unit", "cosine") else "" for name in names
        ]
        lines.append(f"| the paper, {system}, after | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
