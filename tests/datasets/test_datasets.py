"""Each adapter on the published annotation files (../shared/annotations), and on stand-ins with real videos."""

import csv
import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
from standins import caption, make_standin, standin_ids

from pipeline.datasets import DATASETS, annotate, build_manifest, find_source
from pipeline.datasets.assemble import Annotated, Clip, PublishedSplit, account, claim, ids_digest
from pipeline.errors import BadInput, MissingData
from pipeline.stores.manifest import Manifest, VideoEntry, read_manifest, write_manifest

PUBLISHED = Path(__file__).resolve().parents[3] / "shared" / "annotations"
NAMES = ["msrvtt", "msvd", "lsmdc", "didemo", "vatex", "charades", "activitynet"]


def published(name: str) -> Path:
    folder = PUBLISHED / name
    if not folder.is_dir():
        pytest.skip(f"the published annotation files are not at {folder}")
    return folder


def read(name: str, folder: Path, splits: str = "train,val,test", **options) -> tuple[Annotated, dict]:
    source = find_source(name, folder, folder, None, splits)
    return annotate(source, **options), source.repairs.to_json()


def videos_and_captions(annotated: Annotated, split: str) -> tuple[int, int]:
    clips = [clip for clip in annotated.clips if clip.split == split]
    return len(clips), sum(len(clip.captions) for clip in clips)


def claimable(annotated: Annotated, split: str) -> bool:
    ids = [clip.video_id for clip in annotated.clips if clip.split == split]
    return ids_digest(ids) == annotated.published[split].ids_sha256


def build_with_empty_files(name: str, annotations: Path, ids: list[str], folder: Path, **options) -> Manifest:
    folder.mkdir()
    for video_id in ids:
        (folder / f"{video_id}.mp4").touch()
    return build_manifest(name, folder, annotations, **options)


# ---- the published files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("train", "count"), [("9k", 9000), ("7k", 7010)])
def test_msrvtt_1k_a_counts_every_training_and_test_video(tmp_path, train, count):
    for path in published("msrvtt").glob("*.csv"):
        shutil.copy(path, tmp_path)
    shutil.copy(published("msrvtt") / "derived_MSRVTT_data_200val_200test.json", tmp_path / "MSRVTT_data.json")
    annotated, repairs = read("msrvtt", tmp_path, train=train)
    # Only 200 of the training videos have captions in the part of MSRVTT_data.json that is at hand: 20 each.
    assert videos_and_captions(annotated, "train") == (count, 200 * 20)
    assert videos_and_captions(annotated, "test") == (1000, 1000)
    assert claimable(annotated, "train")
    assert claimable(annotated, "test")
    assert repairs == {}


def test_msrvtt_test_captions_are_those_of_the_file_and_four_repeat_over_nine_rows():
    annotated, _ = read("msrvtt", published("msrvtt"), "test")
    with open(published("msrvtt") / "MSRVTT_JSFUSION_test.csv", newline="") as handle:
        expected = {row["video_id"]: (row["sentence"],) for row in csv.DictReader(handle)}
    assert {clip.video_id: clip.captions for clip in annotated.clips} == expected
    counts = Counter(clip.captions[0] for clip in annotated.clips)
    assert sorted(count for count in counts.values() if count > 1) == [2, 2, 2, 3]


def test_msrvtt_full_keeps_all_twenty_captions(tmp_path):
    shutil.copy(published("msrvtt") / "derived_MSRVTT_data_200val_200test.json", tmp_path / "MSRVTT_data.json")
    annotated, _ = read("msrvtt", tmp_path, protocol="full")
    assert videos_and_captions(annotated, "val") == (200, 4000)
    assert videos_and_captions(annotated, "test") == (200, 4000)
    for split, first, last in (("train", 0, 6513), ("val", 6513, 7010), ("test", 7010, 10000)):
        ids = [f"video{number}" for number in range(first, last)]
        assert (len(ids), ids_digest(ids)) == (annotated.published[split].count, annotated.published[split].ids_sha256)


def test_msvd_keeps_all_27763_test_captions():
    annotated, repairs = read("msvd", published("msvd"))
    assert videos_and_captions(annotated, "train") == (1200, 48774)
    assert videos_and_captions(annotated, "val") == (100, 4290)
    assert videos_and_captions(annotated, "test") == (670, 27763)
    assert all(claimable(annotated, split) for split in ("train", "val", "test"))
    captions = json.loads((published("msvd") / "captions_msvd.json").read_text())
    assert {clip.video_id: list(clip.captions) for clip in annotated.clips} == captions
    assert repairs == {}


