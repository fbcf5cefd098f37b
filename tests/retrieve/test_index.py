"""Indexes of every type against brute force in numpy; disk forms, masks; autotuning."""

import faiss
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pipeline.retrieve.index as index_module
from pipeline.errors import BadInput, CorruptShard, UserError
from pipeline.retrieve.autotune import Requirements, autotune
from pipeline.retrieve.exact_search import exact_search, normalised
from pipeline.retrieve.index import (
    IndexSpec,
    asked_gpu,
    build,
    gpu_count,
    needs_training,
    new_index,
    read,
    required_gpu,
)
from pipeline.retrieve.updates import mean_recall

DIM = 32


def clustered(count, seed=0, clusters=40, dim=DIM, spread=0.35):
    """Unit vectors around random centres, float16 as a generation holds them."""
    centres = np.random.default_rng(99).standard_normal((clusters, dim))
    generator = np.random.default_rng(seed)
    points = centres[generator.integers(0, clusters, count)] + spread * generator.standard_normal((count, dim)) * 2
    return normalised(points).astype(np.float16)


def slow_search(vectors, owners, queries, k, only=None):
    """For each query the k best videos by their best vector: a loop over all of them."""
    found = []
    for query in normalised(queries):
        best = {}
        for vector, owner in zip(normalised(vectors), owners.tolist(), strict=True):
            if owner >= 0 and (only is None or only[owner]):
                best[owner] = max(best.get(owner, -np.inf), float(query @ vector))
        found.append(sorted(best.items(), key=lambda item: -item[1])[:k])
    return found


EXACT = ["Flat", "HNSW16", "IVF8,Flat"]
ALL = {
    "Flat": {},
    "HNSW16": {"efSearch": 128},
    "IVF16,SQ8": {"nprobe": 16},
    "IVF16,PQ8,Refine(SQ8)": {"nprobe": 16, "k_factor_rf": 16},
    "RaBitQ,Refine(SQ8)": {"k_factor_rf": 16},
    "IVF16,RaBitQ,Refine(SQ8)": {"nprobe": 16, "k_factor_rf": 16},
    "PCA24,HNSW16": {"efSearch": 128},
    "IVF16,PQ16x4fs,Refine(SQfp16)": {"nprobe": 16, "k_factor_rf": 16},
}


@pytest.mark.parametrize("factory", ALL)
@pytest.mark.parametrize("mmap", [True, False])
def test_every_type_finds_what_brute_force_finds(tmp_path, factory, mmap):
    vectors, queries = clustered(3000), clustered(60, seed=1)
    spec = IndexSpec(factory, ALL[factory])
    built = build(vectors, spec)
    truth = np.argsort(-(normalised(queries) @ normalised(vectors).T), axis=1)[:, :10]
    scores, found = built.search(queries, 10)
    assert mean_recall(found, truth) >= {"Flat": 1.0, "PCA24,HNSW16": 0.6}.get(factory, 0.85)
    assert np.all(np.diff(scores, axis=1) <= 0)
    built.write(tmp_path)
    again = read(tmp_path, built.owners, spec, mmap=mmap)
    assert np.array_equal(again.search(queries, 10)[1], found), "a search parameter was lost on the way"


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 12), st.booleans(), st.sampled_from(["Flat", "HNSW8"]))
def test_several_vectors_deletions_and_filters(seed, several, k, filtered, factory):
    """Max over a video's vectors, deleted ones left out, restricted to some videos: as the slow loop says."""
    generator = np.random.default_rng(seed)
    videos = int(generator.integers(1, 30))
    owners = np.repeat(np.arange(videos), several)
    owners[generator.random(len(owners)) < 0.3] = -1
    vectors, queries = clustered(len(owners), seed), clustered(4, seed + 1)
    only = generator.random(videos) < 0.5 if filtered else None
    index = build(vectors, IndexSpec(factory, {"efSearch": 400} if factory != "Flat" else {}), owners)
    scores, found = index.search(queries, k, only=only)
    assert scores.shape == found.shape == (4, k)
    for row, (got_scores, got) in enumerate(zip(scores, found, strict=True)):
        expected = slow_search(vectors, owners, queries[row : row + 1], k, only)[0]
        assert got[: len(expected)].tolist() == [owner for owner, _ in expected]
        assert got_scores[: len(expected)] == pytest.approx([score for _, score in expected], abs=2e-3)
        assert np.all(got[len(expected) :] == -1)
        assert np.all(got_scores[len(expected) :] == -np.inf)
    if only is None and (owners >= 0).any():
        exact_scores, exact = exact_search(vectors, owners, queries, k, block=7)
        assert np.array_equal(exact, found)
        assert exact_scores == pytest.approx(scores, abs=1e-5)


