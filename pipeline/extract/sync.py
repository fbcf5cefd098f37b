"""Compare a manifest and its feature store with the files as they are now: new, changed, moved and gone ones.

A file is as it was if its size and mtime are those that the store recorded, or else if its content digest is. Files of
stores that recorded nothing are taken as they are. What lies at a URL or in a tar is not looked at.
"""

import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipeline.datasets.folder import ABSENT, account_splits
from pipeline.errors import BadInput
from pipeline.fingerprint import SourceFile, source_file
from pipeline.stores.catalogue import DONE, SKIPPED
from pipeline.stores.features import ClipSource, FeatureStore
from pipeline.stores.manifest import Manifest, VideoEntry
from pipeline.stores.strings import lookup
from pipeline.video.fetch import local_path

MAX_GONE = 0.2  # share of the videos; an unmounted disk must not empty an index
LISTED = 100  # paths of each kind that a report lists


@dataclass(frozen=True)
class FileChanges:
    """What became of the files since the store was extracted."""

    new: tuple[str, ...] = ()
    """Paths of videos that the store does not hold, or whose files are back."""
    changed: tuple[str, ...] = ()
    """Paths whose content is another."""
    moved: tuple[tuple[str, str], ...] = ()
    """(path before, path now) of the same content."""
    gone: tuple[str, ...] = ()
    """Paths where there is no file any more."""
    duplicates: tuple[str, ...] = ()
    """Second ids of files, which a store made by an earlier version may hold."""

    def counts(self) -> dict[str, int]:
        return {name: len(listed) for name, listed in vars(self).items()}

    def to_json(self) -> dict[str, Any]:
        """Per kind {"count", "paths"}: the first LISTED paths, of moved files as [before, now]."""
        listed = {name: [list(p) if isinstance(p, tuple) else p for p in paths] for name, paths in vars(self).items()}
        return {name: {"count": len(paths), "paths": paths[:LISTED]} for name, paths in listed.items()}

    def __add__(self, other: "FileChanges") -> "FileChanges":
        return FileChanges(**{name: getattr(self, name) + getattr(other, name) for name in vars(self)})


@dataclass(frozen=True)
class SyncPlan:
    """What to do with a store so that it agrees with the files."""

    manifest: Manifest
    """The manifest, without entries whose files are gone; a moved file has its captions."""
    changes: FileChanges
    redo: frozenset[str]
    """Ids to extract again."""
    relabel: tuple[tuple[str, VideoEntry, SourceFile], ...]
    """(id before, entry now, its file): features to be copied under the id that the file has now."""
    hide: frozenset[str]
    """Ids that are gone, or stand under another id now."""
    seen: Mapping[str, SourceFile]
    """Files whose record was missing or of another time."""

    @property
    def nothing(self) -> bool:
        """Whether all files are as they were."""
        return not any(self.changes.counts().values())


@dataclass(frozen=True)
class _Known:
    """The latest outcome of a video of the store."""

    video_id: str
    path: str
    where: str
    status: int
    file: SourceFile | None
    windowed: bool


