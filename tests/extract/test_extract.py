"""Stage 1 whole: every video accounted for, whatever happens to the run or to the files."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from clip_maker import PlainEncoder, ffmpeg_run, make_clip

from pipeline.errors import BadInput, FingerprintMismatch, StoreBusy, UserError
from pipeline.extract.driver import extract
from pipeline.extract.settings import ExtractSettings
from pipeline.frame_size import FrameSize
from pipeline.stores.features import FeatureStore
from pipeline.stores.manifest import Manifest, VideoEntry
from pipeline.stores.shards import read_marker
from pipeline.video import pool
from pipeline.video.decode_pyav import FrameRequest, decode_clip
from pipeline.video.job import DecodeSettings, Job
from pipeline.video.limits import DecodeFailure, Limits
from pipeline.video.pool import Decoded, DecodePool

SETTINGS_SIZE = FrameSize(64, 80)
SETTINGS = ExtractSettings(num_frames=4, shard_size=4, batch_size=8, workers=2, min_coverage=0.5)


@pytest.fixture(scope="session")
def encoder() -> PlainEncoder:
    return PlainEncoder()


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Manifest:
    """Ten good clips (one shorter than the frames asked for) and three bad files among them."""
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(10):
        make_clip(folder / f"clip{number}.mp4", 2 if number == 3 else 20 + number, first=number)
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    names = [*(f"clip{number}.mp4" for number in range(10)), "empty.mp4", "gone.mp4", "noise.mp4"]
    entries = [VideoEntry(name, name, "test", (f"a clip called {name}", "a clip")) for name in sorted(names)]
    return Manifest("corpus", str(folder), tuple(entries), {"skipped_files": [{"path": "notes.txt", "reason": "text"}]})


def run(manifest: Manifest, store: Path, encoder: PlainEncoder, **changes) -> tuple:
    report = extract(manifest, store, replace(SETTINGS, **changes), encoder=encoder)  # type: ignore[arg-type]
    return report, FeatureStore.open(store)


def contents(store: FeatureStore) -> list:
    """All that a store holds, row for row, and what became of each video."""
    videos, texts = store.videos(), store.texts()
    arrays = [videos.frame_embeds, videos.frame_mask, np.nan_to_num(videos.frame_pts, nan=-1.0), texts.text_embeds]
    lists = [videos.video_ids, videos.paths, videos.splits, texts.caption_ids, texts.captions]
    return [lists, [array.tobytes() for array in arrays], store.covered()]


@pytest.fixture(scope="session")
def undisturbed(corpus, encoder, tmp_path_factory) -> FeatureStore:
    return run(corpus, tmp_path_factory.mktemp("undisturbed") / "store", encoder)[1]


def test_every_input_is_done_failed_or_skipped(corpus, encoder, tmp_path):
    report, store = run(corpus, tmp_path / "store", encoder)
    assert (report.inputs, report.done, report.failed, report.skipped) == (14, 10, 3, 1)
    assert report.failure_classes == {"EmptyFile": 1, "MissingFile": 1, "CannotOpen": 1}
    assert report.coverage == pytest.approx(10 / 13)
    assert report.enough
    assert not replace(report, min_coverage=0.95).enough
    assert {failure.video_id for failure in store.failures()} == {"empty.mp4", "gone.mp4", "noise.mp4"}
    assert (store.path / "failures.parquet").exists()
    assert len(store.shard_paths("videos")) == 4  # 13 clips in shards of 4


def test_what_is_stored_is_what_the_encoder_says_of_the_decoded_frames(corpus, encoder, undisturbed):
    videos = undisturbed.videos()
    for row, (video_id, path) in enumerate(zip(videos.video_ids, videos.paths, strict=True)):
        clip = decode_clip(str(Path(corpus.root) / path), FrameRequest(4, encoder.frame_size))
        count = len(clip.frames)
        expected = encoder.embed_frames(clip.frames).numpy()
        np.testing.assert_allclose(videos.frame_embeds[row, :count], expected, atol=2e-3, rtol=2e-3, err_msg=video_id)
        assert videos.frame_mask[row].tolist() == [True] * count + [False] * (4 - count)
        np.testing.assert_array_equal(videos.frame_pts[row, :count], clip.times)
        assert not videos.frame_embeds[row, count:].any()
    assert videos.frame_mask.sum(axis=1).min() == 2  # the clip of two frames was among them


def test_captions_of_done_videos_each_with_its_own_embedding(encoder, undisturbed):
    texts = undisturbed.texts()
    assert len(texts) == 20
    expected = encoder.embed_texts(texts.captions).numpy()
    np.testing.assert_allclose(texts.text_embeds, expected, atol=1e-4)


def test_a_second_run_does_nothing(corpus, encoder, tmp_path):
    _, store = run(corpus, tmp_path / "store", encoder)
    before = {path: path.stat().st_mtime_ns for path in store.path.glob("*-0*")}
    report, _ = run(corpus, tmp_path / "store", encoder)
    assert (report.new_videos, report.new_captions, report.done) == (0, 0, 10)
    assert {path: path.stat().st_mtime_ns for path in store.path.glob("*-0*")} == before


def test_new_and_changed_entries_are_extracted_and_nothing_else(corpus, encoder, tmp_path):
    first = replace(corpus, entries=corpus.entries[:5])
    run(first, tmp_path / "store", encoder)
    changed = replace(corpus.entries[0], captions=("another sentence", "a clip"))
    report, store = run(replace(corpus, entries=(changed, *corpus.entries[1:])), tmp_path / "store", encoder)
    assert report.new_videos == 8
    assert report.new_captions == 2 * 8 + 1
    row = store.texts().caption_ids.index(f"{changed.video_id}#0")
    assert store.texts().captions[row] == "another sentence"


def test_retry_by_class_counts_attempts(corpus, encoder, tmp_path):
    folder = Path(shutil.copytree(corpus.root, tmp_path / "videos"))
    moved = replace(corpus, root=str(folder))
    run(moved, tmp_path / "store", encoder)
    make_clip(folder / "gone.mp4", 20)
    make_clip(folder / "empty.mp4", 20)
    report, store = run(moved, tmp_path / "store", encoder, retry_failed="MissingFile")
    assert (report.done, report.failed, report.new_videos) == (11, 2, 1)
    report, store = run(moved, tmp_path / "store", encoder, retry_failed="all")
    assert (report.done, report.failed, report.new_videos) == (12, 1, 2)
    (still,) = store.failures()
    assert (still.video_id, still.attempts) == ("noise.mp4", 2)
    assert report.mean_attempts > 1


def test_other_settings_are_noticed(corpus, encoder, tmp_path):
    run(corpus, tmp_path / "store", encoder)
    with pytest.raises(FingerprintMismatch, match="num_frames: 4 != 5"):
        run(corpus, tmp_path / "store", encoder, num_frames=5)


@pytest.mark.parametrize("shard_format", ["hdf5", "parquet"])
def test_both_formats_hold_the_same(corpus, encoder, undisturbed, tmp_path, shard_format):
    _, store = run(corpus, tmp_path / "store", encoder, shard_format=shard_format)
    assert contents(store) == contents(undisturbed)


def test_the_store_follows_a_manifest_whose_splits_and_captions_changed(corpus, encoder, tmp_path):
    """Nothing is decoded again; a caption that is gone is no query, and comes back with the manifest that has it."""
    first = [replace(entry, split="corpus") for entry in corpus.entries]
    run(replace(corpus, entries=tuple(first)), tmp_path / "store", encoder)
    now = [
        replace(entry, captions=entry.captions[:1], split="train" if row % 2 else "test")
        for row, entry in enumerate(first)
    ]
    report, store = run(replace(corpus, entries=tuple(now)), tmp_path / "store", encoder)
    assert (report.new_videos, report.new_captions) == (0, 0)
    wanted = {entry.video_id: entry.split for entry in now}
    videos, texts = store.videos(), store.texts()
    assert dict(zip(videos.video_ids, videos.splits, strict=True)) == {name: wanted[name] for name in videos.video_ids}
    assert sorted(texts.caption_ids) == sorted(f"{name}#0" for name in videos.video_ids)
    assert texts.splits == [wanted[name] for name in texts.video_ids]
    assert set(store.videos("train").video_ids) == {name for name in videos.video_ids if wanted[name] == "train"}
    one = replace(corpus, entries=(replace(first[0], captions=first[0].captions[:2]),))
    _, store = run(one, tmp_path / "store", encoder)  # says nothing of the others
    again = store.texts()
    assert [name for name in again.caption_ids if name not in texts.caption_ids] == [f"{first[0].video_id}#1"]
    assert store.videos().splits[videos.video_ids.index(first[0].video_id)] == "corpus"
    _, store = run(replace(corpus, entries=tuple(first)), tmp_path / "store", encoder)
    assert set(store.videos().splits) == {"corpus"}
    assert len(store.texts()) == 2 * len(videos)


def test_batch_and_worker_counts_do_not_change_what_is_found(corpus, encoder, undisturbed, tmp_path):
    _, store = run(corpus, tmp_path / "store", encoder, workers=1, batch_size=3)
    np.testing.assert_allclose(store.videos().frame_embeds, undisturbed.videos().frame_embeds, atol=2e-3, rtol=2e-3)


# -- runs that are disturbed

_CHILD = """
import sys
from pathlib import Path
from test_extract import SETTINGS
from pipeline.extract.driver import extract
from clip_maker import PlainEncoder
from pipeline.stores.manifest import read_manifest
print("ready", flush=True)
extract(read_manifest(Path(sys.argv[1])), Path(sys.argv[2]), SETTINGS, encoder=PlainEncoder())
"""


def start_child(manifest: Manifest, store: Path, code: str = _CHILD) -> subprocess.Popen:
    from pipeline.stores.manifest import write_manifest

    path = store.parent / "manifest.parquet"
    write_manifest(manifest, path)
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'tests'}{os.pathsep}{Path(__file__).parent}"}
    process = subprocess.Popen(
        [sys.executable, "-c", code, path, store], env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


def wait_until(condition, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def test_resume_after_kill_9_gives_the_undisturbed_store(corpus, encoder, undisturbed, tmp_path):
    store = tmp_path / "store"
    child = start_child(corpus, store)
    wait_until(lambda: list(store.glob("videos-*.json")) or child.poll() is not None)
    workers = psutil.Process(child.pid).children(recursive=True) if child.poll() is None else []
    child.send_signal(signal.SIGKILL)
    child.wait()
    wait_until(lambda: not any(worker.is_running() and worker.status() != "zombie" for worker in workers), 20)
    report, resumed = run(corpus, store, encoder)
    assert report.new_videos < 13
    assert contents(resumed) == contents(undisturbed)


def test_ctrl_c_leaves_no_process_behind(corpus, tmp_path):
    child = start_child(corpus, tmp_path / "store")
    wait_until(lambda: psutil.Process(child.pid).children() or child.poll() is not None)
    workers = psutil.Process(child.pid).children(recursive=True)
    child.send_signal(signal.SIGINT)
    child.wait(30)
    wait_until(lambda: not any(worker.is_running() and worker.status() != "zombie" for worker in workers), 20)


def test_two_processes_on_one_store(corpus, encoder, undisturbed, tmp_path):
    run(replace(corpus, entries=corpus.entries[:4]), tmp_path / "store", encoder)
    with FeatureStore.open(tmp_path / "store").lock():
        child = start_child(corpus, tmp_path / "store")
        assert child.wait(60) != 0  # refused
        with pytest.raises(StoreBusy):
            run(corpus, tmp_path / "store", encoder)
    waiting = _CHILD.replace("SETTINGS,", "replace(SETTINGS, wait_seconds=60),")
    waiting = "from dataclasses import replace\n" + waiting
    children = [start_child(corpus, tmp_path / "store", waiting) for _ in range(2)]
    assert [child.wait(120) for child in children] == [0, 0]
    assert contents(FeatureStore.open(tmp_path / "store")) == contents(undisturbed)


def test_a_full_disk_ends_the_run_cleanly(corpus, encoder, undisturbed, tmp_path, monkeypatch):
    from pipeline.stores import shards

    real, written = shards.write_shard, []

    def filling_disk(path, columns, *, marker):
        if len(written) == 2:
            import resource

            limits = resource.getrlimit(resource.RLIMIT_FSIZE)
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))  # the kernel refuses to write on
            try:
                return real(path, columns, marker=marker)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        written.append(path)
        return real(path, columns, marker=marker)

    monkeypatch.setattr("pipeline.stores.features.write_shard", filling_disk)
    with pytest.raises(UserError, match="no space left"):
        run(corpus, tmp_path / "store", encoder)
    monkeypatch.undo()
    store = FeatureStore.open(tmp_path / "store")
    store.verify()
    assert len(store.shard_paths("videos")) == 2
    assert contents(run(corpus, tmp_path / "store", encoder)[1]) == contents(undisturbed)


# -- videos that disturb


@pytest.fixture(scope="session")
def heavy(tmp_path_factory) -> Path:
    """A clip that takes seconds to decode."""
    folder = tmp_path_factory.mktemp("heavy")
    part, path = folder / "part.mp4", folder / "heavy.mp4"
    ffmpeg_run("-f", "lavfi", "-i", "testsrc2=s=1280x720:r=50:d=8", "-c:v", "libx264", "-preset", "ultrafast", part)
    ffmpeg_run("-stream_loop", "7", "-i", part, "-c", "copy", path)
    return path


def pool_results(paths, limits=None, workers=2, during=None):
    settings = DecodeSettings(4, SETTINGS_SIZE, limits=limits or Limits())
    with DecodePool([Job(index, str(path)) for index, path in enumerate(paths)], settings, workers) as decoding:
        if during is not None:
            during(decoding)
        return [result for _, result in decoding]


def test_the_time_limit_kills_and_the_rest_goes_on(corpus, heavy):
    before = psutil.Process().children()  # other tests' helpers, such as multiprocessing's resource tracker
    light = [Path(corpus.root) / f"clip{number}.mp4" for number in range(8)]
    results = pool_results([*light[:4], heavy, *light[4:]], Limits(max_seconds=0.5), workers=1)
    assert isinstance(results[4], DecodeFailure)
    assert results[4].kind == "TimeLimit"
    assert all(isinstance(result, Decoded) for place, result in enumerate(results) if place != 4)
    assert set(psutil.Process().children()) <= set(before)


def test_what_a_killed_process_gives_back_passes_those_that_wait(corpus, heavy, monkeypatch):
    """Two processes with batches of four: while one is at the slow clip, the other fills all room there is."""
    monkeypatch.setattr(pool, "_BUFFER_BYTES", 0)
    light = [Path(corpus.root) / f"clip{number % 8}.mp4" for number in range(40)]
    found: list = []

    def hang_at_the_slow_clip(decoding):
        def at_it():
            return [worker for worker in decoding._workers if worker.batch and worker.batch[0].index == 1]

        wait_until(at_it)
        os.kill(at_it()[0].process.pid, signal.SIGSTOP)

    def take():
        found.extend(pool_results([light[0], heavy, *light], Limits(max_seconds=3), 2, hang_at_the_slow_clip))

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    thread.join(timeout=60)
    assert not thread.is_alive(), "nobody hands out what the consumer waits for"
    assert [place for place, result in enumerate(found) if isinstance(result, DecodeFailure)] == [1]


def test_results_can_be_taken_after_everything_is_decoded(corpus):
    """The consumer's wake-up calls are read by nobody then."""
    clip = Path(corpus.root) / "clip0.mp4"
    decoding = DecodePool([Job(index, str(clip)) for index in range(8)], DecodeSettings(4, FrameSize(32, 32)), 1)
    with decoding:
        results = iter(decoding)
        next(results)
        decoding._thread.join()
        decoding._wake.close()  # like a full pipe: nothing more can be sent
        assert len(list(results)) == 7


