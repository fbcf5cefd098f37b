"""What is solved and not trained: on the training split before training, and again wherever CLIP has moved."""

import json

import pytest
import torch
from retrieval_case import add_videos, make_store
from typer.testing import CliRunner

import cli
from dits_head.cca import solve
from dits_head.pooling import mean_frames
from pipeline.datasets.manifests import dataset_manifest
from pipeline.extract.corpus import extract_manifest
from pipeline.extract.settings import ExtractSettings
from pipeline.resolve import resolve_head, resolve_store
from pipeline.stores.features import text_to_video
from pipeline.train import tasks
from pipeline.workspace import Workspace


def run(*arguments, code=0):
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def assert_solved_on(store, cca):
    """The head's maps are those of the store's training split."""
    videos, texts = store.videos("train"), store.texts("train")
    means = mean_frames(torch.from_numpy(videos.frame_embeds), torch.from_numpy(videos.frame_mask))
    owners = torch.from_numpy(text_to_video(texts, videos))
    solution = solve(torch.from_numpy(texts.text_embeds), means, owners)
    for affine, mean, map in (
        (cca.aligner.affine, solution.text_mean, solution.text_map),
        (cca.pooling.affine, solution.video_mean, solution.video_map),
    ):
        torch.testing.assert_close(affine.mean, mean.float(), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(affine.map, map.float(), atol=1e-4, rtol=1e-3)


def test_the_default_head_trains_is_indexed_and_searched_exactly(tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, "FIT_BLOCK", 7)  # several blocks
    place = Workspace(tmp_path)
    store = make_store(place.features_dir("toy", "toy"), videos=60, split="train")
    add_videos(store, [f"w{i}" for i in range(20)], split="val", seed=1)
    add_videos(store, [f"x{i}" for i in range(20)], split="test", seed=2)
    here = ("--json", "--workspace", tmp_path)
    assert json.loads(run("train-head", "--epochs", "2", *here).stdout)["head"] == "three-views"
    chosen = resolve_store(place)
    head = resolve_head(place, chosen)
    assert_solved_on(chosen.store, head.head.heads[-1])
    whole = json.loads(run("evaluate", *here).stdout)["t2v"]
    assert json.loads(run("index", *here).stdout)["verified"]
    through = json.loads(run("evaluate", "--index", "--shortlist", "100", *here).stdout)["t2v"]
    assert through["R@1"] == whole["R@1"]
    said = run("figures", "--run", head.run, "--workspace", tmp_path, code=2).stderr
    assert "three-views" in said


@pytest.mark.parametrize("head", ["cca", "three-views"])
def test_where_clip_trains_too_it_is_solved_on_the_clip_that_is_left(tmp_path, head):
    place = Workspace(tmp_path)
    manifest = dataset_manifest(place, "shapes", None, None, None, {"train": 6, "val": 2, "test": 2})
    extract_manifest(place, manifest, ExtractSettings(cache_blocks=1, num_frames=2, precision="float32"))
    options = ("--train-blocks", 1, "--clip-lr", "1e-3", "--lr", "1e-3", "--epochs", 1, "--batch-size", 8)
    run("train-head", "--head", head, *options, "--workspace", tmp_path)
    chosen = resolve_store(place)  # of the tuned CLIP
    assert "+" in chosen.encoder
    trained = resolve_head(place, chosen).head
    assert_solved_on(chosen.store, trained if head == "cca" else trained.heads[-1])
