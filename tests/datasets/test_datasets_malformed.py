"""Malformed annotations: one clear error, or a repair that is counted. Never a silent loss, never a traceback."""

import csv
import io
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from standins import make_standin, standin_ids

from pipeline.datasets import annotate, build_manifest, find_source
from pipeline.datasets.assemble import Clip, check_clips, hold_out
from pipeline.datasets.readers import (
    Repairs,
    check_id,
    clean_captions,
    read_csv,
    read_ids,
    read_json,
    read_jsonl,
    read_text,
    read_tsv,
)
from pipeline.errors import BadInput, UserError

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
IN_ONE_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def written(folder: Path, content: bytes | str, name: str = "file.csv") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# ---- readers -------------------------------------------------------------------------------------------------------


@IN_ONE_FOLDER
@given(texts=st.lists(TEXT, max_size=8), bom=st.booleans(), end=st.sampled_from(["\n", "\r\n", "\r"]))
@example(texts=['"quoted", with comma', "two\nlines", "", " ends "], bom=True, end="\r\n")
def test_csv_gives_back_every_text_as_written(tmp_path, texts, bom, end):
    out = io.StringIO(newline="")
    rows = csv.writer(out, lineterminator=end, quoting=csv.QUOTE_ALL)
    rows.writerow(["video_id", "caption"])
    rows.writerows([f"v{n}", text] for n, text in enumerate(texts))
    repairs = Repairs()
    path = written(tmp_path, out.getvalue().encode("utf-8-sig" if bom else "utf-8"))
    assert [row["caption"] for row in read_csv(path, ("caption",), repairs)] == texts
    assert list(repairs.places) == (["byte order mark removed"] if bom else [])


@IN_ONE_FOLDER
@given(raw=st.binary(max_size=60).filter(lambda raw: b"\0" not in raw))
@example(raw=b"caf\xe9\nna\xc3\xafve \x92quoted\x94")
def test_bytes_that_are_not_utf8_are_read_and_counted_line_by_line(tmp_path, raw):
    repairs = Repairs()
    text = read_text(written(tmp_path, raw), repairs)
    body = raw.removeprefix(b"\xef\xbb\xbf")

    def is_utf8(line: bytes) -> bool:
        try:
            line.decode()
        except UnicodeDecodeError:
            return False
        return True

    broken = sum(not is_utf8(line) for line in body.split(b"\n"))
    assert len(repairs.places.get("bytes that are not UTF-8 read as Windows-1252", [])) == broken
    assert len(text.split("\n")) == len(body.split(b"\n"))
    if not broken:
        assert text.encode() == body


def test_windows_1252_bytes_mend_only_themselves(tmp_path):
    repairs = Repairs()
    assert read_text(written(tmp_path, b"na\xc3\xafve caf\xe9 \x93so\x94"), repairs) == "naïve café “so”"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("video_id;sentence\nv1;a dog\n", "separated by semicolons"),
        ("video_id\tsentence\nv1\ta dog\n", "separated by tabs"),
        ("video_id,caption\nv1,a dog\n", "missing column sentence"),
        ("v1,a dog\n", "missing column video_id, sentence"),
        ("", "an empty file"),
        ("video_id,sentence,sentence\n", "a column name repeats"),
        (
            "video_id,sentence\nv1,a dog, a cat\n",
            r"line 2: wrong number of fields; expected 2 \(video_id,sentence\); got 3",
        ),
        ("video_id,sentence\nv1\n", "line 2: wrong number of fields"),
        ('video_id,sentence\nv1,"a dog\nv2,a cat\n', "not well-formed CSV"),
        ('video_id,sentence\nv1,"a "dog" runs"\n', "line 2: not well-formed CSV"),
        ("video_id,sentence\n".encode("utf-16"), "NUL bytes"),
    ],
)
def test_a_csv_that_cannot_be_trusted_is_refused_with_its_place(tmp_path, content, words):
    with pytest.raises(BadInput, match=words) as caught:
        read_csv(written(tmp_path, content), ("video_id", "sentence"), Repairs())
    assert "\n" not in str(caught.value)


def test_crlf_and_lone_cr_tables_read_like_plain_ones(tmp_path):
    for end in ("\n", "\r\n", "\r"):
        path = written(tmp_path, f"video_id,sentence{end}v1,a dog{end}{end}v2,a cat{end}")
        assert [dict(row.values) for row in read_csv(path, ("video_id",), Repairs())] == [
            {"video_id": "v1", "sentence": "a dog"},
            {"video_id": "v2", "sentence": "a cat"},
        ]


def test_id_lists_drop_blank_lines_and_count_repeats(tmp_path):
    repairs = Repairs()
    assert read_ids(written(tmp_path, "\ufeffb\r\na\r\n\r\nb\r\n"), repairs) == ["b", "a"]
    assert repairs.to_json() == {
        "byte order mark removed": {"count": 1, "examples": ["file.csv"]},
        "repeated ids in a list, kept once": {"count": 1, "examples": ["file.csv line 4: b"]},
    }


