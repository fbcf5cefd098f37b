"""Bring a feature store up to date with the files of a corpus, for `reindex`."""

import logging
import os
from collections.abc import Collection, Iterable
from dataclasses import replace
from functools import partial
from itertools import chain, count
from pathlib import Path

from pipeline.clip.protocol import Embedder
from pipeline.datasets import build_manifest
from pipeline.datasets.folder import ABSENT
from pipeline.datasets.manifests import folder_name, source_manifest
from pipeline.extract.corpus import extract_into
from pipeline.extract.driver import extract
from pipeline.extract.settings import ExtractSettings, encoder_for
from pipeline.extract.sync import FileChanges, begin, compare, finish
from pipeline.resolve import ResolvedStore
from pipeline.stores.features import FeatureStore
from pipeline.stores.manifest import CORPUS, Manifest, VideoEntry, read_manifest
from pipeline.stores.metadata import write_metadata
from pipeline.stores.strings import lookup
from pipeline.workspace import Workspace

log = logging.getLogger(__name__)
NOWHERE = "://"  # a media root that no file lies below: the entries alone are compared


class CorpusFiles:
    """Extracts what is new or has changed; the encoder is loaded when the first file needs it."""

    def __init__(self, workspace: Workspace, chosen: ResolvedStore, settings: ExtractSettings):
        self._workspace, self._chosen, self._settings = workspace, chosen, settings
        self._path = chosen.store.path
        self._encoder: Embedder | None = None

    def update_all(self) -> FileChanges:
        """Look at every file that the store was made from, and list the data set's own folder again.

        Raises:
            BadInput: too many files are gone.
            MissingData: the folder is not there.
        """
        if self._chosen.store.settings.get("decoder") == "none":  # features that another program made
            return FileChanges()
        manifest = self._own_manifest()
        changes = FileChanges() if manifest is None else self._update_own(manifest)
        others = self._other_entries(manifest)
        return changes + self._update(Manifest(self._chosen.dataset, NOWHERE, others)) if others else changes

    def update_from(self, source: str, allow_private: bool = False) -> tuple[FileChanges, set[str]]:
        """Look at the files of a folder, list, tar or URL; what a list's other columns say becomes metadata.

        Returns:
            What became of them, and the ids of those that are there now.

        Raises:
            BadInput: `source` cannot be read, or too many of its files are gone.
        """
        own = self._own_manifest(source)
        if own is not None:
            return self._update_own(own), {entry.video_id for entry in own.entries}
        listed = corpus_manifest(source, allow_private)
        entries = known_or_new(listed.entries, FeatureStore.open(self._path), folder_name(Path(source)))
        root = os.path.abspath(source) if Path(source).is_dir() else NOWHERE
        changes = self._update(Manifest(self._chosen.dataset, root, tuple(entries)))
        named = {(entry.path, entry.start, entry.end): entry.video_id for entry in listed.entries}
        said = {entry.video_id: named[entry.path, entry.start, entry.end] for entry in entries}
        write_metadata(self._path, {i: listed.metadata[own] for i, own in said.items() if own in listed.metadata})
        return changes, set(said)

    def _own_manifest(self, source: str | None = None) -> Manifest | None:
        """The data set's manifest, its folder listed again; None where there is none, or `source` is another folder."""
        path = self._workspace.manifest_path(self._chosen.dataset)
        if not path.exists():
            return None
        manifest = read_manifest(path)
        if source is not None and (
            "://" in manifest.root or os.path.realpath(source) != os.path.realpath(manifest.root)
        ):
            return None
        if "files" not in manifest.protocol:  # no folder of own videos
            return manifest
        return build_manifest("folder", Path(manifest.root), None, None, corpus=manifest.name, previous=manifest)

    def _other_entries(self, own: Manifest | None) -> tuple[VideoEntry, ...]:
        """Videos of the store that an earlier `reindex --corpus` added: the manifest does not have them."""
        store = FeatureStore.open(self._path)
        table = store.latest_outcomes().select(["video_id", "path", "split", "start", "end", "status"])
        listed = [] if own is None else [*own.ids, *(row["path"] for row in own.protocol.get(ABSENT, []))]
        ours = set() if own is None else {own.resolve(entry) for entry in own.entries}
        unlisted = table.filter(lookup(table["video_id"], listed) < 0).to_pylist()
        return tuple(
            VideoEntry(row["video_id"], store.locate(row["path"]), row["split"] or CORPUS, (), row["start"], row["end"])
            for row in unlisted
            if self._is_outside(store.locate(row["path"]), own) and store.locate(row["path"]) not in ours
        )

    def _is_outside(self, where: str, own: Manifest | None) -> bool:
        """Whether a file lies elsewhere than in the data set's own folder, which is compared as a whole."""
        if own is None or "://" in where + own.root:
            return True
        return os.path.relpath(where, own.root).startswith("..")

    def _update_own(self, manifest: Manifest) -> FileChanges:
        changes = self._settled(manifest)
        if changes is None:
            report = extract_into(
                self._workspace,
                manifest,
                self._path,
                self._settings,
                partial(extract, sync=True, encoder=self._loaded()),
            )
            changes = report.changes or FileChanges()
        return changes

    def _update(self, manifest: Manifest) -> FileChanges:
        """The same for videos that no manifest of the workspace has: their splits and captions stay as they are."""
        changes = self._settled(manifest)
        if changes is None:
            report = extract(manifest, self._path, self._settings, encoder=self._loaded(), sync=True, amend=False)
            log.info(f"{report.inputs} inputs = {report.done} done + {report.failed} failed + {report.skipped} skipped")
            changes = report.changes or FileChanges()
        return changes

    def _settled(self, manifest: Manifest) -> FileChanges | None:
        """The comparison, where nothing is to be extracted or hidden; else None."""
        store = FeatureStore.open(self._path)
        plan = compare(manifest, store, accept_gone=self._settings.accept_gone)
        if not plan.nothing or (self._settings.retry_failed and store.failures()):
            return None
        if plan.seen or store.stale:
            with store.lock(timeout=self._settings.wait_seconds):
                begin(plan, store)
                finish(plan, store)
        return plan.changes

    def _loaded(self) -> Embedder:
        self._encoder = self._encoder or encoder_for(self._settings)
        return self._encoder


