"""Generations on a real file system: switch, rollback, prune under readers, crashes at every step, killed writers."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import BadInput, CorruptShard, MissingData, StoreBusy
from pipeline.stores.generations import GenerationStore
from pipeline.stores.rows import build_rows, compacted, joined, without


def some_rows(ids, *, several=1, first_number=0, seed=0):
    vectors = np.random.default_rng(seed).standard_normal((len(ids), several, 8)).astype(np.float32)
    return build_rows(ids, [f"/v/{i}.mp4" for i in ids], vectors, first_number=first_number)


def write(store, rows, verify=lambda folder: {"looked": True}):
    def write_index(folder: Path) -> None:
        (folder / "index.faiss").write_bytes(rows.vectors.tobytes())

    return store.write(rows, write_index, {"spec": "bytes"}, verify)


@pytest.fixture
def store(tmp_path):
    return GenerationStore(tmp_path / "corpus")


def test_write_switch_open(store):
    rows = some_rows(["a", "b", "c"], several=2)
    with store.lock():
        name = write(store, rows)
        assert store.current() is None, "a written generation is not live until it is switched to"
        store.switch(name)
    with store.open() as generation:
        read = generation.rows()
        assert generation.name == name == "gen-000001"
        assert (read.video_ids, read.paths) == (rows.video_ids, rows.paths)
        assert np.array_equal(read.vectors, rows.vectors)
        assert np.array_equal(read.owners, [0, 0, 1, 1, 2, 2])
        assert generation.info["verified"] == {"looked": True}
        assert (generation.info["videos"], generation.info["vectors"], generation.info["dead"]) == (3, 6, 0)
        generation.verify_files()


def test_rollback_and_records(store):
    for count in (1, 2, 3):
        with store.lock():
            store.switch(write(store, some_rows([f"v{i}" for i in range(count)])))
    assert [(r["generation"], r["live"], r["videos"]) for r in store.records()] == [
        ("gen-000001", False, 1),
        ("gen-000002", False, 2),
        ("gen-000003", True, 3),
    ]
    assert store.rollback() == "gen-000002"
    assert store.current() == "gen-000002"
    assert store.rollback("gen-000003") == "gen-000003"
    with pytest.raises(MissingData, match="gen-000009"):
        store.rollback("gen-000009")
    store.rollback("gen-000001")
    with pytest.raises(MissingData, match="before gen-000001"):
        store.rollback()


def test_prune_keeps_what_is_live_and_what_is_read(store):
    for count in range(1, 6):
        with store.lock():
            store.switch(write(store, some_rows([f"v{i}" for i in range(count)])))
    with store.open("gen-000002") as reader:
        assert store.prune(keep=2) == ["gen-000001", "gen-000003"]
        assert len(reader.rows()) == 2, "what a reader holds stays whole"
    assert store.prune(keep=1) == ["gen-000002", "gen-000004"]
    assert store.names() == ["gen-000005"] == [store.current()]
    with pytest.raises(BadInput):
        store.prune(keep=0)


def test_names_are_not_used_twice_after_a_rollback(store):
    for count in (1, 2, 3):
        with store.lock():
            store.switch(write(store, some_rows([f"v{i}" for i in range(count)])))
    store.rollback("gen-000002")
    assert store.prune(keep=1) == ["gen-000001"], "what is newer than the live one stays"
    with store.lock():
        store.switch(write(store, some_rows(["a"])))
    assert store.current() == "gen-000004"
    assert store.prune(keep=1) == ["gen-000002", "gen-000003"]


def test_failed_verification_leaves_nothing(store):
    def refuse(folder: Path) -> dict:
        assert (folder / "index.faiss").exists()
        raise BadInput("recall too low")

    with store.lock():
        store.switch(write(store, some_rows(["a"])))
        with pytest.raises(BadInput, match="recall"):
            write(store, some_rows(["a", "b"]), refuse)
    assert store.names() == ["gen-000001"] == [store.current()]
    assert sorted(p.name for p in store.root.iterdir()) == [".lock", "CURRENT", "gen-000001"]


def test_damage_is_found(store):
    with store.lock():
        store.switch(write(store, some_rows(["a", "b"])))
    path = store.root / "gen-000001" / "index.faiss"
    content = path.read_bytes()
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    with pytest.raises(CorruptShard, match=r"changed after.*Fix: delete .* and run `python cli.py index`"):
        store.open()
    path.write_bytes(content[:-1])
    with pytest.raises(CorruptShard, match="not whole"):
        store.open()
    with store.lock(), pytest.raises(CorruptShard):
        store.switch("gen-000001")


def test_no_index_yet(store):
    with pytest.raises(MissingData, match="index"):
        store.open()


def test_one_writer(store):
    with store.lock(), pytest.raises(StoreBusy), GenerationStore(store.root).lock():
        pass


def test_repeated_ids_are_refused(store):
    with pytest.raises(BadInput, match="twice"):
        some_rows(["a", "a"])
    with pytest.raises(BadInput, match="twice"):
        joined(some_rows(["a"]), some_rows(["a"], first_number=1)).check()
    with pytest.raises(BadInput, match="twice"):
        joined(some_rows(["a"]), some_rows(["b"])).check()  # another video with the same number


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 14)), max_size=25), st.integers(1, 3))
def test_row_operations_equal_a_dictionary(steps, several):
    """Additions, deletions and compactions in any order against a plain dict id -> (number, path, vectors)."""
    rows, truth, number = some_rows(["start"], several=several), {}, 1
    truth["start"] = (0, "/v/start.mp4", rows.vectors.copy())
    for seed, (add, which) in enumerate(steps):
        video_id = f"v{which}"
        if add and video_id not in truth:
            new = some_rows([video_id], several=several, first_number=number, seed=seed)
            truth[video_id] = (number, f"/v/{video_id}.mp4", new.vectors.copy())
            number += 1
            rows = joined(rows, new)
        elif video_id in truth:
            del truth[video_id]
            rows = without(rows, {video_id})
        elif not add:
            rows = compacted(rows)
            assert rows.dead == 0
            assert np.all(np.diff(rows.numbers) > 0)
        rows.check()
        found = {
            v: (int(rows.numbers[i]), rows.paths[i], rows.vectors[rows.owners == i])
            for i, v in enumerate(rows.video_ids)
        }
        assert found.keys() == truth.keys()
        for v, (n, path, vectors) in found.items():
            assert (n, path) == truth[v][:2]
            assert np.array_equal(vectors, truth[v][2])


def test_delete_of_the_absent_is_refused():
    with pytest.raises(BadInput, match="nobody"):
        without(some_rows(["a"]), {"nobody"})


WRITER = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    import numpy as np
    from pipeline.stores.generations import GenerationStore
    from pipeline.stores.rows import build_rows

    store = GenerationStore(Path(sys.argv[1]))
    print("ready", flush=True)
    while True:
        with store.lock(timeout=30):
            current = store.current()
            size = int(current[4:]) % 40 + 1 if current else 1
            vectors = np.full((size, 3000), size, np.float32)     # every value says which size it belongs to
            rows = build_rows([f"v{i}" for i in range(size)], ["p"] * size, vectors)
            store.switch(store.write(rows, lambda f: (f / "index.faiss").write_bytes(bytes([size]) * 9000), {}, lambda
            f: {}))
        store.prune(keep=2)
    """
)


