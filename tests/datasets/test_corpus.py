"""Tars, lists and remote stores: the same clips give the same features wherever they lie."""

import csv
import http.server
import io
import json
import os
import sys
import tarfile
import threading
from pathlib import Path

import pytest
from clip_maker import PlainEncoder, make_clip

from pipeline.datasets.corpus import read_source
from pipeline.errors import BadInput, MissingData
from pipeline.extract.benchmark import benchmark
from pipeline.extract.driver import extract
from pipeline.extract.settings import ExtractSettings
from pipeline.stores.features import FeatureStore
from pipeline.stores.manifest import Manifest, VideoEntry
from pipeline.video import urls
from pipeline.video.fetch import local_file
from pipeline.video.limits import DecodeFailure, Limits

SETTINGS = ExtractSettings(num_frames=4, workers=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for number in range(4):
        make_clip(folder / f"clip{number}.mp4", 20, first=100 * number)
    return folder


@pytest.fixture(scope="module")
def expected(folder, tmp_path_factory) -> dict[str, bytes]:
    entries = tuple(VideoEntry(f"clip{n}", f"clip{n}.mp4", "corpus") for n in range(4))
    return embeddings(Manifest("plain", str(folder), entries), tmp_path_factory.mktemp("plain"))


def embeddings(manifest: Manifest, place: Path) -> dict[str, bytes]:
    report = extract(manifest, place / "store", SETTINGS, encoder=PlainEncoder())  # type: ignore[arg-type]
    assert report.failed == 0, FeatureStore.open(place / "store").failures()
    videos = FeatureStore.open(place / "store").videos()
    names = [Path(video_id).name.removesuffix(".mp4") for video_id in videos.video_ids]
    return {name: row.tobytes() for name, row in zip(names, videos.frame_embeds, strict=True)}


def make_tar(path: Path, folder: Path, numbers: range) -> None:
    with tarfile.open(path, "w") as archive:
        for number in numbers:
            archive.add(folder / f"clip{number}.mp4", f"clip{number}.mp4")
            for suffix, text in [("txt", f"clip {number}\n"), ("json", json.dumps({"captions": ["from json"]}))]:
                info = tarfile.TarInfo(f"clip{number}.{suffix}")
                info.size = len(text)
                archive.addfile(info, io.BytesIO(text.encode()))
        only_text = tarfile.TarInfo("lonely.txt")
        archive.addfile(only_text, io.BytesIO())


def test_webdataset_tars(folder, expected, tmp_path):
    make_tar(tmp_path / "a-0.tar", folder, range(2))
    make_tar(tmp_path / "a-1.tar", folder, range(2, 4))
    manifest = read_source(str(tmp_path / "a-*.tar"), "tars")
    assert [entry.captions for entry in manifest.entries] == [(f"clip {n}", "from json") for n in range(4)]
    assert len(manifest.protocol["skipped_files"]) == 2
    assert embeddings(manifest, tmp_path) == expected


def test_a_file_that_is_no_tar_is_refused(tmp_path):
    (tmp_path / "x.tar").write_bytes(b"not a tar" * 200)
    with pytest.raises(BadInput, match="cannot be read as a tar"):
        read_source(str(tmp_path / "x.tar"), "tars")
    with pytest.raises(MissingData, match="nothing at"):
        read_source(str(tmp_path / "y*.tar"), "tars")


@pytest.mark.parametrize(
    ("text", "captions"),
    [
        ('{"caption": null, "captions": ["a", 3, " "]}', ("a",)),
        ('{"caption": " a\\ud800"}', ("a?",)),
        ('{"captions": 3}', ()),
        ('{"captions": {"a": 1}}', ()),
        ("[" * 100_000, ()),
        ("9" * 5000, ()),
    ],
)
def test_odd_captions_of_a_tar(tmp_path, text, captions):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, content in [("v.mp4", b"video"), ("v.json", text.encode())]:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    assert read_source(str(tmp_path / "a.tar"), "tar").entries[0].captions == captions


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_lists(folder, expected, tmp_path, suffix):
    rows = [{"video_id": f"clip{n}", "path": f"clip{n}.mp4", "caption": f"caption {c}"} for n in range(4) for c in "ab"]
    path = folder / f"list{suffix}"
    if suffix == ".csv":
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    elif suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path)
    manifest = read_source(str(path), "list")
    assert manifest.entries[1].captions == ("caption a", "caption b")
    assert embeddings(manifest, tmp_path) == expected


