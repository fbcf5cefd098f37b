"""The folder that mirrors object storage: what it brings, sends, refuses, and lets go."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline import remote
from pipeline.errors import BadInput, MissingData, StoreBusy
from pipeline.object_store import Changed, ObjectStore, without_secrets
from pipeline.stores.atomic import write_json
from pipeline.stores.integrity import read_json
from pipeline.stores.shards import read_shard, write_shard
from pipeline.workspace import Workspace

ROOT = Path(__file__).parent.parent
SHARD = "features/a/b/videos-00000"


@pytest.fixture(params=["memory", "s3"])
def url(request, tmp_path, monkeypatch):
    """An empty place, on each kind of storage."""
    import fsspec

    monkeypatch.setenv("DITS_CACHE_DIR", str(tmp_path / "one"))
    name = f"bucket-{time.time_ns()}"
    if request.param == "s3":
        request.getfixturevalue("s3")
        fsspec.filesystem("s3", skip_instance_cache=True).mkdir(name)
    yield f"{request.param}://{name}/data"
    remote.finish(send=False)


def elsewhere(url, cache, monkeypatch):
    """The workspace on a machine that has not seen it."""
    remote.finish()
    monkeypatch.setenv("DITS_CACHE_DIR", str(cache))
    return Workspace.locate(Path(url)).root


def shard(root, values, name=SHARD):
    path = root / f"{name}.h5"
    write_shard(path, {"video_id": [str(value) for value in values]}, marker={})
    return path


def test_what_one_machine_writes_another_reads_and_fetches_late(url, tmp_path, monkeypatch):
    root = Workspace.locate(Path(url)).root
    path = shard(root, range(1000))
    size, mtime = path.stat().st_size, path.with_suffix(".json").stat().st_mtime_ns
    other = elsewhere(url, tmp_path / "two", monkeypatch)
    copy = other / f"{SHARD}.h5"
    assert copy.stat().st_size == size
    assert not copy.read_bytes().strip(b"\0")  # a stand-in
    assert copy.with_suffix(".json").stat().st_mtime_ns == mtime  # the catalogue goes by it
    assert read_shard(copy)["video_id"][999] == "999"
    assert copy.read_bytes() == path.read_bytes()


def test_a_damaged_copy_is_fetched_again(url, tmp_path, monkeypatch):
    root = Workspace.locate(Path(url)).root
    path = shard(root, range(10))
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"!")  # while it is in use: the checksum finds it
    assert read_shard(path)["video_id"][9] == "9"
    remote.finish()
    path.write_bytes(b"!" * len(whole))  # while it is not
    path.with_suffix(".json").write_text("{}")
    Workspace.locate(Path(url))
    assert read_shard(path)["video_id"][9] == "9"
    store = ObjectStore(url)
    assert store.read(f"{SHARD}.h5") == whole


def test_who_writes_second_is_told_and_the_first_stays(url, tmp_path, monkeypatch):
    root = Workspace.locate(Path(url)).root
    write_json(root / "features/a/b/store.json", {"by": "me"})
    store, key = ObjectStore(url), "features/a/b/store.json"
    about = store.look(key)
    assert about
    store.put(b'{"by": "another"}', key, about.token)
    with pytest.raises(StoreBusy, match=r"store.json was written by another.*its work stays"):
        write_json(root / "features/a/b/store.json", {"by": "me again"})
    assert read_json(root / "features/a/b/store.json") == {"by": "another"}
    with pytest.raises(Changed):
        ObjectStore(url).put(b"new", "features/a/b/store.json", None)
    with pytest.raises(Changed):
        ObjectStore(url).put(b"new", "features/a/b/gone.json", "token")


def test_same_contents_from_two_writers_are_no_conflict(url):
    root = Workspace.locate(Path(url)).root
    ObjectStore(url).put(b"same", "reports/a", None)
    path = root / "reports/a"
    path.parent.mkdir()
    path.write_bytes(b"same")
    remote.written(path)


def test_unfinished_objects_and_files_count_for_nothing(url, tmp_path, monkeypatch):
    store = ObjectStore(url)
    for key in (f"{SHARD}.h5", "indexes/c/gen-000001/index.faiss"):
        store.put(b"half", key, None)
    root = Workspace.locate(Path(url)).root
    assert not (root / f"{SHARD}.h5").exists()
    assert not (root / "indexes/c/gen-000001").exists()
    shard(root, range(3))  # takes the place of the half one
    remote.finish()
    unsent = root / "features/a/b/videos-00001.json"  # of a process that was killed before it sent it
    unsent.write_text("{}")
    Workspace.locate(Path(url))
    assert not unsent.exists()
    assert f"{SHARD}.json" in store.find()
    assert [key for key in store.find() if "/." in key] == []


def test_removal_goes_both_ways_but_an_emptied_cache_removes_nothing(url, tmp_path, monkeypatch):
    root = Workspace.locate(Path(url)).root
    shard(root, range(3))
    (root / f"{SHARD}.h5").unlink()
    (root / f"{SHARD}.json").unlink()
    remote.finish()
    root = Workspace.locate(Path(url)).root
    assert read_shard(root / f"{SHARD}.h5")["video_id"] == ["0", "1", "2"]
    other = elsewhere(url, tmp_path / "two", monkeypatch)
    remote.remove(other / "features")
    assert ObjectStore(url).find() == {}
    assert not (elsewhere(url, tmp_path / "one", monkeypatch) / f"{SHARD}.json").exists()


def test_the_cache_keeps_its_bound(url, tmp_path, monkeypatch):
    monkeypatch.setenv("DITS_CACHE_SIZE", "40000")
    root = Workspace.locate(Path(url)).root
    paths = [shard(root, range(2000), f"features/a/b/videos-{number:05d}") for number in range(5)]
    assert sum(path.stat().st_blocks for path in paths) * 512 < 40000 + 2 * paths[0].stat().st_size
    for path in paths:  # what this process reads stays
        assert read_shard(path)["video_id"][-1] == "1999"
    assert all(path.stat().st_blocks for path in paths)
    remote.finish()
    Workspace.locate(Path(url))
    assert sum(path.stat().st_blocks for path in paths) * 512 <= 40000
    assert read_shard(paths[0])["video_id"][-1] == "1999"


def test_one_writer_at_a_time_and_a_dead_one_is_none(url, tmp_path, monkeypatch):
    root = Workspace.locate(Path(url)).root
    key, store = "features/a/b/.lease", ObjectStore(url)
    with remote.exclusive(root / "features/a/b"):
        about = json.loads(store.read(key))
        with pytest.raises(StoreBusy, match="another process is writing"), remote.exclusive(root / "features/a/b"):
            pass
    assert key not in store.find()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for left in ({**about, "pid": gone.pid}, {**about, "machine": "other", "until": time.time() - 1}, {}):
        store.put(json.dumps(left).encode(), key, None)
        with remote.exclusive(root / "features/a/b"):
            pass
    store.put(json.dumps({**about, "machine": "other"}).encode(), key, None)
    with pytest.raises(StoreBusy), remote.exclusive(root / "features/a/b", 0.1):
        pass


def test_a_lease_is_renewed_and_its_loss_stops_the_writer(url, monkeypatch):
    monkeypatch.setattr(remote, "LEASE_SECONDS", 0.4)
    root = Workspace.locate(Path(url)).root
    store, key = ObjectStore(url), "features/a/b/.lease"
    with pytest.raises(StoreBusy, match="took over"), remote.exclusive(root / "features/a/b"):
        first = store.look(key)
        time.sleep(0.8)
        assert store.look(key) != first
        store.delete([key])
        time.sleep(0.4)
        write_json(root / "features/a/b/store.json", {})


@pytest.mark.parametrize(
    "place", ["s3://key:secret@bucket/a", "http://host/a", "nosuch://a", "file:///tmp", "s3://a::memory://b"]
)
def test_urls_that_cannot_be(place, tmp_path, monkeypatch):
    monkeypatch.setenv("DITS_CACHE_DIR", str(tmp_path))
    with pytest.raises((BadInput, MissingData)) as refusal:
        Workspace.locate(Path(place))
    assert "secret" not in str(refusal.value)
    assert list(tmp_path.iterdir()) == []


def test_wrong_bucket_and_no_credentials(s3, tmp_path, monkeypatch):
    import fsspec

    monkeypatch.setenv("DITS_CACHE_DIR", str(tmp_path))
    with pytest.raises(MissingData, match="no such bucket"):
        Workspace.locate(Path("s3://nosuch/a"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    fsspec.filesystem("s3").clear_instance_cache()
    with pytest.raises(MissingData, match="needs credentials"):
        Workspace.locate(Path("s3://nosuch/a"))
    fsspec.filesystem("s3").clear_instance_cache()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret")
    assert without_secrets("no very-secret here") == "no *** here"


def test_a_folder_is_no_url_and_is_left_alone(tmp_path):
    assert remote.url_of(tmp_path) is None
    assert remote.url_of(Path("s3:/bucket/a")) == "s3://bucket/a"
    write_json(tmp_path / "a.json", {})
    assert sorted(os.listdir(tmp_path)) == ["a.json"]
