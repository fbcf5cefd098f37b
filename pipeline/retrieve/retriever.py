"""Search a corpus by sentences."""

from pipeline.clip.stored import embed_queries
from pipeline.errors import BadInput, MissingData
from pipeline.resolve import resolve_store
from pipeline.retrieve.corpus import generations, head_of
from pipeline.retrieve.search import Hit, Searcher
from pipeline.stores.features import FeatureStore
from pipeline.workspace import Workspace


def open_searcher(workspace: Workspace, corpus: str | None = None) -> tuple[Searcher, FeatureStore]:
    """A searcher over the live generation of a corpus (unnamed: the last one), with the head that it was made with."""
    corpus = corpus or only_corpus(workspace)
    store = generations(workspace, corpus)
    if store.current() is None:
        raise MissingData(f"no index of {corpus}", fix="run `python cli.py index` first")
    with store.open() as live:
        origin = live.info["origin"]
    chosen = resolve_store(workspace, origin["dataset"], origin["encoder"])
    head = head_of(workspace, chosen, origin)
    return Searcher(store, chosen.store.path, head.head), chosen.store


def only_corpus(workspace: Workspace) -> str:
    """The corpus that was indexed last. Raises MissingData when none was."""
    found = [path.name for path in workspace.index_dirs()]
    if not found:
        raise MissingData(f"no index in {workspace.root}", fix="run `python cli.py index` first")
    return found[-1]


def search(
    workspace: Workspace, queries: list[str], *, corpus: str | None = None, top: int = 10, shortlist: int = 50
) -> list[list[Hit]]:
    """The best videos for each sentence."""
    if not all(query.strip() for query in queries):
        raise BadInput("an empty query", fix="describe what the video shows, in quotes")
    searcher, store = open_searcher(workspace, corpus)
    try:
        embeds = embed_queries(store, queries)
        return searcher.search(embeds, top=top, shortlist=shortlist)
    finally:
        searcher.close()
