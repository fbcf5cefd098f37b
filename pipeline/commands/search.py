"""`search`, stage 3."""

import logging
from typing import Annotated

import typer

from pipeline.commands.options import IndexOption, JsonOption, ShortlistOption, WorkspaceOption, show
from pipeline.workspace import Workspace

log = logging.getLogger(__name__)


def search(
    queries: Annotated[list[str], typer.Argument(metavar="SENTENCE...", help="What the video shows")],
    top: Annotated[int, typer.Option(min=1, max=10**6, help="How many videos")] = 10,
    shortlist: ShortlistOption = 50,
    index: IndexOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find videos by a sentence: path and score, the best first.

    \b
        python cli.py search "a red ring moves left, then a blue star grows"
        python cli.py search "a dog barks" --top 3 --json
    """
    queries = sentences(queries)
    place = Workspace.locate(workspace)

    from pipeline.retrieve.retriever import search

    found = search(place, queries, corpus=index, top=top, shortlist=shortlist)
    hits = [[{"video_id": hit.video_id, "path": hit.path, "score": hit.score} for hit in hits] for hits in found]
    blocks = []
    for query, rows in zip(queries, found, strict=True):
        head = [f"# {query}"] if len(queries) > 1 else []
        blocks.append("\n".join([*head, *(f"{hit.score:.4f}  {hit.path}" for hit in rows)]))
    show(hits[0] if len(queries) == 1 else hits, as_json, "\n\n".join(blocks))


def sentences(arguments: list[str]) -> list[str]:
    """Each argument a sentence; single words alone are one sentence that was not quoted.

    >>> sentences(["a", "dog"]), sentences(["a dog", "a cat"])
    (['a dog'], ['a dog', 'a cat'])
    """
    if len(arguments) == 1 or any(" " in argument.strip() or not argument.strip() for argument in arguments):
        return arguments
    sentence = " ".join(arguments)
    log.info(f'searching for one sentence, "{sentence}"; quote each of several')
    return [sentence]
