"""Every stage on a workspace on S3, against a folder: equal, killed and resumed, raced, read from a second machine."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import pytest
from command_line import refused, run
from test_array_job import same_files
from test_chaos_extract import FAULT, draw_fault
from test_extract import SETTINGS, corpus, encoder, undisturbed  # noqa: F401

from pipeline import remote
from pipeline.errors import StoreBusy
from pipeline.extract.array_job import finish
from pipeline.object_store import ObjectStore
from pipeline.stores.features import FeatureStore
from pipeline.stores.manifest import write_manifest
from pipeline.workspace import Workspace

ROOT = Path(__file__).resolve().parents[2]
EXTRACT = (
    "extract",
    "--dataset",
    "shapes",
    "--shard-size",
    8,
    "--precision",
    "float32",
    *(word for size in ("train=12", "val=4", "test=8") for word in ("--option", size)),
)
_CHILD = f"""{FAULT}
from clip_maker import PlainEncoder
from test_extract import SETTINGS
from pipeline import remote
from pipeline.extract.array_job import extract_part
from pipeline.extract.driver import extract
from pipeline.stores.manifest import read_manifest
from pipeline.workspace import Workspace
store = Workspace.locate(Path(sys.argv[2])).features_dir("corpus", "plain")
manifest, part = read_manifest(Path(sys.argv[1])), (int(sys.argv[6]), int(sys.argv[7]))
if part[1]:
    extract_part(manifest, store, SETTINGS, part=part, encoder=PlainEncoder())
else:
    extract(manifest, store, SETTINGS, encoder=PlainEncoder())
