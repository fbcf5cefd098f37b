"""MSR-VTT (Xu et al., CVPR 2016), in its three retrieval protocols.

1k-A (JSFusion): 1000 test pairs, one caption a video; train 9k (default) or 7k, 20 captions a video; no validation.
1k-B (Miech): 6656 train and 1000 test videos; the first caption of a test video is its query; no validation.
full: 6513 / 497 / 2990 videos, all 20 captions are queries.
"""

from pathlib import Path

from pipeline.datasets.assemble import Annotated, Clip, PublishedSplit
from pipeline.datasets.readers import read_csv, read_ids, read_json
from pipeline.datasets.records import choice, clips_of, field, one_text_per_id
from pipeline.datasets.source import Source
from pipeline.errors import BadInput

ORIGIN = (
    "the MSR-VTT challenge page (Microsoft Research); split files from the CLIP4Clip and collaborative-experts projects"
)
DATA = "MSRVTT_data.json"
TRAIN_9K = PublishedSplit("MSR-VTT train-9k", 9000, "7dce4e3e1af1eded0cb9edbf4a30dc6ad15b9ec201c7a6b4b2860d39280de4d7")
TRAIN_7K = PublishedSplit("MSR-VTT train-7k", 7010, "81ea9208d6c64212cd45f7e03774a8c82d45afe7c57efdb3e7d1a630f0b34700")
TEST_1KA = PublishedSplit("MSR-VTT 1k-A", 1000, "49a09fb68f7ec52b3b9bbb7e856ffbd3f00233976ed435fded658309c3cd491a")
MIECH = {"train": PublishedSplit("MSR-VTT 1k-B train", 6656), "test": PublishedSplit("MSR-VTT 1k-B", 1000)}
FULL = {
    "train": PublishedSplit(
        "MSR-VTT full train", 6513, "5cac8e8a55a87350bd35c6c28695e9fc6d8561a463769f9273894704d8ef0ebd"
    ),
    "val": PublishedSplit("MSR-VTT full val", 497, "be5b1994f643740b80796c392d7b472deed45ddce69ce13fee87609ce303ab3f"),
    "test": PublishedSplit("MSR-VTT full", 2990, "916e9b2dd9a4518131b76a1e9b4f47fd12847f50356ebd8413bcd555abe2bca8"),
}


def annotate(source: Source, *, protocol: str = "1k-A", train: str = "9k") -> Annotated:
    """`protocol`: "1k-A", "1k-B" or "full"; `train` ("9k" or "7k") concerns 1k-A alone."""
    choice("protocol", protocol, ("1k-A", "1k-B", "full"))
    choice("train", train, ("9k", "7k"))
    if protocol == "1k-A":
        return _one_k_a(source, train)
    return _one_k_b(source) if protocol == "1k-B" else _full(source)


def _one_k_a(source: Source, train: str) -> Annotated:
    wanted: dict[str, str] = {}
    if source.wants("train", "val"):
        wanted |= {"training ids": f"MSRVTT_train.{train}.csv", "captions": DATA}
    if source.wants("test"):
        wanted |= {"test pairs": "MSRVTT_JSFUSION_test.csv"}
    files = source.files(wanted, ORIGIN)
    clips: list[Clip] = []
    if "captions" in files:
        rows = read_csv(files["training ids"], ("video_id",), source.repairs)
        ids = one_text_per_id(rows, "video_id", "video_id", source.repairs)
        clips += clips_of(ids, "train", _read(files["captions"], source)[0], source)
    if "test pairs" in files:
        rows = read_csv(files["test pairs"], ("video_id", "sentence"), source.repairs)
        texts = one_text_per_id(rows, "video_id", "sentence", source.repairs)
        clips += clips_of(texts, "test", {video_id: [text] for video_id, text in texts.items()}, source)
    published = {"train": TRAIN_9K if train == "9k" else TRAIN_7K, "test": TEST_1KA}
    return Annotated(
        tuple(clips), published, "train: all 20 captions; test: the one JSFusion caption of a video", ORIGIN
    )


def _one_k_b(source: Source) -> Annotated:
    lists = {split: f"{split}_list_miech.txt" for split in ("train", "test") if source.wants(split)}
    files = source.files({"captions": DATA, **lists}, ORIGIN)
    captions, _ = _read(files["captions"], source)
    clips: list[Clip] = []
    for split in lists:
        ids = read_ids(files[split], source.repairs)
        chosen = {video_id: texts[:1] for video_id, texts in captions.items()} if split == "test" else captions
        clips += clips_of(ids, split, chosen, source)
    return Annotated(tuple(clips), MIECH, "train: all 20 captions; test: the first caption of a video", ORIGIN)


def _full(source: Source) -> Annotated:
    captions, splits = _read(source.files({"captions and splits": DATA}, ORIGIN)["captions and splits"], source)
    clips: list[Clip] = []
    for split, named in (("train", "train"), ("val", "validate"), ("test", "test")):
        if source.wants(split):
            clips += clips_of([key for key, value in splits.items() if value == named], split, captions, source)
    return Annotated(tuple(clips), FULL, "all 20 captions of a video, each one a query", ORIGIN)


def _read(path: Path, source: Source) -> tuple[dict[str, list[str]], dict[str, str]]:
    """({video id: its captions in the order of the file}, {video id: "train" | "validate" | "test"})."""
    data = read_json(path, source.repairs)
    captions: dict[str, list[str]] = {}
    for number, row in enumerate(field(data, "sentences", list, path.name), start=1):
        where = f"{path.name} sentence {number}"
        captions.setdefault(field(row, "video_id", str, where), []).append(field(row, "caption", str, where))
    splits: dict[str, str] = {}
    for number, row in enumerate(field(data, "videos", list, path.name), start=1):
        where = f"{path.name} video {number}"
        split = choice(f"{where}, split", field(row, "split", str, where), ("train", "validate", "test"))
        if splits.setdefault(field(row, "video_id", str, where), split) != split:
            raise BadInput(f"{where}: {row['video_id']!r} stands in two splits", fix="use the original file")
    return captions, splits