def compare(manifest: Manifest, store: FeatureStore, *, accept_gone: bool = False) -> SyncPlan:
    """Compare files with what the store recorded of them. Nothing is written.

    Args:
        manifest: entries as the store knows or should know them; other videos of the store are looked at where they lie
            below the manifest's root.
        store: the feature store.
        accept_gone: whether any number of files may be gone.

    Raises:
        BadInput: more than MAX_GONE of the files are gone.
    """
    known, already_gone = _known(store), store.gone
    entries: list[VideoEntry] = []
    new: list[VideoEntry] = []
    redo: dict[str, str] = {}
    gone: list[_Known] = []
    seen: dict[str, SourceFile] = {}
    for entry in manifest.entries:
        before, where = known.get(entry.video_id), manifest.resolve(entry)
        now = _look(where)
        if before is None:
            new.append(entry)
        elif now is None and local_path(where) == where and (before.status == DONE or before.file):
            gone.append(before)  # a failure without a file never had one
            continue
        elif now is not None and not _same(before.file, now, where, entry.video_id, seen):
            redo[entry.video_id] = entry.path
        elif entry.video_id in already_gone:
            new.append(entry)
        entries.append(entry)
    ours = set(manifest.ids)
    others = [
        row
        for video_id, row in known.items()
        if video_id not in ours and video_id not in already_gone and _below(row.where, manifest.root)
    ]
    paths = {manifest.resolve(entry) for entry in manifest.entries if entry.is_whole}
    duplicates = [row for row in others if row.where in paths and not row.windowed and "files" in manifest.protocol]
    gone += [row for row in others if _look(row.where) is None]
    gone = [row for row in gone if row.video_id not in already_gone]
    moved = _moves([row for row in gone if row.status == DONE], [e for e in new if e.video_id not in known], manifest)
    left = {before.video_id for before, _, _ in moved}
    lost = [row for row in gone if row.video_id not in left]
    total = len((ours & known.keys()) - already_gone) + len(others)
    if len(lost) > MAX_GONE * total and not accept_gone:
        raise BadInput(
            f"{len(lost)} of {total} videos are gone, the first is {lost[0].where}",
            expected=f"at most {MAX_GONE:.0%}, as a disk may not be mounted",
            fix="bring the files back, or give --yes if they are to leave the features and the index",
        )
    changes = FileChanges(
        tuple(e.path for e in new if e.path not in {entry.path for _, entry, _ in moved}),
        tuple(redo.values()),
        tuple((before.path, entry.path) for before, entry, _ in moved),
        tuple(row.path for row in lost),
        tuple(row.video_id for row in duplicates),
    )
    kept = _with_captions_of_moved(replace(manifest, entries=tuple(entries)), moved)
    hide = {row.video_id for row in (*gone, *duplicates)}
    relabel = tuple((before.video_id, entry, file) for before, entry, file in moved)
    return SyncPlan(kept, changes, frozenset(redo), relabel, frozenset(hide), seen)


def _known(store: FeatureStore) -> dict[str, _Known]:
    """The latest outcome of each video of the store; files that are no videos aside."""
    table, seen = store.latest_outcomes(), store.seen_files
    names = ("video_id", "path", "status", "size", "mtime", "digest", "start", "end")
    known = {}
    for video_id, path, status, size, mtime, digest, start, end in zip(
        *(table[name].to_pylist() for name in names), strict=True
    ):
        if status != SKIPPED:
            file = None if digest is None else SourceFile(size, mtime, digest)
            windowed = start is not None or end is not None or "#t=" in video_id
            known[video_id] = _Known(
                video_id, path, store.locate(path), status, seen.get(video_id, file), windowed
            )  # fmt: skip
    return known


def _look(where: str) -> os.stat_result | None:
    """The file's status; None for a URL, a tar's member, or where there is no file."""
    if local_path(where) != where:
        return None
    try:
        return os.stat(where)
    except OSError:
        return None


def _same(
    before: SourceFile | None, now: os.stat_result, where: str, video_id: str, seen: dict[str, SourceFile]
) -> bool:
    """Whether a file is as it was; a record that is missing or of another time goes to `seen`."""
    if before is not None and (before.size, before.mtime) == (now.st_size, now.st_mtime_ns):
        return True
    if before is not None and before.size != now.st_size:
        return False
    try:
        file = source_file(where)
    except OSError:  # it cannot be read now: extraction says why
        return False
    if before is None or before.digest == file.digest:
        seen[video_id] = file
        return True
    return False


def _below(where: str, root: str) -> bool:
    return "://" not in root + where and not os.path.relpath(where, root).startswith("..")


def _moves(
    gone: Sequence[_Known], new: Sequence[VideoEntry], manifest: Manifest
) -> list[tuple[_Known, VideoEntry, SourceFile]]:
    """Pairs of a file that is gone and a new one of the same content. Whole files only."""
    waiting: dict[tuple[int, str], list[_Known]] = {}
    for row in gone:
        if row.file is not None and not row.windowed:
            waiting.setdefault((row.file.size, row.file.digest), []).append(row)
    sizes = {size for size, _ in waiting}
    moves = []
    for entry in new:
        where = manifest.resolve(entry)
        look = _look(where)
        if look is None or look.st_size not in sizes or entry.start is not None or entry.end is not None:
            continue
        file = source_file(where)
        if found := waiting.get((file.size, file.digest)):
            moves.append((found.pop(0), entry, file))
    return moves


