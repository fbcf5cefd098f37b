"""VATEX (Wang et al., ICCV 2019), English, with the split of HGR (Chen et al., CVPR 2020): 25,991 / 1500 / 1500 clips.

Captions come from the official lists `[{"videoID", "enCap": [10], …}]` (HGR's validation and test clips both stand in
the official validation file) or from `ref_captions.json` = {id: [captions]}. Most papers make all ten English captions
queries (`captions="all"`), some only the first (`captions="first"`): the protocol names which.

Ids are `<11 characters>_ssssss_eeeeee`; the 11 characters are the YouTube id and not unique (5 of 28,991 repeat).
"""

import re
from collections import Counter
from pathlib import Path

from pipeline.datasets.assemble import Annotated, Clip, PublishedSplit
from pipeline.datasets.readers import Repairs, read_ids
from pipeline.datasets.records import choice, clips_of, field, read_whole
from pipeline.datasets.source import Source
from pipeline.errors import BadInput
from pipeline.stores.manifest import SPLITS

ORIGIN = "the VATEX project page (videos as YouTube ids); split lists and ref_captions.json from the HGR project"
OFFICIAL = {
    "train": "vatex_training_v1.0.json",
    "val": "vatex_validation_v1.0.json",
    "test": "vatex_validation_v1.0.json",
}
PUBLISHED = {
    "train": PublishedSplit("VATEX train", 25991, "abd0450473f9f78417028088f9be7bb677775c7d23b2264eac64fc1733985d0c"),
    "val": PublishedSplit("VATEX val (HGR)", 1500, "561ef7c7f03a2e6e4ac631696c996860b4ca450aa658fcf54f2cce61695b58ff"),
    "test": PublishedSplit("VATEX (HGR)", 1500, "5c359709225c0551cc14ad58773c878f04cdaa993f1750c9ffc95ac051944993"),
}


def annotate(source: Source, *, captions: str = "all") -> Annotated:
    """`captions`: "all" ten English captions of a clip are queries, or only the "first"."""
    choice("captions", captions, ("all", "first"))
    splits = [split for split in SPLITS if source.wants(split)]
    wanted = {f"{split} ids": f"{split}_list.txt" for split in splits}
    wanted |= {f"{split} captions": f"ref_captions.json|{OFFICIAL[split]}" for split in splits}
    files = source.files(wanted, ORIGIN)
    texts: dict[str, list[str]] = {}
    for path in dict.fromkeys(files[f"{split} captions"] for split in splits):
        _merge(texts, _read(path, source), path)
    if captions == "first":
        texts = {video_id: values[:1] for video_id, values in texts.items()}
    ids = {split: read_ids(files[f"{split} ids"], source.repairs) for split in splits}
    every_list = [path for path in sorted(source.annotations.glob("*_list.txt")) if path.is_file()]
    cut = Counter(video_id[:11] for path in every_list for video_id in read_ids(path, Repairs()))
    clips: list[Clip] = []
    for split in splits:
        clips += clips_of(ids[split], split, texts, source, names=lambda video_id: file_names(video_id, cut))
    rule = "all 10 English captions of a clip" if captions == "all" else "the first English caption of a clip"
    return Annotated(tuple(clips), PUBLISHED, f"{rule}, each one a query", ORIGIN)


def file_names(video_id: str, cut: Counter[str]) -> tuple[str, ...]:
    """Possible file names of a clip: the id, the id without padding, the YouTube id where it is unique.

    >>> file_names("Ptf_2VRj-V0_000122_000132", Counter(["Ptf_2VRj-V0"]))
    ('Ptf_2VRj-V0_000122_000132', 'Ptf_2VRj-V0_122_132', 'Ptf_2VRj-V0')
    """
    parts = re.fullmatch(r"(.{11})_(\d{6})_(\d{6})", video_id)
    if parts is None:
        return (video_id,)
    short = f"{parts[1]}_{int(parts[2])}_{int(parts[3])}"
    return (video_id, short, parts[1]) if cut[parts[1]] == 1 else (video_id, short)


def _read(path: Path, source: Source) -> dict[str, list[str]]:
    if path.name == "ref_captions.json":
        data = read_whole(path, dict, "an object {id: [captions]}", source)
        return {video_id: field(data, video_id, list, path.name) for video_id in data}
    texts: dict[str, list[str]] = {}
    for number, record in enumerate(read_whole(path, list, "a list of {videoID, enCap}", source), start=1):
        where = f"{path.name} record {number}"
        video_id, found = field(record, "videoID", str, where), field(record, "enCap", list, where)
        if video_id in texts:
            source.repairs.note("repeated rows, kept once", f"{where}: {video_id}")
        _merge(texts, {video_id: found}, path)
    return texts


def _merge(texts: dict[str, list[str]], more: dict[str, list[str]], path: Path) -> None:
    for video_id, captions in more.items():
        if texts.setdefault(video_id, captions) != captions:
            raise BadInput(f"{path.name}: id {video_id!r} again, with other captions", fix="use the original files")