def test_didemo_label_files():
    annotated, repairs = read("didemo", published("didemo"), "val,test")
    assert videos_and_captions(annotated, "val") == (1062, 1062)
    assert videos_and_captions(annotated, "test") == (1004, 1004)
    assert claimable(annotated, "val")
    assert claimable(annotated, "test")
    # Totals of characters: newlines and quotes inside the quoted paragraphs survive as they stand.
    assert sum(len(clip.captions[0]) for clip in annotated.clips if clip.split == "val") == 157666
    assert sum(len(clip.captions[0]) for clip in annotated.clips if clip.split == "test") == 151884
    assert sum("\n" in clip.captions[0] for clip in annotated.clips) == 15
    assert {(clip.start, clip.end) for clip in annotated.clips} == {(0.0, 31.0)}
    assert repairs == {}


def test_didemo_in_clip4clip_form_gives_the_same_paragraphs(tmp_path):
    labels, _ = read("didemo", published("didemo"), "test")
    shutil.copy(published("didemo") / "LocalizingMoments_test_data.json", tmp_path / "test_data.json")
    (tmp_path / "test_list.txt").write_text("\n".join(clip.names[0] for clip in labels.clips))
    joined, repairs = read("didemo", tmp_path, "test")
    assert [(c.video_id, c.captions, c.start, c.end) for c in joined.clips] == [
        (c.video_id, c.captions, c.start, c.end) for c in labels.clips
    ]
    assert repairs["described file names that test_list.txt does not list, left out"]["count"] == 1037 - 1004
    # A list without extensions cannot tell the two file names of 33 videos apart: their descriptions are joined.
    (tmp_path / "test_list.txt").write_text("\n".join(clip.video_id for clip in labels.clips))
    merged, repairs = read("didemo", tmp_path, "test")
    assert [clip.video_id for clip in merged.clips] == [clip.video_id for clip in labels.clips]
    assert repairs["descriptions under several file names of one video, joined"]["count"] == 33
    records = json.loads((tmp_path / "test_data.json").read_text())
    assert sum(len(clip.captions[0]) for clip in merged.clips) == sum(len(r["description"]) + 1 for r in records) - 1004


def test_vatex_lists_and_the_official_record_form(tmp_path):
    for path in published("vatex").glob("*_list.txt"):
        shutil.copy(path, tmp_path)
    (tmp_path / "ref_captions.json").write_text("{}")
    annotated, _ = read("vatex", tmp_path)
    assert [videos_and_captions(annotated, split)[0] for split in ("train", "val", "test")] == [25991, 1500, 1500]
    assert all(claimable(annotated, split) for split in ("train", "val", "test"))
    names = Counter(name for clip in annotated.clips for name in clip.names)
    assert max(names.values()) == 1, "a file could be taken for two clips"
    assert sum(len(clip.names) == 2 for clip in annotated.clips) == 10, "5 YouTube ids are shared by two clips each"


def test_vatex_official_records_keep_ten_captions_or_the_first(tmp_path):
    source = published("vatex") / "vatex_5records_official_list_format.json"
    shutil.copy(source, tmp_path / "vatex_validation_v1.0.json")
    records = json.loads(source.read_text())
    (tmp_path / "test_list.txt").write_text("\n".join(record["videoID"] for record in records))
    every, _ = read("vatex", tmp_path, "test")
    first, _ = read("vatex", tmp_path, "test", captions="first")
    assert [list(clip.captions) for clip in every.clips] == [record["enCap"] for record in records]
    assert [list(clip.captions) for clip in first.clips] == [record["enCap"][:1] for record in records]


def test_charades_scripts_and_descriptions(tmp_path):
    shutil.copy(published("charades") / "Charades_v1_test.csv", tmp_path)
    shutil.copy(published("charades") / "Charades_v1_train_first300.csv", tmp_path / "Charades_v1_train.csv")
    annotated, repairs = read("charades", tmp_path)
    assert videos_and_captions(annotated, "test") == (1863, 1863)
    assert videos_and_captions(annotated, "train") == (300, 300)
    assert claimable(annotated, "test")
    assert sum(len(clip.captions[0]) for clip in annotated.clips if clip.split == "test") == 211362
    assert repairs == {}
    described, repairs = read("charades", tmp_path, "test", text="descriptions")
    with open(tmp_path / "Charades_v1_test.csv", newline="") as handle:
        parts = [part for row in csv.DictReader(handle) for part in row["descriptions"].split(";")]
    empty = sum(not part.strip() for part in parts)
    assert videos_and_captions(described, "test")[1] == len(parts) - empty
    assert repairs.get("empty captions left out", {"count": 0})["count"] == empty


