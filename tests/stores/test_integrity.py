"""Files are checked before they are believed: JSON, arrays, tables, checksums and their stamps."""

import errno
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipeline.commands.verification import verify_workspace
from pipeline.errors import BadInput, CorruptShard, MissingData, UserError, disk_full
from pipeline.stores import integrity
from pipeline.stores.atomic import write_json, write_together
from pipeline.stores.catalogue import shards_in
from pipeline.stores.checkpoints import load_head, save_head
from pipeline.stores.generations import GenerationStore
from pipeline.stores.integrity import (
    STAMPS,
    checksum,
    fits,
    read_array,
    read_json,
    read_table,
    sha256_file,
    verify_file,
)
from pipeline.stores.manifest import Manifest, VideoEntry, read_manifest, write_manifest
from pipeline.stores.rows import Rows, build_rows
from pipeline.stores.shards import read_marker, read_shard, write_shard
from pipeline.workspace import Workspace


def refusal(action, *arguments, **options) -> str:
    with pytest.raises(UserError) as caught:
        action(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def age(path: Path) -> None:
    """As if written a minute ago: the time of a file that has just been written is not trusted."""
    then = time.time_ns() - 60_000_000_000
    os.utime(path, ns=(then, then))


VALUE: dict[str, Any] = {
    "b": [1, 2.5, None],
    "a": {"é": "x\u2028"},
    "nan": float("nan"),
    "t": (1, 2),
    "deep": {"3": True},
}


def test_an_object_comes_back_without_its_checksum_and_any_change_is_noticed(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, VALUE)
    assert json.dumps(read_json(path)) == json.dumps(VALUE)
    text = path.read_text()
    assert json.loads(text)["checksum"].startswith("sha256:")
    path.write_text(json.dumps(json.loads(text), indent=None, sort_keys=True))  # another layout is no change
    read_json(path)
    path.write_text(text.replace("2.5", "2.6"))
    assert "was changed after it was written" in refusal(read_json, path)
    write_json(path, [1, 2])
    assert read_json(path) == [1, 2]


def test_a_checksum_taken_out_is_noticed_and_an_old_object_is_read_with_one_warning(tmp_path, caplog):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    told = json.loads(path.read_text())
    del told["checksum"]
    path.write_text(json.dumps(told))
    assert "was changed after it was written" in refusal(read_json, path)
    path.write_text(json.dumps({"a": 2}))  # as before there were checksums
    assert not caplog.messages
    for _ in range(2):
        assert read_json(path) == {"a": 2}
    assert len(caplog.messages) == 1
    assert f"{path} has no checksum" in caplog.messages[0]
    assert refusal(read_json, path, unsealed="evaluate again").endswith("of an old version. Fix: evaluate again")
    path.write_text(json.dumps(told | {"checksum": checksum({"a": 1})}))  # an object of 0.2: a checksum, no mark
    assert "was changed" in refusal(read_json, path)
    path.write_text(json.dumps({"a": 1, "checksum": checksum({"a": 1})}))
    assert read_json(path) == {"a": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON"),
        (bytes(range(256)), "not valid JSON"),
        (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
        (b'{"rows": "\\ud800"}', "not valid JSON"),
        (b"9" * 5000, "not valid JSON"),
        (b"[1]", "expected rows; got list"),
        (b"null", "expected rows; got NoneType"),
        (b'{"row": 1}', "expected rows; got row"),
        (b'{"rows": null}', "expected rows: int; got None"),
        (b'{"rows": true}', "expected rows: int; got True"),
        (b'{"rows": "1"}', "expected rows: int; got '1'"),
        (b'{"rows": 1, "skipped": [2]}', r"expected skipped: list"),
        (b" " * 1001, "too large"),
    ],
)
def test_json_of_another_make_is_refused_in_one_line(tmp_path, content, message):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    limit = 1000 if content.isspace() else integrity.MAX_JSON
    assert message in refusal(read_json, path, {"rows": int}, {"skipped": list[str]}, limit=limit)


def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "circle").symlink_to("circle")
    os.mkfifo(tmp_path / "pipe")
    with open(tmp_path / "huge", "wb") as handle:
        handle.truncate(1 << 40)
    for name, message in (("folder", "Is a directory"), ("pipe", "no regular file"), ("circle", "cannot be read"),
                          ("huge", "too large")):  # fmt: skip
        assert message in refusal(read_json, tmp_path / name)
        if name != "huge":
            assert name in refusal(verify_file, tmp_path / name, "0" * 64)
    with pytest.raises(MissingData):
        read_json(tmp_path / "absent")


def test_a_key_that_nobody_asked_for_in_advance_is_missed_in_one_line(tmp_path):
    write_json(tmp_path / "a.json", {"a": 1})
    record = read_json(tmp_path / "a.json")
    with pytest.raises(CorruptShard, match=r"a\.json is damaged; expected b; got a"):
        record["b"]
    assert record.get("b") is None


