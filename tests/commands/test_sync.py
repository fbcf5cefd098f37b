"""Files come, change, move and go: the features and the index follow, by the real command line."""

import functools
import http.server
import os
import shutil
import threading
from dataclasses import replace

import numpy as np
import pytest
from command_line import refused, run
from own_folder import Folder
from standins import write_video

from pipeline.extract.driver import _VideoShard
from pipeline.stores.features import FeatureStore
from pipeline.stores.manifest import read_manifest

NAMES = ("a.mp4", "b.mp4", "c.mp4", "d.mp4", "deep/e.mp4", "f.mp4")


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("originals") / "clips"
    for name in NAMES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_video(folder / name, seed=name)
    return folder


@pytest.fixture(scope="module")
def indexed(clips, tmp_path_factory):
    """The folder extracted with captions and indexed, to be copied."""
    folder = Folder(clips, tmp_path_factory.mktemp("indexed"))
    folder.extract("--captions", folder.csv([(name, f"caption of {name}") for name in NAMES]))
    folder.index()
    return folder


@pytest.fixture
def folder(indexed, tmp_path):
    copy = Folder(indexed.videos, tmp_path)
    shutil.rmtree(copy.videos)
    shutil.copytree(indexed.videos, copy.videos, copy_function=shutil.copy2)
    shutil.copytree(indexed.here[1], copy.here[1])
    copy.extract()  # from now on the media lie here
    return copy


def change_files(videos):
    """One new, one changed, one moved, one gone."""
    write_video(videos / "new.mp4", seed="new")
    write_video(videos / "b.mp4", seed="another b")
    (videos / "moved").mkdir()
    (videos / "c.mp4").rename(videos / "moved/c.mp4")
    (videos / "d.mp4").unlink()


CHANGED = {"new": 1, "changed": 1, "moved": 1, "gone": 1}


def shards(folder):
    store = FeatureStore.open(folder.here[1] / "features/clips/shapes-clip")
    return len(store.shard_paths("videos"))


@pytest.mark.parametrize("extract_first", [True, False])
def test_the_index_follows_the_files(folder, tmp_path, extract_first):
    before = folder.scores()
    change_files(folder.videos)
    if extract_first:
        report = folder.extract()
        assert folder.counts(report) == CHANGED
        assert report["files"]["moved"]["paths"] == [["c.mp4", "moved/c.mp4"]]
        assert (report["inputs"], report["done"]) == (6, 6)
        assert folder.scores().keys() == before.keys(), "the live index stays searchable until it is updated"
        assert folder.evaluated() == (5, 5), "the gallery is what is there"
    result = folder.reindex()
    assert folder.counts(result) == ({} if extract_first else CHANGED)
    assert {name: result[name] for name in ("added", "deleted", "replaced", "total")} == {
        "added": 2, "deleted": 2, "replaced": 1, "total": 6,
    }  # fmt: skip
    after = folder.scores()
    assert {path.removeprefix(f"{folder.videos}/") for path in after} == {
        "a.mp4", "b.mp4", "moved/c.mp4", "deep/e.mp4", "f.mp4", "new.mp4",
    }  # fmt: skip
    anew = Folder(folder.videos, tmp_path / "anew")
    anew.videos = folder.videos
    anew.extract()
    anew.index()
    assert after == anew.scores(), "what a first run on these files gives"
    assert folder.evaluated() == (5, 5), "the moved video has its caption"
    assert folder.reindex()["generation"] == result["generation"]
    assert folder.counts(folder.extract()) == {}


def test_a_moved_file_is_not_decoded_again(folder, monkeypatch):
    (folder.videos / "c.mp4").rename(folder.videos / "z.mp4")
    monkeypatch.setattr(_VideoShard, "add", lambda *_: pytest.fail("decoded"))
    assert folder.counts(folder.reindex()) == {"moved": 1}
    assert "z.mp4" in folder.found()
    manifest = read_manifest(folder.here[1] / "datasets/clips/manifest.parquet")
    (entry,) = [entry for entry in manifest.entries if entry.path == "z.mp4"]
    assert entry.captions == ("caption of c.mp4",)
    assert entry.file.size == (folder.videos / "z.mp4").stat().st_size
    assert manifest.protocol["caption_changes"] | {"unmatched": None} == {
        "kept": 6, "added": 0, "changed": 0, "withdrawn": 0, "absent": 0, "unmatched": None,
    }  # fmt: skip


def test_captions_given_again_for_a_moved_file_are_kept_ones(folder):
    (folder.videos / "c.mp4").rename(folder.videos / "deep/c.mp4")
    rows = [(name, f"caption of {name}") for name in NAMES]
    report = folder.extract("--captions", folder.csv([*rows, ("c", "another one")]))
    assert folder.counts(report) == {"moved": 1}
    assert report["captions"] == {
        "kept": 6, "added": 1, "changed": 0, "withdrawn": 0, "absent": 0, "unmatched": {"count": 0, "examples": []},
    }  # fmt: skip


def test_a_folder_that_moved_is_served_from_where_it_is_now(folder):
    folder.videos = folder.videos.rename(folder.tmp / "elsewhere")
    run("extract", "--videos", folder.videos, "--option", "corpus=clips", "--num-frames", 2, *folder.here)
    result = folder.reindex()
    assert {name: result[name] for name in ("added", "deleted", "replaced", "total")} == {
        "added": 0, "deleted": 0, "replaced": 0, "total": 6,
    }  # fmt: skip
    assert set(folder.scores()) == {f"{folder.videos}/{name}" for name in NAMES}