def read_list(folder: Path, text: str, suffix: str = ".csv") -> Manifest:
    (folder / f"list{suffix}").write_text(text)
    return read_source(str(folder / f"list{suffix}"), "list")


def test_ids_of_lists_stay_as_they_are_written(tmp_path):
    ids = ["0", "1", "007", "7", "2020-01-01", "1e3"]
    table = "video_id,path\n" + "".join(f"{name},{place}.mp4\n" for place, name in enumerate(ids))
    assert [entry.video_id for entry in read_list(tmp_path, table).entries] == ids
    values = [0, 1, "007", 7, "2020-01-01", "1e3"]
    lines = [json.dumps({"video_id": value, "path": f"{place}.mp4"}) for place, value in enumerate(values)]
    assert [entry.video_id for entry in read_list(tmp_path, "\n".join(lines), ".jsonl").entries] == ids


def test_windows_of_one_file_are_clips_of_their_own(tmp_path):
    table = "path,start,end,caption\na.mp4,0,5,x\na.mp4,5,10,y\na.mp4,0.0,5,z\na.mp4,10,,\na.mp4,,,whole\n"
    found = [(entry.video_id, entry.start, entry.end, entry.captions) for entry in read_list(tmp_path, table).entries]
    assert found == [
        ("a.mp4#t=0,5", 0.0, 5.0, ("x", "z")),
        ("a.mp4#t=5,10", 5.0, 10.0, ("y",)),
        ("a.mp4#t=10", 10.0, None, ()),
        ("a.mp4", None, None, ("whole",)),
    ]


@pytest.mark.parametrize("start", ["00:10", "10s", "nan", "inf", "1e999", " "])
def test_a_start_that_is_no_number_is_refused(tmp_path, start):
    with pytest.raises(BadInput, match=r"list\.csv line 2: start; expected seconds"):
        read_list(tmp_path, f"path,start,end\na.mp4,{start},\n")
    with pytest.raises(BadInput, match=r"list\.jsonl line 1: start; expected seconds"):
        read_list(tmp_path, json.dumps({"path": "a.mp4", "start": [start]}), ".jsonl")


@pytest.mark.parametrize("line", ["[" * 100_000, "3", '{"path": "a.mp4"', "9" * 5000])
def test_lines_that_are_no_record_are_refused(tmp_path, line):
    with pytest.raises(BadInput, match=r"list\.jsonl line 1: not a (JSON object|record)"):
        read_list(tmp_path, line, ".jsonl")


@pytest.mark.parametrize("source", ["{}://bucket/clips", "{}://bucket/a.tar", "{}://bucket/list.csv"])
def test_urls_that_nothing_reads_are_refused(monkeypatch, source):
    with pytest.raises(BadInput, match="Protocol not known: foo"):
        read_source(source.format("foo"), "none")
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(BadInput, match="Please install gcsfs"):
        read_source(source.format("gs"), "none")
    with pytest.raises(DecodeFailure, match="gcsfs") as failure, local_file(source.format("gs"), Limits()):
        pass
    assert failure.value.kind == "CannotFetch"


@pytest.mark.parametrize("option", ["max_seconds", "max_duration"])
@pytest.mark.parametrize("value", [0, -1.0, float("nan")])
def test_limits_are_positive(option, value):
    with pytest.raises(BadInput, match=f"--{option.replace('_', '-')} must be above 0"):
        Limits(**{option: value})


