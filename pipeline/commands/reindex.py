"""`reindex`, stage 3: bring an index up to date with a corpus."""

import logging
from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.commands.file_lines import file_lines
from pipeline.commands.options import DeviceOption, IndexOption, JsonOption, RunOption, WorkspaceOption, exclusive, show
from pipeline.errors import BadInput, MissingData
from pipeline.workspace import Workspace

if TYPE_CHECKING:
    from pipeline.retrieve.updates import Policy, Reindexed

log = logging.getLogger(__name__)


def reindex(
    generation: Annotated[
        str | None, typer.Argument(metavar="[GENERATION]", help="With --rollback: the generation to go to")
    ] = None,
    source: Annotated[
        str | None,
        typer.Option("--corpus", "--source", help="Only look at these videos: a folder, list, .tar or URL"),
    ] = None,
    delete: Annotated[
        list[str] | None, typer.Option(help="A video id to delete, from later builds too; repeatable")
    ] = None,
    retry_failed: Annotated[str | None, typer.Option(help="Retry failed videos: all, or a failure class")] = None,
    accept_gone: Annotated[
        bool, typer.Option("--yes", help="Go on though more than 20 % of the files are gone")
    ] = False,
    allow_private: Annotated[
        bool,
        typer.Option("--allow-private", help="Let http(s) URLs redirect, and lead to private or loopback addresses"),
    ] = False,
    rollback: Annotated[
        bool, typer.Option("--rollback", help="Go back to the generation before, or to the one named, forward too")
    ] = False,
    list_: Annotated[bool, typer.Option("--list", help="List the generations")] = False,
    prune: Annotated[int | None, typer.Option(help="Keep only the N newest generations")] = None,
    index: IndexOption = None,
    run: RunOption = None,
    device: DeviceOption = "auto",
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Stage 3: bring an index up to date; readers see the old generation until the new one is whole and verified.

    New and changed files are extracted, files that are gone leave the index, moved ones keep their features.

    \b
        python cli.py reindex                           # every file that the features were made from
        python cli.py reindex --corpus new_clips/
        python cli.py reindex --corpus more.csv
        python cli.py reindex --retry-failed all
        python cli.py reindex --delete old_clip.mp4
        python cli.py reindex --list
        python cli.py reindex --rollback
        python cli.py reindex --rollback gen-000003
    """
    more = "--corpus, --delete, --run, --retry-failed"
    exclusive(
        {"--list": list_, "--rollback": rollback, "--prune": prune, more: source or delete or run or retry_failed}
    )
    if generation is not None and not rollback:
        raise BadInput(f"unexpected argument {generation!r}", fix="give --corpus DIR, or --rollback GENERATION")
    place = Workspace.locate(workspace)

    from pipeline.retrieve.corpus import generations
    from pipeline.retrieve.retriever import latest_corpus

    store = generations(place, index or latest_corpus(place))
    if not rollback and store.current() is None:  # a damaged CURRENT is what a rollback mends
        raise MissingData(f"no index of {index}", fix="run `python cli.py index` first")
    if list_:
        show(store.records(), as_json, "\n".join(generation_line(row) for row in store.records()))
    elif rollback:
        live = store.rollback(generation)
        show({"generation": live}, as_json, f"live: {live}")
    elif prune is not None:
        removed = store.prune(prune)
        show({"removed": removed}, as_json, f"removed: {', '.join(removed) or 'nothing'}")
    else:
        result = update_corpus(
            place,
            source=source,
            delete=delete or [],
            index=index,
            run=run,
            retry_failed=retry_failed,
            accept_gone=accept_gone,
            allow_private=allow_private,
            device=device,
        )
        counts = f"{result.added} added, {result.replaced} replaced, {result.deleted} deleted, {result.total} in all"
        lines = [*file_lines(result.files), f"{result.generation}: {counts} ({result.how})"]
        show(result.contract(), as_json, "\n".join(lines))


def generation_line(row: dict[str, Any]) -> str:
    """One generation for people: its name, date, size, and why it was made."""
    mark, size = "*" if row["live"] else " ", f"{row['bytes'] / 1e6:.1f} MB"
    return f"{mark} {row['generation']}  {row['made']}  {row['videos']} videos  {size}  {row['how']}"


def update_corpus(
    workspace: Workspace,
    *,
    source: str | None = None,
    delete: Collection[str] = (),
    index: str | None = None,
    run: str | None = None,
    policy: "Policy | None" = None,
    retry_failed: str | None = None,
    accept_gone: bool = False,
    allow_private: bool = False,
    device: str = "auto",
) -> "Reindexed":
    """Bring an index up to date with its files: extract new and changed ones, drop those that are gone, switch over.

    Without `source`, `delete` and `run` every file that the features were made from is looked at, and the data set's
    own folder is listed again. With `source` that corpus alone. Another head (`run`) or features with other settings
    force a rebuild from what is cached; nothing is decoded twice. What is deleted stays out, though its file still lies
    in a folder that is given again: only a rollback, or a copy in another folder, brings it back.

    Args:
        source: a folder, list, tar or URL.
        delete: video ids.
        index: the index's name; by default the one built last.
        run: another head for the whole index.
        retry_failed: try failed videos again: all, or a failure class.
        accept_gone: any number of files may be gone.
        allow_private: whether http(s) URLs may redirect, and lead to private and loopback addresses.
        device: of the encoder and the head, as `resolve_device` takes it.
    """
    import numpy as np

    from pipeline.commands.corpus_files import CorpusFiles
    from pipeline.device import resolve_device
    from pipeline.extract.settings import settings_of
    from pipeline.resolve import resolve_head, resolve_store
    from pipeline.retrieve.corpus import generations, index_head, locations, outdated, provenance, require_indexable
    from pipeline.retrieve.pooled import pool_to_file
    from pipeline.retrieve.retriever import latest_corpus
    from pipeline.retrieve.updates import update_index
    from pipeline.stores.features import FeatureStore
    from pipeline.stores.strings import Strings, lookup

    name = index or latest_corpus(workspace)
    with generations(workspace, name).open() as live:
        origin = live.info["origin"]
    chosen = resolve_store(workspace, origin["dataset"], origin["encoder"])
    head = resolve_head(workspace, chosen, run) if run else index_head(workspace, chosen, origin)
    require_indexable(head)
    head = head.to(resolve_device(device))
    changes, wanted = None, None
    everything = source is None and not delete and run is None
    if source is not None or everything or retry_failed:
        settings = replace(settings_of(chosen.store), device=device, retry_failed=retry_failed, accept_gone=accept_gone)
        if allow_private:
            settings = replace(settings, limits=replace(settings.limits, allow_private=True))
        files = CorpusFiles(workspace, chosen, settings)
        if source is None:
            changes = files.update_all()
        else:
            changes, wanted = files.update_from(source, allow_private)
        chosen = replace(chosen, store=FeatureStore.open(chosen.store.path))
    videos = chosen.store.videos(mmap=True)
    ids, paths = Strings(videos.video_ids), locations(chosen.store, videos.paths)
    with generations(workspace, name).open() as live:
        held, changed = live.rows().video_ids, outdated(live, chosen.store)
    kept = (lookup(held, ids) >= 0) & (lookup(held, changed) < 0)
    asked = np.full(len(ids), changes is not None) if wanted is None else lookup(ids, sorted(wanted)) >= 0
    add = np.flatnonzero((asked | (lookup(ids, changed) >= 0)) & (lookup(ids, list(delete)) < 0))
    drop = np.flatnonzero(~kept & (lookup(held, list(delete)) < 0))

    place = generations(workspace, name)

    def pool(of: Strings) -> np.ndarray:
        return pool_to_file(head.head, videos.select(lookup(of, ids)), place.root)

    result = update_index(
        place,
        add_ids=ids.take(add),
        add_paths=paths.take(add),
        delete=delete,
        drop=Strings(held).take(drop).tolist(),
        places=(ids, paths),
        pool=pool,
        provenance=provenance(chosen, head),
        policy=policy,
    )
    return replace(result, files=changes.to_json()) if changes else result
