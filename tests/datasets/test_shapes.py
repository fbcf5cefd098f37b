"""The built-in data set: the same for the same seed, real clips, captions that are true and tell clips apart."""

import re
from collections import Counter
from itertools import combinations
from pathlib import Path
from random import Random

import av
import numpy as np
import pytest
from datasets_shapes_reader import COLOUR, MOTION, claims, read_caption

from pipeline.datasets import shapes
from pipeline.datasets import shapes_world as world
from pipeline.datasets.shapes_drawing import render
from pipeline.errors import BadInput
from pipeline.stores.manifest import read_manifest

# ------------------------------------------------------------------------------------------------------ the captions


def test_every_caption_is_true_and_a_perfect_reader_exceeds_95():
    """R@1 of the test split, ties at their expected rank: a caption true of n clips finds its own with chance 1 / n."""
    shown = [claims(world.make_clip(0, "test", index)) for index in range(1000)]
    true_of = Counter(claim for found in shown for claim in found)
    chances = []
    for index, found in enumerate(shown):
        for caption in world.clip_captions(0, "test", index):
            claim = read_caption(caption)
            assert claim in found, (index, caption)
            chances.append(1 / true_of[claim])
    assert len(chances) == 4000
    assert 95 < 100 * np.mean(chances) < 100


def test_a_reader_told_of_another_clip_finds_captions_false():
    wrong = sum(
        read_caption(caption) in claims(world.make_clip(0, "test", index + 1))
        for index in range(100)
        for caption in world.clip_captions(0, "test", index)
    )
    assert wrong < 10


def test_a_word_has_one_meaning():
    for vocabulary in (world.COLOURS, world.SHAPES, world.SIZES, world.BACKGROUNDS):
        words = [word for canonical, others in vocabulary.items() for word in (canonical, *others)]
        assert len(set(words)) == len(words)
        assert all(re.fullmatch("[a-z]+", word) for word in words)
    assert len(MOTION) == sum(map(len, world.MOTIONS.values()))


def test_captions_of_a_clip_differ_and_say_things_in_other_words():
    captions = [world.clip_captions(0, "train", index) for index in range(200)]
    assert all(len(set(of_clip)) == 4 for of_clip in captions)
    text = " ".join(caption for of_clip in captions for caption in of_clip).split()
    own = sum(word in world.COLOURS for word in text)
    assert own / sum(word in COLOUR for word in text) == pytest.approx(world.OWN_WORD_SHARE, abs=0.05)


def test_frame_captions_use_canonical_words_only():
    rng = Random("any")
    known = {*world.COLOURS, *world.SHAPES, *world.SIZES, *world.BACKGROUNDS}
    known |= {"a", "and", "at", "the", "on", "background", "top", "bottom", "left", "right", "center"}
    for _ in range(300):
        scene = world.make_scene(rng, 2, num_frames=1)
        assert set(world.frame_caption(rng, scene, rng.random()).split()) <= known


# ---------------------------------------------------------------------------------------------------------- the clips

GOLDEN_OBJECTS = [("brown", "circle", "rest"), ("pink", "square", "grow")]
GOLDEN_CAPTIONS = (
    "a pink square swells while a tiny brown circle rests before a plum backdrop",
    "a pink box grows while a little chocolate disc rests before a mulberry backdrop",
    "a chestnut circle stands still while a pink block grows",
    "a chestnut circle stands still while a salmon box grows before a plum backdrop",
)


def test_a_clip_depends_on_seed_split_and_number_alone():
    """Golden values: the same on every machine and Python, or else `shapes.VERSION` must be raised."""
    clip = world.make_clip(0, "test", 0)
    assert [(o.colour, o.shape, o.motion) for o in clip.scenes[0].objects] == GOLDEN_OBJECTS
    assert world.clip_captions(0, "test", 0) == GOLDEN_CAPTIONS
    others = [world.make_clip(1, "test", 0), world.make_clip(0, "val", 0), world.make_clip(0, "test", 1)]
    assert clip not in others


