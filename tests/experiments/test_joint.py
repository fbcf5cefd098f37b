"""Tables under joint training, and learning rates that are chosen on the validation split, on shapes, tiny."""

from dataclasses import replace

import numpy as np
import pytest
from table_runs import InProcess, result

from pipeline.datasets.manifests import dataset_manifest
from pipeline.errors import BadInput
from pipeline.experiments import lr_sweep, runs
from pipeline.experiments.reproduce import as_markdown, reproduce, summarise_table, tables_dir, with_clip
from pipeline.experiments.runs import run_name
from pipeline.experiments.tables import SYSTEMS, TABLES, Row, Table, tuned
from pipeline.extract.corpus import extract_manifest
from pipeline.extract.settings import ExtractSettings
from pipeline.resolve import resolve_store
from pipeline.stores.features import FeatureStore
from pipeline.stores.integrity import read_json
from pipeline.train.recipe import recipe
from pipeline.workspace import Workspace

SIZES = {"train": 12, "val": 4, "test": 6}
TINY = Table("tiny", (Row("X-Pool", "xpool"), Row("mean pooling", "mean-pool")))


@pytest.fixture(scope="module")
def extracted(tmp_path_factory):
    """(workspace, its store), with what enters the top block."""
    workspace = Workspace(tmp_path_factory.mktemp("joint"))
    manifest = dataset_manifest(workspace, "shapes", None, None, None, SIZES)
    extract_manifest(workspace, manifest, ExtractSettings(cache_blocks=1, precision="float32"))
    return workspace, resolve_store(workspace, "shapes", "shapes-clip")


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setattr(runs, "ProcessPoolExecutor", InProcess)
    monkeypatch.setitem(TABLES, "tiny", TINY)


def write(extracted, name="tiny", **changes):
    workspace, chosen = extracted
    options = {"head": {}, "seeds": 1, "jobs": 1, **changes}
    return reproduce(workspace, chosen, [name], recipe(chosen, epochs=3, batch_size=16), **options)


def rows_of(extracted, name):
    workspace, chosen = extracted
    return {row["system"]: row for row in read_json(tables_dir(workspace, chosen) / f"table-{name}.json")}


def test_the_joint_tables_have_every_system_at_every_depth():
    rows = [*TABLES["joint"].rows, *TABLES["joint-top"].rows]
    for how in (1, 2, "all"):
        of_depth = [row for row in rows if SYSTEMS[row.system].tune == how]
        heads = [SYSTEMS[row.system].head["head"] for row in of_depth]
        every = ["cca", "dits", "dits", "mean-pool", "mlp", "mlp", "three-views", "tmass", "xpool"]
        assert sorted(heads) == every
        assert {row.against or rows[0].system for row in of_depth} == {tuned("xpool", how)}
        noise = {SYSTEMS[row.system].head.get("noise_train", True) for row in of_depth if "DITS" in row.label}
        starts = {SYSTEMS[row.system].head.get("normalise", False) for row in of_depth if "MLP" in row.label}
        assert noise == starts == {True, False}
    assert {row.system.removesuffix("-tuned-all") for row in TABLES["joint"].rows} < {
        row.system for row in TABLES["fixed"].rows
    }


def test_a_row_is_compared_with_the_row_that_it_names():
    table = TABLES["joint-top"]
    systems = [row.system for row in table.rows]
    chance = np.random.default_rng(0)
    results = {system: [result(chance.integers(1, 3, 40), np.arange(40))] for system in systems}
    for line in summarise_table(table, results):
        of, base = (100 * np.mean(results[system][0].ranks == 1) for system in (line.row.system, line.row.against))
        assert line.difference == pytest.approx(of - base)
    text = as_markdown(table, summarise_table(table, results), "about", [])
    assert "R@1 against X-Pool of the same k [95 %]" in text
    assert sum("[" not in row for row in text.splitlines() if row.startswith("| X-Pool")) == 2


def test_any_table_can_be_trained_with_clip(extracted):
    written = write(extracted, tune=1)
    assert list(written) == ["tiny-tuned-1"]
    assert "CLIP trained too (1)" in written["tiny-tuned-1"]
    assert set(rows_of(extracted, "tiny-tuned-1")) == {"xpool-tuned-1", "mean-pool-tuned-1"}
    with pytest.raises(BadInput, match="--cache-blocks 2"):
        write(extracted, tune=2)
    with pytest.raises(BadInput, match="'distilled' cannot be trained with CLIP"):
        with_clip(TABLES["distill"], 1)
    own = with_clip(TABLES["blocks"], 1)
    assert [row.system for row in own.rows] == ["dits-tuned-1", *(row.system for row in TABLES["blocks"].rows[1:])]


