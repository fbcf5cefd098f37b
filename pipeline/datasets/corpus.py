"""Corpora other than a local folder: WebDataset tars, lists of paths or URLs, any fsspec URL (s3://…).

Each becomes the same manifest. Nothing is copied here: an entry names a URL, or where in a tar its bytes lie, and the
decoding process fetches one clip at a time (fetch.py). Captions come from a list's `caption` column, or from a tar's
`.txt` and `.json` members of the same key. Own folders are pipeline.datasets.folder's business.
"""

import json
import math
import os
import posixpath
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.datasets.folder import inside_folder
from pipeline.datasets.readers import LISTS, Repairs, Row, clean_captions, read_list
from pipeline.datasets.videos import VIDEO_EXTENSIONS
from pipeline.errors import BadInput, MissingData
from pipeline.stores.clip_ids import clip_id
from pipeline.stores.manifest import SKIPPED, Manifest, VideoEntry
from pipeline.video.fetch import member_source
from pipeline.video.urls import fsspec_options, refusal

_COLUMNS = ("path", "video_id", "caption", "split", "start", "end")
_URLS = ("http", "https", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hf")
_CAPTION_BYTES = 1 << 20
_LIST_BYTES = 1 << 30  # a remote list is copied before it is read


def read_source(source: str, name: str, allow_private: bool = False) -> Manifest:
    """Build the manifest of a corpus other than a local folder.

    Args:
        source: A .tar or a pattern of tars, a list (.csv, .jsonl, .parquet), or a folder's URL. Local or remote.
        name: The manifest's name.
        allow_private: Whether http(s) URLs may redirect, and lead to private and loopback addresses.

    Raises:
        MissingData: There is nothing.
        BadInput: It cannot be read, or its URL may not be opened.
    """
    if source.endswith(".tar"):
        return tar_manifest(source, name, allow_private)
    if source.endswith(LISTS):
        return list_manifest(source, name, allow_private)
    return url_manifest(source, name, allow_private)


def url_manifest(url: str, name: str, allow_private: bool = False) -> Manifest:
    """List every video below a URL; files of other extensions are counted as skipped."""
    filesystem, path = _filesystem(url.rstrip("/"), allow_private)
    root = filesystem.unstrip_protocol(path) if "://" in url else path  # as the files are listed
    files = _listed(url.rstrip("/") + "/**", allow_private)
    entries, skipped = [], []
    for file in files:
        relative = file.removeprefix(root).lstrip("/")
        suffix = posixpath.splitext(file)[1].lower()
        if suffix in VIDEO_EXTENSIONS:
            entries.append(VideoEntry(relative, relative, "corpus"))
        else:
            skipped.append({"path": relative, "reason": f"{suffix or 'a name without extension'} is no video"})
    if not entries:
        raise MissingData(f"{url} holds no videos", got=f"{len(files)} files", fix="name the folder that holds them")
    return Manifest(name, root, tuple(entries), {"dataset": name, SKIPPED: skipped})


def tar_manifest(pattern: str, name: str, allow_private: bool = False) -> Manifest:
    """WebDataset: members that share their name up to its first dot are one sample."""
    entries: list[VideoEntry] = []
    skipped: list[dict[str, str]] = []
    for tar in _listed(pattern, allow_private):
        for key, members in _samples(tar, allow_private):
            videos = [member for member in members if member.suffix in VIDEO_EXTENSIONS]
            if not videos:
                reason = f"no video among {', '.join(member.suffix for member in members)}"
                skipped.append({"path": f"{tar}#{key}", "reason": reason})
                continue
            captions = tuple(text for member in members for text in member.captions)
            path = member_source(tar, videos[0].offset, videos[0].size)
            entries.append(VideoEntry(key, path, "test" if captions else "corpus", captions))
    if not entries:
        raise MissingData(f"{pattern} holds no videos", fix="name WebDataset tars, such as 'shards/*.tar'")
    root = posixpath.dirname(pattern) if "://" in pattern else os.path.dirname(os.path.abspath(pattern))
    return Manifest(name, root, tuple(entries), {"dataset": name, SKIPPED: skipped})


def list_manifest(source: str, name: str, allow_private: bool = False) -> Manifest:
    """Columns path, and optionally video_id, caption, split, start, end; a row a caption, an empty field not given.

    Without video_id a clip is called by its path, a window of it by `path#t=start,end` (seconds), so that the windows
    of one file are clips of their own. Rows of one clip may differ in the caption alone. Paths are URLs of a scheme in
    _URLS, or relative to the list; a path that leaves the list's folder is refused.
    """
    repairs = Repairs()
    with _local_copy(source, allow_private) as path:
        rows = read_list(path, ("path",), repairs)
    root = posixpath.dirname(source) if "://" in source else os.path.dirname(os.path.abspath(source))
    grouped: dict[str, list[VideoEntry]] = {}
    for row in rows:
        entry = _row_entry(row, root, repairs)
        grouped.setdefault(entry.video_id, []).append(entry)
    entries = tuple(_list_entry(group, f"{source}, video {video_id!r}") for video_id, group in grouped.items())
    return Manifest(name, root, entries, {"dataset": name, "repairs": repairs.to_json()})


@contextmanager
def _local_copy(source: str, allow_private: bool) -> Iterator[Path]:
    """The list itself, or a temporary copy of a remote one, for as long as the context lasts."""
    if "://" not in source:
        if not os.path.isfile(source):
            raise MissingData(f"there is no list {source}")
        yield Path(source)
        return
    filesystem, path = _filesystem(source, allow_private)
    with tempfile.TemporaryDirectory(prefix="list-") as folder:
        copy = Path(folder, posixpath.basename(source))
        try:
            with filesystem.open(path, "rb") as file:
                copy.write_bytes(_bounded(file, source))
        except Exception as error:  # each protocol's library raises its own
            if isinstance(error, FileNotFoundError) and not refusal(error):
                raise MissingData(f"there is no list {source}") from None
            raise refusal(error) or BadInput(f"{source} cannot be read ({error})") from None
        yield copy


def _bounded(file: Any, source: str) -> bytes:
    """A remote list's bytes; some servers state no length, so that only reading tells that there are too many."""
    pieces, left = [], _LIST_BYTES
    while piece := file.read(1 << 20):
        left -= len(piece)
        if left < 0:
            raise BadInput(f"{source} is too long for a list", expected=f"at most {_LIST_BYTES} bytes")
        pieces.append(piece)
    return b"".join(pieces)


def _row_entry(row: Row, root: str, repairs: Repairs) -> VideoEntry:
    """One row as an entry of its own, with one caption or none, and split "" where the row names none."""
    given = {key: row[key] for key in _COLUMNS if row.values.get(key) not in (None, "")}
    if "path" not in given:
        raise BadInput(f"{row.where}: no path", expected="columns path, video_id, caption")
    start, end = (_seconds(given.get(key), f"{row.where}: {key}") for key in ("start", "end"))
    video_id = _text(given.get("video_id", clip_id(str(given["path"]), start, end)))
    path = _allowed(_text(given["path"]), root, row.where)
    captions = clean_captions([str(given["caption"])], row.where, repairs) if "caption" in given else ()
    return VideoEntry(video_id, path, str(given.get("split", "")), captions, start, end)


def _list_entry(rows: list[VideoEntry], where: str) -> VideoEntry:
    """The one entry of rows that share a video_id."""
    first = rows[0]
    for name in ("path", "split", "start", "end"):
        values = dict.fromkeys(getattr(row, name) for row in rows)
        if len(values) > 1:
            raise BadInput(
                f"{where}: its rows differ in {name}",
                expected="rows that differ in the caption alone",
                got=", ".join(map(repr, values))[:120],
                fix="give each clip a video_id of its own",
            )
    captions = tuple(caption for row in rows for caption in row.captions)
    return replace(first, split=first.split or ("test" if captions else "corpus"), captions=captions)


def _seconds(value: Any, where: str) -> float | None:
    try:
        seconds = None if value is None else float(value)
    except (TypeError, ValueError, OverflowError):
        seconds = math.nan
    if seconds is not None and not math.isfinite(seconds):
        fix = "leave it empty where the clip has no such bound"
        raise BadInput(where, expected="seconds, such as 12.5", got=repr(value)[:80], fix=fix)
    return seconds


def _text(value: Any) -> str:
    """Half surrogate pairs, which JSON can write and no file can hold, become question marks."""
    return str(value).encode(errors="replace").decode()


def _allowed(path: str, root: str, where: str) -> str:
    """A URL as it is, a path relative to the list's folder. A list may come from anyone: what it names is never a file
    of this machine outside that folder."""
    if "::" in path:  # fsspec would chain file systems
        raise BadInput(f"{where}: path {path!r} holds '::'", fix="name the file itself, or rename it")
    scheme, separator, rest = path.partition("://")
    if separator:
        if scheme.lower() not in _URLS:
            raise BadInput(f"{where}: path {path!r} leaves the list's folder", expected=f"a URL of {', '.join(_URLS)}")
        return f"{scheme.lower()}://{rest}"
    if "://" not in root:
        return inside_folder(path, Path(root), where)
    if posixpath.isabs(path) or posixpath.normpath(path).split("/")[0] == "..":
        raise BadInput(f"{where}: path {path!r} leaves the list's folder", fix="use URLs, or paths inside that folder")
    return path


# -- tars


class _Member:
    def __init__(self, info: tarfile.TarInfo, suffix: str, captions: tuple[str, ...]):
        self.offset, self.size, self.suffix, self.captions = info.offset_data, info.size, suffix, captions


def _samples(tar: str, allow_private: bool) -> Iterator[tuple[str, list[_Member]]]:
    """(key, members) in the order of the tar. Only headers and captions are read."""
    import fsspec

    samples: dict[str, list[_Member]] = {}
    try:
        with (
            fsspec.open(tar, "rb", **fsspec_options(tar, allow_private)) as file,
            tarfile.open(fileobj=file, mode="r:") as archive,
        ):
            for info in archive:
                if info.isfile():
                    folder, base = posixpath.split(info.name)
                    stem, _, suffix = base.partition(".")
                    captions = _captions(archive, info, suffix)
                    key = posixpath.join(folder, stem)
                    samples.setdefault(key, []).append(_Member(info, f".{suffix.lower()}", captions))
    except (tarfile.TarError, OSError) as error:
        fix = "give uncompressed WebDataset tars"
        raise refusal(error) or BadInput(f"{tar} cannot be read as a tar ({error})", fix=fix) from None
    yield from samples.items()


def _captions(archive: tarfile.TarFile, info: tarfile.TarInfo, suffix: str) -> tuple[str, ...]:
    if suffix not in ("txt", "json") or info.size > _CAPTION_BYTES:
        return ()
    member = archive.extractfile(info)
    assert member is not None
    text = member.read().decode(errors="replace")
    if suffix == "txt":
        return tuple(line.strip() for line in text.splitlines() if line.strip())
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return ()
    found = (value.get("caption") or value.get("captions")) if isinstance(value, dict) else None
    texts = found if isinstance(found, list) else [found]
    return tuple(_text(text.strip()) for text in texts if isinstance(text, str) and text.strip())


def _filesystem(url: str, allow_private: bool) -> tuple[Any, str]:
    """What reads the URL, and the URL's path there."""
    import fsspec

    try:
        filesystem, path = fsspec.core.url_to_fs(url, **fsspec_options(url, allow_private))
    except ImportError as error:
        fix = "install that package (s3fs is in the extra s3, gcsfs reads gs://, adlfs az://)"
        raise BadInput(f"{url} cannot be read ({error})", fix=fix) from None
    except ValueError as error:
        raise BadInput(f"{url} cannot be read ({error})", expected="a path, or a URL of a kind fsspec knows") from None
    return filesystem, path


def _listed(pattern: str, allow_private: bool) -> list[str]:
    """Files that match, sorted, with their protocol."""
    filesystem, path = _filesystem(pattern, allow_private)
    try:
        found = filesystem.glob(path) if "*" in path else [path] if filesystem.exists(path) else []
    except OSError as error:
        fix = "check the URL and your credentials"
        raise refusal(error) or MissingData(f"{pattern} cannot be listed ({error})", fix=fix) from None
    files = [name for name in found if not filesystem.isdir(name)]
    if not files:
        raise MissingData(f"nothing at {pattern}", fix="check the path")
    return sorted(filesystem.unstrip_protocol(name) if "://" in pattern else name for name in files)