def test_a_crashing_decoder_costs_one_video(corpus, heavy):
    def crash(pool):
        wait_until(lambda: pool._workers and pool._workers[0].ready)
        time.sleep(0.1)
        os.kill(pool._workers[0].process.pid, signal.SIGSEGV)

    results = pool_results([heavy, *(Path(corpus.root) / f"clip{number}.mp4" for number in range(3))], None, 1, crash)
    assert isinstance(results[0], DecodeFailure)
    assert results[0].kind == "DecoderCrash"
    assert "SIGSEGV" in results[0].message
    assert all(isinstance(result, Decoded) for result in results[1:])


def test_the_memory_limit_is_a_failure_row(corpus, tmp_path):
    big = tmp_path / "big.mp4"
    ffmpeg_run("-f", "lavfi", "-i", "testsrc2=size=4096x2304:rate=5:duration=2", "-preset", "ultrafast", big)
    results = pool_results([Path(corpus.root) / "clip0.mp4", big], Limits(max_memory_bytes=320 << 20), workers=1)
    assert isinstance(results[0], Decoded)
    assert isinstance(results[1], DecodeFailure)
    assert results[1].kind == "MemoryLimit"


def test_results_come_in_order_whatever_finishes_first(corpus, heavy):
    light = [Path(corpus.root) / f"clip{number}.mp4" for number in range(8)]
    results = pool_results([heavy, *light], workers=2)
    assert [len(result.frames) for result in results] == [4, 4, 4, 4, 2, 4, 4, 4, 4]


