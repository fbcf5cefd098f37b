"""The paper's tables on any data set whose features exist: run what is missing, print the table in the paper's form.

Each row is mean ± standard deviation over seeds, with the interval of its difference in R@1 to another row, the
first unless it names one, which accounts for videos and seeds (`bootstrap.seeded_difference`). The paper's figures
stand beside ours where everything that matters is the paper's (paper.py); a footnote says what differs elsewhere.
Markdown, CSV and JSON lie in reports/<dataset>/tables/<encoder>/, each table as soon as its runs are done.
"""

import csv
import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dits_head.config import HeadConfig
from pipeline.errors import BadInput, UserError
from pipeline.evaluate.bootstrap import seeded_difference
from pipeline.evaluate.metrics import FIGURES
from pipeline.experiments.lr_sweep import EPOCHS, choose_rates, swept
from pipeline.experiments.paper import differences, same_regime
from pipeline.experiments.runs import (
    RunSpec,
    Tested,
    clip_rate,
    features_id,
    prepare_runs,
    rates_in_words,
    require_trainable,
    sensible_jobs,
    system_settings,
    tested,
)
from pipeline.experiments.tables import SYSTEMS, TABLES, Column, Row, Table, tuned
from pipeline.progress import progress
from pipeline.resolve import ResolvedStore, split_label
from pipeline.stores.atomic import atomic_write, write_json
from pipeline.workspace import Workspace

log = logging.getLogger(__name__)
FIRST_SEED = 24  # the paper's
SPREAD = (
    "± is the standard deviation over seeds; of three seeds it is rough (95 %: the true one lies between half and six "
    "times it). The interval accounts for videos and seeds; with one seed, for videos alone."
)
RESOURCES = {"train": "training", "test": "retrieval"}


@dataclass(frozen=True)
class Line:
    """A row of a finished table."""

    row: Row
    figures: dict[str, tuple[float, float]]
    """(mean, standard deviation) over seeds, by name."""
    base: str
    """The system that R@1 is compared with."""
    difference: float
    interval: tuple[float, float]
    """95 %, of the difference."""
    columns: dict[Column, tuple[float, float]]
    """(mean, standard deviation) of what the table's own columns show."""
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
    tune: int | str | None = None,
    lr_sweep: bool = False,
    sweep_epochs: int = EPOCHS,
) -> dict[str, str]:
    """Train and test what the tables lack, and write them.

    Args:
        workspace: Holds the runs and the tables.
        chosen: The feature store.
        names: Tables of TABLES.
        recipe: TrainSettings without the seed, for every system.
        head: HeadConfig's settings for every system that does not name its own.
        seeds: How many, from FIRST_SEED on.
        jobs: Runs at once; None: as this machine has room for.
        tune: Train CLIP with every system that keeps it fixed, as in System.tune.
        lr_sweep: Choose each system's learning rates on the validation split first.
        sweep_epochs: Of the runs that choose them, at most.

    Returns:
        {table: Markdown}. With `tune` a table has a name of its own, `<table>-tuned-<tune>`.

    Raises:
        BadInput: An unknown table, settings that one of its systems cannot have, or one whose training needs what the
            store does not hold; before anything is trained.
    """
    if seeds < 1 or (jobs is not None and jobs < 1):
        raise BadInput("--seeds and --jobs", expected="1 or more", got=f"{seeds}, {jobs}")
    if sweep_epochs < 1:
        raise BadInput("--sweep-epochs", expected="1 or more", got=sweep_epochs)
    tables: dict[str, Table] = {}
    for name in names:
        if name not in TABLES:
            raise BadInput(f"unknown table {name!r}", expected=", ".join([*TABLES, "all"]), got=name)
        tables |= {name: TABLES[name]} if tune is None else {tuned(name, tune): with_clip(TABLES[name], tune)}
    for name, table in tables.items():
        require_possible(workspace, chosen, name, table, head)
    at_once, threads = sensible_jobs()
    jobs = jobs or at_once
    root, features = str(workspace.root.resolve()), features_id(chosen)

    def spec(system: str) -> RunSpec:
        return RunSpec(
            root, chosen.dataset, chosen.encoder, features, system, FIRST_SEED, recipe, head, threads=threads
        )

    differs = differences(workspace, chosen, recipe, head)
    label = split_label(workspace, chosen, "test", chosen.store.videos("test", mmap=True).video_ids)
    about = (
        f"{chosen.dataset}, {label or 'no published split'}, {chosen.encoder}; "
        f"{seeds} seed{'s' * (seeds != 1)} from {FIRST_SEED}; recipe {recipe}"
        + (f"; every head with {head}" if head else "")
    )
    written = {}
    for name, table in tables.items():
        measures = {row.system: {column.measure for column in table.columns} for row in table.rows}
        specs = {system: spec(system) for system in [*measures, *filter(None, (row.against for row in table.rows))]}
        if lr_sweep:
            with progress(f"table {name}, learning rates") as step:
                specs = choose_rates(specs, clip_rate(chosen), jobs, step, sweep_epochs)
        every = {
            system: [replace(one, seed=FIRST_SEED + seed) for seed in range(seeds)] for system, one in specs.items()
        }
        with progress(f"table {name}") as step:
            prepare_runs([one for ones in every.values() for one in ones], jobs, step, measures)
        results = {system: [tested(one, measures.get(system, ())) for one in ones] for system, ones in every.items()}
        lines = summarise_table(table, results)
        rates = {system: rates_in_words(one) for system, one in specs.items()} if lr_sweep else {}
        chosen_how = swept(min(sweep_epochs, recipe["epochs"])) if lr_sweep else ""
        written[name] = as_markdown(table, lines, about, differs, rates, chosen_how)
        _write(tables_dir(workspace, chosen) / f"table-{name}", written[name], lines, rates)
    return written


