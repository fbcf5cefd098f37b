"""Many processes on one store: any order, any number, killed at random; the result is that of one process."""

import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
from test_chaos_extract import FAULT, draw_fault, start
from test_extract import SETTINGS, corpus, encoder, run, undisturbed  # noqa: F401

from pipeline.errors import BadInput, FingerprintMismatch, MissingData
from pipeline.extract.array_job import extract_part, finish
from pipeline.extract.part import parse_part
from pipeline.extract.shard_plan import outstanding, plan
from pipeline.stores import atomic
from pipeline.stores.features import FeatureStore
from pipeline.stores.manifest import VideoEntry, write_manifest
from pipeline.stores.shards import read_marker

_CHILD = f"""{FAULT}
from clip_maker import PlainEncoder
from test_extract import SETTINGS
from pipeline.extract.array_job import extract_part
from pipeline.stores.manifest import read_manifest
part = int(sys.argv[6]), int(sys.argv[7])
extract_part(read_manifest(Path(sys.argv[1])), Path(sys.argv[2]), SETTINGS, part=part, encoder=PlainEncoder())
"""


def files_of(store: FeatureStore) -> list:
    """The bytes of every shard and what its marker says, in order; names and times aside."""
    paths = [path for kind in ("videos", "texts") for path in store.shard_paths(kind)]
    return [(path.name.split("-")[:2], path.read_bytes(), read_marker(path)) for path in paths]


def same_files(store: FeatureStore, expected: FeatureStore) -> None:
    for (name, data, marker), (wanted_name, wanted, wanted_marker) in zip(
        files_of(store), files_of(expected), strict=True
    ):
        assert [part.split(".")[0] for part in name] == [part.split(".")[0] for part in wanted_name]
        assert data == wanted, name
        assert marker == wanted_marker
    for file in ("failures.parquet", "amendments.json"):
        there = (expected.path / file).exists()
        assert (store.path / file).exists() == there
        assert not there or (store.path / file).read_bytes() == (expected.path / file).read_bytes()


def part_of(manifest, store: Path, encoder, index: int, count: int, **changes):  # noqa: F811
    return extract_part(manifest, store, replace(SETTINGS, **changes), part=(index, count), encoder=encoder)


@pytest.mark.parametrize("count", [2, 7])
def test_parts_in_any_order_are_a_run_by_one_process(corpus, encoder, undisturbed, tmp_path, count):  # noqa: F811
    parts = random.Random(count).sample(range(count), count)
    reports = [part_of(corpus, tmp_path / "store", encoder, index, count) for index in parts]
    report = finish(corpus, tmp_path / "store", SETTINGS)
    assert (report.inputs, report.done, report.failed, report.skipped) == (14, 10, 3, 1)
    assert [sum(getattr(one, name) for one in reports) for name in ("inputs", "done", "failed", "skipped")] == [
        14,
        10,
        3,
        1,
    ]
    store = FeatureStore.open(tmp_path / "store")
    store.verify()
    same_files(store, undisturbed)
    assert (store.path / "catalogue" / "videos.arrow").exists()


def test_a_shard_that_is_there_is_left_as_it_is(corpus, encoder, tmp_path):  # noqa: F811
    part_of(corpus, tmp_path / "store", encoder, 0, 1)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "store").glob("*-0*")}
    report = part_of(corpus, tmp_path / "store", encoder, 1, 2)
    assert (report.new_videos, report.new_captions) == (0, 0)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "store").glob("*-0*")} == before


def test_missing_shards_are_named_with_their_commands(corpus, encoder, undisturbed, tmp_path):  # noqa: F811
    part_of(corpus, tmp_path / "store", encoder, 0, 2)
    with pytest.raises(MissingData, match="2 of 5 shards are missing") as caught:
        finish(corpus, tmp_path / "store", SETTINGS, command="extract --videos v")
    commands = [text for text in str(caught.value).split("`") if text.startswith("extract")]
    assert commands == ["extract --videos v --shard 1/5", "extract --videos v --shard 3/5"]
    for command in commands:
        part_of(corpus, tmp_path / "store", encoder, *parse_part(command.split()[-1], {}))
    finish(corpus, tmp_path / "store", SETTINGS)
    same_files(FeatureStore.open(tmp_path / "store"), undisturbed)


def test_a_grown_manifest_adds_to_what_is_there(corpus, encoder, tmp_path):  # noqa: F811
    """Whether one process or several made the first part, and whatever the shards were then."""
    for name, extract_first in (
        ("plain", lambda store, first: run(first, store, encoder)),
        ("parts", lambda store, first: part_of(first, store, encoder, 0, 1, shard_size=3)),
    ):
        first = replace(corpus, entries=corpus.entries[2:9])
        extract_first(tmp_path / name, first)
        report = part_of(corpus, tmp_path / name, encoder, 0, 1)
        assert report.new_videos == 6
        assert report.new_captions == 12
        report = finish(corpus, tmp_path / name, SETTINGS)
        assert (report.inputs, report.done, report.failed, report.skipped) == (14, 10, 3, 1)
        outcomes = FeatureStore.open(tmp_path / name).outcomes()["video_id"].to_pylist()
        assert len(outcomes) == len(set(outcomes)) == 14
        plain, _ = run(corpus, tmp_path / name, encoder)
        assert (plain.new_videos, plain.new_captions) == (0, 0)