def test_rates_are_chosen_on_the_validation_split(extracted, tmp_path, monkeypatch):
    """The best head's rate and the best of CLIP's come from different runs; the test split is never scored."""
    _, chosen = extracted
    trained, wanted = [], {"lr": 0.009, "clip_lr": 0.00033}

    def train(spec):
        trained.append(spec)
        found = {"R@1": 10.0, "MnR": 5.0}
        for name, value in wanted.items():
            found["R@1"] += 20 * (({**spec.recipe, **spec.tune}).get(name) == value)
        runs.write_json(runs._kept(spec, "val"), found)

    monkeypatch.setattr(runs, "_validate_task", train)
    monkeypatch.setattr(runs, "_test_task", None)
    spec = runs.RunSpec(str(tmp_path), "shapes", chosen.encoder, "f", "xpool-tuned-1", 24, recipe(chosen))
    fixed = replace(spec, system="xpool")
    assert (spec.recipe["lr"], runs.clip_rate(chosen)) == (3e-3, 1e-3)
    picked = lr_sweep.choose_rates({"xpool-tuned-1": spec, "xpool": fixed}, 1e-3, 1, lambda *_: None)
    joint = picked["xpool-tuned-1"]
    assert (joint.recipe["lr"], joint.tune) == (0.009, {"clip_lr": 0.00033})
    assert joint.recipe["epochs"] == spec.recipe["epochs"]
    assert (picked["xpool"].recipe["lr"], picked["xpool"].tune) == (0.009, {})
    tried = [one for one in trained if one.system == "xpool-tuned-1"]
    assert len(tried) == 5  # one rate at a time: three, and two more
    assert {one.recipe["epochs"] for one in trained} == {lr_sweep.EPOCHS}
    assert {one.seed for one in trained} == {24}
    trained.clear()
    lr_sweep.choose_rates({"xpool-tuned-1": spec, "xpool": fixed}, 1e-3, 1, lambda *_: None)
    assert trained == []


def test_the_table_says_which_rates_were_taken_and_the_sweep_leaves_only_scores(extracted):
    workspace, _ = extracted
    before = {path.parent.name for path in workspace.root.glob("heads/shapes/*/config.json")}
    written = write(extracted, tune=1, lr_sweep=True)["tiny-tuned-1"]
    assert "chosen for each system on the validation split" in written
    for system, row in rows_of(extracted, "tiny-tuned-1").items():
        assert row["learning rates"].startswith("head 0.00"), system
        assert ", CLIP 0.00" in row["learning rates"]
    heads = {path.parent.name for path in workspace.root.glob("heads/shapes/*/config.json")} - before
    assert len(heads) <= 2  # the table's own runs
    stores = {path.parent.name.partition("+")[2] for path in workspace.root.glob("features/shapes/*+*/store.json")}
    assert stores == heads | before
    assert len(list(workspace.root.glob("reports/shapes/*/val.json"))) == 10
    for path in workspace.root.glob("features/shapes/*/store.json"):
        assert len(FeatureStore.open(path.parent).texts()) > 0


def test_a_rate_at_which_training_diverges_loses(extracted, tmp_path, monkeypatch):
    _, chosen = extracted
    spec = runs.RunSpec(str(tmp_path), "shapes", chosen.encoder, "g", "xpool", 24, recipe(chosen))

    def diverge(_):
        raise RuntimeError("The total norm of order 2.0 for gradients is non-finite, so it cannot be clipped.")

    monkeypatch.setattr(runs, "_train_task", diverge)
    runs._validate_task(spec)
    assert runs.validated(spec)["R@1"] == 0.0


def test_clips_rate_tells_runs_apart_only_where_clip_trains(extracted):
    workspace, chosen = extracted
    spec = runs.RunSpec(str(workspace.root), "shapes", chosen.encoder, "f", "xpool-tuned-1", 24, recipe(chosen))
    other = {"clip_lr": 1e-4}
    assert run_name(spec) != run_name(replace(spec, tune=other))
    fixed = replace(spec, system="xpool")
    assert run_name(fixed) == run_name(replace(fixed, tune=other))
