"""DiDeMo (Hendricks et al., ICCV 2017) as paragraph-to-video retrieval: 8362 / 1062 / 1004 videos.

A video's descriptions, joined by one space in the order of the file, are one query; only its first 31 seconds count.
Two forms of the annotations are read: T-MASS's `didemo_<split>_label.csv` (the text is already joined), and CLIP4Clip's
`<split>_list.txt` with `<split>_data.json` (the list decides: the test data have 1037 file names for 1004 videos).
Published results use 1003 or 1004 test videos, as one can no longer be had everywhere.

File names end in many extensions, or in a bare dot, and copies were converted: a video's id is its name without any.
"""

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

from pipeline.datasets.assemble import Annotated, Clip, PublishedSplit
from pipeline.datasets.readers import Row, check_id, clean_captions, read_csv, read_ids
from pipeline.datasets.records import field, read_whole
from pipeline.datasets.source import Source
from pipeline.errors import BadInput
from pipeline.stores.manifest import SPLITS

ORIGIN = "the LocalizingMoments project (DiDeMo); label files from the T-MASS or CLIP4Clip projects"
WINDOW = (0.0, 31.0)  # seconds
PUBLISHED = {
    "train": PublishedSplit("DiDeMo train", 8362),
    "val": PublishedSplit("DiDeMo val", 1062, "f84fbba9a9427b37da87bdb8b2f5e1e4fe565c7b29098b053bf56ad68bec8131"),
    "test": PublishedSplit("DiDeMo", 1004, "57c0b06b28455cd36f6953f0ee56ed5ef73ad44134f250cf5666c0f67dc75b6a"),
}


def annotate(source: Source) -> Annotated:
    splits = [split for split in SPLITS if source.wants(split)]
    files = source.files({split: f"didemo_{split}_label.csv|{split}_data.json" for split in splits}, ORIGIN)
    lists = {f"{split} list": f"{split}_list.txt" for split in splits if files[split].suffix == ".json"}
    files |= source.files(lists, ORIGIN)
    clips: list[Clip] = []
    for split in splits:
        listing = files.get(f"{split} list")
        found = _data(files[split], listing, split, source) if listing else _labels(files[split], split, source)
        counts = Counter(clip.video_id for clip in found)  # two listed names of one stem keep their extensions as ids
        clips += [replace(clip, video_id=clip.names[0]) if counts[clip.video_id] > 1 else clip for clip in found]
    return Annotated(tuple(clips), PUBLISHED, "all descriptions of a video joined into one paragraph", ORIGIN)


def stem(name: str) -> str:
    """
    >>> stem("1@N0_2_a.mov"), stem("1@N0_2_a."), stem("1@N0_2_a")
    ('1@N0_2_a', '1@N0_2_a', '1@N0_2_a')
    """
    return name.rpartition(".")[0] or name


def _clip(name: str, split: str, texts: list[str], window: tuple[float, float], source: Source) -> Clip:
    where = f"{split} {name!r}"
    return Clip(
        check_id(stem(name), where), split, clean_captions(texts, where, source.repairs), (name, stem(name)), *window
    )


def _labels(path: Path, split: str, source: Source) -> list[Clip]:
    named: dict[str, Row] = {}
    for row in read_csv(path, ("success", "video_path", "starts", "ends", "text"), source.repairs):
        # `video_path` is absolute on its maker's machine: the name alone counts.
        name = row["video_path"].replace("\\", "/").rpartition("/")[2]
        if named.setdefault(name, row)["text"] != row["text"]:
            raise BadInput(f"{row.where}: video {name!r} again, with another text", expected="one row a video")
        if named[name] is not row:
            source.repairs.note("repeated rows, kept once", f"{row.where}: {name}")
        if row["success"].strip() != "True":
            source.repairs.note("rows not marked success=True, kept", row.where)
    return [_clip(name, split, [row["text"]], _window(row), source) for name, row in named.items()]


def _window(row: Row) -> tuple[float, float]:
    """starts and ends are printed tensors: "tensor([[0]])", "tensor([[31]])"."""
    printed = re.fullmatch(r"\D*(\d+\.?\d*)\D*\|\D*(\d+\.?\d*)\D*", f"{row['starts']}|{row['ends']}")
    if printed is None or not float(printed[1]) < float(printed[2]):
        got = f"{row['starts'][:40]!r} and {row['ends'][:40]!r}"
        raise BadInput(f"{row.where}: window", expected="one number each, start < end in seconds", got=got)
    return float(printed[1]), float(printed[2])


def _data(path: Path, list_path: Path, split: str, source: Source) -> list[Clip]:
    records = read_whole(path, list, "a list of {video, description}", source)
    described: dict[str, list[str]] = {}
    for number, record in enumerate(records, start=1):
        where = f"{path.name} record {number}"
        name, text = field(record, "video", str, where), field(record, "description", str, where)
        described.setdefault(name, []).extend(clean_captions([text], where, source.repairs))
    by_stem: dict[str, list[str]] = {}
    for name in described:
        by_stem.setdefault(stem(name), []).append(name)
    clips, used = [], set()
    for listed in read_ids(list_path, source.repairs):
        names = [listed] if listed in described else by_stem.get(stem(listed), [])
        if len(names) > 1:
            source.repairs.note("descriptions under several file names of one video, joined", ", ".join(names))
        used.update(names)
        texts = [text for name in names for text in described[name]]
        clips.append(_clip(listed, split, [" ".join(texts)] if texts else [], WINDOW, source))
    for name in described.keys() - used:
        source.repairs.note(f"described file names that {list_path.name} does not list, left out", name)
    return clips
