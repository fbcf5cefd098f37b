"""Bring an index up to date with a corpus."""

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from itertools import chain, count
from pathlib import Path

import numpy as np

from dits_head.inference import pool_videos
from pipeline.datasets import build_manifest
from pipeline.datasets.manifests import folder_name
from pipeline.extract.driver import extract
from pipeline.extract.settings import settings_of
from pipeline.resolve import resolve_head, resolve_store
from pipeline.retrieve.corpus import generations, head_of, locations, maker, require_indexable
from pipeline.retrieve.retriever import only_corpus
from pipeline.retrieve.updates import Policy, Reindexed, reindex_vectors
from pipeline.stores.features import FeatureStore
from pipeline.stores.manifest import Manifest, VideoEntry
from pipeline.workspace import Workspace

Say = Callable[[str], None]


def reindex(
    workspace: Workspace,
    *,
    corpus: Path | None = None,
    delete: Collection[str] = (),
    name: str | None = None,
    run: str | None = None,
    policy: Policy | None = None,
    progress: bool = True,
    say: Say,
) -> Reindexed:
    """Bring an index up to date: extract the clips of a folder or list that it lacks, delete others, switch over.

    The index is the one named, else the one indexed last. Another head (`run`) or features with other settings force
    a rebuild from what is cached; nothing is decoded twice. What is deleted stays out, though its file still lies in
    a folder that is given again: only a rollback, or a copy in another folder, brings it back.
    """
    files: Mapping[str, VideoEntry] = {}
    name = name or only_corpus(workspace)
    with generations(workspace, name).open() as live:
        origin = live.info["origin"]
    chosen = resolve_store(workspace, origin["dataset"], origin["encoder"])
    head = resolve_head(workspace, chosen, run) if run else head_of(workspace, chosen, origin)
    require_indexable(head)
    if corpus is not None:
        files = corpus_files(corpus)
        entries = new_entries(files, chosen.store, folder_name(corpus))
        say(f"{len(entries)} of the {len(files)} files in {corpus} are new")
        if entries:
            report = extract(
                Manifest(name, str(corpus), tuple(entries)),
                chosen.store.path,
                settings_of(chosen.store),
                progress=progress,
            )
            say(f"{report.inputs} inputs = {report.done} done + {report.failed} failed + {report.skipped} skipped")
            chosen = replace(chosen, store=FeatureStore.open(chosen.store.path))
    videos, deleted = chosen.store.videos(mmap=True), set(delete)
    row = {video_id: index for index, video_id in enumerate(videos.video_ids)}
    paths = locations(chosen.store, videos.paths)
    add = [v for v, path in zip(videos.video_ids, paths, strict=True) if path in files and v not in deleted]

    def pool(ids: list[str]) -> np.ndarray:
        return pool_videos(head.head, videos.select(np.array([row[video_id] for video_id in ids], dtype=np.int64)))

    return reindex_vectors(
        generations(workspace, name),
        add_ids=add,
        add_paths=[paths[row[video_id]] for video_id in add],
        delete=delete,
        pool=pool,
        maker=maker(chosen, head),
        policy=policy,
        say=say,
    )


def corpus_files(corpus: Path) -> dict[str, VideoEntry]:
    """What a folder holds: the absolute path of each file, links not followed, and its entry."""
    manifest = build_manifest("folder", corpus, None, None, corpus=folder_name(corpus))
    return {os.path.abspath(manifest.resolve(entry)): entry for entry in manifest.entries}


def new_entries(files: Mapping[str, VideoEntry], store: FeatureStore, folder: str) -> list[VideoEntry]:
    """The files that the store has neither extracted nor failed to, under ids that nothing else has.

    A file is known by where it lies; its id is its path inside the folder, preceded by the folder's name, and a number,
    where another video has that id already.
    """
    known = [*store.videos(mmap=True).paths, *(failure.path for failure in store.failures())]
    there, taken = set(locations(store, known)), set(store.covered())
    entries = []
    for path, entry in files.items():
        if path in there:
            continue
        video_id = free_id(entry.video_id, folder, taken)
        taken.add(video_id)
        entries.append(replace(entry, video_id=video_id, path=path))
    return entries


def free_id(video_id: str, folder: str, taken: Collection[str]) -> str:
    """The first of these that is not taken: the id itself, <folder>/<id>, <folder>-2/<id>, <folder>-3/<id>, ...

    >>> free_id("a.mp4", "clips", {"a.mp4", "clips/a.mp4"})
    'clips-2/a.mp4'
    """
    numbered = (f"{folder}-{number}/{video_id}" for number in count(2))
    return next(name for name in chain((video_id, f"{folder}/{video_id}"), numbered) if name not in taken)