@pytest.mark.parametrize("factory", [*ALL, "RR32,RaBitQ"])
def test_deleted_vectors_are_masked_in_every_type(factory):
    vectors = clustered(2000)
    owners = np.arange(2000)
    owners[:1000] = -1
    found = build(vectors, IndexSpec(factory, ALL.get(factory, {})), owners).search(vectors[:50], 5)[1]
    assert np.all(found >= 1000)


@pytest.mark.parametrize("factory", ["Flat", "HNSW16", "IVF16,SQ8", "IVF16,RaBitQ,Refine(SQ8)"])
def test_adding_in_blocks_and_later_equals_adding_at_once(factory):
    vectors, queries = clustered(2000), clustered(30, seed=1)
    whole = build(vectors, IndexSpec(factory, ALL.get(factory, {})))
    blocks = build(vectors, IndexSpec(factory, ALL.get(factory, {}), block=333))
    assert np.array_equal(whole.search(queries, 10)[1], blocks.search(queries, 10)[1])
    later = build(vectors[:1500], IndexSpec(factory, ALL.get(factory, {}))).add(vectors[1500:], np.arange(2000))
    truth = exact_search(vectors, np.arange(2000), queries, 10)[1]
    assert mean_recall(later.search(queries, 10)[1], truth) >= 0.9


@pytest.mark.parametrize("factory", ["IVF16,SQ8", "IVF16,PQ8"])
def test_lists_on_disk_equal_lists_in_memory(tmp_path, factory):
    vectors, queries = clustered(3000), clustered(40, seed=1)
    memory = build(vectors, IndexSpec(factory, {"nprobe": 8}))
    spec = IndexSpec(factory, {"nprobe": 8}, on_disk=True, block=700)
    (tmp_path / "written").mkdir()
    build(vectors, spec, folder=tmp_path / "written").write(tmp_path / "written")
    assert sorted(p.name for p in (tmp_path / "written").iterdir()) == ["index.faiss", "index.ivfdata"]
    (tmp_path / "written").rename(tmp_path / "moved")  # a generation is renamed into place
    disk = read(tmp_path / "moved", memory.owners, spec)
    assert np.array_equal(disk.search(queries, 10)[1], memory.search(queries, 10)[1])
    with pytest.raises(BadInput, match="IVF type and a folder"):
        build(vectors, IndexSpec("Flat", on_disk=True), folder=tmp_path)


def test_exact_search_reads_a_memory_map(tmp_path):
    vectors, queries = clustered(500), clustered(5, seed=1)
    np.save(tmp_path / "v.npy", vectors)
    mapped = np.load(tmp_path / "v.npy", mmap_mode="r")
    expected = exact_search(vectors, np.arange(500), queries, 7)[1]
    assert np.array_equal(exact_search(mapped, np.arange(500), queries, 7, block=64)[1], expected)


