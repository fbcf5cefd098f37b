"""The command line: bad input is one line, exit code 2 and nothing left behind; `--json` is one object."""

import json
import shutil
import sys

import pytest
from clip_maker import make_clip
from command_line import refused, run

from dits_head.config import HeadConfig
from dits_head.head import build_head
from pipeline.stores import checkpoints
from pipeline.stores.features import FeatureStore


@pytest.fixture
def workspace(extracted, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(extracted, tmp_path / "workspace")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["extract", "--source", "list.csv", "--captions", "c.csv"], "--source; --videos"),
        (["extract", "--preset", "msrvtt-b32", "--dataset", "msvd"], "expected --dataset msrvtt or none; got msvd"),
        (["index", "--recall", "0.9", "--on-disk"], "--recall, --memory, --latency-ms; --factory"),
        (["reindex", "--rollback", "--delete", "a.mp4"], "--rollback; --corpus"),
    ],
)
def test_options_that_would_be_ignored_are_refused(arguments, said, extracted):
    assert said in refused(*arguments, "--workspace", extracted)


def test_two_folders_of_one_name_do_not_share_features(tmp_path):
    """Their videos' ids are paths inside the folder: the second would be given the first one's features."""
    here = ("--workspace", tmp_path / "w")
    for place, frames in (("a", 10), ("b", 20)):
        (tmp_path / place / "clips").mkdir(parents=True)
        make_clip(tmp_path / place / "clips/1.mp4", frames)
    run("extract", "--videos", tmp_path / "a/clips", *here)
    line = refused("extract", "--videos", tmp_path / "b/clips", *here)
    assert str(tmp_path / "a/clips") in line
    assert "--option corpus=NAME" in line
    run("extract", "--videos", tmp_path / "b/clips", "--option", "corpus=other", *here)
    shutil.rmtree(tmp_path / "b/clips")
    (tmp_path / "a/clips").rename(tmp_path / "b/clips")  # it moved: what was extracted stays good
    run("extract", "--videos", tmp_path / "b/clips", *here)
    shutil.copytree(tmp_path / "b/clips", tmp_path / "c/clips")
    run("extract", "--videos", tmp_path / "c/clips", *here)  # and so do copies
    assert len(list((tmp_path / "w/features/clips").glob("*/videos-*.json"))) == 1


def files_of(folder):
    """But for the stamps of what was verified, which any command may add."""
    return sorted(path for path in folder.rglob("*") if path.name != ".verified")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train-head", "--hed", "xpool"], "No such option: --hed"),
        (["extract", "--num-frames", "many"], "Invalid value for '--num-frames'"),
        (["serch", "a dog"], "No such command 'serch'"),
        (["search"], "no query"),
        (["train-head", "--seed"], "Option '--seed' requires an argument"),
    ],
)
def test_mistyped_commands_are_one_line_too(arguments, said):
    line = refused(*arguments)
    assert said in line
    assert "--help`" in line


def test_bad_input_to_extract(tmp_path):
    here = ("--workspace", tmp_path / "w")
    assert "expected shapes, msrvtt" in refused("extract", "--dataset", "nonsense", *here)
    assert "--videos" in refused("extract", "--videos", tmp_path / "absent", *here)
    assert "--max-seconds must be above 0" in refused("extract", "--max-seconds", 0, *here)
    assert "Protocol not known" in refused("extract", "--source", "foo://bucket/clips", *here)
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips/a.mp4").write_bytes(b"no video")
    captions = tmp_path / "captions.csv"
    captions.write_text("video_id,caption\nb,a dog\n")
    line = refused("extract", "--videos", tmp_path / "clips", "--captions", captions, *here)
    assert "none of its 1 rows fits a file" in line
    assert "captions.csv line 2: b" in line
    line = refused("extract", "--videos", tmp_path / "clips", "--model", "ViT-B-23", *here)
    assert "ViT-B-32" in line
    (tmp_path / "file").write_text("")
    assert "workspace" in refused("extract", "--dataset", "shapes", "--workspace", tmp_path / "file" / "w")
    assert not list((tmp_path / "w").glob("features/*/*/videos-*"))  # nothing half-written


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("train-head", "--seed", "-1"), "--seed"),
        (("train-head", "--lr", "-1"), "--lr"),
        (("train-head", "--devices", "0"), "--devices"),
        (("train-head", "--set", "nonsense=1"), "--set nonsense"),
        (("train-head", "--set", "T_prime=many"), "a int"),
        (("train-head", "--head", "dits", "--set", "condition=v", "--set", "index_loss=1"), "index_loss"),
        (("train-head", "--head", "xpool", "--paper-literal"), "--head dits"),
        (("train-head", "--train-blocks", "2"), "--cache-blocks"),
        (("train-head", "--start-from", "nope"), "no trained head"),
        (("evaluate", "--run", "nope"), "zero-shot"),
        (("evaluate", "--memory-limit", "2XB"), "500MB"),
        (("evaluate", "--memory-limit", "infGB"), "500MB"),
        (("evaluate", "--shortlist", "0"), "--shortlist"),
        (("evaluate", "--split", "nope"), "no split"),
        (("index", "--factory", "Nonsense"), "Nonsense"),
        (("index", "--search", "nprobe=3"), "nprobe"),
        (("index", "--recall", "2"), "--recall"),
        (("index", "--recall", "0.9", "--factory", "Flat"), "exclude"),
        (("search", "a red ring"), "no index"),
        (("reindex", "--index", "nope", "--list"), "no index"),
        (("reproduce", "--table", "nonsense"), "open"),
        (("reproduce", "--table", "7", "--seeds", "0"), "--seeds"),
        (("export-clip", "nope", "out.safetensors"), "--train-blocks"),
        (("doctor", "--dataset", "nope"), "unknown data set"),
    ],
)
def test_bad_settings_are_one_line_and_leave_nothing(workspace, arguments, said):
    before = files_of(workspace)
    assert said in refused(*arguments, "--workspace", workspace)
    assert files_of(workspace) == before


