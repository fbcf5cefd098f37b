"""The paper's tables on any data set whose features exist: run what is missing, print the table in the paper's form.

Each row is mean ± standard deviation over seeds, with the paired bootstrap interval of its difference in R@1 to the
table's first row (videos are resampled, all seeds of a query together); the paper's own numbers stand beside ours where
the data set and the backbone are the paper's. Markdown, CSV and JSON lie in reports/<dataset>/tables/<encoder>/, each
table as soon as its runs are done.
"""

import csv
import io
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dits_head.config import HeadConfig
from pipeline.errors import BadInput, UserError
from pipeline.evaluate.bootstrap import paired_difference
from pipeline.experiments.runs import (
    RunSpec,
    Tested,
    features_id,
    prepare_runs,
    require_trainable,
    sensible_jobs,
    system_settings,
    tested,
)
from pipeline.experiments.tables import FIGURES, TABLES, Column, Row, Table
from pipeline.resolve import ResolvedStore, split_label
from pipeline.stores.atomic import atomic_write, write_json
from pipeline.workspace import Workspace

FIRST_SEED = 24  # the paper's
RESOURCES = {"train": "training", "test": "retrieval"}


@dataclass(frozen=True)
class Line:
    """A row of a finished table: figures {name: (mean, sd)}, R@1's difference to the first row and its interval."""

    row: Row
    figures: dict[str, tuple[float, float]]
    difference: float
    interval: tuple[float, float]
    columns: dict[Column, tuple[float, float]]  # (mean, sd) of what the table's own columns show
    train_seconds: float
    train_mb: float
    test_seconds: float
    test_mb: float


def reproduce(
    workspace: Workspace,
    chosen: ResolvedStore,
    names: list[str],
    recipe: dict[str, Any],
    *,
    head: dict[str, Any],
    seeds: int,
    jobs: int | None = None,
    stepwise: Callable[[str], AbstractContextManager[Any]],
) -> dict[str, str]:
    """{table: Markdown}. `head`: HeadConfig's settings for every system that does not name its own. Raises BadInput for
    an unknown table, for settings that one of its systems cannot have, and for a system whose training needs what the
    store does not hold, all before anything is trained."""
    if seeds < 1 or (jobs is not None and jobs < 1):
        raise BadInput("--seeds and --jobs", expected="1 or more", got=f"{seeds}, {jobs}")
    for name in names:
        if name not in TABLES:
            raise BadInput(f"unknown table {name!r}", expected=", ".join([*TABLES, "all"]), got=name)
        require_possible(workspace, chosen, name, head)
    at_once, threads = sensible_jobs()
    features = features_id(chosen)

    def spec(system: str, seed: int) -> RunSpec:
        root = str(workspace.root.resolve())
        return RunSpec(root, chosen.dataset, chosen.encoder, features, system, FIRST_SEED + seed, recipe, head, threads)

    is_papers = chosen.dataset == "msrvtt" and str(chosen.store.settings["model"]).startswith("ViT-B-32")
    label = split_label(workspace, chosen, "test", chosen.store.videos("test", mmap=True).video_ids)
    about = (
        f"{chosen.dataset}, {label or 'no published split'}, {chosen.encoder}; "
        f"{seeds} seed{'s' * (seeds != 1)} from {FIRST_SEED}; recipe {recipe}"
        + (f"; every head with {head}" if head else "")
    )
    written = {}
    for name in names:
        table = TABLES[name]
        measures = {row.system: {column.measure for column in table.columns} for row in table.rows}
        with stepwise(f"table {name}") as progress:
            prepare_runs(
                [spec(system, seed) for system in measures for seed in range(seeds)],
                jobs or at_once,
                progress,
                measures,
            )
        results = {
            system: [tested(spec(system, seed), wanted) for seed in range(seeds)] for system, wanted in measures.items()
        }
        lines = summarise_table(table, results)
        written[name] = as_markdown(table, lines, is_papers, about)
        _write(tables_dir(workspace, chosen) / f"table-{name}", written[name], lines)
    return written


def tables_dir(workspace: Workspace, chosen: ResolvedStore) -> Path:
    return workspace.report_dir(chosen.dataset, "tables") / chosen.encoder


def possible_tables(workspace: Workspace, chosen: ResolvedStore, say: Callable[[str], None]) -> list[str]:
    """The tables whose systems these features allow; of the others, says why not."""
    names = []
    for name in TABLES:
        try:
            require_possible(workspace, chosen, name, {})
            names.append(name)
        except UserError as error:
            say(f"without table {name}: {error}")
    return names