def test_activitynet_val_1(tmp_path):
    annotated, repairs = read("activitynet", published("activitynet"), "test")
    assert videos_and_captions(annotated, "test") == (4917, 4917)
    assert claimable(annotated, "test")
    records = json.loads((published("activitynet") / "val_1.json").read_text())
    assert {clip.video_id: clip.captions[0] for clip in annotated.clips} == {
        key: " ".join(sentence.strip() for sentence in record["sentences"]) for key, record in records.items()
    }
    assert list(repairs) == ["ids of val_ids.json without sentences in val_1.json"]
    assert repairs["ids of val_ids.json without sentences in val_1.json"]["count"] == 9


def test_the_name_is_claimed_only_with_every_video(tmp_path):
    with open(published("msrvtt") / "MSRVTT_JSFUSION_test.csv", newline="") as handle:
        ids = [row["video_id"] for row in csv.DictReader(handle)]
    options = {"splits": "test"}
    whole = build_with_empty_files("msrvtt", published("msrvtt"), ids, tmp_path / "whole", **options)
    assert whole.protocol["label"] == "MSR-VTT 1k-A"
    assert whole.protocol["missing"]["count"] == 0
    part = build_with_empty_files("msrvtt", published("msrvtt"), ids[3:], tmp_path / "part", **options)
    assert part.protocol["label"] == "subset (997 of 1000)"
    assert part.protocol["missing"] == {"count": 3, "ids": {"test": ids[:3]}}
    assert len(part.entries) == 997
    # A report asks again with the ids that were really evaluated.
    assert claim(whole.protocol["splits"]["test"], ids[1:]) == "subset (999 of 1000)"
    assert claim(whole.protocol["splits"]["test"], [*ids[1:], "video-1"]) == "other ids (1000; published 1000)"


# ---- stand-ins -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_standin_becomes_a_manifest_that_accounts_for_everything(tmp_path, name):
    make_standin(name, tmp_path / name)
    manifest = build_manifest(name, dataset_dir=tmp_path / name)
    ids = standin_ids(name)
    assert {entry.video_id for entry in manifest.entries} == {v for listed in ids.values() for v in listed}
    assert [entry.video_id for entry in manifest.split("test").entries] == ids["test"]
    assert len(manifest.split("val").entries) == len(ids.get("val", [0]))
    assert all(Path(manifest.resolve(entry)).is_file() for entry in manifest.entries)
    assert all(entry.captions for entry in manifest.entries)
    assert manifest.protocol["missing"] == {"count": 0, "ids": {}}
    assert manifest.protocol["extra_files"]["count"] == 0
    test = manifest.protocol["splits"]["test"]
    assert manifest.protocol["label"] == f"subset (4 of {test['published']})"
    assert manifest.protocol["options"]["splits"] == ["train", "val", "test"]
    write_manifest(manifest, tmp_path / "manifest.parquet")
    assert read_manifest(tmp_path / "manifest.parquet") == manifest


@pytest.mark.parametrize("name", NAMES)
def test_named_folders_are_used_and_absent_files_are_all_listed(tmp_path, name):
    with pytest.raises(MissingData) as caught:
        build_manifest(name, dataset_dir=tmp_path / name)
    assert str(tmp_path / name / "videos") in str(caught.value)
    assert str(tmp_path / name / "annotations") in str(caught.value)
    assert "get them from" in str(caught.value)
    videos, annotations = make_standin(name, tmp_path / "elsewhere")
    named = build_manifest(name, videos, annotations)
    assert len(named.entries) == 14
    optional = {"val_ids.json", "MSRVTT_train.7k.csv", "train_list_miech.txt", "test_list_miech.txt"}
    for path in sorted(annotations.iterdir()):
        if path.name not in optional:
            moved = path.rename(tmp_path / path.name)
            with pytest.raises(MissingData, match=path.name):
                build_manifest(name, videos, annotations)
            moved.rename(path)


def test_validation_is_held_out_of_train_by_id_alone(tmp_path):
    ids = standin_ids("charades", train=60, val=0, test=3)
    videos, annotations = make_standin("charades", tmp_path / "all", ids)
    manifest = build_manifest("charades", videos, annotations)
    held = {entry.video_id for entry in manifest.split("val").entries}
    assert len(held) == 3
    assert held < set(ids["train"])
    assert len(manifest.split("train").entries) + len(held) == len(ids["train"])
    assert "held out" in manifest.protocol["validation"]
    assert manifest.protocol["splits"]["train"]["annotated"] == len(ids["train"])
    gone = next(path for path in videos.iterdir() if path.stem in set(ids["train"]) - held)
    gone.unlink()
    fewer = build_manifest("charades", videos, annotations)
    assert {entry.video_id for entry in fewer.split("val").entries} == held


