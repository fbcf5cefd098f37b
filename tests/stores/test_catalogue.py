"""The catalogue says what the shards say, for any history of shards, and mends itself."""

import json
import os
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_stores import SETTINGS, text_features, video_features

from pipeline.errors import CorruptShard
from pipeline.fingerprint import DIGEST_PART, content_digest
from pipeline.stores.catalogue import STATUS, Catalogue, video_schema
from pipeline.stores.features import ClipSource, Failure, FeatureStore
from pipeline.stores.shards import read_marker, read_shard
from pipeline.stores.strings import Strings, last_of_each, lookup

NAMES = "abcdefgh"
SHARDS = st.lists(st.dictionaries(st.sampled_from(NAMES), st.sampled_from(STATUS), min_size=1), max_size=5)


def write(store, outcomes, seed=0):
    """One shard with these outcomes: id -> done, failed or skipped."""
    by = {status: [name for name, what in outcomes.items() if what == status] for status in STATUS}
    failures = [Failure(name, f"{name}.mp4", "decode", f"Error{seed}", "broken", seed + 1) for name in by["failed"]]
    sources = [ClipSource(None, 1.0, 10 + seed, 7 * seed, f"digest{seed}") for _ in by["done"]]
    done = video_features(by["done"], seed, split=f"split{seed % 2}")
    store.write_videos(done, inputs=[*outcomes], failures=failures, skipped=by["skipped"], sources=sources)


def slow_covered(store):
    """The oracle: every shard read one after the other, in loops over videos."""
    status = {}
    for path in store.shard_paths("videos"):
        marker = read_marker(path)
        status.update(dict.fromkeys(read_shard(path, ["video_id"])["video_id"], "done"))
        outcome = {row["video_id"]: "failed" for row in marker["failures"]} | dict.fromkeys(
            marker["skipped"], "skipped"
        )
        status.update({name: what for name, what in outcome.items() if status.get(name) != "done"})
    return status


def slow_failures(store):
    last = {}
    for path in store.shard_paths("videos"):
        last.update({row["video_id"]: Failure(**row) for row in read_marker(path)["failures"]})
    status = slow_covered(store)
    return [failure for name, failure in last.items() if status[name] == "failed"]


def slow_videos(store):
    """id -> (embeds, split) as the last shard has it, in order of first appearance."""
    rows = {}
    for path in store.shard_paths("videos"):
        shard = read_shard(path)
        for name, *row in zip(shard["video_id"], shard["frame_embeds"], shard["split"], strict=True):
            rows[name] = row
    return rows


def same(store):
    """The store's answers are the oracle's."""
    assert dict(store.covered()) == slow_covered(store)
    assert store.failures() == slow_failures(store)
    if not (expected := slow_videos(store)):
        return
    videos = store.videos()
    assert list(videos.video_ids) == list(expected)
    assert list(videos.splits) == [split for _, split in expected.values()]
    np.testing.assert_array_equal(videos.frame_embeds, [embeds for embeds, _ in expected.values()])
    mapped = store.videos(mmap=True)
    np.testing.assert_array_equal(mapped.frame_embeds[:], videos.frame_embeds)
    np.testing.assert_array_equal(mapped.frame_pts[:], videos.frame_pts)
    np.testing.assert_array_equal(mapped.frame_mask, videos.frame_mask)


@pytest.mark.parametrize("shard_format", ["hdf5", "parquet"])
@settings(max_examples=6, deadline=None)
@given(history=SHARDS)
def test_any_history_reads_as_the_shards_read_one_by_one(tmp_path_factory, shard_format, history):
    store = FeatureStore.create(tmp_path_factory.mktemp("s"), SETTINGS, shard_format=shard_format)
    for number, outcomes in enumerate(history):
        write(store, outcomes, number)
        if number % 2:
            store.covered()  # now it is extended, and not read anew
    same(store)
    same(FeatureStore.open(store.path))  # from the file
    shutil.rmtree(store.path / "catalogue", ignore_errors=True)
    same(FeatureStore.open(store.path))  # from the shards


def saved(store):
    return Catalogue.read(store.path, "videos", video_schema(3))


def test_a_catalogue_that_is_behind_damaged_or_of_other_shards_is_mended(tmp_path):
    store = FeatureStore.create(tmp_path / "s", SETTINGS)
    for number in range(3):
        write(store, {f"v{number}": "done", f"w{number}": "failed"}, number)
    same(store)
    path = store.path / "catalogue" / "videos.arrow"
    assert len(saved(store).records) == 3
    write(FeatureStore.open(store.path), {"late": "done"}, 9)  # another object's work: the file lags behind
    assert len(saved(store).records) == 3
    same(FeatureStore.open(store.path))
    assert len(saved(store).records) == 4
    for damage in (b"", path.read_bytes()[:-100], b"ARROW1 no"):
        path.write_bytes(damage)
        same(FeatureStore.open(store.path))
    for gone in store.path.glob("videos-00001.*"):  # what the message for a damaged shard advises
        gone.unlink()
    again = FeatureStore.open(store.path)
    assert "v1" not in again.covered()
    same(again)
    (store.path / "videos-00000.h5").write_bytes(b"short")
    with pytest.raises(CorruptShard, match="damaged"):
        FeatureStore.open(store.path).videos()