@pytest.mark.parametrize("content", ["a b\n", "a,b\n", "a\tb\n", "\x07a\n"])
def test_id_lists_with_more_than_one_id_a_line_are_refused(tmp_path, content):
    with pytest.raises(BadInput, match=r"file\.csv line 1"):
        read_ids(written(tmp_path, content), Repairs())


@pytest.mark.parametrize("content", ["a,1,2,3,4,sentence\n", "a\t1\t2\t3\t4\n", "a\t1\t2\t3\t4\tsome\tsentence\n"])
def test_a_tab_separated_table_needs_exactly_its_columns(tmp_path, content):
    with pytest.raises(BadInput, match="wrong number of tab-separated fields"):
        read_tsv(written(tmp_path, content), ("clip", "a", "b", "c", "d", "sentence"), Repairs())


def test_quotes_and_crlf_in_tab_separated_tables_are_text(tmp_path):
    path = written(tmp_path, 'a\t"He said\r\nb\tall"\r\n')
    assert [row["y"] for row in read_tsv(path, ("x", "y"), Repairs())] == ['"He said', 'all"']


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"a": ["x"], "a": ["y"]}', "'a' repeats"),
        ('{"a": ["x"]', "cannot be read as JSON"),
        ("[" * 100000, "cannot be read as JSON"),
        ("", "cannot be read as JSON"),
    ],
)
def test_json_with_a_fault_or_a_repeated_key_is_refused(tmp_path, content, words):
    with pytest.raises(BadInput, match=words):
        read_json(written(tmp_path, content), Repairs())


@pytest.mark.parametrize("content", ['{"video_id": "a"}', '["a"]', "{", '{"video_id": 1, "caption": "x"}'])
def test_jsonl_lines_must_be_complete_objects(tmp_path, content):
    with pytest.raises(BadInput, match="line 2"):
        read_jsonl(
            written(tmp_path, '{"video_id": "a", "caption": "x"}\n' + content), ("video_id", "caption"), Repairs()
        )


def test_captions_are_kept_as_they_stand_and_empty_ones_counted():
    repairs = Repairs()
    kept = clean_captions([" a dog ", "", "two\nlines", " \t", "half \ud83d pair"], "here", repairs)
    assert kept == (" a dog ", "two\nlines", "half \ufffd pair")
    assert {kind: len(where) for kind, where in repairs.places.items()} == {
        "empty captions left out": 2,
        "half surrogate pairs replaced": 1,
    }
    for bad in ("a text", [1], None, [["a"]]):
        with pytest.raises(BadInput, match="a list of texts"):
            clean_captions(bad, "here", Repairs())


@pytest.mark.parametrize("bad", ["", "  ", None, 3, " a", "a\n", "a\x00b"])
def test_bad_ids_are_refused(bad):
    with pytest.raises(BadInput, match="video id"):
        check_id(bad, "here")


# ---- whole data sets -----------------------------------------------------------------------------------------------


def test_the_same_row_twice_is_counted_and_another_caption_for_an_id_refused(tmp_path):
    videos, annotations = make_standin("msrvtt", tmp_path)
    path = annotations / "MSRVTT_JSFUSION_test.csv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines, lines[1]]))
    manifest = build_manifest("msrvtt", videos, annotations)
    assert manifest.protocol["repairs"]["repeated rows, kept once"]["count"] == 1
    assert len(manifest.split("test").entries) == 4
    path.write_text("".join([*lines, lines[1].replace("a ", "another ", 1)]))
    with pytest.raises(BadInput, match="again, with another sentence"):
        build_manifest("msrvtt", videos, annotations)


def test_an_empty_caption_leaves_its_video_counted_not_lost(tmp_path):
    videos, annotations = make_standin("msvd", tmp_path)
    path = annotations / "captions_msvd.json"
    captions = json.loads(path.read_text())
    first, second = list(captions)[:2]
    captions[first], captions[second][0] = ["", "  "], ""
    path.write_text(json.dumps(captions))
    manifest = build_manifest("msvd", videos, annotations)
    assert manifest.protocol["repairs"]["empty captions left out"]["count"] == 3
    assert manifest.protocol["uncaptioned"] == {"count": 1, "ids": {"train": [first]}}
    assert first not in {entry.video_id for entry in manifest.entries}


def test_an_id_in_train_and_test_is_refused(tmp_path):
    videos, annotations = make_standin("vatex", tmp_path)
    with open(annotations / "train_list.txt", "a") as handle:
        handle.write(standin_ids("vatex")["test"][0] + "\n")
    with pytest.raises(BadInput, match="in test and train"):
        build_manifest("vatex", videos, annotations)


def test_a_split_file_without_rows_is_refused(tmp_path):
    videos, annotations = make_standin("charades", tmp_path)
    path = annotations / "Charades_v1_test.csv"
    path.write_text(path.read_text().splitlines()[0] + "\n")
    with pytest.raises(BadInput, match="the test split has no videos"):
        build_manifest("charades", videos, annotations)