def require_possible(workspace: Workspace, chosen: ResolvedStore, name: str, head: dict[str, Any]) -> None:
    """Raises BadInput where a system of a table cannot be trained on these features, or with these settings."""
    for row in TABLES[name].rows:
        if "T' =" in row.label and (given := {"T", "T_prime"} & set(head)):
            raise BadInput(
                f"--set {', '.join(sorted(given))}: table {name} names T' in its rows", fix="leave the tables' T' alone"
            )
        try:
            HeadConfig(**system_settings(chosen, row.system, head))
        except ValueError as error:
            raise BadInput(f"--set: system {row.system!r} cannot be built: {error}") from None
        require_trainable(workspace, chosen, row.system)


def summarise_table(table: Table, results: dict[str, list[Tested]]) -> list[Line]:
    base = results[table.rows[0].system]
    lines = []
    for row in table.rows:
        runs = results[row.system]
        values = {name: [run.metrics[name] for run in runs] for name in FIGURES}
        paired = paired_difference(
            np.concatenate([run.ranks for run in base]),
            np.concatenate([run.ranks for run in runs]),
            np.concatenate([run.clusters for run in base]),  # a video's queries of all seeds are drawn together
        )["R@1"]
        lines.append(
            Line(
                row,
                {name: mean_and_sd(of) for name, of in values.items()},
                paired["difference"],
                paired["interval"],
                {of: mean_and_sd([run.measured[of.measure][of.key] for run in runs]) for of in table.columns},
                *(
                    float(np.mean([getattr(run, name) for run in runs]))
                    for name in ("train_seconds", "train_mb", "test_seconds", "test_mb")
                ),
            )
        )
    return lines


def mean_and_sd(values: list[float]) -> tuple[float, float]:
    """Over seeds; the standard deviation of a single one is given as 0."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def as_markdown(table: Table, lines: list[Line], is_papers: bool, about: str) -> str:
    heads = ["", *table.figures, "R@1 against the first row [95 %]", *(column.label for column in table.columns)]
    for what in table.resources:
        heads += [f"{RESOURCES[what]} s", f"{RESOURCES[what]} MB"]
    if is_papers:
        heads.append("the paper's " + " ".join(FIGURES))
    rows = [heads]
    for line in lines:
        cells = [line.row.label]
        cells += [f"{mean:.1f} ± {sd:.1f}" for mean, sd in (line.figures[name] for name in table.figures)]
        low, high = line.interval
        cells.append("" if line is lines[0] else f"{line.difference:+.2f} [{low:+.2f}, {high:+.2f}]")
        cells += [f"{mean:.{of.digits}f} ± {sd:.{of.digits}f}" for of, (mean, sd) in line.columns.items()]
        for what in table.resources:
            cells += [f"{getattr(line, f'{what}_seconds'):.1f}", f"{getattr(line, f'{what}_mb'):.0f}"]
        if is_papers:
            cells.append(" ".join(f"{value:g}" for value in line.row.paper) if line.row.paper else "")
        rows.append(cells)
    if table.tall:
        rows = [list(row) for row in zip(*rows, strict=True)]
    rows.insert(1, ["---", *["---:"] * (len(rows[0]) - 1)])
    text = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    notes = f"\n\n{table.notes}" if table.notes else ""
    return f"### {table.title}\n\n{about}\n\n{text}{notes}\n"


def _write(out: Path, markdown: str, lines: list[Line]) -> None:
    records = [_record(line) for line in lines]
    write_json(out.with_suffix(".json"), records)
    table = io.StringIO()
    writer = csv.DictWriter(table, records[0])
    writer.writeheader()
    writer.writerows(records)
    for suffix, text in ((".md", markdown), (".csv", table.getvalue())):
        with atomic_write(out.with_suffix(suffix)) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _record(line: Line) -> dict[str, Any]:
    record: dict[str, Any] = {"row": line.row.label, "system": line.row.system}
    for name, (mean, sd) in line.figures.items():
        record |= {name: round(mean, 4), f"{name} sd": round(sd, 4)}
    record |= {
        "difference": round(line.difference, 4),
        "low": round(line.interval[0], 4),
        "high": round(line.interval[1], 4),
    }
    for name in ("train_seconds", "train_mb", "test_seconds", "test_mb"):
        record[name] = round(getattr(line, name), 3)
    for column, (mean, sd) in line.columns.items():
        record |= {column.label: round(mean, 4), f"{column.label} sd": round(sd, 4)}
    return record