def files_of(folder):
    """But for the stamps of what was verified, which any command may add."""
    return sorted(path for path in folder.rglob("*") if path.name != ".verified")


def test_many_gone_files_are_refused_until_it_is_said(folder):
    for name in ("a.mp4", "b.mp4"):
        (folder.videos / name).rename(folder.tmp / name)
    before = files_of(folder.here[1]), shards(folder)
    for command in (("extract", "--videos", folder.videos, "--num-frames", 2), ("reindex",)):
        line = refused(*command, *folder.here)
        assert "2 of 6 videos are gone, the first is " in line
        assert "at most 20%" in line
        assert "--yes" in line
    assert (files_of(folder.here[1]), shards(folder)) == before
    assert len(folder.found()) == 6
    assert folder.reindex("--yes")["deleted"] == 2
    assert len(folder.found()) == 4
    for name in ("a.mp4", "b.mp4"):
        (folder.tmp / name).rename(folder.videos / name)
    returned = folder.reindex()
    assert (folder.counts(returned), returned["added"]) == ({"new": 2}, 2)
    assert shards(folder) == before[1], "their features were kept"
    assert folder.evaluated() == (6, 6), "and their captions"


def test_an_unmounted_folder_empties_nothing(folder):
    folder.videos.rename(folder.tmp / "elsewhere")
    assert "there is no folder" in refused("reindex", *folder.here)
    folder.videos.mkdir()
    assert "holds no files" in refused("reindex", *folder.here)
    assert len(folder.found()) == 6


def test_a_changed_file_that_fails_leaves_the_index_and_returns_when_it_is_mended(folder):
    whole = (folder.videos / "b.mp4").read_bytes()
    (folder.videos / "b.mp4").write_bytes(b"no video")
    result = folder.reindex()
    assert (folder.counts(result), result["deleted"]) == ({"changed": 1}, 1)
    assert "b.mp4" not in folder.found()
    report = folder.extract("--min-coverage", 0)
    assert (folder.counts(report), report["failed"]) == ({}, 1)
    (folder.videos / "b.mp4").write_bytes(whole)
    result = folder.reindex()
    assert (folder.counts(result), result["added"]) == ({"changed": 1}, 1)
    assert "b.mp4" in folder.found()


def test_an_interrupted_run_never_serves_old_features_as_new(folder, monkeypatch):
    write_video(folder.videos / "b.mp4", seed="another b")
    with monkeypatch.context() as patched:
        patched.setattr(_VideoShard, "write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        run("reindex", *folder.here, code=130)
    assert folder.evaluated() == (5, 5), "the changed video is hidden"
    assert folder.counts(folder.extract()) == {"changed": 1}
    assert folder.evaluated() == (6, 6)
    assert folder.reindex()["replaced"] == 1


def test_a_touched_file_is_as_it_was(folder):
    os.utime(folder.videos / "a.mp4", ns=(1, 1))
    assert folder.counts(folder.reindex()) == {}
    store = FeatureStore.open(folder.here[1] / "features/clips/shapes-clip")
    assert store.seen_files["a.mp4"].mtime == 1


def test_failed_clips_are_retried_by_reindex(folder):
    (folder.videos / "rotten.mp4").write_bytes(b"no video")
    folder.reindex()
    for _ in range(2):
        folder.reindex("--retry-failed", "all")
    folder.reindex("--retry-failed", "TimeLimit")
    store = FeatureStore.open(folder.here[1] / "features/clips/shapes-clip")
    assert [(row.video_id, row.attempts) for row in store.failures()] == [("rotten.mp4", 3)]


def test_a_caption_of_a_file_that_is_gone_is_counted(folder):
    rows = folder.csv([(name, f"caption of {name}") for name in NAMES], "again.csv")
    (folder.videos / "d.mp4").unlink()
    report = folder.extract("--captions", rows)
    assert report["captions"]["unmatched"] == {"count": 1, "examples": ["again.csv line 5: d.mp4"]}
    assert (report["captions"]["kept"], report["captions"]["absent"]) == (5, 1)


def test_an_update_takes_lists_and_urls(folder):
    more = folder.tmp / "more"
    for name in ("x.mp4", "y.mp4"):
        more.mkdir(exist_ok=True)
        write_video(more / name, seed=name)
    (more / "list.csv").write_text("path,start,end\nx.mp4,,\nx.mp4,0.0,0.2\n")
    assert folder.reindex("--corpus", more / "list.csv")["added"] == 2
    assert folder.reindex("--corpus", more / "list.csv")["added"] == 0
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(more))
    handler.log_message = lambda *_: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        (folder.tmp / "urls.csv").write_text(f"path\n{url}/y.mp4\n")
        assert folder.reindex("--corpus", folder.tmp / "urls.csv", "--allow-private")["added"] == 1
        server.shutdown()
    assert f"{url}/y.mp4" in folder.scores()
    write_video(more / "x.mp4", seed="another x")
    assert folder.reindex()["replaced"] == 2, "files of other corpora are looked at too"


def test_second_ids_of_a_file_leave(folder):
    """A store that called a clip by its captions and by its path holds it twice."""
    store = FeatureStore.open(folder.here[1] / "features/clips/shapes-clip")
    twice = store.videos().select(np.array([0]))
    store.write_videos(replace(twice, video_ids=["a"]), inputs=["a"])
    run("index", "--run", "zero-shot", *folder.here)
    assert len(folder.found()) == 7
    result = folder.reindex()
    assert (folder.counts(result), result["deleted"]) == ({"duplicates": 1}, 1)
    assert sorted(folder.found()) == sorted(NAMES)
