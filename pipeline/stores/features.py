"""The feature store: CLIP features of a corpus on disk, in shards, under one fingerprint.

    store.json          settings (the fingerprint's contents), shard format, media root
    videos-00000.h5     video_id, path, split, frame_embeds, frame_mask, frame_pts [, frame_tokens ...]
    texts-00000.h5      caption_id, video_id, split, caption, text_embeds [, text_tokens ...]
    failures.parquet    one row a video that could not be extracted; rebuilt from the shards' markers
    catalogue/          one table of what all shards hold (pipeline.stores.catalogue); rebuilt where missing or behind

Each video shard's marker records the outcome of every input video, so inputs = done + failed + skipped holds per
shard. A retried video may appear in several shards; the latest one takes precedence. Shards made since sources are
recorded also hold each clip's start, end, and its file's size, mtime and digest (`catalogue.SOURCE_COLUMNS`).
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import remote
from pipeline.errors import BadInput, CorruptShard, FingerprintMismatch, MissingData, StoreBusy
from pipeline.fingerprint import SourceFile, describe_difference, fingerprint
from pipeline.stores.atomic import atomic_write, remove_temporaries, write_json
from pipeline.stores.catalogue import (
    FAILED,
    SOURCE_COLUMNS,
    TEXT_SCHEMA,
    Catalogue,
    Covered,
    shards_in,
    to_stored,
    video_schema,
)
from pipeline.stores.integrity import fits, read_json
from pipeline.stores.mapped import LazyParts, MappedRagged, MappedRows, mapped_file, shard_column
from pipeline.stores.shards import SUFFIXES, Column, marker_path, verify_shard, write_shard
from pipeline.stores.strings import Strings, as_arrow, last_of_each, lookup

FORMAT_VERSION = 1
# Files of shards that are written without the lock (`--shard`, Ray): `videos-00003-0123456789abcdef.h5`.
_WITHOUT_LOCK = re.compile(r"(videos|texts)-\d+-[0-9a-f]{16}\.")
_ABOUT = {"settings": dict[str, Any], "shard_format": str, "media_root": str}
_AMENDMENTS = {"video_splits": dict[str, str], "caption_splits": dict[str, str], "withdrawn": list[str]}
_HIDDEN = {"gone": list[str], "stale": list[str], "files": dict[str, Any]}  # what amendments may hold besides
# On-disk column name -> dataclass field.
VIDEO_COLUMNS = {
    "video_id": "video_ids",
    "path": "paths",
    "split": "splits",
    "frame_embeds": "frame_embeds",
    "frame_mask": "frame_mask",
    "frame_pts": "frame_pts",
}
_FRAME_COLUMNS = ("frame_embeds", "frame_mask", "frame_pts")
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
class ClipSource:
    """Where a clip came from: its window in seconds, its file as `fingerprint.source_file` saw it; None: unknown."""

    start: float | None = None
    end: float | None = None
    size: int | None = None
    """Bytes of the file."""
    mtime: int | None = None
    """Nanoseconds since the epoch."""
    digest: str | None = None
    """`fingerprint.content_digest`."""


@dataclass(frozen=True)
class VideoFeatures:
    """Frame features of V videos with F frames each."""

    video_ids: Sequence[str]
    paths: Sequence[str]
    splits: Sequence[str]
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

    caption_ids: Sequence[str]
    video_ids: Sequence[str]
    """Video that each caption describes."""
    splits: Sequence[str]
    captions: Sequence[str]
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
    rows = lookup(texts.video_ids, videos.video_ids)
    if (rows < 0).any():
        raise KeyError(texts.video_ids[int(np.argmin(rows))])
    return rows


class FeatureStore:
    """Sharded on-disk store of video and text features; use `create` for writing and `open` for reading."""

    def __init__(self, path: Path, about: Mapping[str, Any]):
        self.path = Path(path)
        self.settings: dict[str, Any] = dict(about["settings"])
        self.shard_format: str = about["shard_format"]
        self.media_root: str = remote.local(about["media_root"])
        self._catalogues: dict[str, Catalogue] = {}
        self._written: set[str] = set()  # kinds whose catalogue lags behind what this object wrote
        self._locked = False

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
            "media_root": remote.portable(media_root),
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

    def locate(self, path: str) -> str:
        """Where a path of the store lies: a relative one below the media root; absolute ones and URLs as they are."""
        if "://" in path or Path(path).is_absolute():
            return path
        return f"{self.media_root.rstrip('/')}/{path}"

    # -- writing

    def move_media(self, root: str) -> None:
        """Update the stored media root; no files are moved."""
        write_json(
            self.path / "store.json", {**read_json(self.path / "store.json"), "media_root": remote.portable(root)}
        )
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
            with remote.exclusive(self.path, timeout):
                remove_temporaries(self.path, keep=_WITHOUT_LOCK)
                self._written.update(self._catalogues)  # another may have written before we held the lock
                self._locked = True
                yield
                self.save_catalogue()
        finally:
            self._locked = False
            held.release()

    def write_videos(
        self,
        videos: VideoFeatures,
        *,
        inputs: Sequence[str],
        failures: Sequence[Failure] = (),
        skipped: Sequence[str] = (),
        sources: Sequence[ClipSource] | None = None,
        failure_sources: Mapping[str, ClipSource] | None = None,
        activations: Mapping[str, Column] | None = None,
        extra: Mapping[str, Any] | None = None,
        stem: str | None = None,
    ) -> Path:
        """Write a video shard and its marker.

        Args:
            videos: features of the V successfully extracted videos.
            inputs: ids of all videos assigned to the shard.
            failures: inputs that failed.
            skipped: ids of inputs that were skipped.
            sources: window and file of each of the V videos; left out where nothing is known.
            failure_sources: the same by id, of the failures where it is known.
            activations: columns from `activations.frame_columns`, V rows each.
            extra: additional marker fields.
            stem: file name without suffix, `videos-NUMBER-KEY`, of a shard that several processes may write: whoever
                comes later leaves it as it is. Default: the next number, under the lock.

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
            **({"sources": {name: asdict(s) for name, s in failure_sources.items()}} if failure_sources else {}),
            **(extra or {}),
        }
        columns = _stored(videos, VIDEO_COLUMNS) | dict(activations or {})
        if sources is not None:
            columns |= {name: to_stored(name, [getattr(source, name) for source in sources]) for name in SOURCE_COLUMNS}
        return self._write("videos", stem, columns, marker)

    def write_texts(
        self, texts: TextFeatures, *, activations: Mapping[str, Column] | None = None, stem: str | None = None
    ) -> Path:
        """Write a text shard, with optional columns from `activations.text_columns`; return its path. `stem`: as for
        `write_videos`."""
        return self._write("texts", stem, _stored(texts, TEXT_COLUMNS) | dict(activations or {}), {})

    def _write(self, kind: str, stem: str | None, columns: Mapping[str, Column], marker: Mapping[str, Any]) -> Path:
        stem = stem or f"{kind}-{self.next_shard_index(kind):05d}"
        path = self.path / f"{stem}{SUFFIXES[self.shard_format]}"
        if not marker_path(path).exists():
            write_shard(path, columns, marker=marker)
        self._written.add(kind)
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
        owners = self._texts.strings("video_id")
        hidden = lookup(self._texts.ids, old["withdrawn"]) >= 0
        told = lookup(owners, list(video_splits)) >= 0
        hidden = np.where(told, lookup(self._texts.ids, list(caption_splits)) < 0, hidden)
        now: dict[str, Any] = {
            **old,
            "video_splits": _changed(self._videos, old["video_splits"], video_splits),
            "caption_splits": _changed(self._texts, old["caption_splits"], caption_splits),
            "withdrawn": self._texts.ids.take(np.flatnonzero(hidden)).tolist(),
        }
        self._write_amendments(now)

    def set_aside(self, gone: Collection[str], stale: Collection[str], files: Mapping[str, SourceFile]) -> None:
        """Record in amendments.json which videos are hidden until their files are there and extracted again.

        Args:
            gone: ids whose files are not there. Their features stay in the shards.
            stale: ids whose features are of an older version of the file. Until such a video is extracted again its
                latest outcome counts, though an earlier one was "done".
            files: id -> what its file looks like now, where that differs from what its shard recorded although the
                content is the same.
        """
        told = {"gone": sorted(gone), "stale": sorted(stale), "files": {i: astuple(f) for i, f in files.items()}}
        now = {**self._amendments, **told}
        self._write_amendments({name: value for name, value in now.items() if value or name not in told})

    def _write_amendments(self, now: Mapping[str, Any]) -> None:
        if now != self._amendments:
            write_json(self.path / "amendments.json", now)
            vars(self).pop("_amendments", None)

    @property
    def gone(self) -> set[str]:
        """Ids that are hidden because their files are not there."""
        return set(self._amendments.get("gone", ()))

    @property
    def stale(self) -> set[str]:
        """Ids that are hidden because their features are of an older version of the file."""
        return set(self._amendments.get("stale", ()))

    @property
    def seen_files(self) -> dict[str, SourceFile]:
        """What `set_aside` recorded of files."""
        return {name: SourceFile(*values) for name, values in self._amendments.get("files", {}).items()}

    def _visible(self, ids: Any) -> np.ndarray:
        """(n,) bool: whether each of these video ids is neither gone nor stale."""
        hidden = sorted(self.gone | self.stale)
        return lookup(ids, hidden) < 0 if hidden else np.ones(len(ids), bool)

    # -- status

    def shard_paths(self, kind: str) -> list[Path]:
        """List the finished shards of `kind` ("videos" or "texts") in write order."""
        return [self.path / name for name, _, _ in shards_in(self.path, kind, SUFFIXES[self.shard_format])]

    def has_shard(self, stem: str) -> bool:
        """Whether the shard of this name is finished."""
        return marker_path(self.path / f"{stem}{SUFFIXES[self.shard_format]}").exists()

    def covered(self) -> Covered:
        """Return video_id -> "done", "failed" or "skipped"; the latest shard wins, but "done" is final unless the file
        has changed since (`set_aside`)."""
        covered = self._videos.covered
        if not (stale := sorted(self.stale)):
            return covered
        rows, codes = lookup(stale, covered.ids), covered.codes.copy()
        codes[rows[rows >= 0]] = self._videos.latest_codes[rows[rows >= 0]]
        return Covered(covered.ids, codes)

    def failures_table(self) -> pa.Table:
        """The latest failure of each video that is still failed and whose file is not gone, as columns of `Failure`."""
        events = self._videos.events
        failed = np.flatnonzero(self._videos.status == FAILED)
        last = events.take(pa.array(failed[last_of_each(as_arrow(events["video_id"].take(pa.array(failed))))]))
        still = self.covered().codes_of(last["video_id"]) == FAILED
        if gone := sorted(self.gone):
            still &= lookup(last["video_id"], gone) < 0
        return last.filter(pa.array(still)).select(list(Failure.__dataclass_fields__))

    def failures(self) -> list[Failure]:
        """Return the latest failure of each video that is still failed."""
        return [Failure(**row) for row in self.failures_table().to_pylist()]

    def write_failures_table(self) -> None:
        names = list(Failure.__dataclass_fields__)
        types = [pa.int64() if name == "attempts" else pa.string() for name in names]
        table = self.failures_table().cast(pa.schema(list(zip(names, types, strict=True))))
        with atomic_write(self.path / "failures.parquet") as temporary:
            pq.write_table(table, temporary)

    def clips(self) -> pa.Table:
        """What the store knows of each clip that has features, hidden ones too, in the order of `videos()`.

        Returns:
            video_id, path, split (as extracted), start, end (seconds), size (bytes), mtime (ns since the epoch), digest
            of the file (`fingerprint.content_digest`), shard, row; null where it is not known.
        """
        names = ("video_id", "path", "split", *SOURCE_COLUMNS, "shard", "row")
        return self._videos.current().select(list(names))

    def latest_outcomes(self) -> pa.Table:
        """The latest outcome of each id, with the columns of `outcomes`."""
        events = self.outcomes()
        return events.take(pa.array(last_of_each(as_arrow(events["video_id"]))))

    def last_video_shard(self) -> int:
        """The number of the last shard of videos when this object looked last; -1 where there is none."""
        records = self._videos.records
        return _shard_number(records[-1].name) if records else -1

    def written_after(self, video_ids: Sequence[str], shard: int) -> list[str]:
        """Those of the ids whose features stand in a shard of a higher number: extracted again since then."""
        held = self._videos
        rows = held.row_of(video_ids)
        numbers = np.array([_shard_number(record.name) for record in held.records] + [-1])
        later = numbers[np.where(rows < 0, -1, held.places[rows, 0] if len(held.places) else -1)] > shard
        return [video_ids[row] for row in np.flatnonzero(later).tolist()]

    def outcomes(self) -> pa.Table:
        """Every outcome in every shard, in write order: the catalogue's own table (`catalogue.video_schema`).

        `status` is a code of `catalogue.STATUS`; the last row of an id is its latest outcome.
        """
        return self._videos.events

    def verify(self) -> None:
        """Check every shard's checksum; raise CorruptShard at the first mismatch."""
        for kind in ("videos", "texts"):
            for path in self.shard_paths(kind):
                verify_shard(path)

    # -- reading

    def _catalogue(self, kind: str, schema: pa.Schema) -> Catalogue:
        """The catalogue of one kind, brought up to date if it was not read yet or shards were written since."""
        if kind in self._catalogues and kind not in self._written:
            return self._catalogues[kind]
        known = self._catalogues.get(kind) or Catalogue.read(self.path, kind, schema)
        now = known.refreshed(self.path, SUFFIXES[self.shard_format])
        if now is not known and not self._locked:  # a writer keeps it once, at its end
            now.save(self.path)
        self._catalogues[kind] = now
        self._written.discard(kind)
        return now

    @property
    def _videos(self) -> Catalogue:
        return self._catalogue("videos", video_schema(self.num_frames))

    @property
    def _texts(self) -> Catalogue:
        return self._catalogue("texts", TEXT_SCHEMA)

    def save_catalogue(self) -> None:
        """Bring catalogue/ up to date with the shards, as far as the folder can be written."""
        for now, schema in ((self._videos, video_schema(self.num_frames)), (self._texts, TEXT_SCHEMA)):
            if Catalogue.read(self.path, now.kind, schema).records != now.records:
                now.save(self.path)

    def _parts(self, catalogue: Catalogue, name: str) -> LazyParts:
        def part(number: int) -> Any:
            record = catalogue.records[number]
            path, about = self.path / record.name, record.columns[name]
            if about.get("offset") is None:
                return shard_column(path, name, record.marker)
            shape = (record.rows, *about["shape"])
            return np.ndarray(shape, about["dtype"], mapped_file(path, record.marker), about["offset"])

        return LazyParts(len(catalogue.records), part)

    def _mapped(self, catalogue: Catalogue, name: str) -> MappedRows:
        if not catalogue.records:
            raise MissingData(f"{self.path} holds no {catalogue.kind}", fix="run `python cli.py extract`")
        parts: Any = self._parts(catalogue, name)
        return MappedRows(parts, catalogue.places)

    @cached_property
    def _amendments(self) -> dict[str, Any]:
        path = self.path / "amendments.json"
        return (
            read_json(path, _AMENDMENTS, _HIDDEN)
            if path.exists()
            else {"video_splits": {}, "caption_splits": {}, "withdrawn": []}
        )

    def _splits(self, catalogue: Catalogue) -> Strings:
        """The split of each row, as the manifest said it last."""
        amended = self._amendments["video_splits" if catalogue.kind == "videos" else "caption_splits"]
        recorded = catalogue.strings("split")
        if not amended:
            return recorded
        place = lookup(catalogue.ids, list(amended))
        told = pa.array(list(amended.values()), pa.large_string()).take(pa.array(np.maximum(place, 0)))
        return Strings(pc.if_else(pa.array(place >= 0), told, recorded.arrow))

    def videos(self, split: str | None = None, *, mmap: bool = False, with_hidden: bool = False) -> VideoFeatures:
        """Read the features of extracted videos.

        Args:
            split: read this split only; None reads all.
            mmap: keep `frame_embeds` and `frame_pts` on disk, as MappedRows.
            with_hidden: also those whose files are gone or have changed since; a live index may still hold them.

        Raises:
            MissingData: the store has no video shard.
        """
        held = self._videos
        columns: list[Any] = [self._mapped(held, name) for name in ("frame_embeds", "frame_pts")]
        splits = self._splits(held)
        rows = np.arange(len(splits)) if split is None else _where(splits, split)
        if not with_hidden:
            rows = rows[self._visible(held.ids)[rows]]
        embeds, pts = (column.select(rows) if mmap else column[rows] for column in columns)
        return VideoFeatures(
            held.ids.take(rows),
            held.strings("path").take(rows),
            splits.take(rows),
            embeds,
            held.frame_mask()[rows],
            pts,
        )

    def texts(self, split: str | None = None, *, mmap: bool = False) -> TextFeatures:
        """Read the captions of extracted videos, optionally of one split; empty if the store has no captions.

        Args:
            split: read this split only; None reads all.
            mmap: keep `text_embeds` on disk, as MappedRows in the type that is stored.
        """
        held = self._texts
        if not held.records:
            return TextFeatures([], [], [], [], np.zeros((0, self.dim), np.float32))
        owners, splits = held.strings("video_id"), self._splits(held)
        wanted = (self._videos.row_of(owners) >= 0) & self._visible(owners)
        if withdrawn := self._amendments["withdrawn"]:
            wanted &= lookup(held.ids, withdrawn) < 0
        if split is not None:
            wanted &= np.asarray(pc.equal(splits.arrow, split))
        rows, embeds = np.flatnonzero(wanted), self._mapped(held, "text_embeds")
        vectors: Any = embeds.select(rows) if mmap else embeds[rows].astype(np.float32)
        captions = held.strings("caption").take(rows)
        return TextFeatures(held.ids.take(rows), owners.take(rows), splits.take(rows), captions, vectors)

    def captions_of(self, caption_ids: Any) -> pa.Array:
        """(n,) the stored caption of each id, null where the store has none."""
        held = self._texts
        rows = held.row_of(caption_ids)
        return held.strings("caption").arrow.take(pa.array(rows, mask=rows < 0))

    def frame_activations(self, video_ids: Sequence[str]) -> dict[str, MappedRows]:
        """Return the cached activation columns of the given videos, in order; decode with `activations.restore`."""
        columns = self._cached(self._videos, ("frame_tokens", "frame_token_scale"), video_ids)
        return {name: MappedRows(parts, places) for name, (parts, places) in columns.items()}

    def text_activations(self, caption_ids: Sequence[str]) -> dict[str, MappedRagged]:
        """Return the cached activation columns of the given captions, as ragged rows without padding."""
        columns = self._cached(self._texts, ("text_tokens", "text_token_scale"), caption_ids)
        return {name: MappedRagged(parts, places) for name, (parts, places) in columns.items()}

    def features_at(self, places: np.ndarray, video_ids: Sequence[str]) -> VideoFeatures:
        """Features of single videos, read from their shards: `places` (n, 2), the shard's number and the row in it, as
        `clips` gives them. Paths and splits stay empty."""
        columns = [MappedRows(self._parts(self._videos, name), places)[:] for name in _FRAME_COLUMNS]
        return VideoFeatures(video_ids, [""] * len(places), [""] * len(places), *columns)

    def shard_states(self, kind: str) -> list[Any]:
        """What tells the finished shards of `kind` from others: name, size and time of the marker, size of the file."""
        return shards_in(self.path, kind, SUFFIXES[self.shard_format])

    def _cached(self, held: Catalogue, names: Sequence[str], ids: Sequence[str]) -> dict[str, tuple[Any, np.ndarray]]:
        """Those of the columns that the shards have: their parts, mapped, and the place of each id in them."""
        rows = held.row_of(ids)
        if (rows < 0).any():
            raise KeyError(ids[int(np.argmin(rows))])
        there = [name for name in names if name in held.records[0].columns]
        return {name: (self._parts(held, name), held.places[rows]) for name in there}

    def splits(self) -> list[str]:
        """List the distinct splits that have videos."""
        visible = self._visible(self._videos.ids)
        return Strings(self._splits(self._videos).arrow.filter(pa.array(visible)).unique()).tolist()


