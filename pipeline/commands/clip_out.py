"""`clip-out`: the seconds that were found, as files."""

import json
import logging
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.commands.options import DatasetOption, JsonOption, WorkspaceOption, show
from pipeline.errors import BadInput, MissingData
from pipeline.workspace import Workspace

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """What to write: the window [start, end) of the file at `path`, in seconds; None: no such bound."""

    video_id: str
    path: str
    start: float | None
    end: float | None

    @property
    def stem(self) -> str:
        """
        >>> Part("films/a b.mp4#t=5,7.5", "/x/films/a b.mp4", 5.0, 7.5).stem
        'films-a-b.mp4-5-7.5'
        """
        return re.sub(r"[^\w.-]+", "-", self.video_id.replace("#t=", "-")).strip("-.")[:180] or "clip"


def clip_out(
    hits: Annotated[list[str], typer.Argument(metavar="HIT_ID...", help="file#t=START,END; -: search --json on stdin")],
    out: Annotated[Path, typer.Option("--out", help="Folder to write to")],
    exact: Annotated[
        bool, typer.Option("--exact", help="Encode exactly these frames; else copy from the keyframe before")
    ] = False,
    dataset: DatasetOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the seconds of hits as files of their own.

    An id is that of a hit, or a path of a video with `#t=START,END` (seconds). Packets are copied, from the last
    keyframe at or before START on; --exact encodes instead (H.264, AAC in .mp4).

    \b
        python cli.py clip-out "film.mp4#t=20,30" --out found/
        python cli.py clip-out "/data/film.mp4#t=20,30" --exact --out found/
        python cli.py search "a dog catches a ball" --json | python cli.py clip-out - --out found/
    """
    place = Workspace.locate(workspace)
    parts = [part for hit in hits for part in (_of_json(sys.stdin.read()) if hit == "-" else [_of_id(hit)])]
    if not parts:
        raise BadInput("no hits to write", fix="give ids such as film.mp4#t=20,30, or pipe in `search --json`")
    found = [_located(part, place, dataset) for part in parts]

    from pipeline.video.cut import cut, suffix_of
    from pipeline.video.limits import DecodeFailure

    written: list[dict[str, Any]] = []
    failed: list[dict[str, Any]] = []
    out.mkdir(parents=True, exist_ok=True)
    for part in dict.fromkeys(found):
        target = out / f"{part.stem}{suffix_of(part.path, exact)}"
        try:
            begins = cut(part.path, part.start, part.end, target, exact=exact)
        except DecodeFailure as failure:
            log.warning(f"{part.video_id}: {failure.message}. Fix: give --exact, or other seconds")
            failed.append({"video_id": part.video_id, "error": failure.kind, "message": failure.message})
            continue
        about = {"video_id": part.video_id, "file": str(target), "start": part.start, "end": part.end}
        written.append({**about, "begins": round(begins, 3)})
    text = "\n".join(f"{row['file']}  (from {row['begins']:g} s)" for row in written)
    show({"written": written, "failed": failed}, as_json, text)
    if failed:
        raise typer.Exit(1)


def _of_id(video_id: str) -> Part:
    from pipeline.stores.clip_ids import split_clip_id

    path, start, end = split_clip_id(video_id)
    return _checked(Part(video_id, path, start, end))


def _of_json(text: str) -> list[Part]:
    """The hits of `search --json`, of all its queries. Raises BadInput."""
    try:
        parts = [
            Part(str(hit["video_id"]), str(hit["path"]), _number(hit.get("start")), _number(hit.get("end")))
            for hit in _hits(json.loads(text))
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(
            f"standard input holds no hits ({error})", expected="the output of `search --json`", got=repr(text[:60])
        ) from None
    named = [_of_id(part.video_id) for part in parts]
    return [
        _checked(
            Part(part.video_id, part.path, *((part.start, part.end) if part.end is not None else (n.start, n.end)))
        )
        for part, n in zip(parts, named, strict=True)
    ]


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _hits(value: Any) -> list[dict[str, Any]]:
    """An object of queries with their hits, or a list of hits, or one of such lists."""
    if isinstance(value, dict):
        return [hit for query in value["queries"] for hit in query["hits"]]
    return [hit for row in value for hit in (row if isinstance(row, list) else [row])]


def _checked(part: Part) -> Part:
    if part.start is not None and part.end is not None and not 0 <= part.start < part.end:
        raise BadInput(f"{part.video_id}: seconds", expected="START below END", got=f"{part.start:g}, {part.end:g}")
    return part


def _located(part: Part, workspace: Workspace, dataset: str | None) -> Part:
    """With the file that holds it: the entry of the data set that has this id, a file of its media, or a path."""
    from pipeline.resolve import resolve_store
    from pipeline.stores.manifest import read_manifest

    if dataset is None and Path(part.path).is_file():
        return part
    name = resolve_store(workspace, dataset).dataset if dataset is not None or workspace.feature_dirs() else None
    if name is not None:
        manifest = read_manifest(workspace.manifest_path(name))
        entries = {entry.video_id: entry for entry in manifest.entries}
        entry = entries.get(part.video_id) or entries.get(part.path)
        known = [manifest.resolve(entry)] if entry is not None else [str(Path(manifest.root, part.path))]
        window = (part.start, part.end)
        if entry is not None and window == (None, None):
            window = (entry.start, entry.end)
        if Path(known[0]).is_file() and not any(piece == ".." for piece in Path(part.path).parts):
            return Part(part.video_id, known[0], *window)
    raise MissingData(
        f"{part.video_id}: no local file {part.path}",
        fix="give an id of the data set (--dataset NAME), or the path of a file with #t=START,END",
    )
