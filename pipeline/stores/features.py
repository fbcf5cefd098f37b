"""The feature store: CLIP features of a corpus on disk, in shards, under one fingerprint.

    store.json          settings (the fingerprint's contents), shard format, media root
    videos-00000.h5     video_id, path, split, frame_embeds, frame_mask, frame_pts [, frame_tokens ...]
    texts-00000.h5      caption_id, video_id, split, caption, text_embeds [, text_tokens ...]
    failures.parquet    one row a video that could not be extracted; rebuilt from the shards' markers

Each video shard's marker says what became of every video given to it, so that inputs = done + failed + skipped can be
added up over the store at any time. A video may stand in several shards (a retry); the later shard wins.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import describe_difference, fingerprint
from pipeline.errors import BadInput, FingerprintMismatch, MissingData, StoreBusy
from pipeline.stores.atomic import atomic_write, read_json, remove_temporaries, write_json
from pipeline.stores.shards import SUFFIXES, Column, Ragged, read_marker, read_shard, verify_shard, write_shard

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Failure:
    """Why a video has no features; `attempts` counts the tries so far."""

    video_id: str
    path: str
    step: str
    error_class: str
    message: str
    attempts: int = 1


@dataclass(frozen=True)
class VideoFeatures:
    """V videos of F frames: frame_embeds (V, F, D) float16; frame_mask (V, F) bool, True where there is a frame;
    frame_pts (V, F) float64 presentation time in seconds, NaN where there is none."""

    video_ids: list[str]
    paths: list[str]
    splits: list[str]
    frame_embeds: np.ndarray
    frame_mask: np.ndarray
    frame_pts: np.ndarray

    def __len__(self) -> int:
        return len(self.video_ids)

    def select(self, rows: np.ndarray) -> "VideoFeatures":
        return VideoFeatures(**{name: _take(column, rows) for name, column in vars(self).items()})


@dataclass(frozen=True)
class TextFeatures:
    """T captions: text_embeds (T, D) float32; video_ids name the video that each belongs to."""

    caption_ids: list[str]
    video_ids: list[str]
    splits: list[str]
    captions: list[str]
    text_embeds: np.ndarray

    def __len__(self) -> int:
        return len(self.caption_ids)

    def select(self, rows: np.ndarray) -> "TextFeatures":
        return TextFeatures(**{name: _take(column, rows) for name, column in vars(self).items()})


def text_to_video(texts: TextFeatures, videos: VideoFeatures) -> np.ndarray:
    """(T,) int64: the row in `videos` of each caption's video (texts and videos of the same split)."""
    row = {video_id: index for index, video_id in enumerate(videos.video_ids)}
    return np.array([row[video_id] for video_id in texts.video_ids], dtype=np.int64)


