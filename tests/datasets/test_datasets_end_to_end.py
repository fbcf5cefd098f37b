"""Every data set from its own file formats to figures: extract, train-head, evaluate, as the command line runs them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from standins import caption, make_standin, standin_ids, write_table, write_video
from typer.testing import CliRunner

from cli import app
from pipeline.datasets.assemble import ids_digest
from pipeline.resolve import resolve_store
from pipeline.stores.manifest import read_manifest, write_manifest
from pipeline.workspace import Workspace

PUBLISHED_TEST = {
    "msrvtt": 1000, "msvd": 670, "lsmdc": 1000, "didemo": 1004, "vatex": 1500, "charades": 1863, "activitynet": 4917,
}  # fmt: skip
TINY = ["--num-frames", "2", "--workers", "1", "--device", "cpu", "--precision", "float32"]


def run(workspace: Path, *arguments: object) -> dict:
    """What a command prints with --json."""
    words = [str(word) for word in (*arguments, "--workspace", workspace, "--json")]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def refused(workspace: Path, *arguments: object) -> str:
    """The one line of a command that must exit with 2."""
    result = CliRunner().invoke(app, [str(word) for word in (*arguments, "--workspace", workspace)])
    assert result.exit_code == 2, result.output
    return result.stderr.strip().splitlines()[-1]


def figures(workspace: Path) -> tuple[dict, dict]:
    trained = run(workspace, "train-head", "--head", "xpool", "--epochs", 1, "--batch-size", 4)
    return trained, run(workspace, "evaluate")


@pytest.mark.parametrize("name", PUBLISHED_TEST)
def test_a_few_videos_of_each_data_set_go_all_the_way(name, tmp_path):
    videos, annotations = make_standin(name, tmp_path)
    workspace = tmp_path / "workspace"
    done = run(workspace, "extract", "--dataset", name, "--videos", videos, "--annotations", annotations, *TINY)
    assert (done["inputs"], done["done"]) == (14, 14)
    trained, card = figures(workspace)
    assert trained["selected_on"] == "val"
    assert card["t2v"]["gallery"] == 4
    stored = resolve_store(Workspace(workspace)).store
    assert card["t2v"]["queries"] == sum(split == "test" for split in stored.texts().splits)
    assert card["protocol"]["label"] == f"subset (4 of {PUBLISHED_TEST[name]})"
    assert (card["protocol"]["dataset"], card["protocol"]["split"]) == (name, "test")
    assert card["protocol"]["data_caption_rule"]


@pytest.mark.slow  # each run trains and is tested in a process of its own
def test_a_table_of_the_paper_on_any_data_set(tmp_path):
    videos, annotations = make_standin("didemo", tmp_path)
    workspace = tmp_path / "workspace"
    run(workspace, "extract", "--dataset", "didemo", "--videos", videos, "--annotations", annotations, *TINY)
    written = run(workspace, "reproduce", "--table", "6b", "--quick", "--batch-size", 4, "--jobs", 1)
    assert "didemo, subset (4 of 1004), " in written["6b"]
    lines = [line for line in written["6b"].splitlines() if line.startswith("| delta")]
    assert [line.split("|")[1].strip() for line in lines] == ["delta = v - t", "delta = t - v"]
    assert "the paper's" not in written["6b"], "its numbers are of MSR-VTT with ViT-B/32"
    assert written == run(workspace, "reproduce", "--table", "6b", "--quick", "--batch-size", 4, "--jobs", 1)


def own_folder(folder: Path, splits: list[str]) -> tuple[Path, Path]:
    videos, captions = folder / "clips", folder / "captions.csv"
    videos.mkdir(parents=True)
    rows = [["video_id", "caption", "split"]]
    for number, split in enumerate(splits):
        write_video(videos / f"clip{number}.mp4", seed=str(number))
        rows.append([f"clip{number}", caption(str(number)), split])
    write_table(captions, rows)
    return videos, captions


def test_a_folder_with_a_split_column_goes_all_the_way(tmp_path):
    videos, captions = own_folder(tmp_path, ["train"] * 6 + ["val"] * 2 + ["test"] * 3)
    workspace = tmp_path / "workspace"
    assert run(workspace, "extract", "--videos", videos, "--captions", captions, *TINY)["done"] == 11
    trained, card = figures(workspace)
    assert trained["selected_on"] == "val"
    assert card["protocol"]["label"] == "own data (3 test videos)"


def test_a_folder_without_splits_is_evaluated_and_not_trained_on(tmp_path):
    videos, captions = own_folder(tmp_path, [""] * 4)
    (videos / "clip3.mp4").write_bytes(b"no video")
    workspace = tmp_path / "workspace"
    run(workspace, "extract", "--videos", videos, "--captions", captions, "--min-coverage", 0.5, *TINY)
    line = refused(workspace, "train-head", "--head", "xpool", "--epochs", 1)
    assert "too few training videos to train a head and hold some out" in line
    assert "at least 100 with captions in the train split" in line
    assert "0 (and 3 in other splits)" in line
    card = run(workspace, "evaluate")
    assert card["protocol"]["label"] == "subset (3 of 4)", "a clip that could not be read is not evaluated on"


def test_training_without_validation_needs_enough_to_hold_out(tmp_path):
    videos, captions = own_folder(tmp_path, ["train"] * 5 + ["test"] * 2)
    workspace = tmp_path / "workspace"
    run(workspace, "extract", "--videos", videos, "--captions", captions, *TINY)
    assert "at least 100" in refused(workspace, "train-head", "--head", "xpool", "--epochs", 1)


def test_one_training_video_is_too_few_even_with_validation(tmp_path):
    videos, captions = own_folder(tmp_path, ["train", "val", "test"])
    workspace = tmp_path / "workspace"
    run(workspace, "extract", "--videos", videos, "--captions", captions, *TINY)
    line = refused(workspace, "train-head", "--head", "xpool", "--epochs", 1)
    assert "at least 2 with captions in the train split" in line


def test_results_bear_the_name_of_the_split_only_while_every_video_of_it_was_evaluated(tmp_path):
    videos, annotations = make_standin("charades", tmp_path, standin_ids("charades", train=3, val=1, test=3))
    gone, *there = standin_ids("charades", train=3, val=1, test=3)["test"]
    (videos / f"{gone}.mp4").write_bytes(b"no video")
    workspace = tmp_path / "workspace"
    where = ["--videos", videos, "--annotations", annotations]
    run(workspace, "extract", "--dataset", "charades", *where, "--min-coverage", 0.5, *TINY)

    def label(published: list[str]) -> str:
        """What the result is called where the published split has these ids."""
        path = Workspace(workspace).manifest_path("charades")
        manifest = read_manifest(path)
        splits = manifest.protocol["splits"]
        test = {**splits["test"], "published": len(published), "ids_sha256": ids_digest(published)}
        write_manifest(replace(manifest, protocol={**manifest.protocol, "splits": {**splits, "test": test}}), path)
        return run(workspace, "evaluate")["protocol"]["label"]

    assert label([gone, *there]) == "subset (2 of 3)"
    assert label(there) == "Charades"
    assert label([there[0], gone]) == "other ids (2; published 2)"
    printed = CliRunner().invoke(app, ["evaluate", "--workspace", str(workspace)]).stdout
    assert printed.startswith("charades, split test: other ids (2; published 2)\n")