def test_types():
    assert fits({"a": [{"x": 1}]}, dict[str, list[dict[str, int]]])
    assert not fits({"a": [{"x": "1"}]}, dict[str, list[dict[str, int]]])
    assert fits(None, dict | None)
    assert not fits([], dict | None)
    assert not fits(True, float)


def test_arrays_and_tables_are_what_they_should_be(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, np.arange(6, dtype=np.int64))
    assert read_array(path, np.int64, 1).tolist() == [0, 1, 2, 3, 4, 5]
    assert "expected float16, 2 dimensions" in refusal(read_array, path, np.float16, 2)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"(6,)", b"(9" + b"9" * 12 + b",)")[: len(whole)])
    assert "cannot be read" in refusal(read_array, path, np.int64, 1)
    path.write_bytes(whole[:-8])
    assert "cannot be read" in refusal(read_array, path, np.int64, 1)
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    assert "cannot be read" in refusal(read_array, path, np.int64, 1)
    table = tmp_path / "t.parquet"
    pq.write_table(pa.table({"n": [1, 2]}), table)
    assert read_table(table, {"n": pa.int64()}).num_rows == 2
    assert "column 'n'; expected string; got int64" in refusal(read_table, table, {"n": pa.string()})
    assert "no such column" in refusal(read_table, table, {"m": pa.string()})
    table.write_bytes(table.read_bytes()[:-9])
    assert "cannot be read" in refusal(read_table, table, {"n": pa.int64()})


def test_a_large_file_is_hashed_again_only_when_it_looks_otherwise(tmp_path, monkeypatch):
    hashed = []
    monkeypatch.setattr(integrity, "sha256_file", lambda path: hashed.append(path.name) or sha256_file(path))
    path = tmp_path / "big"
    path.write_bytes(b"x" * 1000)
    digest = sha256_file(path)
    verify_file(path, digest)
    verify_file(path, digest)
    assert len(hashed) == 2, "a file that was written this moment may change within the clock's tick"
    age(path)
    for _ in range(3):
        verify_file(path, digest)
    assert len(hashed) == 3
    integrity._verified.clear()  # as another process
    verify_file(path, digest)
    assert len(hashed) == 3, "the folder's stamp serves other processes"
    verify_file(path, digest, always=True)
    assert len(hashed) == 4
    (tmp_path / STAMPS).write_bytes(bytes(range(256)) + (tmp_path / STAMPS).read_bytes()[5:])
    integrity._verified.clear()
    verify_file(path, digest)
    assert len(hashed) == 5, "a damaged stamp is no stamp"
    inode = path.stat().st_ino
    path.write_bytes(b"x" * 999 + b"y")
    assert path.stat().st_ino == inode
    assert "was changed after it was written" in refusal(verify_file, path, digest)
    age(path)
    assert "was changed after it was written" in refusal(verify_file, path, digest)


def test_a_shard_is_verified_before_its_library_sees_it(tmp_path, monkeypatch):
    for suffix in (".h5", ".parquet"):
        path = tmp_path / f"texts-00000{suffix}"
        write_shard(path, {"caption": ["a", "b"], "x": np.arange(2, dtype=np.float32)}, marker={"skipped": []})
        whole = path.read_bytes()
        path.write_bytes(whole[:512] + bytes(512) + whole[1024:] if len(whole) > 1024 else whole[:-20] + bytes(20))
        monkeypatch.setattr("pipeline.stores.shards._reader", lambda path: pytest.fail("a damaged file was opened"))
        assert "was changed after it was written" in refusal(read_shard, path)
        monkeypatch.undo()
        path.write_bytes(whole)
        assert read_shard(path)["caption"] == ["a", "b"]
        marker = path.with_suffix(".json")
        about = {name: v for name, v in json.loads(marker.read_text()).items() if name not in ("checksum", "sealed")}
        for name, value in (("columns", {"x": {"kind": "array", "dtype": "O", "shape": []}}), ("columns", {"x": 3}),
                            ("rows", None), ("skipped", [None])):  # fmt: skip
            marker.write_text(json.dumps(about | {name: value}))
            assert "damaged" in refusal(read_marker, path)
        marker.unlink()


def test_weights_are_those_that_were_saved(tmp_path):
    save_head(tmp_path, {"w": torch.arange(4.0)}, {"head": {}, "encoder": {}})
    assert torch.equal(load_head(tmp_path)[0]["w"], torch.arange(4.0))
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "Fix: train the head again" in refusal(load_head, tmp_path)
    record = json.loads((tmp_path / "config.json").read_text())
    del record["files"], record["checksum"], record["sealed"]
    (tmp_path / "config.json").write_text(json.dumps(record))
    load_head(tmp_path)  # a head from before weights had a checksum opens still