class FeatureStore:
    """Open with `create` (to write) or `open` (to read)."""

    def __init__(self, path: Path, about: Mapping[str, Any]):
        self.path = Path(path)
        self.settings: dict[str, Any] = dict(about["settings"])
        self.shard_format: str = about["shard_format"]
        self.media_root: str = about["media_root"]

    @classmethod
    def create(
        cls, path: Path, settings: Mapping[str, Any], *, shard_format: str = "hdf5", media_root: str = ""
    ) -> "FeatureStore":
        """Make the store, or open the one that is there if it has the same settings (else FingerprintMismatch)."""
        if shard_format not in SUFFIXES:
            raise BadInput("unknown shard format", expected=sorted(SUFFIXES), got=repr(shard_format))
        path = Path(path)
        if (path / "store.json").exists():
            store = cls.open(path)
            store.require(settings, "extract into it")
            return store
        about = {
            "format_version": FORMAT_VERSION,
            "fingerprint": fingerprint(settings),
            "settings": dict(settings),
            "shard_format": shard_format,
            "media_root": media_root,
        }
        write_json(path / "store.json", about)
        return cls(path, about)

    @classmethod
    def open(cls, path: Path) -> "FeatureStore":
        """Raises MissingData when there is no store at `path`."""
        if not (Path(path) / "store.json").exists():
            raise MissingData(f"no feature store at {path}", fix="run `python cli.py extract` first")
        about = read_json(Path(path) / "store.json")
        if about.get("format_version") != FORMAT_VERSION:
            raise BadInput(
                f"{path}: store format",
                expected=FORMAT_VERSION,
                got=about.get("format_version"),
                fix="extract it again",
            )
        return cls(path, about)

    # -- what it is

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.settings)

    @property
    def dim(self) -> int:
        return int(self.settings["embed_dim"])

    @property
    def num_frames(self) -> int:
        return int(self.settings["num_frames"])

    def require(self, settings: Mapping[str, Any], purpose: str) -> None:
        """Refuse to mix: FingerprintMismatch naming each setting that differs."""
        if difference := describe_difference(self.settings, settings):
            raise FingerprintMismatch(
                f"cannot {purpose}: {self.path} was made with other settings ({difference})",
                fix="use the same settings, or another store (--workspace, or delete this one)",
            )

    # -- writing

    @contextmanager
    def lock(self, timeout: float = 0) -> Iterator[None]:
        """One writer at a time, over processes; StoreBusy after `timeout` seconds. A killed holder's lock is free.

        Whatever a killed writer left half-written is removed.
        """
        held = filelock.FileLock(self.path / ".lock", timeout=timeout)
        try:
            held.acquire()
        except filelock.Timeout:
            raise StoreBusy(
                f"another process is writing to {self.path}", fix="wait for it, or give --wait SECONDS"
            ) from None
        try:
            remove_temporaries(self.path)
            yield
        finally:
            held.release()

    def write_videos(
        self,
        columns: Mapping[str, Column],
        *,
        inputs: Sequence[str],
        failures: Sequence[Failure] = (),
        skipped: Sequence[str] = (),
        extra: Mapping[str, Any] | None = None,
    ) -> Path | None:
        """Write the next video shard and its account; ValueError when inputs != done + failed + skipped."""
        done = _strings(columns["video_id"])
        account = [*done, *(failure.video_id for failure in failures), *skipped]
        if sorted(account) != sorted(inputs):
            raise ValueError(f"{len(inputs)} inputs, but {len(account)} accounted for: a video would be lost silently")
        marker = {
            "failures": [asdict(failure) for failure in failures],
            "skipped": list(skipped),
            "counts": {"inputs": len(inputs), "done": len(done), "failed": len(failures), "skipped": len(skipped)},
            **(extra or {}),
        }
        return self._write_next("videos", columns, marker)

    def write_texts(self, columns: Mapping[str, Column]) -> Path:
        return self._write_next("texts", columns, {})

    def _write_next(self, kind: str, columns: Mapping[str, Column], marker: Mapping[str, Any]) -> Path:
        path = self.path / f"{kind}-{self.next_shard_index(kind):05d}{SUFFIXES[self.shard_format]}"
        write_shard(path, columns, marker=marker)
        vars(self).pop("_rows", None)
        return path

    def next_shard_index(self, kind: str) -> int:
        return max((int(path.stem.split("-")[1]) for path in self.shard_paths(kind)), default=-1) + 1

    # -- the account

    def shard_paths(self, kind: str) -> list[Path]:
        """Finished shards ("videos" or "texts"), in the order in which they were written."""
        suffix = SUFFIXES[self.shard_format]
        return [marker.with_suffix(suffix) for marker in sorted(self.path.glob(f"{kind}-*.json"))]

    def covered(self) -> dict[str, str]:
        """video_id -> "done", "failed" or "skipped"; a later shard wins, but a failed retry undoes nothing done."""
        status: dict[str, str] = {}
        for path in self.shard_paths("videos"):
            marker = read_marker(path)
            for video_id in _ids(path, "video_id"):
                status[video_id] = "done"
            outcome = {row["video_id"]: "failed" for row in marker["failures"]}
            outcome.update(dict.fromkeys(marker["skipped"], "skipped"))
            for video_id, what in outcome.items():
                if status.get(video_id) != "done":
                    status[video_id] = what
        return status

    def failures(self) -> list[Failure]:
        """The failures that still stand, the last attempt of each."""
        status = self.covered()
        last: dict[str, Failure] = {}
        for path in self.shard_paths("videos"):
            for row in read_marker(path)["failures"]:
                last[row["video_id"]] = Failure(**row)
        return [failure for video_id, failure in last.items() if status[video_id] == "failed"]

    def write_failures_table(self) -> None:
        rows = [asdict(failure) for failure in self.failures()]
        names = list(Failure.__dataclass_fields__)
        types = [pa.int64() if name == "attempts" else pa.string() for name in names]
        schema = pa.schema(list(zip(names, types, strict=True)))
        with atomic_write(self.path / "failures.parquet") as temporary:
            pq.write_table(pa.Table.from_pylist(rows, schema=schema), temporary)

    def text_ids(self) -> set[str]:
        return {name for path in self.shard_paths("texts") for name in _ids(path, "caption_id")}

    def verify(self) -> None:
        """Read everything and compare checksums; CorruptShard names the first that is wrong."""
        for kind in ("videos", "texts"):
            for path in self.shard_paths(kind):
                verify_shard(path)

    # -- reading

    @cached_property
    def _rows(self) -> dict[str, dict[str, tuple[int, int]]]:
        """kind -> id -> (shard number, row), the later shard winning; videos in order of first appearance."""
        places: dict[str, dict[str, tuple[int, int]]] = {}
        for kind, key in (("videos", "video_id"), ("texts", "caption_id")):
            places[kind] = {
                name: (number, row)
                for number, path in enumerate(self.shard_paths(kind))
                for row, name in enumerate(_ids(path, key))
            }
        return places

    def _gather(self, kind: str, name: str, mmap: bool = False) -> Column:
        """One column over all shards, one row an id. A single clean shard is handed out as it is: a map stays a map."""
        places = np.array(list(self._rows[kind].values()), dtype=np.int64).reshape(-1, 2)
        parts = [read_shard(path, [name], mmap=mmap)[name] for path in self.shard_paths(kind)]
        if not parts:
            raise MissingData(f"{self.path} holds no {kind}", fix="run `python cli.py extract`")
        starts = np.cumsum([0, *(len(part) for part in parts)])
        rows = starts[places[:, 0]] + places[:, 1]
        whole = _concatenate(parts)
        in_order = len(rows) == starts[-1] and np.array_equal(rows, np.arange(len(rows)))
        return whole if in_order else _take(whole, rows)

    def videos(self, split: str | None = None, *, mmap: bool = False) -> VideoFeatures:
        """Every done video, or those of one split. With mmap and a single shard the embeddings stay on disk."""
        ids, paths, splits = (_strings(self._gather("videos", name)) for name in ("video_id", "path", "split"))
        embeds, mask, pts = (
            _array(self._gather("videos", name, mmap and name == "frame_embeds"))
            for name in ("frame_embeds", "frame_mask", "frame_pts")
        )
        features = VideoFeatures(ids, paths, splits, embeds, mask, pts)
        return features if split is None else features.select(_where(features.splits, split))

    def texts(self, split: str | None = None) -> TextFeatures:
        """Captions of videos that are done, or of one split. A store without captions gives none."""
        if not self.shard_paths("texts"):
            return TextFeatures([], [], [], [], np.zeros((0, self.dim), np.float32))
        caption_ids, video_ids, splits, captions = (
            _strings(self._gather("texts", name)) for name in ("caption_id", "video_id", "split", "caption")
        )
        embeds = _array(self._gather("texts", "text_embeds")).astype(np.float32)
        features = TextFeatures(caption_ids, video_ids, splits, captions, embeds)
        done = self._rows["videos"]
        keep = [
            row
            for row, (video_id, own) in enumerate(zip(features.video_ids, features.splits, strict=True))
            if video_id in done and split in (None, own)
        ]
        return features if len(keep) == len(features) else features.select(np.array(keep, dtype=np.int64))

    def video_column(self, name: str, *, mmap: bool = True) -> Column:
        """An extra column (such as frame_tokens), in the order of `videos()`."""
        return self._gather("videos", name, mmap)

    def text_column(self, name: str, *, mmap: bool = True) -> Column:
        """An extra column (such as text_tokens) of every caption in the store, in the order of `caption_ids()`."""
        return self._gather("texts", name, mmap)

    def caption_ids(self) -> list[str]:
        return list(self._rows["texts"])

    def splits(self) -> list[str]:
        """The splits that have videos, each once."""
        return list(dict.fromkeys(_strings(self._gather("videos", "split"))))