def test_only_new_shards_are_read(tmp_path, monkeypatch):
    store = FeatureStore.create(tmp_path / "s", SETTINGS)
    for number in range(3):
        write(store, {f"v{number}": "done"}, number)
    store.covered()
    write(store, {"new": "done"})
    read = []
    monkeypatch.setattr(
        "pipeline.stores.catalogue.read_shard", lambda path, *a: read.append(path.name) or read_shard(path, *a)
    )
    fresh = FeatureStore.open(store.path)
    assert len(fresh.covered()) == 4
    assert read == ["videos-00003.h5"]
    assert len(fresh.videos(mmap=True)) == 4
    assert read == ["videos-00003.h5"]


def test_a_store_that_cannot_be_written_is_read_all_the_same(tmp_path):
    store = FeatureStore.create(tmp_path / "s", SETTINGS)
    write(store, {"a": "done", "b": "skipped"})
    (store.path / "catalogue").write_text("in the way, as a read-only folder would be")
    fresh = FeatureStore.open(store.path)
    assert fresh.covered() == {"a": "done", "b": "skipped"}
    assert list(fresh.videos().video_ids) == ["a"]


def test_a_store_made_before_sources_were_recorded_has_nulls_for_them(tmp_path):
    store = FeatureStore.create(tmp_path / "s", SETTINGS)
    store.write_videos(video_features(["old"]), inputs=["old"])
    write(store, {"new": "done"}, 4)
    clips = FeatureStore.open(store.path).clips()
    names = ("video_id", "start", "end", "size", "mtime", "digest")
    rows = [tuple(row[name] for name in names) for row in clips.to_pylist()]
    assert rows == [("old", None, None, None, None, None), ("new", None, 1.0, 14, 28, "digest4")]


def test_sources_of_failures_are_kept(tmp_path):
    store = FeatureStore.create(tmp_path / "s", SETTINGS)
    failure = Failure("f", "f.mp4", "decode", "NoFrames", "broken")
    store.write_videos(
        video_features([]), inputs=["f"], failures=[failure], failure_sources={"f": ClipSource(size=5, mtime=6)}
    )
    (row,) = FeatureStore.open(store.path).outcomes().to_pylist()
    assert (row["status"], row["size"], row["mtime"], row["digest"]) == (STATUS.index("failed"), 5, 6, None)


def test_a_writer_keeps_the_catalogue_once_when_it_ends(tmp_path):
    store = FeatureStore.create(tmp_path / "s", SETTINGS)
    with store.lock():
        write(store, {"a": "done"})
        assert dict(store.covered()) == {"a": "done"}
        assert saved(store).records == ()
        store.write_texts(text_features(["a"]))
    assert [record.name for record in saved(store).records] == ["videos-00000.h5"]
    assert (store.path / "catalogue" / "texts.arrow").exists()


def test_amended_splits_and_withdrawn_captions(tmp_path):
    store = FeatureStore.create(tmp_path / "s", SETTINGS)
    store.write_videos(video_features(["a", "b"]), inputs=["a", "b"])
    store.write_texts(text_features(["a", "b"]))
    store.amend({"a": "test", "b": "train"}, {"a#0": "test"})
    fresh = FeatureStore.open(store.path)
    assert list(fresh.videos().splits) == ["test", "train"]
    assert list(fresh.videos("test").video_ids) == ["a"]
    assert (list(fresh.texts().caption_ids), list(fresh.texts().splits)) == (["a#0"], ["test"])
    fresh.amend({"b": "train"}, {"b#0": "val"})  # a is not spoken of: it stays as it was
    assert json.loads((store.path / "amendments.json").read_text()) == {
        "video_splits": {"a": "test"},
        "caption_splits": {"a#0": "test", "b#0": "val"},
        "withdrawn": [],
    }
    assert list(fresh.texts("val").caption_ids) == ["b#0"]
    assert fresh.captions_of(["b#0", "no#0"]).to_pylist() == ["about b", None]


@settings(max_examples=30)
@given(st.lists(st.text(max_size=3)), st.lists(st.text(max_size=3)))
def test_columns_of_strings_behave_as_lists(values, others):
    strings = Strings(values)
    assert strings == values
    assert list(strings) == values == strings.tolist()
    assert strings + others == values + others
    assert strings[1:] == values[1:]
    assert strings[::2] == values[::2]
    assert [strings[i] for i in range(-len(values), len(values))] == values + values
    assert lookup(others, strings).tolist() == [values.index(o) if o in values else -1 for o in others]
    last = {value: row for row, value in enumerate(values)}
    assert last_of_each(strings.arrow).tolist() == list(last.values())
    assert np.array(strings, dtype=object).tolist() == values


def test_a_digest_sees_length_and_both_ends_and_the_middle(tmp_path):
    path = tmp_path / "f"
    data = bytearray(os.urandom(5 * DIGEST_PART + 3))
    digests = set()
    for place in (None, 0, DIGEST_PART - 1, len(data) // 2, len(data) - 1):
        changed = bytearray(data)
        if place is not None:
            changed[place] ^= 1
        path.write_bytes(changed)
        digests.add(content_digest(path))
    path.write_bytes(data + b"x")
    digests.add(content_digest(path))
    assert len(digests) == 6
    for size in (0, 1, 3 * DIGEST_PART, 3 * DIGEST_PART + 1):
        path.write_bytes(data[:size])
        digests.add(content_digest(path))
    assert len(digests) == 10
