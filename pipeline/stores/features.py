"""The feature store: CLIP features of a corpus on disk, in shards, under one fingerprint.

    store.json          settings (the fingerprint's contents), shard format, media root
    videos-00000.h5     video_id, path, split, frame_embeds, frame_mask, frame_pts [, frame_tokens ...]
    texts-00000.h5      caption_id, video_id, split, caption, text_embeds [, text_tokens ...]
    failures.parquet    one row a video that could not be extracted; rebuilt from the shards' markers

Each video shard's marker records the outcome of every input video, so inputs = done + failed + skipped holds per
shard. A retried video may appear in several shards; the latest one takes precedence.
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

from pipeline.errors import BadInput, CorruptShard, FingerprintMismatch, MissingData, StoreBusy
from pipeline.fingerprint import describe_difference, fingerprint
from pipeline.stores.atomic import atomic_write, remove_temporaries, write_json
from pipeline.stores.integrity import fits, read_json
from pipeline.stores.mapped import MappedRagged, MappedRows
from pipeline.stores.shards import SUFFIXES, Column, read_marker, read_shard, verify_shard, write_shard

FORMAT_VERSION = 1
_ABOUT = {"settings": dict[str, Any], "shard_format": str, "media_root": str}
_AMENDMENTS = {"video_splits": dict[str, str], "caption_splits": dict[str, str], "withdrawn": list[str]}
# On-disk column name -> dataclass field.
VIDEO_COLUMNS = {
    "video_id": "video_ids",
    "path": "paths",
    "split": "splits",
    "frame_embeds": "frame_embeds",
    "frame_mask": "frame_mask",
    "frame_pts": "frame_pts",
}
TEXT_COLUMNS = {
    "caption_id": "caption_ids",
    "video_id": "video_ids",
    "split": "splits",
    "caption": "captions",
    "text_embeds": "text_embeds",
}


@dataclass(frozen=True)
class Failure:
    """A failed attempt to extract the features of a video."""

    video_id: str
    path: str
    step: str
    """Extraction step that failed."""
    error_class: str
    message: str
    attempts: int = 1
    """Number of attempts so far."""


@dataclass(frozen=True)
class VideoFeatures:
    """Frame features of V videos with F frames each."""

    video_ids: list[str]
    paths: list[str]
    splits: list[str]
    frame_embeds: np.ndarray
    """(V, F, D) float16."""
    frame_mask: np.ndarray
    """(V, F) bool, True for valid frames."""
    frame_pts: np.ndarray
    """(V, F) float64, presentation time in seconds; NaN for missing frames."""

    def __len__(self) -> int:
        return len(self.video_ids)

    def select(self, rows: np.ndarray) -> "VideoFeatures":
        return VideoFeatures(**{name: _take(column, rows) for name, column in vars(self).items()})


@dataclass(frozen=True)
class TextFeatures:
    """Text features of T captions."""

    caption_ids: list[str]
    video_ids: list[str]
    """Video that each caption describes."""
    splits: list[str]
    captions: list[str]
    text_embeds: np.ndarray
    """(T, D) float32."""

    def __len__(self) -> int:
        return len(self.caption_ids)

    def select(self, rows: np.ndarray) -> "TextFeatures":
        return TextFeatures(**{name: _take(column, rows) for name, column in vars(self).items()})


def text_to_video(texts: TextFeatures, videos: VideoFeatures) -> np.ndarray:
    """Map each caption to the row of its video.

    Args:
        texts: T captions.
        videos: videos of the same split as `texts`.

    Returns:
        (T,) int64 row indices into `videos`.

    Raises:
        KeyError: a caption's video is not in `videos`.
    """
    row = {video_id: index for index, video_id in enumerate(videos.video_ids)}
    return np.array([row[video_id] for video_id in texts.video_ids], dtype=np.int64)


class FeatureStore:
    """Sharded on-disk store of video and text features; use `create` for writing and `open` for reading."""

    def __init__(self, path: Path, about: Mapping[str, Any]):
        self.path = Path(path)
        self.settings: dict[str, Any] = dict(about["settings"])
        self.shard_format: str = about["shard_format"]
        self.media_root: str = about["media_root"]

    @classmethod
    def create(
        cls, path: Path, settings: Mapping[str, Any], *, shard_format: str = "hdf5", media_root: str = ""
    ) -> "FeatureStore":
        """Create a store, or open the existing one at `path`.

        Args:
            path: folder of the store.
            settings: extraction settings, which determine the fingerprint.
            shard_format: "hdf5" or "parquet"; ignored if the store exists.
            media_root: folder that video paths are relative to; ignored if the store exists.

        Raises:
            BadInput: unknown shard format, or an unsupported store format version.
            FingerprintMismatch: the existing store has other settings.
        """
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
        """Open an existing store.

        Raises:
            MissingData: there is no store at `path`.
            BadInput: the store has an unsupported format version.
        """
        if not (Path(path) / "store.json").exists():
            raise MissingData(f"no feature store at {path}", fix="run `python cli.py extract` first")
        about = read_json(Path(path) / "store.json", ("format_version",), _ABOUT)
        if about.get("format_version") != FORMAT_VERSION:
            raise BadInput(
                f"{path}: store format",
                expected=FORMAT_VERSION,
                got=about.get("format_version"),
                fix="extract it again",
            )
        if about["shard_format"] not in SUFFIXES:
            raise CorruptShard(
                f"{path}/store.json is damaged",
                expected=sorted(SUFFIXES),
                got=about["shard_format"],
                fix="extract again",
            )
        return cls(path, about)

    # -- properties

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.settings)

    @property
    def dim(self) -> int:
        return self._count("embed_dim")

    @property
    def num_frames(self) -> int:
        return self._count("num_frames")

    def _count(self, name: str) -> int:
        value = self.settings.get(name)
        if not fits(value, int):
            raise CorruptShard(f"{self.path}/store.json, {name}", expected="a number", got=value, fix="extract again")
        return int(self.settings[name])

    @property
    def cache_settings(self) -> dict[str, Any]:
        """Activation-cache settings; they do not affect embeddings."""
        return {name: self.settings.get(name) for name in ("cache_blocks", "token_dtype") if name in self.settings}

    def require(self, settings: Mapping[str, Any], purpose: str) -> None:
        """Raise FingerprintMismatch, listing the differences, unless the store was made with `settings`."""
        if difference := describe_difference(self.settings, settings):
            raise FingerprintMismatch(
                f"cannot {purpose}: {self.path} was made with other settings ({difference})",
                fix="use the same settings, or another store (--workspace, or delete this one)",
            )

    # -- writing

    def move_media(self, root: str) -> None:
        """Update the stored media root; no files are moved."""
        write_json(self.path / "store.json", {**read_json(self.path / "store.json"), "media_root": root})
        self.media_root = root

    @contextmanager
    def lock(self, timeout: float = 0) -> Iterator[None]:
        """Hold the inter-process write lock and remove temporary files of interrupted writers.

        The lock is released automatically if the process is killed.

        Args:
            timeout: seconds to wait for the lock.

        Raises:
            StoreBusy: another process still holds the lock after `timeout`.
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
        videos: VideoFeatures,
        *,
        inputs: Sequence[str],
        failures: Sequence[Failure] = (),
        skipped: Sequence[str] = (),
        activations: Mapping[str, Column] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> Path:
        """Write the next video shard and its marker.

        Args:
            videos: features of the V successfully extracted videos.
            inputs: ids of all videos assigned to the shard.
            failures: inputs that failed.
            skipped: ids of inputs that were skipped.
            activations: columns from `activations.frame_columns`, V rows each.
            extra: additional marker fields.

        Returns:
            Path of the shard.

        Raises:
            ValueError: inputs != done + failed + skipped.
        """
        done = videos.video_ids
        account = [*done, *(failure.video_id for failure in failures), *skipped]
        if sorted(account) != sorted(inputs):
            raise ValueError(f"{len(inputs)} inputs, but {len(account)} accounted for: a video would be lost silently")
        marker = {
            "failures": [asdict(failure) for failure in failures],
            "skipped": list(skipped),
            "counts": {"inputs": len(inputs), "done": len(done), "failed": len(failures), "skipped": len(skipped)},
            **(extra or {}),
        }
        return self._write_next("videos", _stored(videos, VIDEO_COLUMNS) | dict(activations or {}), marker)

    def write_texts(self, texts: TextFeatures, *, activations: Mapping[str, Column] | None = None) -> Path:
        """Write the next text shard, with optional columns from `activations.text_columns`; return its path."""
        return self._write_next("texts", _stored(texts, TEXT_COLUMNS) | dict(activations or {}), {})

    def _write_next(self, kind: str, columns: Mapping[str, Column], marker: Mapping[str, Any]) -> Path:
        path = self.path / f"{kind}-{self.next_shard_index(kind):05d}{SUFFIXES[self.shard_format]}"
        write_shard(path, columns, marker=marker)
        vars(self).pop("_rows", None)
        return path

    def next_shard_index(self, kind: str) -> int:
        return max((int(path.stem.split("-")[1]) for path in self.shard_paths(kind)), default=-1) + 1

    def amend(self, video_splits: Mapping[str, str], caption_splits: Mapping[str, str]) -> None:
        """Override stored splits and hide withdrawn captions, without rewriting shards.

        Captions of the given videos that `caption_splits` omits are hidden. Overrides are saved in amendments.json.

        Args:
            video_splits: video_id -> split.
            caption_splits: caption_id -> split.
        """
        old = self._amendments
        now: dict[str, Any] = {"video_splits": {}, "caption_splits": {}, "withdrawn": []}
        for name, split in self._recorded_splits("videos"):
            wanted = video_splits.get(name, old["video_splits"].get(name, split))
            if wanted != split:
                now["video_splits"][name] = wanted
        before = set(old["withdrawn"])
        owners = self._strings("texts", "video_id")
        for (name, split), video_id in zip(self._recorded_splits("texts"), owners, strict=True):
            wanted = caption_splits.get(name, old["caption_splits"].get(name, split))
            if wanted != split:
                now["caption_splits"][name] = wanted
            if name not in caption_splits if video_id in video_splits else name in before:
                now["withdrawn"].append(name)
        if now != old:
            write_json(self.path / "amendments.json", now)
            vars(self).pop("_amendments", None)

    # -- status

    def shard_paths(self, kind: str) -> list[Path]:
        """List the finished shards of `kind` ("videos" or "texts") in write order."""
        suffix = SUFFIXES[self.shard_format]
        return [marker.with_suffix(suffix) for marker in sorted(self.path.glob(f"{kind}-*.json"))]

    def covered(self) -> dict[str, str]:
        """Return video_id -> "done", "failed" or "skipped"; the latest shard wins, but "done" is final."""
        status: dict[str, str] = {}
        for path in self.shard_paths("videos"):
            marker = _video_marker(path)
            for video_id in _string_column(path, "video_id"):
                status[video_id] = "done"
            outcome = {row["video_id"]: "failed" for row in marker["failures"]}
            outcome.update(dict.fromkeys(marker["skipped"], "skipped"))
            for video_id, what in outcome.items():
                if status.get(video_id) != "done":
                    status[video_id] = what
        return status

    def failures(self) -> list[Failure]:
        """Return the latest failure of each video that is still failed."""
        status = self.covered()
        last: dict[str, Failure] = {}
        for path in self.shard_paths("videos"):
            for row in _video_marker(path)["failures"]:
                last[row["video_id"]] = Failure(**row)
        return [failure for video_id, failure in last.items() if status[video_id] == "failed"]

    def write_failures_table(self) -> None:
        rows = [asdict(failure) for failure in self.failures()]
        names = list(Failure.__dataclass_fields__)
        types = [pa.int64() if name == "attempts" else pa.string() for name in names]
        schema = pa.schema(list(zip(names, types, strict=True)))
        with atomic_write(self.path / "failures.parquet") as temporary:
            pq.write_table(pa.Table.from_pylist(rows, schema=schema), temporary)

    def verify(self) -> None:
        """Check every shard's checksum; raise CorruptShard at the first mismatch."""
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
                for row, name in enumerate(_string_column(path, key))
            }
        return places

    def _places(self, kind: str) -> np.ndarray:
        """(n, 2): the shard's number and the row in it, for each id in order."""
        return np.array(list(self._rows[kind].values()), dtype=np.int64).reshape(-1, 2)

    def _strings(self, kind: str, name: str) -> list[str]:
        parts = [_string_column(path, name) for path in self.shard_paths(kind)]
        return [parts[number][row] for number, row in self._places(kind).tolist()]

    def _mapped(self, kind: str, name: str) -> MappedRows:
        parts: Any = [read_shard(path, [name], mmap=True)[name] for path in self.shard_paths(kind)]
        if not parts:
            raise MissingData(f"{self.path} holds no {kind}", fix="run `python cli.py extract`")
        return MappedRows(parts, self._places(kind))

    @cached_property
    def _amendments(self) -> dict[str, Any]:
        path = self.path / "amendments.json"
        return (
            read_json(path, _AMENDMENTS)
            if path.exists()
            else {"video_splits": {}, "caption_splits": {}, "withdrawn": []}
        )

    def _recorded_splits(self, kind: str) -> Iterator[tuple[str, str]]:
        """(id, split) of each row, as the shards have it."""
        return zip(self._rows[kind], self._strings(kind, "split"), strict=True)

    def _splits(self, kind: str) -> list[str]:
        """The split of each row, as the manifest said it last."""
        now = self._amendments["video_splits" if kind == "videos" else "caption_splits"]
        return [now.get(name, split) for name, split in self._recorded_splits(kind)]

    def videos(self, split: str | None = None, *, mmap: bool = False) -> VideoFeatures:
        """Read the features of extracted videos.

        Args:
            split: read this split only; None reads all.
            mmap: keep `frame_embeds` on disk as a MappedRows.

        Raises:
            MissingData: the store has no video shard.
        """
        columns = {name: self._mapped("videos", name) for name in ("frame_embeds", "frame_mask", "frame_pts")}
        splits = self._splits("videos")
        rows = np.arange(len(splits)) if split is None else _where(splits, split)
        embeds: Any = columns["frame_embeds"].select(rows)
        return VideoFeatures(
            _take(list(self._rows["videos"]), rows),
            _take(self._strings("videos", "path"), rows),
            _take(splits, rows),
            embeds if mmap else embeds[:],
            columns["frame_mask"][rows],
            columns["frame_pts"][rows],
        )

    def texts(self, split: str | None = None) -> TextFeatures:
        """Read the captions of extracted videos, optionally of one split; empty if the store has no captions."""
        if not self.shard_paths("texts"):
            return TextFeatures([], [], [], [], np.zeros((0, self.dim), np.float32))
        caption_ids, video_ids = list(self._rows["texts"]), self._strings("texts", "video_id")
        splits, done, withdrawn = self._splits("texts"), self._rows["videos"], set(self._amendments["withdrawn"])
        rows = np.array(
            [
                row
                for row, (caption_id, video_id, own) in enumerate(zip(caption_ids, video_ids, splits, strict=True))
                if video_id in done and caption_id not in withdrawn and split in (None, own)
            ],
            dtype=np.int64,
        )
        return TextFeatures(
            _take(caption_ids, rows),
            _take(video_ids, rows),
            _take(splits, rows),
            _take(self._strings("texts", "caption"), rows),
            self._mapped("texts", "text_embeds")[rows].astype(np.float32),
        )

    def frame_activations(self, video_ids: Sequence[str]) -> dict[str, MappedRows]:
        """Return the cached activation columns of the given videos, in order; decode with `activations.restore`."""
        columns = self._cached("videos", ("frame_tokens", "frame_token_scale"), video_ids)
        return {name: MappedRows(parts, places) for name, (parts, places) in columns.items()}

    def text_activations(self, caption_ids: Sequence[str]) -> dict[str, MappedRagged]:
        """Return the cached activation columns of the given captions, as ragged rows without padding."""
        columns = self._cached("texts", ("text_tokens", "text_token_scale"), caption_ids)
        return {name: MappedRagged(parts, places) for name, (parts, places) in columns.items()}

    def _cached(self, kind: str, names: Sequence[str], ids: Sequence[str]) -> dict[str, tuple[Any, np.ndarray]]:
        """Those of the columns that the shards have: their parts, mapped, and the place of each id in them."""
        places = np.array([self._rows[kind][name] for name in ids], dtype=np.int64).reshape(-1, 2)
        paths = self.shard_paths(kind)
        there = [name for name in names if name in read_marker(paths[0])["columns"]]
        return {name: ([read_shard(path, [name], mmap=True)[name] for path in paths], places) for name in there}

    def splits(self) -> list[str]:
        """List the distinct splits that have videos."""
        return list(dict.fromkeys(self._splits("videos")))


def _stored(features: VideoFeatures | TextFeatures, columns: Mapping[str, str]) -> dict[str, Column]:
    """A shard's columns of features, by the names that they have on disk."""
    return {name: getattr(features, field) for name, field in columns.items()}


def _video_marker(path: Path) -> dict[str, Any]:
    marker = read_marker(path)
    for row in marker["failures"]:
        if set(row) != set(Failure.__dataclass_fields__) or not fits(row, dict[str, str | int]):
            raise CorruptShard(
                f"the marker of {path} is damaged",
                got=f"a failure {row}"[:200],
                fix="delete both and run extract again",
            )
    return marker


def _string_column(path: Path, name: str) -> list[str]:
    column = read_shard(path, [name])[name]
    assert isinstance(column, list), f"{name} is not a column of strings"
    return column


def _where(values: Sequence[str], wanted: str) -> np.ndarray:
    return np.flatnonzero(np.array(values, dtype=object) == wanted)


def _take(column: Any, rows: np.ndarray) -> Any:
    if isinstance(column, MappedRows):
        return column.select(rows)
    return column[rows] if isinstance(column, np.ndarray) else [column[int(row)] for row in rows]