def test_a_changed_manifest_is_noticed_and_an_old_one_opens(tmp_path):
    path = tmp_path / "manifest.parquet"
    manifest = Manifest("own", "/clips", (VideoEntry("a", "a.mp4", "test", ("one", "two"), 0, 2.5),), {"label": "x"})
    write_manifest(manifest, path)
    assert read_manifest(path) == manifest
    table = pq.read_table(path)
    changed = table.set_column(2, "split", pa.array(["train"]))
    pq.write_table(changed.replace_schema_metadata(table.schema.metadata), path)
    assert "was changed after it was written" in refusal(read_manifest, path)
    about = json.loads(table.schema.metadata[b"manifest"])
    del about["checksum"]
    pq.write_table(table.replace_schema_metadata({"manifest": json.dumps(about)}), path)
    assert read_manifest(path) == manifest


@pytest.fixture
def generations(tmp_path) -> GenerationStore:
    store = GenerationStore(tmp_path / "indexes" / "own")
    with store.lock():
        for count in (1, 2, 3):
            ids = [f"v{number}" for number in range(count)]
            rows = build_rows(ids, ids, np.eye(count, 4, dtype=np.float32))

            def write_index(folder: Path, rows: Rows = rows) -> None:
                (folder / "index.faiss").write_bytes(rows.vectors.tobytes())

            store.switch(store.write(rows, write_index, {}, lambda _: {}))
    return store


@pytest.mark.parametrize("name", ["index.faiss", "vectors.npy", "owners.npy", "ids.parquet", "index.json"])
def test_a_damaged_live_generation_names_the_last_whole_one(generations, name):
    live, before = (generations.root / f"gen-00000{number}" / name for number in (3, 2))
    live.write_bytes(live.read_bytes()[:-3] + b"\x01\x02\x03")
    assert refusal(generations.open).endswith(
        "Fix: `python cli.py reindex --rollback` goes back to gen-000002, which is whole"
    )
    before.unlink()
    assert "goes back to gen-000001" in refusal(generations.open)
    assert generations.rollback() == "gen-000001"
    with generations.open() as generation:
        assert generation.rows().video_ids == ["v0"]


@pytest.mark.parametrize("how", ["binary", "empty", "folder", "circle", "huge", "other name"])
def test_a_damaged_current_is_refused_and_mended_by_a_rollback(generations, how):
    path = generations.root / "CURRENT"
    other = path.read_bytes().replace(b"gen-000003", b"gen-000001")
    path.unlink()
    if how == "folder":
        path.mkdir()
    elif how == "circle":
        path.symlink_to("CURRENT")
    else:
        path.write_bytes({"binary": bytes(range(256)), "empty": b"", "huge": b"g" * 5000, "other name": other}[how])
    assert "reindex --rollback" in refusal(generations.open)
    if how == "folder":
        assert "CURRENT is a folder" in refusal(generations.rollback)
        path.rmdir()
    assert generations.rollback() == "gen-000003"
    assert generations.current() == "gen-000003"
    path.write_text("gen-000002\n")  # written before there was a check
    assert generations.current() == "gen-000002"


def test_doctor_verifies_what_stamps_would_pass(generations, tmp_path):
    workspace = Workspace(tmp_path)
    assert {check.status for check in verify_workspace(workspace)} == {"ok"}
    path = generations.root / "gen-000003" / "vectors.npy"
    age(path)
    verify_file(path, sha256_file(path))
    times = path.stat()
    whole = path.read_bytes()
    with open(path, "r+b") as handle:
        handle.write(whole[:-1] + bytes([whole[-1] ^ 1]))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # bits that rot leave no trace
    generations.open().close()
    damaged = [check for check in verify_workspace(workspace) if check.status == "fail"]
    assert [check.name for check in damaged] == ["indexes/own/gen-000003"]
    assert "was changed after it was written" in damaged[0].found


def test_files_that_belong_together_are_written_all_or_none(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(OSError, match="No space"), write_together(tmp_path) as new:
        (new / "a").write_text("new")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "old"
    with write_together(tmp_path) as new:
        (new / "a").write_text("new")
        (new / "b").write_text("new")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "new", "b": "new"}


def test_a_full_disk_is_recognised_behind_other_errors():
    def chained(inner: BaseException, *, cause: bool) -> BaseException:
        try:
            try:
                raise inner
            except BaseException as error:
                if cause:
                    raise ValueError("you tried to log 100.0") from error
                raise ValueError("you tried to log 100.0")  # noqa: B904
        except ValueError as outer:
            return outer

    inner = OSError(errno.ENOSPC, "No space left on device")
    assert disk_full(chained(inner, cause=True)) is inner
    assert disk_full(chained(inner, cause=False)) is inner
    for error in (
        OSError("8192 requested and 4096 written"),  # np.save
        RuntimeError("I/O error: No space left on device (os error 28)"),  # safetensors
        OSError(errno.EDQUOT, "Disk quota exceeded"),
    ):
        assert disk_full(error) is error
    assert disk_full(OSError(errno.EACCES, "Permission denied")) is None
    assert disk_full(BadInput("No space left in this sentence")) is None
    assert disk_full(None) is None


def test_a_circle_of_links_for_a_marker_is_one_line(tmp_path):
    (tmp_path / "videos-00000.json").symlink_to("videos-00000.json")
    assert "videos-00000.json cannot be read" in refusal(shards_in, tmp_path, "videos", ".h5")
