"""Windows of longer files through stage 1: one pass a file, resumed inside a file, recorded in the store."""

import logging
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from clip_maker import PlainEncoder, make_clip

from pipeline.extract.driver import extract
from pipeline.extract.settings import ExtractSettings
from pipeline.frame_size import FrameSize
from pipeline.stores.clip_ids import clip_id, split_clip_id
from pipeline.stores.features import FeatureStore
from pipeline.stores.manifest import Manifest, VideoEntry
from pipeline.video.decode_pyav import FrameRequest, decode_clip
from pipeline.video.job import DecodeSettings, Job
from pipeline.video.limits import DecodeFailure
from pipeline.video.pool import Decoded, DecodePool

SETTINGS = ExtractSettings(num_frames=4, shard_size=4, batch_size=8, workers=2)


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> Path:
    return make_clip(tmp_path_factory.mktemp("films") / "film.mp4", 500, options={"preset": "ultrafast", "g": "25"})


@pytest.fixture(scope="module")
def manifest(film) -> Manifest:
    """Windows in no order, among them another file."""
    make_clip(film.parent / "other.mp4", 30)
    starts = np.random.default_rng(0).permutation(20).tolist()
    entries = [VideoEntry(clip_id("film.mp4", s, s + 1), "film.mp4", "corpus", (), s, s + 1.0) for s in starts]
    entries.insert(7, VideoEntry("other.mp4", "other.mp4", "corpus"))
    return Manifest("films", str(film.parent), tuple(entries))


class Interrupting(PlainEncoder):
    """Stops the run in the middle of the file."""

    def __init__(self, batches: int):
        super().__init__()
        self.batches = batches

    def embed_frames(self, frames):
        if not self.batches:
            raise KeyboardInterrupt
        self.batches -= 1
        return super().embed_frames(frames)


def by_id(store: FeatureStore) -> dict[str, bytes]:
    videos = store.videos()
    return {name: row.tobytes() for name, row in zip(videos.video_ids, videos.frame_embeds, strict=True)}


def test_windows_are_as_each_alone_and_the_store_knows_them(manifest, film, tmp_path):
    report = extract(manifest, tmp_path / "store", SETTINGS, encoder=PlainEncoder())  # type: ignore[arg-type]
    assert (report.done, report.failed) == (21, 0)
    store, encoder = FeatureStore.open(tmp_path / "store"), PlainEncoder()
    rows = by_id(store)
    for entry in manifest.entries:
        clip = decode_clip(manifest.resolve(entry), FrameRequest(4, encoder.frame_size, entry.start, entry.end))
        assert rows[entry.video_id] == encoder.embed_frames(clip.frames).numpy().astype(np.float16).tobytes()
    known = {row["video_id"]: (row["start"], row["end"], row["path"]) for row in store.clips().to_pylist()}
    assert known == {entry.video_id: (entry.start, entry.end, entry.path) for entry in manifest.entries}
    films = [name for name in store.videos().video_ids if name != "other.mp4"]
    assert films == [clip_id("film.mp4", start, start + 1) for start in range(20)]


def test_a_run_stopped_inside_a_file_goes_on_there(manifest, tmp_path):
    extract(manifest, tmp_path / "whole", SETTINGS, encoder=PlainEncoder())  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        extract(manifest, tmp_path / "store", SETTINGS, encoder=Interrupting(5))  # type: ignore[arg-type]
    store = FeatureStore.open(tmp_path / "store")
    assert len(store.covered()) == 8  # two shards of four clips, all of one file
    report = extract(manifest, tmp_path / "store", SETTINGS, encoder=PlainEncoder())  # type: ignore[arg-type]
    assert report.new_videos == 13
    assert by_id(FeatureStore.open(tmp_path / "store")) == by_id(FeatureStore.open(tmp_path / "whole"))


def test_memory_does_not_grow_with_the_clips_of_a_file(film, monkeypatch):
    """A consumer that is slow makes the process wait; its time does not run meanwhile."""
    monkeypatch.setattr("pipeline.video.pool._BUFFER_BYTES", 0)
    jobs = [Job(index, str(film), index / 25, index / 25 + 0.04) for index in range(490)]
    settings = DecodeSettings(2, FrameSize(640, 640))  # 2.4 MB a clip: more than the pipe holds
    with DecodePool(jobs, settings, 2) as pool:
        results = iter(pool)
        assert isinstance(next(results)[1], Decoded)
        patience = time.monotonic() + 60
        while len(pool._results) < pool._max_clips:
            assert time.monotonic() < patience
            time.sleep(0.01)
        time.sleep(0.3)  # it would have sent dozens by now
        assert len(pool._results) == pool._max_clips
        assert sum(isinstance(result, Decoded) for _, result in results) == 489


def test_a_file_that_kills_its_processes_is_given_up(film, monkeypatch):
    """Its clips are not tried one by one, each with a process of its own; other files are."""
    from pipeline.video import pool as room

    started = []
    real = room.DecodePool._start

    def start_and_kill(self):
        worker = real(self)
        worker.ready = True
        if len(started) < 3:
            worker.process.kill()
        started.append(worker)
        return worker

    monkeypatch.setattr(room.DecodePool, "_start", start_and_kill)
    other = str(film.parent / "other.mp4")
    jobs = [Job(index, str(film), index / 10, index / 10 + 0.1) for index in range(100)] + [Job(100, other)]
    with DecodePool(jobs, DecodeSettings(2, FrameSize(32, 32)), 1) as pool:
        results = [result for _, result in pool]
    assert all(isinstance(result, DecodeFailure) and result.kind == "DecoderCrash" for result in results[:100])
    assert isinstance(results[100], Decoded)
    assert len(started) == 4


def test_a_long_whole_file_warns_in_one_line(tmp_path, caplog):
    make_clip(tmp_path / "long.mp4", 140, rate=1, options={"preset": "ultrafast"})
    make_clip(tmp_path / "short.mp4", 25)
    entries = tuple(VideoEntry(name, name, "corpus") for name in ("long.mp4", "short.mp4"))
    caplog.set_level(logging.WARNING)
    extract(Manifest("films", str(tmp_path), entries), tmp_path / "store", SETTINGS, encoder=PlainEncoder())  # type: ignore[arg-type]
    [message] = [record.message for record in caplog.records if "--split" in record.message]
    assert message == (
        "1 file is longer than 120 s (long.mp4: 139 s, one frame every 35 s). "
        "Fix: extract --split every:10, or --split scenes"
    )
    caplog.clear()
    window = (replace(entries[0], video_id="long.mp4#t=0,139", start=0.0, end=139.0),)
    extract(Manifest("films", str(tmp_path), window), tmp_path / "other", SETTINGS, encoder=PlainEncoder())  # type: ignore[arg-type]
    assert not caplog.records


@pytest.mark.parametrize(
    ("video_id", "parts"),
    [
        ("a.mp4#t=1,2.25", ("a.mp4", 1.0, 2.25)), ("a.mp4#t=3", ("a.mp4", 3.0, None)),
        ("a.mp4#t=,2", ("a.mp4", None, 2.0)),
        ("a.mp4#t=", ("a.mp4#t=", None, None)), ("a.mp4#t=-1,2", ("a.mp4#t=-1,2", None, None)),
        ("x#t=1,2#t=3,4", ("x#t=1,2", 3.0, 4.0)), ("a.mp4", ("a.mp4", None, None)),
    ],
)  # fmt: skip
def test_clip_ids(video_id, parts):
    assert split_clip_id(video_id) == parts
