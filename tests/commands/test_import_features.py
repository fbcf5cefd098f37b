"""Imported features serve training and evaluation; text search needs an encoder that was named."""

import json

import numpy as np
import pytest
from command_line import refused, run

VIDEOS, WIDTH = 150, 16


@pytest.fixture
def archive(tmp_path):
    """Captions near their videos' frames, so that there is something to learn."""
    rng = np.random.default_rng(0)
    frames = rng.standard_normal((VIDEOS, 1, WIDTH)) + 0.3 * rng.standard_normal((VIDEOS, 4, WIDTH))
    np.savez(
        tmp_path / "made.npz",
        video_id=np.array([f"v{n}" for n in range(VIDEOS)]),
        split=np.array(["train"] * 110 + ["val"] * 20 + ["test"] * 20),
        frame_embeds=frames.astype(np.float16),
        caption=np.array([f"clip number {n}" for n in range(VIDEOS)]),
        caption_video=np.arange(VIDEOS),
        text_embeds=(frames.mean(1) + 0.3 * rng.standard_normal((VIDEOS, WIDTH))).astype(np.float32),
    )
    return tmp_path / "made.npz"


def test_from_an_archive_to_figures_by_the_command_line(archive, tmp_path):
    here = ("--workspace", tmp_path / "w", "--json")
    report = json.loads(run("import-features", archive, "--dataset", "mine", "--num-frames", 4, *here).stdout)
    assert (report["videos"], report["captions"]) == (VIDEOS, VIDEOS)
    run("train-head", "--head", "xpool", "--epochs", 1, *here)
    figures = json.loads(run("evaluate", "--index", *here).stdout)
    assert figures["t2v"]["queries"] == 20
    assert figures["t2v"]["R@1"] > 50
    assert "encoder was not named" in refused("search", "a dog", "--workspace", tmp_path / "w")


def test_an_encoder_of_another_width_is_refused_and_nothing_is_left(archive, tmp_path):
    here = ("--workspace", tmp_path / "w")
    line = refused("import-features", archive, "--dataset", "mine", "--model", "shapes-clip", *here)
    assert "expected 16-d" in line
    assert not (tmp_path / "w" / "features").exists()
    assert "--model too" in refused("import-features", archive, "--dataset", "mine", "--pretrained", "openai", *here)


def test_features_of_a_named_encoder_are_searched_by_text(tmp_path):
    (tmp_path / "made").mkdir()
    for number in range(3):
        np.save(tmp_path / "made" / f"v{number}.npy", np.eye(3, 128, dtype=np.float32)[[number]] + 0.1)
        (tmp_path / "made" / f"v{number}.txt").write_text("a red ring")
    here = ("--workspace", tmp_path / "w", "--json")
    run("import-features", tmp_path / "made", "--dataset", "mine", "--model", "shapes-clip", *here)
    run("index", *here)
    assert len(json.loads(run("search", "a red ring moves left", *here).stdout)["queries"][0]["hits"]) == 3
