"""`search`, stage 3."""

import json
import logging
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.commands.options import (
    DeviceOption,
    IndexOption,
    JsonOption,
    ShortlistOption,
    WorkspaceOption,
    exclusive,
    show,
)
from pipeline.errors import BadInput, UserError
from pipeline.workspace import Workspace

if TYPE_CHECKING:
    from pipeline.retrieve.hits import Hit
    from pipeline.retrieve.retriever import Retriever

log = logging.getLogger(__name__)
STDIN = "-"


def search(
    queries: Annotated[
        list[str] | None, typer.Argument(metavar="SENTENCE...", help="What the video shows; - reads lines from stdin")
    ] = None,
    image: Annotated[list[Path] | None, typer.Option(help="A picture: videos with a frame like it; repeatable")] = None,
    like: Annotated[list[str] | None, typer.Option(help="A video's id, or a file: videos like it; repeatable")] = None,
    against: Annotated[list[str] | None, typer.Option("--not", help="A sentence to be unlike; repeatable")] = None,
    average: Annotated[bool, typer.Option("--average", help="Make all sentences one query")] = False,
    where: Annotated[str | None, typer.Option(help="SQL condition over the videos' metadata")] = None,
    top: Annotated[int, typer.Option(min=1, max=10**6, help="How many hits")] = 10,
    merge: Annotated[bool, typer.Option("--merge", help="Make neighbouring clips of a file one hit")] = False,
    per_file: Annotated[int | None, typer.Option(min=1, max=10**6, help="Most hits of one file")] = None,
    shortlist: ShortlistOption = 50,
    index: IndexOption = None,
    device: DeviceOption = "auto",
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find videos by a sentence, a picture or another video: score, path and moment, the best first.

    With - each line of stdin is a query, answered at once by a line of JSON, {"query", "hits"} or {"query", "error"}.

    \b
        python cli.py search "a red ring moves left, then a blue star grows"
        python cli.py search "a dog barks" "a dog runs" --average --not "snow" --top 3 --json
        python cli.py search --image still.jpg --per-file 1
        python cli.py search --like films/a.mp4 --where "year >= 2020 AND camera = 'left'"
        python cli.py search - < queries.txt
    """
    exclusive({"SENTENCE...": queries, "--image": image, "--like": like})
    if not (queries or image or like):
        raise BadInput(
            "no query", expected="SENTENCE..., --image FILE or --like ID|FILE", fix="see `python cli.py search --help`"
        )
    if (average or against) and not queries:
        raise BadInput("--average and --not go with sentences", fix="give sentences, or leave them out")
    lines = queries == [STDIN]
    if lines and average:
        raise BadInput("--average cannot know which lines of stdin belong together", fix="leave it out")
    texts = [] if lines else sentences(queries or [])
    place = Workspace.locate(workspace)

    from pipeline import Retriever

    with Retriever.open(place, index, device) as retriever:
        wanted: dict[str, Any] = {
            "top": top, "where": where, "shortlist": shortlist, "merge": merge, "per_file": per_file,
        }  # fmt: skip
        if lines:
            _answer_lines(retriever, sys.stdin, lambda t: retriever.search([t], against=against or (), **wanted)[0])
            return
        if texts:
            hits = retriever.search(texts, against=against or (), average=average, **wanted)
            titles = _titles(texts, against or [], average)
        elif image:
            titles, hits = [str(path) for path in image], [retriever.search_image(path, **wanted) for path in image]
        else:
            titles = like or []
            hits = [retriever.similar(video, **wanted) for video in titles]
    found = list(zip(titles, hits, strict=True))
    blocks = [_text(query if len(found) > 1 else None, rows) for query, rows in found]
    show({"queries": [_answer(query, rows) for query, rows in found]}, as_json, "\n\n".join(blocks))


def _answer_lines(retriever: "Retriever", lines: Iterable[str], answer: "Callable[[str], list[Hit]]") -> None:
    """A line of JSON a line; a query that cannot be answered does not stop those after it."""
    for line in lines:
        query = line.strip()
        retriever.refresh()
        try:
            said = _answer(query, answer(query))
        except UserError as error:
            said = {"query": query, "error": str(error)}
        print(json.dumps(said, ensure_ascii=False), flush=True)


def _answer(query: str, hits: "list[Hit]") -> dict[str, Any]:
    return {"query": query, "hits": [hit.to_json() for hit in hits]}


def _titles(texts: list[str], against: list[str], average: bool) -> list[str]:
    """How each query is called in the answer.

    >>> _titles(["a dog", "a cat"], ["snow"], True), _titles(["a dog", "a cat"], [], False)
    (['a dog + a cat - snow'], ['a dog', 'a cat'])
    """
    wanted = [" + ".join(texts)] if average else texts
    return [" - ".join([title, *against]) for title in wanted]


def _text(title: str | None, hits: "list[Hit]") -> str:
    """A line a hit: score, path, and the seconds where there are some to say."""
    lines = [f"{hit.score:.4f}  {hit.path}{_time(hit)}" for hit in hits] or ["no hit"]
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
    if len(arguments) < 2 or any(" " in argument.strip() or not argument.strip() for argument in arguments):
        return arguments
    sentence = " ".join(arguments)
    log.info(f'searching for one sentence, "{sentence}"; quote each of several')
    return [sentence]
