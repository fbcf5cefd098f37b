"""MSVD (Chen & Dolan, ACL 2011): 1200 / 100 / 670 clips with 18 to 81 captions each.

Every test caption is a query (27,763), repeated ones too; the gallery is the 670 clips.
"""

from pipeline.datasets.assemble import Annotated, Clip, PublishedSplit
from pipeline.datasets.readers import read_ids
from pipeline.datasets.records import clips_of, read_whole
from pipeline.datasets.source import Source
from pipeline.stores.manifest import SPLITS

ORIGIN = (
    "the Microsoft Research Video Description Corpus page; lists and captions from the collaborative-experts project"
)
PUBLISHED = {
    "train": PublishedSplit("MSVD train", 1200, "223a750f33fcec3c5fcb1894123564e67286edd1e9f9473be97930340027d659"),
    "val": PublishedSplit("MSVD val", 100, "0e6b31c93757d25115f04e1974bcdc7962b3fce17832b397f6e83e9ff096881b"),
    "test": PublishedSplit("MSVD", 670, "8d2c6c42af984fd02de95caffc7c6e4fafadeed81b5d99c8aa1584b12367a85c"),
}


def annotate(source: Source) -> Annotated:
    lists = {split: f"{split}_list.txt" for split in SPLITS if source.wants(split)}
    files = source.files({"captions": "captions_msvd.json", **lists}, ORIGIN)
    captions = read_whole(files["captions"], dict, "an object {id: [captions]}", source)
    clips: list[Clip] = []
    for split in lists:
        clips += clips_of(read_ids(files[split], source.repairs), split, captions, source)
    return Annotated(tuple(clips), PUBLISHED, "all captions of a clip, each one a query", ORIGIN)