def test_didemo_rows_with_a_bad_window_or_two_texts_are_refused(tmp_path):
    videos, annotations = make_standin("didemo", tmp_path)
    path = annotations / "didemo_test_label.csv"
    good = path.read_text()
    path.write_text(good.replace("tensor([[31]])", "tensor([[]])", 1))
    with pytest.raises(BadInput, match="window"):
        build_manifest("didemo", videos, annotations)
    path.write_text(good.replace("tensor([[31]])", "tensor([31])").replace("True", "False", 1))
    manifest = build_manifest("didemo", videos, annotations)
    assert manifest.protocol["repairs"]["rows not marked success=True, kept"]["count"] == 1


def test_didemo_names_that_differ_in_extension_alone_stay_apart(tmp_path):
    folder = tmp_path
    (folder / "test_list.txt").write_text("a_1.mov\na_1.mp4\nb_2.\n")
    records = [{"video": name, "description": f"of {name}"} for name in ("a_1.mp4", "a_1.mov", "b_2.", "a_1.mov")]
    (folder / "test_data.json").write_text(json.dumps(records))
    clips = annotate(find_source("didemo", folder, folder, None, "test")).clips
    assert {clip.video_id: clip.captions for clip in clips} == {
        "a_1.mov": ("of a_1.mov of a_1.mov",),
        "a_1.mp4": ("of a_1.mp4",),
        "b_2": ("of b_2.",),
    }


def test_videos_absent_from_disk_and_files_nobody_names_are_counted(tmp_path):
    videos, annotations = make_standin("charades", tmp_path)
    gone = standin_ids("charades")["test"][1]
    (videos / f"{gone}.mp4").rename(videos / "stranger.mp4")
    (videos / ".hidden").touch()
    (videos / "broken.mp4").symlink_to(videos / "nowhere.mp4")
    manifest = build_manifest("charades", videos, annotations)
    assert manifest.protocol["missing"] == {"count": 1, "ids": {"test": [gone]}}
    assert manifest.protocol["extra_files"] == {"count": 1, "examples": ["stranger.mp4"]}
    assert manifest.protocol["label"] == "subset (3 of 1863)"
    assert manifest.protocol["repairs"]["hidden files left out"]["count"] == 1
    assert manifest.protocol["repairs"]["entries that are no regular files left out"]["count"] == 1


@given(count=st.integers(0, 60), seed=st.integers(0, 5), order=st.randoms())
def test_hold_out_moves_a_fixed_share_whatever_the_order(count, seed, order):
    clips = [Clip(f"v{n}", "train", ("x",)) for n in range(count)] + [Clip("t", "test", ("x",))]
    held = {clip.video_id for clip in hold_out(tuple(clips), seed=seed) if clip.split == "val"}
    assert len(held) == (0 if count < 2 else max(1, round(count * 0.05)))
    order.shuffle(clips)
    again = hold_out(tuple(clips), seed=seed)
    assert {clip.video_id for clip in again if clip.split == "val"} == held
    assert "t" not in held
    assert len(again) == len(clips)


def test_check_clips_names_the_repeated_id():
    with pytest.raises(BadInput, match="'a' in test and train"):
        check_clips("toy", (Clip("a", "train", ()), Clip("a", "test", ())))


FUZZED = ["msrvtt", "msvd", "lsmdc", "didemo", "vatex", "charades", "activitynet"]


@pytest.fixture(scope="module")
def standins(tmp_path_factory):
    return {name: make_standin(name, tmp_path_factory.mktemp(name)) for name in FUZZED}


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_damage_to_any_file_is_refused_in_one_line_or_accounted_for(standins, data):
    """Cut, overwrite or insert bytes anywhere: the outcome is a UserError or a manifest whose counts add up."""
    name = data.draw(st.sampled_from(FUZZED))
    videos, annotations = standins[name]
    path = data.draw(st.sampled_from(sorted(annotations.iterdir())))
    good = path.read_bytes()
    at = data.draw(st.integers(0, len(good)))
    end = data.draw(st.integers(at, min(at + 40, len(good))))
    junk = data.draw(
        st.one_of(st.binary(max_size=8), st.sampled_from([b'"', b",", b"\n", b"\t", b"\xff", b"[]", b"null"]))
    )
    path.write_bytes(good[:at] + junk + good[end:])
    try:
        manifest = build_manifest(name, videos, annotations)
    except UserError as refused:
        message = str(refused)
        assert message.isprintable()
    else:
        splits, protocol = manifest.protocol["splits"], manifest.protocol
        held_out = "held out" in protocol["validation"]
        annotated = sum(split["annotated"] for key, split in splits.items() if not (held_out and key == "val"))
        accounted = len(manifest.entries) + protocol["missing"]["count"] + protocol["uncaptioned"]["count"]
        assert annotated == accounted
    finally:
        path.write_bytes(good)