def _strings(column: Column) -> list[str]:
    assert isinstance(column, list), "not a column of strings"
    return column


def _array(column: Column) -> np.ndarray:
    assert isinstance(column, np.ndarray), "not a column of arrays"
    return column


def _ids(path: Path, key: str) -> list[str]:
    return _strings(read_shard(path, [key])[key])


def _where(values: Sequence[str], wanted: str) -> np.ndarray:
    return np.flatnonzero(np.array(values, dtype=object) == wanted)


def _take(column: Any, rows: np.ndarray) -> Any:
    if isinstance(column, np.ndarray):
        return column[rows]
    if isinstance(column, Ragged):
        lengths = np.diff(column.offsets)[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        picked = [column.row(int(row)) for row in rows]
        return Ragged(np.concatenate(picked) if picked else column.values[:0], offsets)
    return [column[int(row)] for row in rows]


def _concatenate(parts: Sequence[Any]) -> Any:
    first = parts[0]
    if len(parts) == 1:
        return first
    if isinstance(first, np.ndarray):
        return np.concatenate(parts)
    if isinstance(first, Ragged):
        offsets, base = [first.offsets[:1]], 0
        for part in parts:
            offsets.append(part.offsets[1:] + base)
            base += int(part.offsets[-1])
        return Ragged(np.concatenate([part.values for part in parts]), np.concatenate(offsets))
    return [value for part in parts for value in part]
