"""LSMDC (Rohrbach et al., IJCV 2017), the 2016 retrieval task: 1000 test clips. Licensed: its authors give the files.

The tables are TAB-separated, without header: clip name, start, end (aligned), start, end (extracted), sentence. A name
repeats in the training file, once for each of its sentences: all are kept. Clip names hold dots, so nothing is cut off
them; the files are `<movie>/<clip>.avi`, already cut.
"""

from pipeline.datasets.assemble import Annotated, Clip, PublishedSplit
from pipeline.datasets.readers import read_tsv
from pipeline.datasets.records import clips_of
from pipeline.datasets.source import Source

ORIGIN = "the Large Scale Movie Description Challenge page (MPI Informatics; a licence is needed)"
FILES = {
    "train": "LSMDC16_annos_training.csv",
    "val": "LSMDC16_annos_val.csv",
    "test": "LSMDC16_challenge_1000_publictect.csv",
}
PUBLISHED = {
    "train": PublishedSplit("LSMDC train", 101079, unit="captions"),
    "val": PublishedSplit("LSMDC val", 7408, unit="captions"),
    "test": PublishedSplit("LSMDC", 1000),
}
COLUMNS = ("clip", "start aligned", "end aligned", "start extracted", "end extracted", "sentence")


def annotate(source: Source) -> Annotated:
    files = source.files({split: name for split, name in FILES.items() if source.wants(split)}, ORIGIN)
    clips: list[Clip] = []
    for split, path in files.items():
        sentences: dict[str, list[str]] = {}
        for row in read_tsv(path, COLUMNS, source.repairs):
            sentences.setdefault(row["clip"].strip(), []).append(row["sentence"])
        clips += clips_of(sentences, split, sentences, source)
    return Annotated(tuple(clips), PUBLISHED, "every sentence of a clip; one a clip in the test", ORIGIN)