def _with_captions_of_moved(manifest: Manifest, moved: Sequence[tuple[_Known, VideoEntry, SourceFile]]) -> Manifest:
    """The manifest; a file that moved and has no captions of its own takes those that wait for its path before."""
    waiting = {row["path"]: row for row in manifest.protocol.get(ABSENT, [])}
    theirs = {entry.video_id: waiting.pop(before.path) for before, entry, _ in moved if before.path in waiting}
    if not theirs:
        return manifest
    counts = Counter(
        {name: count for name, count in manifest.protocol["caption_changes"].items() if name != "unmatched"}
    )
    entries = []
    for entry in manifest.entries:
        if (row := theirs.get(entry.video_id)) is not None:
            before, own = row["captions"], entry.captions
            same = sum(old == new for old, new in zip(before, own, strict=False))  # counted as added under the new id
            both = min(len(before), len(own))
            counts.update({"absent": -len(before), "added": -both, "changed": both - same})
            if own:
                counts.update({"kept": same, "withdrawn": len(before) - both})
            else:
                entry = replace(entry, split=row["split"], captions=tuple(before))
                counts["kept"] += len(before)
        entries.append(entry)
    captions = {**manifest.protocol["caption_changes"], **counts}
    accounts = account_splits([entry for entry in entries if entry.captions])
    protocol = {**manifest.protocol, **accounts, ABSENT: list(waiting.values()), "caption_changes": captions}
    return replace(manifest, entries=tuple(entries), protocol=protocol)


# -- on the store, under its lock


def begin(plan: SyncPlan, store: FeatureStore) -> None:
    """Copy the features of moved files, and hide what is gone or out of date, before anything is extracted.

    A run that is killed at any point is taken up by the next comparison.
    """
    _copy_moved(plan.relabel, store)
    present = set(plan.manifest.ids)
    store.set_aside(
        gone=(store.gone - present) | plan.hide,
        stale=store.stale | plan.redo,
        files={name: file for name, file in {**store.seen_files, **plan.seen}.items() if name not in plan.redo},
    )


def finish(plan: SyncPlan, store: FeatureStore) -> None:
    """Show again what is extracted now: every entry of the plan that was done last."""
    table = store.latest_outcomes()
    done = np.asarray(table["status"]) == DONE
    fresh = {name for name, is_done in zip(table["video_id"].to_pylist(), done, strict=True) if is_done}
    fresh &= set(plan.manifest.ids)
    store.set_aside(gone=store.gone, stale=store.stale - fresh, files=store.seen_files)


def _copy_moved(moves: Collection[tuple[str, VideoEntry, SourceFile]], store: FeatureStore) -> None:
    """Write a shard with the features of moved files under their new ids; nothing is decoded."""
    if not moves:
        return
    videos = store.videos(mmap=True, with_hidden=True)
    before = [video_id for video_id, _, _ in moves]
    block = videos.select(lookup(before, videos.video_ids))
    cached: dict[str, Any] = {name: column[:] for name, column in store.frame_activations(before).items()}
    entries = [entry for _, entry, _ in moves]
    block = replace(
        block,
        video_ids=[entry.video_id for entry in entries],
        paths=[entry.path for entry in entries],
        splits=[entry.split for entry in entries],
    )
    store.write_videos(
        block,
        inputs=block.video_ids,
        sources=[ClipSource(None, None, file.size, file.mtime, file.digest) for _, _, file in moves],
        activations=cached,
        extra={"moved_from": dict(zip(block.video_ids, before, strict=True))},
    )


def records(store: FeatureStore) -> dict[str, SourceFile]:
    """The file that each video's latest outcome is of, where it is known."""
    return {video_id: row.file for video_id, row in _known(store).items() if row.file is not None}