def test_validation_alone_does_not_bring_the_training_split_along(tmp_path):
    make_standin("msrvtt", tmp_path)
    whole = build_manifest("msrvtt", dataset_dir=tmp_path)
    part = build_manifest("msrvtt", dataset_dir=tmp_path, splits="val,test")
    assert part.entries == (*whole.split("val").entries, *whole.split("test").entries)
    assert list(part.protocol["splits"]) == ["val", "test"]


def test_a_split_published_by_its_number_of_captions_is_recognised_by_that():
    def manifest_claim(published: int) -> str:
        clips = (Clip("a", "train", ("x", "y")), Clip("b", "train", ("z",)), Clip("t", "test", ("x",)))
        splits = {"train": PublishedSplit("Toy train", published, unit="captions"), "test": PublishedSplit("Toy", 1)}
        annotated = Annotated(clips, splits, "all", "nowhere")
        entries = [VideoEntry(clip.video_id, "p", clip.split, clip.captions) for clip in clips]
        return account("train", clips, entries, annotated, held_out=False)["claim"]

    assert manifest_claim(3) == "Toy train"
    assert manifest_claim(2) == "other ids (2; published 2)"


def test_lsmdc_keeps_every_sentence_of_a_repeated_name_and_finds_files_by_movie(tmp_path):
    make_standin("lsmdc", tmp_path)
    manifest = build_manifest("lsmdc", dataset_dir=tmp_path)
    first = manifest.entries[0]
    assert first.captions == (caption(first.video_id), 'SOMEONE says "wait", and goes.')
    assert first.path == f"{first.video_id.rsplit('_', 1)[0]}/{first.video_id}.avi"


def test_msrvtt_protocols_differ_in_test_queries(tmp_path):
    videos, annotations = make_standin("msrvtt", tmp_path)
    queries = {
        protocol: {len(entry.captions) for entry in build_manifest(
            "msrvtt", videos, annotations, protocol=protocol
        ).split("test").entries}
        for protocol in ("1k-A", "1k-B", "full")
    }  # fmt: skip
    assert queries == {"1k-A": {1}, "1k-B": {1}, "full": {20}}
    seven = build_manifest("msrvtt", videos, annotations, train="7k")
    assert len(seven.split("train").entries) + len(seven.split("val").entries) == 9


def test_splits_can_be_asked_for_alone(tmp_path):
    videos, annotations = make_standin("vatex", tmp_path)
    (annotations / "train_list.txt").unlink()
    (annotations / "vatex_training_v1.0.json").unlink()
    manifest = build_manifest("vatex", videos, annotations, splits="test", captions="first")
    assert {entry.split for entry in manifest.entries} == {"test"}
    assert {len(entry.captions) for entry in manifest.entries} == {1}
    assert manifest.protocol["extra_files"]["count"] == 10
    assert "first English caption" in manifest.protocol["caption_rule"]


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("msrvt", {}, "expected shapes, msrvtt"),
        ("msrvtt", {"protocol": "1k-C"}, "'1k-A' or '1k-B' or 'full'"),
        ("msrvtt", {"colour": "red"}, "no option 'colour'"),
        ("vatex", {"captions": "some"}, "'all' or 'first'"),
        ("msvd", {"splits": "train,dev"}, "train,val,test"),
    ],
)
def test_unknown_names_and_options_list_the_known_ones(tmp_path, name, options, words):
    with pytest.raises(BadInput, match=words):
        build_manifest(name, dataset_dir=tmp_path, **options)


def test_the_built_in_data_set_is_accounted_for_too(tmp_path):
    manifest = build_manifest("shapes", dataset_dir=tmp_path, train="2", val=1, test=3, workers="1")
    assert manifest.protocol["label"] == "subset (3 of 1000)"
    assert manifest.protocol["splits"]["train"]["found"] == 2
    with pytest.raises(BadInput, match="no option 'trian'"):
        build_manifest("shapes", dataset_dir=tmp_path, trian=2)
    with pytest.raises(BadInput, match="a whole number; got 'many'"):
        build_manifest("shapes", dataset_dir=tmp_path, train="many")
    with pytest.raises(BadInput, match="makes its own"):
        build_manifest("shapes", videos=tmp_path, dataset_dir=tmp_path)


def test_every_adapter_can_be_imported_and_is_short():
    for info in DATASETS.values():
        if not info.built_in:
            __import__(info.module)
    for name in NAMES:
        path = Path(__file__).parents[2] / "pipeline" / "datasets" / f"{name}.py"
        lines = [line for line in path.read_text().splitlines() if line.strip()]
        assert len(lines) < 100, f"{path.name}: adding a data set should take under 100 lines"