def test_damaged_files_are_named(workspace):
    here = ("--workspace", workspace)
    shard = next(workspace.glob("features/shapes/shapes-clip/videos-*.h5"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-100])
    assert shard.name in refused("evaluate", *here)
    shard.write_bytes(whole)
    marker = shard.with_suffix(".json")
    kept = marker.read_text()
    marker.write_text("{}")
    assert marker.name in refused("evaluate", *here)
    marker.write_text(kept)
    run("evaluate", *here)


def test_heads_and_indexes_of_something_else_are_refused(workspace):
    here = ("--workspace", workspace)
    store = FeatureStore.open(workspace / "features/shapes/shapes-clip")
    for name, dim in (("narrow", 64), ("other", store.dim)):
        config = HeadConfig(head="xpool", dim=dim)
        record = {"head": config.to_dict(), "encoder": store.settings, "run": name, "selected_on": "val"}
        checkpoints.save_head(workspace / "heads/shapes" / name, build_head(config).state_dict(), record)
    assert "another width" in refused("evaluate", "--run", "narrow", *here)
    assert "another width" in refused("index", "--run", "narrow", *here)
    run("index", "--run", "zero-shot", *here)
    evaluated = run("evaluate", "--run", "other", "--index", *here)
    assert "made with another head" in evaluated.stderr
    run("index", "--run", "other", *here)
    damaged = workspace / "heads/shapes/other/config.json"
    damaged.write_text("{}")
    assert "config.json" in refused("search", "a red ring", *here)


def test_json_is_one_object_on_stdout(workspace, extracted, tmp_path):
    here = ("--workspace", workspace, "--json")
    evaluation = json.loads(run("evaluate", "--index", *here).stdout)
    assert set(evaluation) == {"t2v", "v2t", "index", "protocol"}
    assert set(evaluation["t2v"]) == {"R@1", "R@5", "R@10", "MdR", "MnR", "queries", "gallery"}
    assert set(evaluation["index"]) == {"shortlist_recall", "R@1", "loss", "queries_per_second", "bytes"}
    found = json.loads(run("search", "a red ring", "--top", 3, *here).stdout)
    assert [answer["query"] for answer in found["queries"]] == ["a red ring"]
    names = {"video_id", "path", "score", "start", "end", "moment"}
    assert [set(hit) for hit in found["queries"][0]["hits"]] == [names] * 3
    new = tmp_path / "new"
    new.mkdir()
    clip = next((extracted / "datasets/shapes").rglob("*.mp4"))
    shutil.copy(clip, new / "copy.mp4")
    found = json.loads(run("reindex", "--corpus", new, *here).stdout)
    assert set(found) == {"generation", "added", "replaced", "deleted", "total", "verified", "files"}
    assert (found["added"], found["total"]) == (1, 25)
    assert json.loads(run("reindex", "--corpus", new, *here).stdout)["added"] == 0  # it is there already
    gone = json.loads(run("reindex", "--delete", "copy.mp4", *here).stdout)
    assert (gone["deleted"], gone["total"]) == (1, 24)
    listed = json.loads(run("reindex", "--list", *here).stdout)
    assert [row["live"] for row in listed] == [False] * (len(listed) - 1) + [True]


def test_quiet_and_a_log_file(extracted, tmp_path):
    where, log = ("--workspace", extracted), tmp_path / "log.txt"
    assert "exhaustive: " in run("evaluate", *where).stderr
    assert run("--quiet", "evaluate", *where).stderr == ""
    run("--log-file", log, "evaluate", *where)
    assert "error: no split" in run("--quiet", "--log-file", log, "evaluate", "--split", "nope", *where, code=2).stderr
    kept = log.read_text().splitlines()
    assert "INFO pipeline.evaluate.evaluation: exhaustive: " in kept[0]
    assert "ERROR pipeline: error: no split" in kept[-1]


def test_an_extra_that_is_not_installed_is_one_line_that_names_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "faiss", None)  # what `import faiss` meets where it is absent
    monkeypatch.delitem(sys.modules, "pipeline.retrieve.index", raising=False)
    monkeypatch.delitem(sys.modules, "pipeline.retrieve.corpus", raising=False)
    line = refused("index", "--workspace", tmp_path)
    assert line == "error: faiss is not installed. Fix: pip install 'dits-retrieval[cpu]'"
