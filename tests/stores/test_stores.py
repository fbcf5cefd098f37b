"""Shards, feature stores, manifests: round trips are exact, damage is noticed, nothing is lost silently."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.errors import BadInput, CorruptShard, FingerprintMismatch, MissingData, StoreBusy
from pipeline.stores.atomic import atomic_write
from pipeline.stores.features import Failure, FeatureStore, TextFeatures, VideoFeatures, text_to_video
from pipeline.stores.manifest import Manifest, VideoEntry, read_manifest, write_manifest
from pipeline.stores.shards import Ragged, read_shard, verify_shard, write_shard

SETTINGS = {"model": "m", "embed_dim": 8, "num_frames": 3}


def video_features(ids, seed=0, split="train"):
    rng = np.random.default_rng(seed)
    count = len(ids)
    return VideoFeatures(
        list(ids),
        [f"{name}.mp4" for name in ids],
        [split] * count,
        rng.standard_normal((count, 3, 8)).astype(np.float16),
        np.ones((count, 3), bool),
        np.tile(np.arange(3.0), (count, 1)),
    )


def text_features(video_ids, split="train", seed=1):
    rng = np.random.default_rng(seed)
    return TextFeatures(
        [f"{name}#0" for name in video_ids],
        list(video_ids),
        [split] * len(video_ids),
        [f"about {name}" for name in video_ids],
        rng.standard_normal((len(video_ids), 8)).astype(np.float16),
    )


@pytest.mark.parametrize("suffix", [".h5", ".parquet"])
@pytest.mark.parametrize("mmap", [False, True])
@given(
    array=st.tuples(st.integers(0, 5), st.integers(1, 4), st.integers(1, 3)).flatmap(
        lambda shape: hnp.arrays(np.float16, shape)
    ),
    data=st.data(),
)
def test_shard_round_trip_is_exact(tmp_path_factory, suffix, mmap, array, data):
    rows = len(array)
    lengths = data.draw(st.lists(st.integers(0, 4), min_size=rows, max_size=rows))
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    ragged = Ragged(np.arange(offsets[-1] * 2, dtype=np.int8).reshape(-1, 2), offsets)
    names = data.draw(
        st.lists(
            st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), min_size=rows, max_size=rows
        )
    )
    path = tmp_path_factory.mktemp("shard") / f"s-0{suffix}"
    write_shard(path, {"a": array, "r": ragged, "n": names, "b": np.arange(rows) % 2 == 0}, marker={})
    back = read_shard(path, mmap=mmap)
    assert back["n"] == names
    assert back["a"].dtype == array.dtype
    assert back["a"].tobytes() == array.tobytes()
    assert back["a"].shape == array.shape
    assert np.array_equal(back["b"], np.arange(rows) % 2 == 0)
    assert len(back["r"]) == rows
    for row in range(rows):
        assert np.array_equal(back["r"].row(row), ragged.row(row))


def test_shard_without_marker_or_cut_short_is_refused(tmp_path):
    path = tmp_path / "videos-00000.h5"
    write_shard(path, {"video_id": ["a", "b"], "x": np.arange(48.0).reshape(2, 24)}, marker={})
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    with pytest.raises(CorruptShard, match="damaged"):
        read_shard(path)
    flipped = bytearray(whole)
    flipped[len(flipped) // 2] ^= 1
    path.write_bytes(bytes(flipped))
    with pytest.raises(CorruptShard, match="changed"):
        verify_shard(path)
    path.with_suffix(".json").unlink()
    with pytest.raises(CorruptShard, match="no marker"):
        read_shard(path)


def test_atomic_write_leaves_the_old_file_when_it_fails(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_write(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("shard_format", ["hdf5", "parquet"])
def test_store_accounts_for_every_video_and_later_shards_win(tmp_path, shard_format):
    store = FeatureStore.create(tmp_path / "s", SETTINGS, shard_format=shard_format)
    failure = Failure("c", "c.mp4", "decode", "InvalidDataError", "broken")
    store.write_videos(video_features(["a", "b"]), inputs=["a", "b", "c", "d"], failures=[failure], skipped=["d"])
    store.write_texts(text_features(["a", "b", "c"]))
    assert store.covered() == {"a": "done", "b": "done", "c": "failed", "d": "skipped"}
    assert store.failures() == [failure]
    assert store.texts().video_ids == ["a", "b"]  # c has no features, so its caption is no query

    retried = video_features(["c"], seed=2)
    store.write_videos(retried, inputs=["c"])
    fresh = FeatureStore.open(store.path)
    assert fresh.failures() == []
    videos, texts = fresh.videos(), fresh.texts()
    assert videos.video_ids == ["a", "b", "c"]
    assert np.array_equal(videos.frame_embeds[2], retried.frame_embeds[0])
    assert text_to_video(texts, videos).tolist() == [0, 1, 2]

    again = video_features(["a"], seed=3)
    fresh.write_videos(again, inputs=["a"])
    videos = FeatureStore.open(store.path).videos()
    assert videos.video_ids == ["a", "b", "c"]
    assert np.array_equal(videos.frame_embeds[0], again.frame_embeds[0])
    with pytest.raises(ValueError, match="lost silently"):
        fresh.write_videos(video_features(["x"]), inputs=["x", "y"])


def test_store_refuses_other_settings_and_a_second_writer(tmp_path):
    store = FeatureStore.create(tmp_path / "s", SETTINGS)
    with pytest.raises(FingerprintMismatch, match="model: 'm' != 'other'"):
        FeatureStore.create(tmp_path / "s", {**SETTINGS, "model": "other"})
    with pytest.raises(MissingData):
        FeatureStore.open(tmp_path / "absent")
    with store.lock(), pytest.raises(StoreBusy), FeatureStore.open(store.path).lock():
        pass


def test_manifest_round_trip_and_refusals(tmp_path):
    entries = (
        VideoEntry("a", "x/a.mp4", "train", ("one", 'quote " and\nnewline'), 0.0, 2.5),
        VideoEntry("-b_ü", "b.webm", "test"),
    )
    manifest = Manifest("demo", str(tmp_path), entries, {"label": "subset (2 of 9)"})
    write_manifest(manifest, tmp_path / "manifest.parquet")
    assert read_manifest(tmp_path / "manifest.parquet") == manifest
    assert manifest.resolve(entries[0]) == str(Path(tmp_path) / "x/a.mp4")
    with pytest.raises(BadInput, match="leaves the video folder"):
        manifest.resolve(VideoEntry("e", "../../etc/passwd", "test"))
    with pytest.raises(BadInput, match="repeat"):
        Manifest("demo", "", (entries[0], entries[0]))
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(CorruptShard):
        read_manifest(tmp_path / "broken.parquet")
