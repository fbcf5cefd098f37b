"""Shared, checked steps of the data sets' adapters."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pipeline.datasets.assemble import Clip
from pipeline.datasets.readers import Repairs, Row, check_id, clean_captions, read_json
from pipeline.datasets.source import Source
from pipeline.errors import BadInput

T = TypeVar("T")


def choice(option: str, value: str, allowed: Collection[str]) -> str:
    if value not in allowed:
        raise BadInput(f"{option}: unknown value", expected=" or ".join(map(repr, allowed)), got=repr(value))
    return value


def read_whole(path: Path, kind: type[T], form: str, source: Source) -> T:
    """A JSON file whose outermost value is a list or an object; `form` describes it in the error."""
    data = read_json(path, source.repairs)
    if not isinstance(data, kind):
        raise BadInput(path.name, expected=form, got=type(data).__name__)
    return data


def field(record: Any, name: str, kind: type[T], where: str) -> T:
    """`record[name]`, if the record is an object that has it in the right type."""
    if not isinstance(record, dict) or name not in record:
        raise BadInput(f"{where}: missing field {name!r}", got=repr(record)[:80])
    value = record[name]
    if not isinstance(value, kind):
        raise BadInput(f"{where}: field {name!r}", expected=kind.__name__, got=repr(value)[:80])
    return value


def one_text_per_id(rows: Iterable[Row], id_column: str, text_column: str, repairs: Repairs) -> dict[str, str]:
    """A table with one row a video. The same row again is dropped and counted; another text for an id is an error."""
    texts: dict[str, str] = {}
    for row in rows:
        video_id, text = check_id(row[id_column], row.where), row[text_column]
        if texts.get(video_id, text) != text:
            raise BadInput(
                f"{row.where}: id {video_id!r} again, with another {text_column}",
                expected="one row a video",
                got=repr(text[:80]),
            )
        if video_id in texts:
            repairs.note("repeated rows, kept once", f"{row.where}: {video_id}")
        texts[video_id] = text
    return texts


def clips_of(
    ids: Iterable[str],
    split: str,
    captions: Mapping[str, Sequence[str]],
    source: Source,
    names: Callable[[str], tuple[str, ...]] | None = None,
) -> list[Clip]:
    """One clip an id, its captions cleaned; an id without captions gives a clip without, which `assemble` counts."""
    return [
        Clip(
            check_id(video_id, f"{source.dataset} {split}"),
            split,
            clean_captions(captions.get(video_id, ()), f"{source.dataset} {split} {video_id}", source.repairs),
            names(video_id) if names else (),
        )
        for video_id in ids
    ]
