"""Charades (Sigurdsson et al., ECCV 2016) as retrieval: 7985 / 1863 videos, one paragraph a video.

Retrieval papers use the `script` that the video was acted from; some use the `descriptions` written afterwards, 1 to 4
texts joined by ";" (`text="descriptions"`: each one a query). There is no published validation split.
"""

from pipeline.datasets.assemble import Annotated, Clip, PublishedSplit
from pipeline.datasets.readers import read_csv
from pipeline.datasets.records import choice, clips_of, one_text_per_id
from pipeline.datasets.source import Source

ORIGIN = "the Charades page of the Allen Institute for AI (PRIOR)"
FILES = {"train": "Charades_v1_train.csv", "test": "Charades_v1_test.csv"}
PUBLISHED = {
    "train": PublishedSplit("Charades train", 7985),
    "test": PublishedSplit("Charades", 1863, "5f6092ae066396bef9248dfcefd349cfc4bc2838646de1b855a86ceb263437d1"),
}


def annotate(source: Source, *, text: str = "script") -> Annotated:
    """`text`: "script" (one paragraph a video) or "descriptions" (each text a query)."""
    choice("text", text, ("script", "descriptions"))
    wanted = {"train": source.wants("train", "val"), "test": source.wants("test")}
    files = source.files({split: name for split, name in FILES.items() if wanted[split]}, ORIGIN)
    clips: list[Clip] = []
    for split, path in files.items():
        rows = read_csv(path, ("id", text), source.repairs)
        texts = one_text_per_id(rows, "id", text, source.repairs)
        captions = {key: [value] if text == "script" else value.split(";") for key, value in texts.items()}
        clips += clips_of(texts, split, captions, source)
    rule = "the script, one paragraph a video" if text == "script" else "each text of `descriptions` is a query"
    return Annotated(tuple(clips), PUBLISHED, rule, ORIGIN)
