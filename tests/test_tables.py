"""Tables that measure more than ranks, on shapes, tiny: the gap, distillation, damage; and the figure drawn of them."""

import csv
from concurrent.futures import Future
from dataclasses import replace

import numpy as np
import pytest
from test_cli import extracted, run  # noqa: F401

import cli
from dits_head.config import HeadConfig
from pipeline.config import Workspace
from pipeline.flows import measures, runs
from pipeline.flows.choose import choose_head, choose_store
from pipeline.flows.extract import embed_queries
from pipeline.flows.figures import robustness_figure
from pipeline.flows.measures import SEED, damaged_embeds, robustness
from pipeline.flows.reproduce import reproduce
from pipeline.flows.tables import SYSTEMS, TABLES
from pipeline.flows.train import recipe
from pipeline.retrieve.corrupt import damage_captions
from pipeline.stores.atomic import read_json

NEW = ("9", "distill", "robustness")


class InProcess:
    """Runs at once and in this process what `runs` would give to processes of their own."""

    def __init__(self, *_, **__): ...
    def __enter__(self):
        return self

    def __exit__(self, *_): ...
    def submit(self, function, *arguments):
        future = Future()
        future.set_result(function(*arguments))
        return future


@pytest.fixture(scope="module")
def reproduced(extracted):  # noqa: F811
    workspace = Workspace(extracted)
    chosen = choose_store(workspace)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "ProcessPoolExecutor", InProcess)
        patch.setattr(measures, "TEXTS", 32)
        fixed = tuple(
            row for row in TABLES["9"].rows if not SYSTEMS[row.system].tune
        )  # joint: test_end_to_end_training
        patch.setitem(TABLES, "9", replace(TABLES["9"], rows=fixed))
        settings = recipe(chosen, epochs=1, batch_size=16)
        written = reproduce(workspace, chosen, list(NEW), settings, head={}, seeds=1, jobs=1, progress=lambda *_: None)
    return workspace, chosen, written


def rows_of(workspace, name):
    return {row["system"]: row for row in read_json(workspace.report_dir("shapes", "tables") / f"table-{name}.json")}


def test_every_table_names_systems_that_exist_and_help_names_every_table():
    assert {row.system for table in TABLES.values() for row in table.rows} <= set(SYSTEMS)
    assert {system.parent for system in SYSTEMS.values()} - {None} <= set(SYSTEMS)
    for system in SYSTEMS.values():
        HeadConfig(**system.head)
    for name in TABLES:
        assert name in run("reproduce", "--help").stdout.replace(",", " ").replace(";", " ").split(), (
            f"--help does not name table {name}"
        )


def test_table_9_measures_the_gap(reproduced):
    workspace, _, written = reproduced
    rows = rows_of(workspace, "9")
    still, moved = rows["xpool"], rows["dits"]
    for name in ("L1", "L2", "cosine", "L1 raw", "L2 raw"):
        assert still[f"{name} before"] == still[f"{name} after"] != 0
    assert moved["cosine before"] != moved["cosine after"]
    assert "| L1 before |" in written["9"]  # a row a measure: the table stands upright


def test_the_student_is_made_from_its_teacher(reproduced):
    workspace, _, written = reproduced
    rows = rows_of(workspace, "distill")
    assert all(row["ms to align 1000 texts"] > 0 for row in rows.values())
    heads = {path.name.split("-s24-")[0]: read_json(path / "config.json") for path in workspace.head_dirs("shapes")}
    teacher = heads["dits"]["run"]
    assert heads["distilled"]["distilled_from"] == {"run": teacher, "contrast": 0.0}
    assert heads["distilled-contrast"]["distilled_from"] == {"run": teacher, "contrast": 1.0}
    assert "distilled_from" not in heads["dits-1"]
    assert "training s" in written["distill"]
    assert "retrieval s" not in written["distill"]


def test_robustness_scores_captions_that_were_encoded_anew(reproduced, tmp_path):
    _, chosen, _ = reproduced
    texts = chosen.store.texts("test")
    damaged = damage_captions(texts.captions, texts.caption_ids, "dropped", 0.5, SEED)
    embeds = damaged_embeds(tmp_path, chosen, texts, "dropped", 0.5)
    np.testing.assert_array_equal(embeds, embed_queries(chosen.store, damaged))
    assert np.array_equal(damaged_embeds(tmp_path, chosen, texts, "dropped", 0.5), embeds)
    assert len(list(tmp_path.iterdir())) == 1
    unhurt = damaged_embeds(tmp_path, chosen, texts, "dropped", 0.0)
    np.testing.assert_allclose(unhurt, texts.text_embeds, atol=1e-5)


def test_robustness_is_the_same_every_time_and_stands_in_every_form(reproduced):
    workspace, chosen, written = reproduced
    row = rows_of(workspace, "robustness")["mlp"]
    head = next(path.name for path in workspace.head_dirs("shapes") if path.name.startswith("mlp-"))
    found = robustness(workspace, chosen, choose_head(workspace, chosen, head))
    columns = TABLES["robustness"].columns
    assert set(found) == {column.key for column in columns}
    assert {column.key: row[column.label] for column in columns} == {key: round(r1, 4) for key, r1 in found.items()}
    with open(workspace.report_dir("shapes", "tables") / "table-robustness.csv", newline="") as file:
        assert [line["system"] for line in csv.DictReader(file)] == ["xpool", "mlp", "dits"]
    assert "| 10 % of words dropped | " in written["robustness"]


def test_the_robustness_figure_shows_every_system(reproduced, tmp_path):
    workspace, chosen, _ = reproduced
    tables = workspace.report_dir("shapes", "tables")
    files = robustness_figure(tmp_path, tables, chosen.store.num_frames, cli.say)
    assert [path.name for path in files] == ["robustness.png", "robustness.svg"]
    drawn = files[1].read_text()
    for row in TABLES["robustness"].rows:
        assert row.label in drawn