def test_objects_are_drawn_where_and_as_they_are_said_to_be():
    for index in range(60):
        for scene in world.make_clip(0, "val", index).scenes:
            frame = render(scene, 0.5).astype(int)
            ground = frame[0, 0]
            for item in scene.objects:
                others = [o for o in scene.objects if o is not item]
                alone = world.Scene(scene.background, (item,), 1)
                shown = (np.abs(render(alone, 0.5).astype(int) - ground).sum(axis=-1) > 60).nonzero()
                x, y, radius, _ = world.placement(item, 0.5)
                assert shown[0].size, item
                assert np.abs(shown[0] - y).max() <= radius + 2
                assert np.abs(shown[1] - x).max() <= radius + 2
                assert all(o.colour != item.colour and o.shape != item.shape for o in others)


@pytest.mark.parametrize("motion", world.MOTIONS)
def test_each_motion_but_rest_changes_the_picture(motion):
    item = world.Object("red", "star", "large", motion, (48.0, 48.0), 0)
    scene = world.Scene("black", (item,), 20)
    changed = any((render(scene, 0.0) != render(scene, time)).any() for time in (0.1, 0.4, 0.9))
    assert changed == (motion != "rest")


def test_all_shapes_and_colours_look_different():
    def picture(colour, shape):
        return render(world.Scene("gray", (world.Object(colour, shape, "large", "rest", (48.0, 48.0), 0),), 1), 0.0)

    for pictures in ([picture(c, "square") for c in world.COLOURS], [picture("red", s) for s in world.SHAPES]):
        assert all((np.abs(a.astype(int) - b).max(axis=-1) > 50).sum() > 40 for a, b in combinations(pictures, 2))


# ---------------------------------------------------------------------------------------------------------- the files


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    seen = []
    manifest = shapes.generate(folder, train=3, val=1, test=2, workers=2, progress=lambda *counts: seen.append(counts))
    assert seen[-1] == (6, 6)
    return folder, manifest


def test_manifest_stands_on_disk_with_every_clip(small):
    folder, manifest = small
    assert read_manifest(folder / "manifest.parquet") == manifest
    assert Counter(entry.split for entry in manifest.entries) == {"train": 3, "test": 2, "val": 1}
    assert all(Path(manifest.resolve(entry)).is_file() and len(entry.captions) == 4 for entry in manifest.entries)
    assert not list(folder.rglob(".tmp-*"))


def test_clips_are_h264_and_show_their_scenes(small):
    _, manifest = small
    for number, entry in enumerate(manifest.split("test").entries):
        scenes = world.make_clip(0, "test", number).scenes
        with av.open(manifest.resolve(entry)) as container:
            stream = container.streams.video[0]
            assert stream.codec_context.name == "h264"
            assert stream.codec_context.pix_fmt == "yuv420p"
            frames = [(float(frame.time), frame.to_ndarray(format="rgb24")) for frame in container.decode(stream)]
        expected = [render(s, k / (s.num_frames - 1)) for s in scenes for k in range(s.num_frames)]
        assert [time for time, _ in frames] == pytest.approx([k / world.FPS for k in range(len(expected))], abs=1e-3)
        for (_, shown), drawn in zip(frames, expected, strict=True):
            assert np.abs(shown.astype(int) - drawn).mean() < 8


def test_generating_again_makes_only_what_is_missing(small):
    folder, manifest = small
    paths = [Path(manifest.resolve(entry)) for entry in manifest.entries]
    before = {path: path.stat().st_mtime_ns for path in paths}
    paths[0].unlink()
    seen = []
    again = shapes.generate(folder, train=3, val=1, test=2, progress=lambda *counts: seen.append(counts))
    assert again == manifest
    assert seen == [(1, 1)]
    assert paths[0].is_file()
    assert {path: path.stat().st_mtime_ns for path in paths[1:]} == {path: before[path] for path in paths[1:]}


def test_another_seed_does_not_mix_into_a_folder(small):
    folder, _ = small
    with pytest.raises(BadInput, match="other settings"):
        shapes.generate(folder, train=1, val=1, test=1, seed=1)


def test_bad_arguments_are_refused(tmp_path):
    with pytest.raises(BadInput, match="negative"):
        shapes.generate(tmp_path / "a", train=-1)
    with pytest.raises(BadInput, match="its own videos"):
        shapes.build(tmp_path, None, tmp_path / "a")
    assert not (tmp_path / "a").exists()