def test_the_plan_covers_every_input_once_whatever_the_windows(corpus, encoder, tmp_path):  # noqa: F811
    entries = [
        VideoEntry(f"{path}#{start}", path, "test", ("a",), start, start + 1) for start in (1, 0) for path in "ba"
    ]
    specs = plan(replace(corpus, entries=tuple(entries)), replace(SETTINGS, shard_size=3, text_shard_size=3))
    assert [[entry.video_id for entry in spec.clips.entries] for spec in specs] == [
        ["b#0", "b#1", "a#0"],
        ["a#1"],
        [],
        [],
    ]
    assert [row["path"] for spec in specs for row in spec.skipped] == ["notes.txt"]
    assert [len(spec.captions) for spec in specs] == [0, 0, 3, 1]
    assert len({spec.stem for spec in specs}) == 4
    moved = plan(replace(corpus, entries=tuple(replace(e, end=9.0) for e in entries)), replace(SETTINGS, shard_size=3))
    assert moved[0].stem != specs[0].stem
    store = run(corpus, tmp_path / "store", encoder)[1]
    assert outstanding(plan(corpus, SETTINGS), store) == []


def test_other_settings_are_noticed(corpus, encoder, tmp_path):  # noqa: F811
    part_of(corpus, tmp_path / "store", encoder, 0, 2)
    with pytest.raises(FingerprintMismatch, match="num_frames: 4 != 5"):
        part_of(corpus, tmp_path / "store", encoder, 1, 2, num_frames=5)
    with pytest.raises(FingerprintMismatch, match="num_frames: 4 != 5"):
        finish(corpus, tmp_path / "store", replace(SETTINGS, num_frames=5))
    with pytest.raises(BadInput, match="finish the job, then"):
        part_of(corpus, tmp_path / "store", encoder, 1, 2, retry_failed="all")


@pytest.mark.parametrize("text", ["4/4", "1", "-1/4", "a/b", "1/0", "0/", ""])
def test_parts_that_are_none(text):
    with pytest.raises(BadInput, match=r"--shard.*expected i/n"):
        parse_part(text, {})


def test_the_part_of_a_slurm_array_task():
    def of(**values):
        return parse_part("auto", {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in values.items()})

    assert [of(ID=task, COUNT=3, MIN=10, MAX=14, STEP=2) for task in (10, 12, 14)] == [(0, 3), (1, 3), (2, 3)]
    with pytest.raises(BadInput, match="gaps"):
        of(ID=7, COUNT=2, MIN=3)
    with pytest.raises(BadInput, match="gaps"):
        of(ID=11, COUNT=3, MIN=10, STEP=2)
    with pytest.raises(BadInput, match="no SLURM_ARRAY_TASK_ID"):
        parse_part("auto", {})


def test_what_a_writer_without_lock_is_writing_is_not_removed(undisturbed, tmp_path):  # noqa: F811
    store = FeatureStore.create(tmp_path / "store", undisturbed.settings)
    names = {
        ".tmp-0123456789ab-videos-00003.h5": False,
        ".tmp-0123456789ab-videos-00003-0123456789abcdef.h5": True,
        ".tmp-0123456789ac-texts-00000-0123456789abcdef.json": True,
        ".tmp-0123456789ad-texts-00000-0123456789abcdef.json": False,
    }
    for name in names:
        (store.path / name).write_text("")
    old = time.time() - atomic.ABANDONED - 1
    os.utime(store.path / list(names)[-1], (old, old))
    with store.lock():
        assert {name: (store.path / name).exists() for name in names} == names


# -- processes


def disturb(manifest, expected: FeatureStore, folder: Path, kills: int, seed: int) -> int:
    """Three processes at once, killed from outside or by themselves at a call that publishes a file, and started again;
    returns how many were killed."""
    rng, store, killed = random.Random(seed), folder / "store", 0
    write_manifest(manifest, folder / "manifest.parquet")

    def begin(index: int):
        fault = draw_fault(rng) if killed < kills and rng.random() < 0.7 else ("", "", 0)
        return start(folder / "manifest.parquet", store, fault, index, 3, child=_CHILD)

    parts = {index: begin(index) for index in range(3)}
    while parts:
        time.sleep(rng.uniform(0.2, 4.0) if killed < kills else 0.2)
        if killed < kills and rng.random() < 0.3:
            parts[rng.choice(list(parts))].send_signal(signal.SIGKILL)
        for index, process in list(parts.items()):
            if process.poll() == 0:
                del parts[index]
            elif process.returncode is not None:
                assert process.returncode == -signal.SIGKILL
                killed += 1
                parts[index] = begin(index)
    report = finish(manifest, store, SETTINGS)
    assert (report.inputs, report.done, report.failed, report.skipped) == (14, 10, 3, 1)
    survivor = FeatureStore.open(store)
    survivor.verify()
    same_files(survivor, expected)
    return killed


@pytest.mark.slow_sample
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_three_processes_killed_three_times(corpus, undisturbed, tmp_path):  # noqa: F811
    assert disturb(corpus, undisturbed, tmp_path, 3, seed=1) >= 1


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_three_processes_killed_twenty_times(corpus, undisturbed, tmp_path, capsys):  # noqa: F811
    killed, rounds = 0, 0
    while killed < 20:
        (tmp_path / str(rounds)).mkdir()
        killed += disturb(corpus, undisturbed, tmp_path / str(rounds), 20 - killed, seed=rounds)
        rounds += 1
    with capsys.disabled():
        print(f"\n{killed} processes killed over {rounds} stores, each equal to a run by one process, byte for byte")