def with_clip(table: Table, tune: int | str) -> Table:
    """A table whose systems are trained together with CLIP, as in System.tune, where they do not name it themselves."""

    def joint(system: str) -> str:
        if SYSTEMS[system].tune is not None:
            return system
        if tuned(system, tune) not in SYSTEMS:
            raise BadInput(
                f"{system!r} cannot be trained with CLIP: {tune}",
                expected="1 to 48, all or end-to-end; no distillation",
            )
        return tuned(system, tune)

    rows = tuple(
        replace(row, system=joint(row.system), against=row.against and joint(row.against)) for row in table.rows
    )
    return replace(table, title=f"{table.title}; CLIP trained too ({tune})", rows=rows)


def tables_dir(workspace: Workspace, chosen: ResolvedStore) -> Path:
    return workspace.report_dir(chosen.dataset, "tables") / chosen.encoder


def possible_tables(workspace: Workspace, chosen: ResolvedStore) -> list[str]:
    """The tables whose systems these features allow; logs why not the others."""
    names = []
    for name, table in TABLES.items():
        try:
            require_possible(workspace, chosen, name, table, {})
            names.append(name)
        except UserError as error:
            log.info(f"without table {name}: {error}")
    return names


def require_possible(
    workspace: Workspace, chosen: ResolvedStore, name: str, table: Table, head: dict[str, Any]
) -> None:
    """Raises BadInput where a system of a table cannot be trained on these features, or with these settings."""
    for row in table.rows:
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
    lines = []
    for row in table.rows:
        against = row.against or table.rows[0].system
        base, runs = results[against], results[row.system]
        values = {name: [run.metrics[name] for run in runs] for name in FIGURES}
        paired = seeded_difference([run.ranks for run in base], [run.ranks for run in runs], base[0].clusters)["R@1"]
        lines.append(
            Line(
                row,
                {name: mean_and_sd(of) for name, of in values.items()},
                against,
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


def as_markdown(
    table: Table,
    lines: list[Line],
    about: str,
    differs: Sequence[str],
    rates: Mapping[str, str] | None = None,
    chosen_how: str = "",
) -> str:
    """The finished table, in Markdown.

    Args:
        table: What is shown.
        lines: Its rows.
        about: The line above it: data, seeds, recipe.
        differs: What keeps the figures from being compared with the paper's.
        rates: By system, the learning rates that were chosen for it.
        chosen_how: How they were, in words.
    """
    comparable = [not differs and same_regime(line.row) for line in lines]
    with_paper = any(comparable) and any(line.row.paper for line in lines)
    heads = ["", *table.figures, f"R@1 against {table.base} [95 %]", *(column.label for column in table.columns)]
    for what in table.resources:
        heads += [f"{RESOURCES[what]} s", f"{RESOURCES[what]} MB"]
    heads += ["learning rates"] * bool(rates) + ["the paper's " + " ".join(FIGURES)] * with_paper
    rows = [heads]
    for line, as_paper in zip(lines, comparable, strict=True):
        cells = [line.row.label]
        cells += [f"{mean:.1f} ± {sd:.1f}" for mean, sd in (line.figures[name] for name in table.figures)]
        low, high = line.interval
        cells.append("" if line.row.system == line.base else f"{line.difference:+.2f} [{low:+.2f}, {high:+.2f}]")
        cells += [f"{mean:.{of.digits}f} ± {sd:.{of.digits}f}" for of, (mean, sd) in line.columns.items()]
        for what in table.resources:
            cells += [f"{getattr(line, f'{what}_seconds'):.1f}", f"{getattr(line, f'{what}_mb'):.0f}"]
        if rates:
            cells.append(rates[line.row.system])
        if with_paper:
            cells.append(" ".join(f"{value:g}" for value in line.row.paper) if as_paper and line.row.paper else "")
        rows.append(cells)
    if table.tall:
        rows = [list(row) for row in zip(*rows, strict=True)]
    rows.insert(1, ["---", *["---:"] * (len(rows[0]) - 1)])
    text = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    notes = [table.notes, SPREAD, table.paper_notes if any(comparable) else "", _footnote(lines, differs), chosen_how]
    return "\n\n".join([f"### {table.title}", about, text, *filter(None, notes)]) + "\n"


def _footnote(lines: list[Line], differs: Sequence[str]) -> str:
    """Why the paper's figures are left out, of all rows or of some."""
    of_paper = [line.row for line in lines if line.row.paper]
    others = [row for row in of_paper if not same_regime(row)]
    reasons = list(differs)
    for joint, what in ((True, "CLIP was trained there, end to end"), (False, "CLIP was fixed there")):
        if labels := [row.label for row in others if row.joint == joint]:
            reasons.append(f"{what} ({', '.join(labels)})")
    return f"The paper's figures are left out: {'; '.join(reasons)}." if of_paper and reasons else ""


def _write(out: Path, markdown: str, lines: list[Line], rates: Mapping[str, str]) -> None:
    records = [_record(line) | ({"learning rates": rates[line.row.system]} if rates else {}) for line in lines]
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