remote.finish()
"""


@pytest.fixture
def url(s3, tmp_path, monkeypatch):
    import fsspec

    monkeypatch.setenv("DITS_CACHE_DIR", str(tmp_path / "one"))
    name = f"bucket-{time.time_ns()}"
    fsspec.filesystem("s3", skip_instance_cache=True).mkdir(name)
    yield f"s3://{name}/some/prefix"
    remote.finish(send=False)


def stages(place):
    """What each command says, stage after stage."""
    here = ("--workspace", place, "--json")
    said = {"extract": json.loads(run(*EXTRACT, *here).stdout)}
    said["train"] = json.loads(run("train-head", "--epochs", 1, "--device", "cpu", *here).stdout)
    said["index"] = json.loads(run("index", *here).stdout)
    said["evaluate"] = json.loads(run("evaluate", "--index", *here).stdout)
    return said | {"hits": hits(place)}


def hits(place):
    found = json.loads(run("search", "a red circle", "--workspace", place, "--json").stdout)["queries"][0]["hits"]
    return [(hit["video_id"], hit["score"]) for hit in found]


def data(root):
    """What every shard, index and head holds, byte for byte; the times of the drawn videos aside."""
    found = {}
    for path in root.glob("features/*/*/*-0*.h5"):
        with h5py.File(path) as file:
            columns = {name: file[name][()] for name in file if name != "mtime"}
        found[str(path.relative_to(root))] = {
            name: values.tolist() if values.dtype == object else values.tobytes() for name, values in columns.items()
        }
    names = ("indexes/*/gen-*/*.npy", "indexes/*/gen-*/*.faiss", "heads/*/*/*.safetensors")
    for pattern in names:
        found |= {str(path.relative_to(root)): path.read_bytes() for path in root.glob(pattern)}
    return found


@pytest.mark.slow_sample
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_stage_on_s3_is_that_of_a_folder(url, tmp_path, monkeypatch):
    folder = tmp_path / "folder"
    expected, found = stages(folder), stages(url)
    for stage, names in {
        "extract": ("inputs", "done", "failed"),
        "train": ("run", "val"),
        "index": ("generation", "total", "verified"),
        "evaluate": ("t2v", "v2t"),
    }.items():
        assert {name: found[stage][name] for name in names} == {name: expected[stage][name] for name in names}
    assert found["hits"] == expected["hits"]
    root = Workspace.locate(Path(url)).root
    assert data(root) == data(folder)
    remote.finish()
    monkeypatch.setenv("DITS_CACHE_DIR", str(tmp_path / "two"))  # another machine
    before = ObjectStore(url).find()
    assert hits(url) == expected["hits"]
    after = ObjectStore(url).find()
    other = Workspace.locate(Path(url))
    media = Path(FeatureStore.open(other.features_dir("shapes", "shapes-clip")).media_root)
    assert media.is_dir()
    assert media.is_relative_to(other.root)
    remote.finish()
    assert {key: after[key] for key in before} == before
    assert all("/catalogue/" in key for key in after.keys() - before.keys())
    assert run("doctor", "--verify", "--workspace", url).exit_code == 0
    again = json.loads(run(*EXTRACT, "--workspace", url, "--json").stdout)
    assert (again["done"], again["failed"]) == (24, 0)
    shards = {key: version for key, version in before.items() if key.endswith(".h5")}
    assert {key: version for key, version in ObjectStore(url).find().items() if key.endswith(".h5")} == shards
    assert run("index", "--workspace", url).exit_code == 0
    assert run("reindex", "--rollback", "--workspace", url).exit_code == 0
    secrets = [path for path in (tmp_path / "one").rglob("*") if path.is_file() and b"test-secret" in path.read_bytes()]
    assert secrets == []


def start(manifest_path, url, cache, fault=("", "", 0), part=(0, 0)):
    paths = [ROOT, ROOT / "tests", Path(__file__).parent]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "DITS_CACHE_DIR": str(cache)}
    command = [sys.executable, "-c", _CHILD, str(manifest_path), url, *map(str, fault), *map(str, part)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def resumed_until_done(manifest_path, url, tmp_path, rng):
    """Run on one of two machines until a run ends by itself; returns how many were killed."""
    killed = 0
    while True:
        fault = draw_fault(rng) if rng.random() < 0.5 else ("", "", 0)
        # A killed writer's lease would hold another machine up for a minute; here both see that it is dead.
        child = start(manifest_path, url, tmp_path / rng.choice(["one", "two"]), fault)
        if not fault[0]:
            time.sleep(rng.uniform(1.0, 4.0))
            child.send_signal(signal.SIGKILL)
        errors = child.communicate(timeout=240)[1]
        if child.returncode == 0:
            return killed
        assert child.returncode == -signal.SIGKILL, errors
        killed += 1


def chaos(manifest, expected, url, tmp_path, monkeypatch, enough, seed):
    rng, killed, stores = random.Random(seed), 0, 0
    write_manifest(manifest, tmp_path / "manifest.parquet")
    while killed < enough:
        killed += resumed_until_done(tmp_path / "manifest.parquet", f"{url}/{stores}", tmp_path, rng)
        monkeypatch.setenv("DITS_CACHE_DIR", str(tmp_path / "third"))  # what the objects alone say
        store = FeatureStore.open(Workspace.locate(Path(f"{url}/{stores}")).features_dir("corpus", "plain"))
        store.verify()
        same_files(store, expected)
        remote.finish()
        stores += 1
    return killed, stores


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_extraction_killed_and_resumed_is_an_undisturbed_one(corpus, undisturbed, url, tmp_path, monkeypatch):  # noqa: F811
    assert chaos(corpus, undisturbed, url, tmp_path, monkeypatch, 3, seed=1)[0] >= 3


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_twenty_killed_extractions(corpus, undisturbed, url, tmp_path, monkeypatch, capsys):  # noqa: F811
    killed, stores = chaos(corpus, undisturbed, url, tmp_path, monkeypatch, 20, seed=2)
    with capsys.disabled():
        print(f"\n{killed} runs killed over {stores} stores on S3, each equal to a run on a folder, byte for byte")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_three_machines_write_one_store(corpus, undisturbed, url, tmp_path):  # noqa: F811
    write_manifest(corpus, tmp_path / "manifest.parquet")
    children = [start(tmp_path / "manifest.parquet", url, tmp_path / str(i), part=(i, 3)) for i in range(3)]
    children[1].send_signal(signal.SIGKILL)
    errors = [child.communicate(timeout=240)[1] for child in children]
    for number in (0, 1, 2):
        if children[number].returncode:
            if number != 1:  # all may make the store at once: the later ones are told to run again
                assert "run the same command again" in errors[number]
            again = start(tmp_path / "manifest.parquet", url, tmp_path / str(number), part=(number, 3))
            assert again.wait(240) == 0, again.stderr.read()
    store = Workspace.locate(Path(url)).features_dir("corpus", "plain")
    report = finish(corpus, store, SETTINGS)
    assert (report.inputs, report.done, report.failed, report.skipped) == (14, 10, 3, 1)
    FeatureStore.open(store).verify()
    same_files(FeatureStore.open(store), undisturbed)


_RACER = """
import os, sys, time
from pathlib import Path
sys.path[:0] = [sys.argv[3], sys.argv[3] + "/tests/stores"]
from test_generations import some_rows, write
from pipeline import remote
from pipeline.errors import UserError
from pipeline.stores.generations import GenerationStore
from pipeline.workspace import Workspace
place = GenerationStore(Workspace.locate(Path(sys.argv[1])).index_dir("c"))
Path(sys.argv[2]).touch()
while len(list(Path(sys.argv[2]).parent.glob("ready-*"))) < 2:
    time.sleep(0.02)