def test_bad_input(tmp_path):
    vectors = clustered(100)
    for factory, words in (("Nope", "could not parse"), ("IVF4096,SQ8", "at least 4096"), ("IVF4,PQ7", "refuses")):
        with pytest.raises(BadInput, match=words):
            build(vectors, IndexSpec(factory))
    with pytest.raises(BadInput, match="nprobe"):
        build(vectors, IndexSpec("Flat", {"nprobe": 3}))
    with pytest.raises(BadInput, match="unknown index settings"):
        IndexSpec.from_dict({"factory": "Flat", "colour": "red"})
    with pytest.raises(BadInput, match="width"):
        build(vectors, IndexSpec()).search(np.ones((1, DIM + 1)), 3)
    with pytest.raises(BadInput, match="row 3"):
        normalised(np.array([[1.0, 0], [0, 1], [1, 1], [0, 0]]))
    with pytest.raises(BadInput, match="row 0"):
        normalised(np.array([[np.nan, 0.0]]))
    build(vectors, IndexSpec()).write(tmp_path)
    with pytest.raises(CorruptShard, match="differ in length"):
        read(tmp_path, np.arange(99), IndexSpec())
    content = (tmp_path / "index.faiss").read_bytes()
    (tmp_path / "index.faiss").write_bytes(content[:50])
    with pytest.raises(CorruptShard, match="cannot be read"):
        read(tmp_path, np.arange(100), IndexSpec())


def test_what_trains():
    assert not needs_training("Flat", 32)
    assert not needs_training("HNSW16", 32)
    assert needs_training("IVF4,SQ8", 32)
    assert needs_training("PQ8", 32)


def test_no_filter_that_is_never_used_is_trained():
    for factory in ("PQ8", "IVF16,PQ8,Refine(SQ8)", "OPQ8,IVF16,PQ8"):
        index = new_index(factory, DIM)
        parts = [part for part in index_module._nested(index) if hasattr(part, "do_polysemous_training")]
        assert parts
        assert not any(part.do_polysemous_training for part in parts)


def test_gpu_equals_cpu():
    vectors, queries = clustered(3000), clustered(40, seed=1)
    if gpu_count() == 0:
        pytest.skip("no GPU that FAISS can use")
    for factory in ("Flat", "IVF16,Flat", "IVF16,SQ8"):
        spec = IndexSpec(factory, ALL.get(factory, {"nprobe": 16} if "IVF" in factory else {}))
        cpu, gpu = build(vectors, spec), build(vectors, spec, gpu=0)
        assert mean_recall(gpu.search(queries, 10)[1], cpu.search(queries, 10)[1]) >= 0.99


def test_faiss_stays_on_the_cpu_unless_a_gpu_is_named_and_there(monkeypatch, caplog):
    monkeypatch.setattr(index_module, "gpu_count", lambda: 0)
    cuda = torch.device("cuda", 1)
    assert [asked_gpu(name, torch.device("cpu")) for name in ("auto", "cpu")] == [None, None]
    assert asked_gpu("auto", cuda) is None
    assert caplog.messages == []
    assert asked_gpu("cuda:1", cuda) is None
    (line,) = caplog.messages
    assert "FAISS stays on the CPU, this build of it has no GPU" in line
    with pytest.raises(BadInput, match=r"no GPU.*Fix: leave --gpu out"):
        required_gpu(cuda)
    monkeypatch.setattr(index_module, "gpu_count", lambda: 2)
    assert asked_gpu("auto", cuda) is None
    assert asked_gpu("cuda:1", cuda) == required_gpu(cuda) == 1


class Gpu:
    """FAISS's copies to a GPU and back, made on the CPU; `refuses`: what it says of an index it cannot take."""

    def __init__(self, monkeypatch, refuses=None):
        self.copies = []
        monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
        monkeypatch.setattr(faiss, "index_gpu_to_cpu", faiss.clone_index, raising=False)

        def to_gpu(_, gpu, index):
            if refuses:
                raise RuntimeError(f"Error in cloner at GpuCloner.cpp:99: {refuses}")
            self.copies.append(faiss.clone_index(index))
            return self.copies[-1]

        monkeypatch.setattr(faiss, "index_cpu_to_gpu", to_gpu, raising=False)


@pytest.mark.parametrize("factory", ["Flat", "IVF16,SQ8"])
def test_an_index_built_on_a_gpu_is_written_for_a_cpu(factory, monkeypatch, tmp_path):
    vectors, queries = clustered(2000), clustered(20, seed=1)
    spec = IndexSpec(factory, {"nprobe": 4} if "IVF" in factory else {})
    expected, gpu = build(vectors, spec), Gpu(monkeypatch)
    built = build(vectors, spec, gpu=0)
    assert len(gpu.copies) == 1 + ("IVF" in factory)  # to train, to add
    built.write(tmp_path)
    found = read(tmp_path, built.owners, spec).search(queries, 10)
    for one, other in zip(found, expected.search(queries, 10), strict=True):
        assert np.array_equal(one, other)


