"""`search`, stage 3."""

import logging
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands.options import IndexOption, JsonOption, ShortlistOption, WorkspaceOption, show
from pipeline.workspace import Workspace

if TYPE_CHECKING:
    from pipeline.retrieve.hits import Hit

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

    from pipeline import Retriever

    with Retriever.open(place, index) as retriever:
        found = list(zip(queries, retriever.search(queries, top, shortlist=shortlist), strict=True))
    answers = [{"query": query, "hits": [hit.to_json() for hit in hits]} for query, hits in found]
    blocks = [_text(query if len(queries) > 1 else None, hits) for query, hits in found]
    show({"queries": answers}, as_json, "\n\n".join(blocks))


def _text(title: str | None, hits: "list[Hit]") -> str:
    """A line a hit: score, path, and the seconds where there are some to say."""
    lines = [f"{hit.score:.4f}  {hit.path}{_time(hit)}" for hit in hits]
    return "\n".join([f"# {title}", *lines] if title else lines)


def _time(hit: "Hit") -> str:
    clip = "" if hit.start is None or hit.end is None else f"  {clock(hit.start)} to {clock(hit.end)}"
    return clip if hit.moment is None else f"{clip}  at {clock(hit.moment)}"


def clock(seconds: float) -> str:
    """Seconds as a player shows them.

    >>> clock(3723.46), clock(59.96)
    ('1:02:03.5', '1:00.0')
    """
    minutes, rest = divmod(round(seconds * 10), 600)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest / 10:04.1f}" if hours else f"{minutes}:{rest / 10:04.1f}"


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
