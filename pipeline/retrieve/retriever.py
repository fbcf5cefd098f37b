"""Text search over a workspace: open an index with the head and features that made it, embed the queries, search."""

from pipeline.clip.advice import warn_of_test_model
from pipeline.clip.stored import embed_queries
from pipeline.errors import BadInput, MissingData
from pipeline.resolve import resolve_store
from pipeline.retrieve.corpus import generations, index_head
from pipeline.retrieve.search import Hit, Searcher
from pipeline.stores.features import FeatureStore
from pipeline.workspace import Workspace


def search(
    workspace: Workspace, queries: list[str], *, corpus: str | None = None, top: int = 10, shortlist: int = 50
) -> list[list[Hit]]:
    """Find the `top` videos of each sentence, best first.

    Args:
        queries: sentences.
        corpus: which index; the one built last by default.
        top: hits a query.
        shortlist: candidates that the index hands to exact re-ranking.

    Raises:
        BadInput: an empty query.
        MissingData: no such index.
    """
    if not all(query.strip() for query in queries):
        raise BadInput("an empty query", fix="describe what the video shows, in quotes")
    searcher, store = open_searcher(workspace, corpus)
    try:
        return searcher.search(embed_queries(store, queries), top=top, shortlist=shortlist)
    finally:
        searcher.close()


def open_searcher(workspace: Workspace, corpus: str | None = None) -> tuple[Searcher, FeatureStore]:
    """Open a corpus's live index (the one built last by default) with the head that made it, and the feature store."""
    corpus = corpus or latest_corpus(workspace)
    index = generations(workspace, corpus)
    if index.current() is None:
        raise MissingData(f"no index of {corpus}", fix="run `python cli.py index` first")
    with index.open() as live:
        origin = live.info["origin"]
    chosen = resolve_store(workspace, origin["dataset"], origin["encoder"])
    warn_of_test_model(chosen.store.settings.get("model"), chosen.dataset)
    head = index_head(workspace, chosen, origin)
    return Searcher(index, chosen.store.path, head.head), chosen.store


def latest_corpus(workspace: Workspace) -> str:
    """The corpus that was indexed last. MissingData when there is none."""
    found = [path.name for path in workspace.index_dirs()]
    if not found:
        raise MissingData(f"no index in {workspace.root}", fix="run `python cli.py index` first")
    return found[-1]
