"""Own videos by the real command line: identity is the file, and no caption is withdrawn unasked."""

import shutil
import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import refused, run
from own_folder import Folder
from standins import write_video

from pipeline.datasets.folder import folder_manifest
from pipeline.extract.corpus import extract_manifest
from pipeline.extract.settings import ExtractSettings
from pipeline.workspace import Workspace

CAPTIONS = {"a.mp4": "a red ring", "deep/b.mp4": "a blue bar"}  # c.mp4 has none


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("originals") / "clips"
    for name in ("a.mp4", "deep/b.mp4", "c.mp4"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_video(folder / name, seed=name)
    return folder


@pytest.fixture
def folder(clips, tmp_path):
    return Folder(clips, tmp_path)


def spelled(how):
    """CAPTIONS under the paths, base names or stems of their files."""
    take = {"path": lambda p: p, "base": lambda p: p.rsplit("/", 1)[-1], "stem": lambda p: p.rsplit("/", 1)[-1][:-4]}[
        how
    ]
    return [(take(path), caption) for path, caption in CAPTIONS.items()]


@pytest.mark.parametrize(("how", "captions_first"), [("base", False), ("stem", True), ("path", True)])
def test_a_clip_is_its_file_whatever_the_captions_call_it(folder, how, captions_first):
    runs = [(), ("--captions", folder.csv(spelled(how)))]
    for options in reversed(runs) if captions_first else runs:
        report = folder.extract(*options)
        assert (report["inputs"], report["done"]) == (3, 3)
    assert folder.index() == 3
    assert sorted(folder.found()) == ["a.mp4", "c.mp4", "deep/b.mp4"]
    assert folder.evaluated() == (2, 2)


def test_captions_stay_until_others_are_given_or_they_are_dropped(folder):
    both = folder.csv(spelled("stem"))
    assert folder.captions("--captions", both) == {"kept": 0, "added": 2, "changed": 0, "withdrawn": 0}
    assert folder.captions() == {"kept": 2, "added": 0, "changed": 0, "withdrawn": 0}
    assert folder.evaluated() == (2, 2)
    other = folder.csv([("a", "a green ring"), ("a.mp4", "it turns"), ("gone.mp4", "x"), ("lost", "y")], "other.csv")
    told = run("extract", "--videos", folder.videos, "--num-frames", 2, "--captions", other, *folder.here)
    assert "captions: 1 kept, 1 added, 1 changed, 0 withdrawn, 2 rows without a video" in told.stdout
    assert (
        "2 rows of the captions fit no video, such as other.csv line 4: gone.mp4, other.csv line 5: lost" in told.stderr
    )
    assert folder.evaluated() == (3, 2)
    assert folder.captions("--drop-captions", "--captions", both) == {
        "kept": 1,
        "added": 0,
        "changed": 1,
        "withdrawn": 1,
    }
    assert folder.captions("--drop-captions") == {"kept": 0, "added": 0, "changed": 0, "withdrawn": 2}
    assert "no captions to evaluate with" in refused("evaluate", *folder.here)


def test_the_split_of_a_video_stays_with_its_captions(folder):
    split = folder.tmp / "split.csv"
    split.write_text("video_id,caption,split\na,one,train\nb,two,val\nc,three,test\n")
    folder.extract("--captions", split)
    folder.captions("--captions", folder.csv([("c", "three")]))
    counts = {
        name: run("evaluate", "--split", name, "--run", "zero-shot", *folder.here) for name in ("train", "val", "test")
    }
    assert all("(1 queries, 1 candidates)" in result.stdout for result in counts.values())


def test_a_name_that_fits_two_files_is_one_error(folder):
    shutil.copy(folder.videos / "a.mp4", folder.videos / "deep/a.mp4")
    named = folder.csv([("a.mp4", "the one at the top")])
    assert folder.extract("--captions", named)["captions"]["added"] == 1
    line = refused("extract", "--videos", folder.videos, "--captions", folder.csv([("a", "which?")]), *folder.here)
    assert "1 names fit several files, the first is 'a'; got a.mp4, deep/a.mp4. Fix: write the path" in line


@pytest.mark.parametrize("on_disk", ["NFC", "NFD"])
def test_composed_and_decomposed_names_are_one_name(folder, on_disk):
    name = unicodedata.normalize(on_disk, "café.mp4")
    (folder.videos / "a.mp4").rename(folder.videos / name)
    other = unicodedata.normalize("NFD" if on_disk == "NFC" else "NFC", "café.mp4")
    report = folder.extract("--captions", folder.csv([(other, "a cup")]))
    assert (report["inputs"], report["captions"]["added"]) == (3, 1)
    assert folder.index() == 3
    assert name in folder.found()


def test_an_old_manifest_keeps_its_ids(folder):
    """Before, the captions file named the clips; features, captions and indexes of such a store stay valid."""
    workspace = Workspace(folder.tmp / "workspace")
    manifest = folder_manifest(folder.videos, folder.csv(spelled("path")), "clips")
    named = [replace(e, video_id=Path(e.path).stem if e.captions else e.path) for e in manifest.entries]
    extract_manifest(workspace, replace(manifest, entries=tuple(named)), ExtractSettings(num_frames=2, workers=1))
    for options in ((), ("--captions", folder.csv(spelled("base")))):
        report = folder.extract(*options)
        assert (report["inputs"], report["captions"]["kept"]) == (3, 2)
    assert folder.index() == 3
    assert sorted(folder.found()) == ["a", "b", "c.mp4"]


def test_the_test_encoder_on_real_videos_is_told_with_its_remedy(folder, extracted):
    def warned(result):
        lines = [line for line in result.stderr.splitlines() if "knows drawn shapes only" in line]
        assert all("--model ViT-B-32 --pretrained openai" in line for line in lines)
        return len(lines)

    assert warned(run("extract", "--videos", folder.videos, "--num-frames", 2, *folder.here)) == 1
    assert warned(run("index", *folder.here)) == 1
    assert warned(run("search", "a red ring", *folder.here)) == 1
    assert warned(run("index", "--workspace", extracted)) == 0
    assert warned(run("search", "a", "red", "ring", "--workspace", extracted)) == 0


def test_unquoted_words_are_one_sentence(folder):
    folder.extract()
    folder.index()
    joined = run("search", "a", "red", "ring", *folder.here)
    assert 'searching for one sentence, "a red ring"' in joined.stderr
    assert joined.stdout == run("search", "a red ring", *folder.here).stdout
