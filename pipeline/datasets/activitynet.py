"""ActivityNet Captions (Krishna et al., ICCV 2017) as paragraph-to-video retrieval, tested on val_1: 4917 videos.

A video's sentences, stripped and joined by one space, are one query for the whole video. `train.json` and `val_1.json`
decide; the id lists beside them name some videos that have no sentences, which are counted where a list is present.
"""

from pipeline.datasets.assemble import Annotated, Clip, PublishedSplit
from pipeline.datasets.readers import clean_captions
from pipeline.datasets.records import clips_of, field, read_whole
from pipeline.datasets.source import Source

ORIGIN = "the ActivityNet Captions page (Stanford) and the ActivityNet challenge site for the videos"
FILES = {"train": ("train.json", "train_ids.json"), "test": ("val_1.json", "val_ids.json")}
PUBLISHED = {
    "train": PublishedSplit("ActivityNet train", 10009),
    "test": PublishedSplit(
        "ActivityNet val_1", 4917, "6da5bed74d0b4940843c7adce3689003d1dfbefec8181c4aa269a48cddc882b3"
    ),
}


def annotate(source: Source) -> Annotated:
    wanted = {"train": source.wants("train", "val"), "test": source.wants("test")}
    files = source.files({split: names[0] for split, names in FILES.items() if wanted[split]}, ORIGIN)
    clips: list[Clip] = []
    for split, path in files.items():
        records = read_whole(path, dict, "an object {id: {timestamps, sentences}}", source)
        paragraphs = {key: _paragraph(record, f"{path.name} {key}", source) for key, record in records.items()}
        clips += clips_of(records, split, paragraphs, source, names=lambda key: (key, key.removeprefix("v_")))
        listing = source.annotations / FILES[split][1]
        for key in read_whole(listing, list, "a list of ids", source) if listing.is_file() else ():
            if key not in records:
                source.repairs.note(f"ids of {listing.name} without sentences in {path.name}", str(key))
    return Annotated(tuple(clips), PUBLISHED, "all sentences of a video joined into one paragraph", ORIGIN)


def _paragraph(record: object, where: str, source: Source) -> list[str]:
    sentences = clean_captions(field(record, "sentences", list, where), where, source.repairs)
    return [" ".join(sentence.strip() for sentence in sentences)] if sentences else []
