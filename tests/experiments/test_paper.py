"""The paper's figures stand beside ours only where data, split, backbone, weights and regime are the paper's."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from table_runs import result

from pipeline.datasets.assemble import ids_digest
from pipeline.experiments import paper
from pipeline.experiments.paper import PRESET, differences, same_regime
from pipeline.experiments.reproduce import as_markdown, summarise_table
from pipeline.experiments.tables import TABLES
from pipeline.stores.manifest import Manifest, VideoEntry, write_manifest
from pipeline.workspace import Workspace

PUBLISHED = "d1" * 32


@pytest.fixture
def place(tmp_path, monkeypatch):
    """(workspace, a store of all of MSR-VTT 1k-A, as far as anyone can tell)."""
    workspace = Workspace(tmp_path)
    monkeypatch.setattr(paper, "published_digest", lambda: PUBLISHED)
    names = {"train": "MSR-VTT train-9k", "test": "MSR-VTT 1k-A"}
    splits = {
        split: {
            "name": name,
            "published": 2,
            "annotated": 2,
            "ids_sha256": ids_digest([f"{split}{n}" for n in range(2)]),
        }
        for split, name in names.items()
    }
    entries = tuple(VideoEntry(f"{split}{n}", f"{split}{n}.mp4", split) for split in names for n in range(2))
    write_manifest(Manifest("msrvtt", "/videos", entries, {"splits": splits}), workspace.manifest_path("msrvtt"))
    videos = SimpleNamespace(video_ids=["train0", "train1", "test0", "test1"], splits=["train", "val", "test", "test"])
    settings = {"model": "ViT-B-32", "pretrained": "openai", "weights_sha256": PUBLISHED}
    store = SimpleNamespace(settings=settings, num_frames=12, videos=lambda mmap: videos)
    return workspace, SimpleNamespace(dataset="msrvtt", store=store)


def test_nothing_differs_where_everything_is_the_papers(place):
    workspace, chosen = place
    assert differences(workspace, chosen, PRESET.train, {}) == []
    assert differences(workspace, chosen) == []


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"model": "ViT-B-32-256"}, "encoder ViT-B-32-256 with weights openai, not ViT-B-32 with openai"),
        ({"model": "ViT-B-16"}, "encoder ViT-B-16"),
        ({"pretrained": "laion2b_s34b_b79k"}, "weights laion2b_s34b_b79k, not ViT-B-32 with openai"),
        ({"pretrained": "openai.pt"}, "weights openai.pt"),
        ({"weights_sha256": "e2" * 32}, "weights of digest e2e2e2e2e2e2, not the published ones"),
        ({"weights_sha256": None}, "weights of digest None"),
    ],
)
def test_another_encoder_is_named(place, settings, said):
    workspace, chosen = place
    chosen.store.settings |= settings
    (found,) = differences(workspace, chosen)
    assert said in found


def test_weights_that_cannot_be_checked_are_not_the_papers(place, monkeypatch):
    workspace, chosen = place
    monkeypatch.setattr(paper, "published_digest", lambda: None)
    assert "not at hand" in differences(workspace, chosen)[0]


def test_an_incomplete_split_and_another_data_set_are_named(place):
    workspace, chosen = place
    videos = chosen.store.videos(mmap=True)
    videos.video_ids, videos.splits = videos.video_ids[:3], videos.splits[:3]
    assert differences(workspace, chosen) == ["test split: subset (1 of 2), not MSR-VTT 1k-A"]
    videos.video_ids, videos.splits = ["train0", "test0", "test1"], ["train", "test", "test"]
    assert differences(workspace, chosen) == ["train split: subset (1 of 2), not MSR-VTT train-9k"]
    chosen.dataset = "shapes"
    assert differences(workspace, chosen) == ["data set shapes, not msrvtt"]


def test_another_recipe_is_named(place):
    workspace, chosen = place
    chosen.store.num_frames = 4
    found = differences(workspace, chosen, {**PRESET.train, "epochs": 1, "warmup": 0.1}, {"blocks": 1})
    assert found == ["4 frames a video, not 12", "epochs 1, not 5", "heads with blocks 1"]


def test_the_papers_column_needs_the_papers_regime():
    """Table 5b: the paper's figure of fixed CLIP beside ours, and of joint training only beside training end to end."""
    table = TABLES["5b"]
    fixed, joint = table.rows
    assert same_regime(fixed)
    assert same_regime(joint)
    assert not same_regime(replace(joint, system="dits"))
    assert not same_regime(replace(joint, system="dits-tuned-all"))  # the embedding of patches stays as it was
    results = {row.system: [result([1, 1, 2, 2])] for row in table.rows}
    text = as_markdown(table, summarise_table(table, results), "about", [])
    assert "39.2 65.4 77.1 2 18" in text
    assert "51.9 75.7 84.6 1 11.6" in text
    assert "left out" not in text
    other = as_markdown(table, summarise_table(table, results), "about", ["data set shapes, not msrvtt"])
    assert "39.2" not in other
    assert "The paper's figures are left out: data set shapes, not msrvtt." in other


def test_a_table_of_fixed_clip_says_that_the_paper_trained_it():
    table = TABLES["6a"]
    results = {row.system: [result([1, 1, 2, 2])] for row in table.rows}
    text = as_markdown(table, summarise_table(table, results), "about", [])
    assert "the paper's R@1" not in text
    assert "42.3" not in text
    assert "left out: CLIP was trained there, end to end (none)." in text
