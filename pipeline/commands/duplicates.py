"""`duplicates`, stage 3."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.options import IndexOption, JsonOption, WorkspaceOption, show
from pipeline.errors import BadInput
from pipeline.workspace import Workspace


def duplicates(
    threshold: Annotated[float, typer.Option(help="Least cosine of two near-duplicates")] = 0.95,
    out: Annotated[
        Path | None, typer.Option(help="Table: .csv or .parquet [default: reports/<index>/duplicates/duplicates.csv]")
    ] = None,
    page: Annotated[
        Path | None, typer.Option(help="Page with thumbnails [default: duplicates.html beside the table]")
    ] = None,
    within_files: Annotated[
        bool, typer.Option("--within-files", help="Two clips of one file may be duplicates too")
    ] = False,
    device: Annotated[str, typer.Option(help="Where pairs are compared: auto, cpu, cuda, ...")] = "auto",
    index: IndexOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Group near-duplicates over a whole index: a table to act on, and a page to look at them. Deletes nothing.

    \b
        python cli.py duplicates
        python cli.py duplicates --threshold 0.98 --out copies.parquet
        python cli.py reindex --delete old_copy.mp4
    """
    if not 0 < threshold <= 1:
        raise BadInput("--threshold must be above 0 and at most 1", got=threshold)
    place = Workspace.locate(workspace)

    import numpy as np

    from pipeline.clip.encoder import available_device
    from pipeline.retrieve.corpus import generations
    from pipeline.retrieve.duplicates_report import duplicates_table, require_table_name, write_page, write_table
    from pipeline.retrieve.near_duplicates import group_duplicates, whole_videos
    from pipeline.retrieve.retriever import latest_corpus
    from pipeline.stores.strings import as_arrow
    from pipeline.video.thumbnail import thumbnail

    corpus = index or latest_corpus(place)
    out = out or place.report_dir(corpus, "duplicates") / "duplicates.csv"
    page = page or out.with_suffix(".html")
    require_table_name(out)
    with generations(place, corpus).open() as live:
        videos = live.videos()
        vectors = whole_videos(live.vectors(), np.asarray(live.owners()), len(videos))
        paths = None if within_files else as_arrow(videos.table["path"]).dictionary_encode().indices.to_numpy()
        groups = group_duplicates(vectors, paths, threshold, device=available_device(device))
        table = duplicates_table(groups, videos)
        out.parent.mkdir(parents=True, exist_ok=True)
        page.parent.mkdir(parents=True, exist_ok=True)
        write_table(table, out)
        said = f"{len(groups)} groups of {len(table)} near-duplicates among {len(videos)} videos"
        write_page(
            table, page, f"Near-duplicates in {corpus}", f"{said}, of a cosine of at least {threshold}",
            lambda path, start, end: thumbnail(path, start=start, end=end),
        )  # fmt: skip
    result = {"groups": len(groups), "videos": len(table), "of": len(videos), "threshold": threshold}
    show(result | {"table": str(out), "page": str(page)}, as_json, f"{said}\n{out}\n{page}")
