"""`reindex`, stage 3: bring an index up to date with a corpus."""

import logging
import os
from collections.abc import Collection, Mapping
from dataclasses import replace
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands.options import IndexOption, JsonOption, RunOption, WorkspaceOption, exclusive, show
from pipeline.errors import BadInput, MissingData
from pipeline.workspace import Workspace

if TYPE_CHECKING:
    from pipeline.retrieve.updates import Policy, Reindexed
    from pipeline.stores.features import FeatureStore
    from pipeline.stores.manifest import VideoEntry

log = logging.getLogger(__name__)


def reindex(
    source: Annotated[
        str | None,
        typer.Option(
            "--corpus", "--source", help="Videos to add, where the index lacks them: a folder, list, .tar or URL"
        ),
    ] = None,
    delete: Annotated[
        list[str] | None, typer.Option(help="A video id to delete, from later builds too; repeatable")
    ] = None,
    rollback: Annotated[bool, typer.Option("--rollback", help="Go back to the generation before")] = False,
    list_: Annotated[bool, typer.Option("--list", help="List the generations")] = False,
    prune: Annotated[int | None, typer.Option(help="Keep only the N newest generations")] = None,
    index: IndexOption = None,
    run: RunOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Stage 3: bring an index up to date; readers see the old generation until the new one is whole and verified.

    \b
        python cli.py reindex --corpus new_clips/
        python cli.py reindex --delete old_clip.mp4
        python cli.py reindex --list
        python cli.py reindex --rollback
    """
    more = "--corpus, --delete, --run"
    exclusive({"--list": list_, "--rollback": rollback, "--prune": prune, more: source or delete or run})
    place = Workspace.locate(workspace)

    from pipeline.retrieve.corpus import generations
    from pipeline.retrieve.retriever import latest_corpus

    store = generations(place, index or latest_corpus(place))
    if not rollback and store.current() is None:  # a damaged CURRENT is what a rollback mends
        raise MissingData(f"no index of {index}", fix="run `python cli.py index` first")
    if list_:
        lines = [
            f"{'*' if row['live'] else ' '} {row['generation']}  {row['videos']} videos  {row['how']}"
            for row in store.records()
        ]
        show(store.records(), as_json, "\n".join(lines))
    elif rollback:
        live = store.rollback()
        show({"generation": live}, as_json, f"live: {live}")
    elif prune is not None:
        removed = store.prune(prune)
        show({"removed": removed}, as_json, f"removed: {', '.join(removed) or 'nothing'}")
    else:
        if source is None and not delete and run is None:
            raise BadInput(
                "nothing to do", fix="give --corpus DIR, --delete ID, --run RUN, --list, --rollback or --prune N"
            )
        result = update_corpus(place, source=source, delete=delete or [], index=index, run=run)
        text = (
            f"{result.generation}: {result.added} added, {result.deleted} deleted, {result.total} in all ({result.how})"
        )
        show(result.contract(), as_json, text)


def update_corpus(
    workspace: Workspace,
    *,
    source: str | None = None,
    delete: Collection[str] = (),
    index: str | None = None,
    run: str | None = None,
    policy: "Policy | None" = None,
) -> "Reindexed":
    """Extract the clips of a folder, list, tar or URL that an index lacks, delete others, switch over.

    Another head (`run`) or features with other settings force a rebuild from what is cached; nothing is decoded twice.
    What is deleted stays out, though its file still lies in a folder that is given again: only a rollback, or a copy in
    another folder, brings it back.

    Args:
        source: where new videos come from.
        delete: video ids.
        index: the index's name; by default the one built last.
        run: another head for the whole index.
    """
    import numpy as np

    from pipeline.extract.driver import extract
    from pipeline.extract.settings import settings_of
    from pipeline.resolve import resolve_head, resolve_store
    from pipeline.retrieve.corpus import generations, index_head, locations, provenance, require_indexable
    from pipeline.retrieve.pooled import pool_to_file
    from pipeline.retrieve.retriever import latest_corpus
    from pipeline.retrieve.updates import update_index
    from pipeline.stores.features import FeatureStore
    from pipeline.stores.manifest import Manifest
    from pipeline.stores.strings import Strings, lookup

    files: Mapping[str, VideoEntry] = {}
    name = index or latest_corpus(workspace)
    with generations(workspace, name).open() as live:
        origin = live.info["origin"]
    chosen = resolve_store(workspace, origin["dataset"], origin["encoder"])
    head = resolve_head(workspace, chosen, run) if run else index_head(workspace, chosen, origin)
    require_indexable(head)
    if source is not None:
        files = corpus_files(source)
        entries = new_entries(files, chosen.store, corpus_name(source))
        log.info(f"{len(entries)} of the {len(files)} files in {source} are new")
        if entries:
            report = extract(
                Manifest(name, source, tuple(entries)),
                chosen.store.path,
                settings_of(chosen.store),
            )
            log.info(f"{report.inputs} inputs = {report.done} done + {report.failed} failed + {report.skipped} skipped")
            chosen = replace(chosen, store=FeatureStore.open(chosen.store.path))
    videos = chosen.store.videos(mmap=True)
    paths = locations(chosen.store, videos.paths)
    new = (lookup(paths, list(files)) >= 0) & (lookup(videos.video_ids, list(delete)) < 0)
    add = np.flatnonzero(new)

    place = generations(workspace, name)

    def pool(ids: Strings) -> np.ndarray:
        return pool_to_file(head.head, videos.select(lookup(ids, videos.video_ids)), place.root)

    return update_index(
        place,
        add_ids=Strings(videos.video_ids).take(add),
        add_paths=paths.take(add),
        delete=delete,
        pool=pool,
        provenance=provenance(chosen, head),
        policy=policy,
    )


def corpus_name(source: str) -> str:
    from pipeline.datasets.manifests import folder_name

    return folder_name(Path(source))


def corpus_files(source: str) -> "dict[str, VideoEntry]":
    """Entries of a corpus by absolute path (links not resolved) or URL."""
    from pipeline.datasets import build_manifest
    from pipeline.datasets.manifests import source_manifest

    if Path(source).is_dir() or ("://" not in source and not Path(source).exists()):
        manifest = build_manifest("folder", Path(source), None, None, corpus=corpus_name(source))
    else:
        manifest = source_manifest(source)
    places = [manifest.resolve(entry) for entry in manifest.entries]
    return {
        place if "://" in place else os.path.abspath(place): entry
        for place, entry in zip(places, manifest.entries, strict=True)
    }


def new_entries(files: "Mapping[str, VideoEntry]", store: "FeatureStore", folder: str) -> "list[VideoEntry]":
    """Entries that the store has not processed yet, under unique ids.

    A file is known by where it lies; its id is its path inside the folder, preceded by the folder's name, and a number,
    where another video has that id already.
    """
    from pipeline.retrieve.corpus import locations

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
    """First free id of: the id itself, <folder>/<id>, <folder>-2/<id>, <folder>-3/<id>, ...

    >>> free_id("a.mp4", "clips", {"a.mp4", "clips/a.mp4"})
    'clips-2/a.mp4'
    """
    numbered = (f"{folder}-{number}/{video_id}" for number in count(2))
    return next(name for name in chain((video_id, f"{folder}/{video_id}"), numbered) if name not in taken)