def check_whole(store):
    with store.open() as generation:
        generation.verify_files()
        rows = generation.rows()
        rows.check()
        assert np.all(rows.vectors == len(rows))
        assert generation.index_path.read_bytes() == bytes([len(rows)]) * 9000
    return generation.name


def start_writer(root):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(root)], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == "ready\n"
    return writer


def test_readers_beside_a_writer_that_prunes(store):
    """The reader opens as fast as it can while generations come and go: each one it sees is whole."""
    writer = start_writer(store.root)
    try:
        seen, deadline = set(), time.monotonic() + 60
        while len(seen) < 15 and time.monotonic() < deadline:
            if store.current() is not None:
                seen.add(check_whole(store))
        assert writer.poll() is None, "the writer died"
    finally:
        writer.kill()
        writer.wait()
    assert len(seen) >= 15


@pytest.mark.parametrize("kills", [6, pytest.param(100, marks=pytest.mark.slow)])
def test_killed_writers_leave_a_whole_live_generation(store, kills):
    generator = np.random.default_rng(kills)
    for _ in range(kills):
        writer = start_writer(store.root)
        time.sleep(float(generator.uniform(0.0, 0.15)))
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        if store.current() is not None:
            check_whole(store)
        for name in store.names():
            store.open(name).close()  # every folder with a generation's name is whole
    with store.lock():
        assert not list(store.root.glob(".tmp-*")), "the next writer clears what killed ones left"