@pytest.mark.parametrize("column", ["path", "split", "start", "end"])
def test_rows_of_one_id_that_differ_are_refused(tmp_path, column):
    row = {"video_id": "v", "path": "a.mp4", "split": "train", "start": 0, "end": 5}
    other = {**row, column: {"path": "b.mp4", "split": "test"}.get(column, 3)}
    with pytest.raises(BadInput, match=f"'v': its rows differ in {column}"):
        read_list(tmp_path, f"{json.dumps(row)}\n{json.dumps(other)}\n", ".jsonl")


LEAVING = ["../outside.mp4", "/etc/hostname", "a/../../b.mp4", "file:///etc/passwd", "FILE:///etc/passwd"]
LEAVING += ["local:///etc/passwd", "memory://y", "simplecache::file:///etc/passwd", "s3://b/c::file:///etc/passwd"]


@pytest.mark.parametrize("path", LEAVING)
def test_paths_that_leave_the_folder_are_refused(tmp_path, path):
    import fsspec

    with pytest.raises(BadInput, match=r"leaves|'::'"):
        read_list(tmp_path, f"video_id,path\nv,{path}\n")
    fsspec.filesystem("memory").pipe("/lists/list.csv", f"video_id,path\nv,{path}\n".encode())
    with pytest.raises(BadInput, match=r"leaves|'::'"):
        read_source("memory://lists/list.csv", "list")


def test_paths_inside_the_folder_and_urls_are_taken(tmp_path):
    import fsspec

    paths = ["deep/a.mp4", "https://host/b.mp4", "s3://bucket/c.mp4"]
    table = "path\n" + "\n".join(paths).replace("https", "HTTPS")
    local = read_list(tmp_path, f"{table}\n{tmp_path}/d.mp4\n")
    assert [entry.path for entry in local.entries] == [*paths, "d.mp4"]
    fsspec.filesystem("memory").pipe("/lists/list.csv", table.encode())
    remote = read_source("memory://lists/list.csv", "list")
    assert [remote.resolve(entry) for entry in remote.entries] == ["memory://lists/deep/a.mp4", *paths[1:]]


