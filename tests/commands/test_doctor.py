"""The doctor finds what is wrong: with the machine, with the annotation files, with the videos."""

import shutil
from pathlib import Path

import pytest
from clip_maker import make_clip
from command_line import refused, run
from standins import make_standin, standin_ids, write_table

from pipeline.commands import environment
from pipeline.commands.dataset_report import DatasetReport, dataset_report
from pipeline.commands.environment import environment_report, worst
from pipeline.datasets import build_manifest
from pipeline.errors import BadInput

PUBLISHED = Path(__file__).resolve().parents[3] / "shared" / "annotations"


def found(report: DatasetReport, name: str) -> environment.Check:
    (check,) = [check for check in report.checks if check.name == name]
    return check


def test_the_environment_that_runs_the_tests_is_fit(tmp_path):
    checks = environment_report(tmp_path / "not" / "yet" / "there")
    names = [check.name for check in checks]
    assert names == ["python", "torch", "CUDA", "torchvision", "open_clip", "ffmpeg", "PyAV", "faiss", "disk"]
    assert not [check.line() for check in checks if check.status == "fail"]
    assert all(check.fix for check in checks if check.status != "ok")


def test_libraries_that_do_not_load_are_failures_with_a_remedy(monkeypatch):
    def absent(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(environment.importlib, "import_module", absent)
    monkeypatch.setattr(environment.shutil, "which", lambda program: None)
    for check in (environment._faiss(), environment._ffmpeg(), environment._pyav(), *environment._torch()):
        assert check.status == "fail"
        assert "No module named" in check.found
        assert "install" in check.fix


def test_two_faiss_packages_are_a_failure(monkeypatch):
    monkeypatch.setattr(environment, "_installed", lambda name: True)
    assert environment._faiss().status == "fail"


def test_an_ffmpeg_that_does_not_run_and_one_without_codecs(monkeypatch, tmp_path):
    program = tmp_path / "ffmpeg"
    monkeypatch.setattr(environment.shutil, "which", lambda name: str(program))
    for script, status in (("exit 3", "fail"), ("echo ffmpeg version 9 of; echo ' V....D h264 x'", "warn")):
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        assert environment._ffmpeg().status == status
    assert "cannot decode hevc" in environment._ffmpeg().found


@pytest.mark.parametrize(("free_gb", "status"), [(0.5, "fail"), (5, "warn"), (500, "ok")])
def test_disk(monkeypatch, tmp_path, free_gb, status):
    usage = shutil.disk_usage(tmp_path)._replace(free=int(free_gb * 1e9))
    monkeypatch.setattr(environment.shutil, "disk_usage", lambda path: usage)
    assert environment._disk(tmp_path).status == status


# ---- data sets -----------------------------------------------------------------------------------------------------


def test_a_copy_with_faults_of_every_kind(tmp_path):
    make_standin("lsmdc", tmp_path)
    ids = standin_ids("lsmdc")
    gone, broken = ids["test"][:2]
    path = {video_id: next((tmp_path / "videos").rglob(f"{video_id}.avi")) for video_id in (gone, broken)}
    path[gone].rename(path[gone].with_name("stranger.avi"))
    path[broken].write_bytes(b"RIFF no video")
    long = "a dog runs and a cat sleeps " * 20
    with open(tmp_path / "annotations" / "LSMDC16_annos_val.csv", "a", encoding="utf-8") as handle:
        handle.write(f"{ids['val'][0]}\t0\t1\t0\t1\t{long}\n{ids['val'][1]}\t0\t1\t0\t1\t  \n")
    report = dataset_report("lsmdc", dataset_dir=tmp_path, deep=True, workers=1)
    assert found(report, "missing videos").found == f"1 ({gone})"
    assert found(report, "unreadable videos").found == f"1 ({broken})"
    assert "stranger.avi" in found(report, "files that nobody names").found
    assert found(report, "repeated clip names").found == "2 names over 4 rows, every sentence kept"
    assert found(report, "captions beyond 77 tokens").found == "1 val, of 16 in all"
    assert "empty captions left out: 1" in found(report, "repair").found
    assert report.claim == "subset (2 of 1000)"
    assert "3 found" in found(report, "test").found
    assert worst(report.checks) == "warn"
    assert dataset_report("lsmdc", dataset_dir=tmp_path).claim == "subset (3 of 1000)"


def test_annotations_are_checked_without_any_video(tmp_path):
    make_standin("vatex", tmp_path)
    shutil.rmtree(tmp_path / "videos")
    ids = standin_ids("vatex")
    with open(tmp_path / "annotations" / "test_list.txt", "a") as handle:
        handle.write(ids["test"][0] + "\n" + ids["test"][0][:11] + "_000990_000999\n")
    report = dataset_report("vatex", dataset_dir=tmp_path)
    assert found(report, "videos").status == "fail"
    assert "repeated ids in a list" in found(report, "repair").found
    assert found(report, "ids that collide when cut to 11 characters").found.startswith("2 (")
    assert report.claim is None
    assert worst(report.checks) == "fail"


def test_missing_and_malformed_annotations_are_findings_not_tracebacks(tmp_path):
    report = dataset_report("didemo", dataset_dir=tmp_path)
    assert found(report, "files").status == "fail"
    assert "didemo_test_label.csv" in found(report, "files").found
    videos, annotations = make_standin("msrvtt", tmp_path)
    write_table(annotations / "MSRVTT_JSFUSION_test.csv", [["video_id;sentence"]])
    assert "semicolons" in found(dataset_report("msrvtt", videos, annotations), "files").found
    with pytest.raises(BadInput, match="unknown data set"):
        dataset_report("msrvt")


def test_own_folders_and_the_built_in_data_set(tmp_path):
    assert found(dataset_report("shapes", dataset_dir=tmp_path), "files").status == "fail"
    build_manifest("shapes", dataset_dir=tmp_path, train=2, val=1, test=2, workers=1)
    shapes = dataset_report("shapes", dataset_dir=tmp_path, deep=True, workers=1)
    assert worst(shapes.checks) in {"ok", "warn"}
    assert found(shapes, "unreadable videos").found == "none"
    write_table(tmp_path / "c.csv", [["video_id", "caption"], ["test-00000", "same"], ["test-00001", "same"]])
    own = dataset_report("folder", tmp_path / "videos", tmp_path / "c.csv")
    assert own.claim == "own data (2 test videos)"
    assert found(own, "captions shared by several test videos").found == "1 captions stand for 2 test videos"
    assert own.to_json()["claim"] == own.claim


def test_a_folder_needs_no_data_set(tmp_path):
    (tmp_path / "clips").mkdir()
    make_clip(tmp_path / "clips/a.mp4", 3)
    (tmp_path / "clips/b.mp4").write_bytes(b"no video")
    (tmp_path / "clips/notes.txt").touch()
    write_table(tmp_path / "c.csv", [["video_id", "caption"], ["a", "same"], ["gone.mp4", "other"]])
    here = ("--workspace", tmp_path / "w")
    told = run("doctor", "--videos", tmp_path / "clips", "--annotations", tmp_path / "c.csv", "--deep", *here).stdout
    for line in (
        "ok    videos: 2, 1 with captions",
        "ok    files that are no videos: 1 (notes.txt)",
        "warn  rows of the captions without a video: 1 (c.csv line 3: gone.mp4)",
        "warn  unreadable videos: 1 (b.mp4)",
    ):
        assert line in told
    assert "there is no folder" in run("doctor", "--videos", tmp_path / "nowhere", *here, code=1).stdout
    assert "--videos DIR" in refused("doctor", "--annotations", tmp_path / "c.csv", *here)
    assert not (tmp_path / "w").exists()


def test_published_files_are_reported_as_published(tmp_path):
    if not PUBLISHED.is_dir():
        pytest.skip(f"the published annotation files are not at {PUBLISHED}")
    msrvtt = dataset_report("msrvtt", tmp_path, PUBLISHED / "msrvtt", splits="test")
    assert found(msrvtt, "captions shared by several test videos").found == "4 captions stand for 9 test videos"
    didemo = dataset_report("didemo", tmp_path, PUBLISHED / "didemo", splits="val,test")
    assert found(didemo, "captions beyond 77 tokens").status == "warn"
    lists = tmp_path / "vatex"
    shutil.copytree(PUBLISHED / "vatex", lists)
    (lists / "ref_captions.json").write_text("{}")
    vatex = dataset_report("vatex", tmp_path, lists)
    assert found(vatex, "ids that collide when cut to 11 characters").found.startswith("10 (")


@pytest.mark.parametrize("name", ["msrvtt", "msvd", "lsmdc", "didemo", "vatex", "charades", "activitynet"])
def test_the_stand_ins_of_every_data_set_are_sound_videos(tmp_path, name):
    make_standin(name, tmp_path)
    report = dataset_report(name, dataset_dir=tmp_path, deep=True, workers=1)
    assert found(report, "unreadable videos").found == "none"
    assert found(report, "missing videos").found == "none"
    assert report.claim is not None
    assert report.claim.startswith("subset (4 of ")