def test_what_a_gpu_refuses_is_built_and_searched_on_the_cpu(monkeypatch, caplog):
    vectors, queries = clustered(500), clustered(20, seed=1)
    expected = build(vectors, IndexSpec("HNSW8")).search(queries, 5)
    Gpu(monkeypatch, refuses="This index type is not implemented on GPU.")
    index = build(vectors, IndexSpec("HNSW8"), gpu=0)
    assert not index.keep_on_gpu(0)
    for line, done in zip(caplog.messages, ("built", "searched"), strict=True):
        assert f"HNSW8 is {done} on the CPU: the GPU refuses" in line
        assert "not implemented on GPU" in line
    assert np.array_equal(index.search(queries, 5)[1], expected[1])


def test_a_kept_copy_answers_what_a_gpu_can_and_the_cpu_the_rest(monkeypatch):
    vectors, queries = clustered(3000), clustered(20, seed=1)
    index, gpu = build(vectors, IndexSpec()), Gpu(monkeypatch)
    some = np.arange(3000) % 3 == 0
    asked = [{"k": 10}, {"k": 10, "only": some}, {"k": 2500}]
    expected = [index.search(queries, **how) for how in asked]
    assert index.keep_on_gpu(0)
    (copy,) = gpu.copies
    calls, search = [], copy.search
    monkeypatch.setattr(copy, "search", lambda queries, k: calls.append(k) or search(queries, k))
    found = [index.search(queries, **how) for how in asked]
    assert calls == [10]  # neither the filtered search nor the deep one
    for one, other in zip(found, expected, strict=True):
        assert np.array_equal(one[1], other[1])


# -- autotuning -----------------------------------------------------------------------------------------------------


def test_the_tuned_index_meets_the_requirements_and_shows_what_it_weighed(caplog):
    vectors, queries = clustered(4000), clustered(200, seed=1)
    tuned = autotune(vectors, np.arange(4000), Requirements(recall=0.9, memory_bytes=400_000), queries)
    chosen = next(row for row in tuned.points if row.spec == tuned.spec)
    assert chosen.misses == ""
    assert chosen.bytes <= 400_000
    rebuilt = build(vectors, tuned.spec)
    truth = exact_search(vectors, np.arange(4000), queries, 10)[1]
    assert mean_recall(rebuilt.search(queries, 10)[1], truth) >= 0.85
    assert any(line.startswith("Flat: about 1 MB, over the limit") for line in caplog.messages)
    assert "->" in tuned.table()
    assert all(row.spec.factory in tuned.table() for row in tuned.points)


def test_flat_is_always_a_contender_and_alone_is_exact():
    vectors, queries = clustered(3000, spread=3.0), clustered(100, seed=1)
    tuned = autotune(vectors, np.arange(3000), Requirements(recall=1.0), queries)
    assert "Flat" in [row.spec.factory for row in tuned.points]
    exact = next(row for row in tuned.points if row.spec.factory == "Flat")
    assert (exact.recall, exact.misses) == (1.0, "")
    tiny = autotune(vectors[:50], np.arange(50), Requirements(recall=0.9), queries)
    assert {row.spec.factory for row in tiny.points} == {"Flat", "HNSW16", "HNSW32"}


def test_nothing_fits_is_said_with_what_came_closest():
    vectors = clustered(3000)
    with pytest.raises(UserError, match=r"no index type fits the need.*IVF.*over 0 MB|no index type fits in memory"):
        autotune(vectors, np.arange(3000), Requirements(recall=0.99, memory_bytes=60_000))
    with pytest.raises(UserError, match=r"slower than 1e-06 ms"):
        autotune(vectors, np.arange(3000), Requirements(recall=0.5, latency_ms=0.000001), clustered(40, seed=1))
    with pytest.raises(BadInput, match="recall"):
        Requirements(recall=1.2)
    with pytest.raises(BadInput, match="held-out"):
        autotune(vectors, np.arange(3000), Requirements(), vectors[:1])