def test_fetching_is_bounded_and_leaves_nothing_behind(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    url = f"file://{folder}/clip0.mp4"
    with (
        pytest.raises(DecodeFailure, match="the limit is 100") as failure,
        local_file(url, Limits(max_fetch_bytes=100)),
    ):
        pass
    assert failure.value.kind == "TooLarge"
    with local_file(url, Limits()) as path:
        assert Path(path).read_bytes() == (folder / "clip0.mp4").read_bytes()
    assert list(tmp_path.iterdir()) == []


def test_relative_folders_and_other_spellings_of_a_url(folder, expected, tmp_path, monkeypatch):
    import fsspec

    monkeypatch.chdir(folder.parent)
    for number, source in enumerate([folder.name, f"./{folder.name}/", f"file:///{folder}"]):
        assert embeddings(read_source(source, "here"), tmp_path / str(number)) == expected
    fsspec.filesystem("memory").pipe("/clips/deep/a.mp4", b"")
    manifest = read_source("memory://clips", "memory")
    assert [(entry.video_id, manifest.resolve(entry)) for entry in manifest.entries] == [
        ("deep/a.mp4", "memory:///clips/deep/a.mp4")
    ]


def test_s3_folders_and_tars(folder, expected, tmp_path, s3):
    import fsspec

    filesystem = fsspec.filesystem("s3", skip_instance_cache=True)
    filesystem.mkdir("corpus")
    for number in range(4):
        filesystem.put(str(folder / f"clip{number}.mp4"), f"corpus/videos/deep/clip{number}.mp4")
    filesystem.pipe("corpus/videos/notes.txt", b"not a video")
    make_tar(tmp_path / "a.tar", folder, range(4))
    filesystem.put(str(tmp_path / "a.tar"), "corpus/a.tar")
    manifest = read_source("s3://corpus/videos", "remote")
    assert [row["path"] for row in manifest.protocol["skipped_files"]] == ["notes.txt"]
    assert embeddings(manifest, tmp_path / "files") == expected
    assert embeddings(read_source("s3://corpus/a.tar", "tar"), tmp_path / "tar") == expected


def test_a_remote_file_that_is_gone_is_a_failure_row(tmp_path):
    entries = (VideoEntry("v", f"file://{tmp_path}/gone.mp4", "corpus"),)
    report = extract(Manifest("gone", "", entries), tmp_path / "store", SETTINGS, encoder=PlainEncoder())  # type: ignore[arg-type]
    assert report.failure_classes == {"MissingFile": 1}


def test_the_benchmark_names_what_bounds_the_run(folder):
    entries = tuple(VideoEntry(f"clip{n}", f"clip{n}.mp4", "corpus") for n in range(4))
    rates = benchmark(Manifest("plain", str(folder), entries), SETTINGS, encoder=PlainEncoder())  # type: ignore[arg-type]
    assert (rates.clips, rates.frames, rates.failed) == (4, 16, 0)
    assert rates.bound == "decoding"  # the stand-in encoder costs nothing
    assert "whole / slower part" in str(rates)
    assert not [
        name for name in os.listdir("/tmp") if name.startswith("benchmark-") and os.path.isdir(f"/tmp/{name}/store")
    ]


class Handler(http.server.BaseHTTPRequestHandler):
    """GET /a.mp4: a body without a Content-Length; /away: a redirect to it; /sized: the body with its length."""

    body = b"video" * 1000

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        self.server.seen.append(self.path)
        if self.path == "/away":
            self.send_response(302)
            self.send_header("Location", f"http://127.0.0.1:{self.server.server_port}/a.mp4")
        else:
            self.send_response(200 if self.path in ("/a.mp4", "/sized", "/list.csv") else 404)
            if self.path == "/sized":
                self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(b"path\na.mp4\n" if self.path == "/list.csv" else self.body)

    def log_message(self, *_): ...


@pytest.fixture
def server():
    pytest.importorskip("aiohttp", reason="aiohttp, which reads http URLs, is not installed")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.seen = []
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def url_of(server, path: str, host: str = "127.0.0.1") -> str:
    return f"http://{host}:{server.server_port}/{path}"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_private_addresses_are_refused_before_they_are_asked(server, host):
    refused = r"private or loopback address; got 127\.0\.0\.1.*--allow-private"
    with pytest.raises(DecodeFailure, match=refused) as failure, local_file(url_of(server, "a.mp4", host), Limits()):
        pass
    assert (failure.value.step, failure.value.kind) == ("fetch", "RefusedUrl")
    for source in ("clips", "list.csv", "a.tar"):
        with pytest.raises(BadInput, match="private or loopback address"):
            read_source(url_of(server, source, host), "none")
    assert server.seen == []


def test_redirects_are_refused_also_those_to_private_addresses(server, monkeypatch):
    monkeypatch.setattr(urls, "is_public", lambda _: True)
    refused = r"away redirects; got http://127\.0\.0\.1"
    with pytest.raises(DecodeFailure, match=refused) as failure, local_file(url_of(server, "away"), Limits()):
        pass
    assert failure.value.kind == "RefusedUrl"
    assert set(server.seen) == {"/away"}


def test_private_addresses_and_redirects_can_be_allowed(server):
    limits = Limits(allow_private=True)
    for path in ("a.mp4", "away", "sized"):
        with local_file(url_of(server, path), limits) as copy:
            assert Path(copy).read_bytes() == Handler.body
    assert [entry.path for entry in read_source(url_of(server, "list.csv"), "list", True).entries] == ["a.mp4"]


@pytest.mark.parametrize(("path", "said"), [("a.mp4", "5000 or more bytes"), ("sized", "5000 bytes")])
def test_a_body_is_bounded_with_and_without_a_length(server, tmp_path, monkeypatch, path, said):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    limits = Limits(allow_private=True, max_fetch_bytes=4999)
    refused = f"{said}, the limit is 4999"
    with pytest.raises(DecodeFailure, match=refused) as failure, local_file(url_of(server, path), limits):
        pass
    assert failure.value.kind == "TooLarge"
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr("pipeline.datasets.corpus._LIST_BYTES", 5)
    with pytest.raises(BadInput, match="too long for a list"):
        read_source(url_of(server, "list.csv"), "list", True)