def corpus_manifest(source: str, allow_private: bool = False) -> Manifest:
    """Entries of a corpus, their paths absolute (links not resolved) or URLs, and the metadata that a list gives."""
    if Path(source).is_dir() or not ("://" in source or "*" in source or Path(source).exists()):
        manifest = build_manifest("folder", Path(source), None, None, corpus=folder_name(Path(source)))
    else:
        manifest = source_manifest(source, allow_private)
    places = [manifest.resolve(entry) for entry in manifest.entries]
    entries = tuple(
        replace(entry, path=place if "://" in place else os.path.abspath(place))
        for place, entry in zip(places, manifest.entries, strict=True)
    )
    return replace(manifest, entries=entries)


def known_or_new(listed: Iterable[VideoEntry], store: FeatureStore, folder: str) -> list[VideoEntry]:
    """The entries under the ids that the store has for where they lie, else under new, unique ids.

    A new id is the file's path inside the folder, preceded by the folder's name, and a number, where another video has
    that id already.
    """
    table = store.latest_outcomes().select(["video_id", "path", "start", "end"])
    known: dict[tuple[str, float | None, float | None], list[str]] = {}
    place: dict[str, str] = {}
    for row in table.to_pylist():
        place[row["video_id"]] = store.locate(row["path"])
        known.setdefault((place[row["video_id"]], row["start"], row["end"]), []).append(row["video_id"])
    entries = []
    for entry in listed:
        ids = known.get((entry.path, entry.start, entry.end), [])
        if not ids and place.get(entry.video_id) == entry.path:
            ids = [entry.video_id]  # of a store that did not record windows
        if ids:
            entries += [replace(entry, video_id=video_id, captions=()) for video_id in ids]
            continue
        video_id = free_id(entry.video_id, folder, place)
        place[video_id] = entry.path
        entries.append(replace(entry, video_id=video_id))
    return entries


def free_id(video_id: str, folder: str, taken: Collection[str]) -> str:
    """First free id of: the id itself, <folder>/<id>, <folder>-2/<id>, <folder>-3/<id>, ...

    >>> free_id("a.mp4", "clips", {"a.mp4", "clips/a.mp4"})
    'clips-2/a.mp4'
    """
    numbered = (f"{folder}-{number}/{video_id}" for number in count(2))
    return next(name for name in chain((video_id, f"{folder}/{video_id}"), numbered) if name not in taken)