def test_an_exception_in_the_consumer_ends_the_processes(corpus):
    before = psutil.Process().children()
    paths = [Path(corpus.root) / f"clip{number}.mp4" for number in range(8)]
    settings = DecodeSettings(4, SETTINGS_SIZE)
    with pytest.raises(KeyError), DecodePool([Job(i, str(path)) for i, path in enumerate(paths)], settings, 2) as pool:
        for _ in pool:
            raise KeyError
    assert set(psutil.Process().children()) <= set(before)


# -- settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_frames": 0}, "num_frames"), ({"workers": -1}, "workers"), ({"min_coverage": 2}, "min_coverage"),
        ({"decoder": "opencv"}, "decoder"), ({"hwaccel": "cuda"}, "--decoder ffmpeg"),
        ({"shard_format": "csv"}, "format"),
        ({"decoder": "ffmpeg", "allow_mixed_decoders": True}, "mixed"),
    ],
)  # fmt: skip
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(BadInput, match=message):
        ExtractSettings(**changes)


def test_mixed_decoders_are_recorded_video_by_video(corpus, encoder, tmp_path):
    _, store = run(corpus, tmp_path / "store", encoder, allow_mixed_decoders=True)
    assert store.settings["decoder"] == "pyav+ffmpeg"
    decoders = {}
    for path in store.shard_paths("videos"):
        decoders.update(read_marker(path)["decoders"])
    assert set(decoders) == set(store.videos().video_ids)
    assert set(decoders.values()) == {"pyav"}


def test_an_empty_manifest_is_refused(encoder, tmp_path):
    with pytest.raises(BadInput, match="no videos"):
        run(Manifest("nothing", str(tmp_path), ()), tmp_path / "store", encoder)
    assert not (tmp_path / "store").exists()
