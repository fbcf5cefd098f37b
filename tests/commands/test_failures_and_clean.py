"""What failed and how to try it again; what takes space and why it is kept."""

import json
import os
import shlex
import shutil

import pytest
from command_line import refused, run
from own_folder import Folder
from standins import write_video

from pipeline.stores.features import FeatureStore


@pytest.fixture
def folder(tmp_path):
    originals = tmp_path / "originals/clips"
    originals.mkdir(parents=True)
    for name in ("a.mp4", "b.mp4"):
        write_video(originals / name, seed=name)
    (originals / "broken.mp4").write_bytes(b"no video")
    (originals / "odd\x1b[2J.mp4").write_bytes(b"")
    return Folder(originals, tmp_path)


def test_failures_name_the_command_that_tries_them_again(folder):
    folder.extract("--min-coverage", 0)
    result = json.loads(run("failures", *folder.here, "--json").stdout)
    assert result["failed"] == sum(row["count"] for row in result["classes"]) == 2
    for row in result["classes"]:
        command = shlex.split(row["retry"])
        assert command[:4] == ["python", "cli.py", "extract", "--config"]
        run(*command[2:], "--min-coverage", 0)
    store = FeatureStore.open(folder.here[1] / "features/clips/shapes-clip")
    assert {row.attempts for row in store.failures()} == {2}
    folder.index()
    told = run("failures", "--dataset", "clips", *folder.here).stdout
    assert "\x1b" not in told
    assert "broken.mp4: " in told
    retry = [line.split("retry: ")[1] for line in told.splitlines() if "retry: " in line]
    for command in retry:
        assert command.startswith("python cli.py reindex --index clips")
        run(*shlex.split(command)[2:])
    assert {row.attempts for row in FeatureStore.open(store.path).failures()} == {3}


def test_rollback_goes_to_any_generation_and_the_list_says_what_each_is(folder):
    folder.extract("--min-coverage", 0)
    folder.index()
    write_video(folder.videos / "c.mp4", seed="c")
    folder.reindex()
    assert json.loads(run("reindex", "--rollback", *folder.here, "--json").stdout) == {"generation": "gen-000001"}
    assert len(folder.found()) == 2
    run("reindex", "--rollback", "gen-000002", *folder.here)
    assert len(folder.found()) == 3
    lines = run("reindex", "--list", *folder.here).stdout.splitlines()
    assert [line[:12] for line in lines] == ["  gen-000001", "* gen-000002"]
    assert all(" UTC  " in line and " MB  " in line for line in lines)
    assert [line.rsplit("  ", 1)[1] for line in lines] == ["built", "appended"]
    assert "no generation gen-000009" in refused("reindex", "--rollback", "gen-000009", *folder.here)
    assert "--rollback GENERATION" in refused("reindex", "gen-000002", *folder.here)


def test_clean_removes_only_what_nothing_needs_and_only_when_told(folder):
    folder.extract("--min-coverage", 0)
    for _ in range(3):
        folder.index()
    root = folder.here[1]
    for name, young in (
        ("features/clips/shapes-clip/.tmp-1-x.h5", False),
        (".evaluate-1/gen", False),
        (".tmp-2", True),
    ):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"x" * 1000)
        for path in (root / name, (root / name).parent):
            if not young and path.name != "shapes-clip":
                os.utime(path, (1, 1))
    for run_name, record in (
        ("table", {"for_tables": True}),
        ("mine", {"start_from": "parent"}),
        ("parent", {"for_tables": True}),
    ):
        (root / "heads/clips" / run_name).mkdir(parents=True)
        (root / "heads/clips" / run_name / "config.json").write_text(json.dumps({"head": {}, "encoder": {}, **record}))
    before = sorted(root.rglob("*"))
    shown = json.loads(run("clean", *folder.here, "--json").stdout)
    assert sorted(root.rglob("*")) == before
    needless = {item["path"] for item in shown["items"] if not item["keep"]}
    assert needless == {
        "indexes/clips/gen-000001",
        "heads/clips/table",
        ".evaluate-1",
        "features/clips/shapes-clip/.tmp-1-x.h5",
    }
    assert shown["needless"] == sum(item["bytes"] for item in shown["items"] if not item["keep"]) > 0
    text = run("clean", *folder.here).stdout
    assert "indexes/clips/gen-000003  (the live generation)" in text
    assert "heads/clips/parent  (another run started from it)" in text
    found = folder.found()
    run("clean", "--yes", *folder.here)
    assert {str(path.relative_to(root)) for path in before if not path.exists()} >= needless
    assert not any((root / path).exists() for path in needless)
    assert (root / ".tmp-2").exists()
    assert folder.found() == found
    assert all(item["keep"] for item in json.loads(run("clean", *folder.here, "--json").stdout)["items"])
    shutil.rmtree(root / "indexes")
    run("clean", "--yes", *folder.here)