def _shard_number(name: str) -> int:
    """
    >>> _shard_number("videos-00012.h5")
    12
    """
    return int(Path(name).stem.split("-")[1])


def _stored(features: VideoFeatures | TextFeatures, columns: Mapping[str, str]) -> dict[str, Column]:
    """A shard's columns of features, by the names that they have on disk."""
    stored = {name: getattr(features, field) for name, field in columns.items()}
    return {
        name: column.tolist()
        if isinstance(column, Strings)
        else column[:]
        if isinstance(column, MappedRows)
        else column
        for name, column in stored.items()
    }


def _changed(held: Catalogue, before: Mapping[str, str], told: Mapping[str, str]) -> dict[str, str]:
    """id -> split of the ids whose split, as told now or else before, is not the one that their shard has."""
    recorded, wanted = held.strings("split").arrow, held.strings("split").arrow
    for splits in (before, told):
        place = lookup(held.ids, list(splits))
        named = pa.array(list(splits.values()), pa.large_string())
        if len(named):
            wanted = pc.if_else(pa.array(place >= 0), named.take(pa.array(np.maximum(place, 0))), wanted)
    other = np.flatnonzero(np.asarray(pc.not_equal(wanted, recorded)))
    return dict(zip(held.ids.take(other), Strings(wanted).take(other), strict=True))


def _where(values: Strings, wanted: str) -> np.ndarray:
    return np.flatnonzero(np.asarray(pc.equal(values.arrow, wanted)))


def _take(column: Any, rows: np.ndarray) -> Any:
    if isinstance(column, MappedRows):
        return column.select(rows)
    if isinstance(column, Strings):
        return column.take(np.asarray(rows))
    return column[rows] if isinstance(column, np.ndarray) else [column[int(row)] for row in rows]
