"""Tables that measure more than ranks, on shapes, tiny: the gap, distillation, damage; and the figure drawn of them."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command_line import refused, run
from table_runs import InProcess, result

from dits_head.config import HeadConfig
from pipeline.clip.stored import embed_queries
from pipeline.evaluate.corruption import damage_captions
from pipeline.experiments import measures, runs
from pipeline.experiments.figures import robustness_figure
from pipeline.experiments.measures import SEED, damaged_embeds, robustness
from pipeline.experiments.reproduce import as_markdown, possible_tables, reproduce, summarise_table, tables_dir
from pipeline.experiments.runs import RunSpec, features_id, run_name
from pipeline.experiments.tables import SYSTEMS, TABLES, Row, Table
from pipeline.resolve import resolve_head, resolve_store
from pipeline.stores.integrity import read_json
from pipeline.train.recipe import recipe
from pipeline.workspace import Workspace

NEW = ("9", "distill", "robustness")


@pytest.fixture(scope="module")
def reproduced(extracted):
    workspace = Workspace(extracted)
    chosen = resolve_store(workspace)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "ProcessPoolExecutor", InProcess)
        patch.setattr(measures, "TEXTS", 32)
        fixed = tuple(
            row for row in TABLES["9"].rows if not SYSTEMS[row.system].tune
        )  # joint: test_end_to_end_training
        patch.setitem(TABLES, "9", replace(TABLES["9"], rows=fixed))
        settings = recipe(chosen, epochs=1, batch_size=16)
        written = reproduce(workspace, chosen, list(NEW), settings, head={}, seeds=1, jobs=1)
    return workspace, chosen, written


def test_a_table_by_hand():
    """Two seeds of two systems: means, standard deviations with n - 1, and the difference second minus first."""
    table = Table("two", (Row("a", "xpool"), Row("b", "dits")))
    first, second = table.rows
    results = {
        "xpool": [result([2, 2, 1, 2]), result([1, 2, 1, 2])],  # 25 and 50
        "dits": [result([1, 1, 1, 2]), result([1, 1, 1, 1])],  # 75 and 100
    }
    a, b = summarise_table(table, results)
    assert (a.row, b.row) == (first, second)
    assert a.figures["R@1"] == (37.5, pytest.approx(17.678, abs=1e-3))
    assert b.figures["R@1"] == (87.5, pytest.approx(17.678, abs=1e-3))
    assert (a.difference, a.interval) == (0.0, pytest.approx((0.0, 0.0)))
    assert b.difference == 50.0
    # video 1 is right in all four runs and video 0 gains 75: whatever is drawn, the difference lies between these
    assert 0.0 <= b.interval[0] < 50.0 < b.interval[1] <= 75.0
    text = as_markdown(table, [a, b], "about", [])
    assert "| a | 37.5 ± 17.7 |" in text
    assert "| +50.00 [" in text


def test_a_run_is_told_apart_by_its_features(reproduced):
    """Another encoder, more videos or another preset must not be given an earlier run's figures."""
    workspace, chosen, _ = reproduced
    spec = RunSpec(str(workspace.root), "shapes", chosen.encoder, features_id(chosen), "xpool", 24, {})
    other = replace(chosen, encoder="another")
    assert run_name(spec) != run_name(replace(spec, encoder="another", features=features_id(other)))
    assert run_name(spec) == run_name(replace(spec, features=features_id(resolve_store(workspace))))


def test_what_the_features_do_not_allow_is_said_before_anything_is_trained(reproduced, caplog):
    workspace, chosen, _ = reproduced
    possible = possible_tables(workspace, chosen)
    assert set(TABLES) - set(possible) == {"blocks", "joint", "joint-top"}  # no activations were kept
    assert "without table blocks: " in caplog.text
    assert "extract with --cache-blocks 1" in refused("reproduce", "--table", "blocks", "--workspace", workspace.root)
    line = refused("reproduce", "--table", "5a", "--set", "T_prime=3", "--workspace", workspace.root)
    assert "table 5a names T' in its rows" in line


def test_what_has_not_begun_when_a_run_fails_never_begins(tmp_path):
    calls = [(str(tmp_path), number) for number in range(6)]
    with pytest.raises(ZeroDivisionError):
        list(runs._in_processes(1, leave_a_mark_or_fail, calls))
    assert len(list(tmp_path.iterdir())) < len(calls) - 1


def leave_a_mark_or_fail(folder, number):
    if number == 1:
        raise ZeroDivisionError
    Path(folder, str(number)).touch()


def rows_of(workspace, name):
    folder = workspace.report_dir("shapes", "tables") / "shapes-clip"
    return {row["system"]: row for row in read_json(folder / f"table-{name}.json")}


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
    found = robustness(workspace, chosen, resolve_head(workspace, chosen, head))
    columns = TABLES["robustness"].columns
    assert set(found) == {column.key for column in columns}
    assert {column.key: row[column.label] for column in columns} == {key: round(r1, 4) for key, r1 in found.items()}
    with open(tables_dir(workspace, chosen) / "table-robustness.csv", newline="") as file:
        assert [line["system"] for line in csv.DictReader(file)] == ["xpool", "mlp", "dits"]
    assert "| 10 % of words dropped | " in written["robustness"]


def test_the_robustness_figure_shows_every_system(reproduced, tmp_path):
    workspace, chosen, _ = reproduced
    tables = tables_dir(workspace, chosen)
    files = robustness_figure(tmp_path, tables, chosen.store.num_frames)
    assert [path.name for path in files] == ["robustness.png", "robustness.svg"]
    drawn = files[1].read_text()
    for row in TABLES["robustness"].rows:
        assert row.label in drawn