try:
    with place.lock():
        name = write(place, some_rows([sys.argv[2]]))
        time.sleep(2)
        place.switch(name)
except UserError as error:
    print(error)
    sys.exit(2)
"""


@pytest.mark.slow
def test_of_two_writers_of_an_index_one_wins(url, tmp_path):
    racers = []
    for number in (0, 1):
        environment = {**os.environ, "DITS_CACHE_DIR": str(tmp_path / str(number))}
        command = [sys.executable, "-c", _RACER, url, str(tmp_path / f"ready-{number}"), str(ROOT)]
        racers.append(subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True))
    said = [racer.communicate(timeout=120)[0] for racer in racers]
    assert sorted(racer.returncode for racer in racers) == [0, 2]
    loser = next(text for text, racer in zip(said, racers, strict=True) if racer.returncode)
    assert "another process is writing to s3://" in loser
    winner = next(number for number, racer in enumerate(racers) if not racer.returncode)
    from pipeline.stores.generations import GenerationStore

    with GenerationStore(Workspace.locate(Path(url)).index_dir("c")).open() as live:
        assert live.name == "gen-000001"
        assert list(live.rows().video_ids) == [str(tmp_path / f"ready-{winner}")]


@pytest.mark.slow
def test_who_switches_second_is_told_though_it_held_no_lease(url, tmp_path):
    """A machine that was asleep until its lease had gone, and did not notice."""
    sys.path.insert(0, str(ROOT / "tests/stores"))
    from test_generations import some_rows, write

    from pipeline.stores.generations import GenerationStore

    place = GenerationStore(Workspace.locate(Path(url)).index_dir("c"))
    with place.lock():
        place.switch(write(place, some_rows(["a"])))
    store, key = ObjectStore(url), "indexes/c/CURRENT"
    now = store.look(key)
    assert now
    with pytest.raises(StoreBusy, match="CURRENT was written by another process meanwhile"), place.lock():
        name = write(place, some_rows(["b"]))
        store.put(b"gen-000009\n", key, now.token)
        place.switch(name)
    assert store.read(key) == b"gen-000009\n"


@pytest.mark.slow
def test_refusals_are_one_line(s3, tmp_path, monkeypatch):
    import fsspec

    monkeypatch.setenv("DITS_CACHE_DIR", str(tmp_path))
    assert "no such bucket" in refused("search", "a dog", "--workspace", "s3://nosuch/a")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    fsspec.filesystem("s3").clear_instance_cache()
    assert "needs credentials" in refused("extract", "--dataset", "shapes", "--workspace", "s3://nosuch/a")
    fsspec.filesystem("s3").clear_instance_cache()
