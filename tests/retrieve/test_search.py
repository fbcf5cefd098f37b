"""Search as a person meets it, and reindexing under readers and kills: real FAISS, real store, real processes."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from retrieval_case import SETTINGS, add_videos, make_head, make_store

from pipeline.errors import BadInput, FingerprintMismatch, MissingData
from pipeline.retrieve.index import IndexSpec
from pipeline.retrieve.scorer import head_fingerprint
from pipeline.retrieve.search import Searcher
from pipeline.retrieve.updates import Policy, Provenance, build_index, update_index
from pipeline.stores.features import FeatureStore
from pipeline.stores.generations import GenerationStore


def gallery(store, video_ids):
    """The cached features of these videos, in this order."""
    features = store.videos()
    row = {video_id: i for i, video_id in enumerate(features.video_ids)}
    return features.select(np.array([row[v] for v in video_ids], dtype=np.int64))


class Corpus:
    """A store, a head and generations, with the calls that the commands make."""

    def __init__(self, folder: Path, videos: int = 60, kind: str = "xpool", spec: IndexSpec | None = None):
        self.store, self.head = make_store(folder / "features", videos=videos), make_head(kind)
        self.generations = GenerationStore(folder / "index")
        self.provenance = Provenance(head_fingerprint(self.head), SETTINGS)
        held = self.store.videos()
        build_index(
            self.generations,
            held.video_ids,
            held.paths,
            self.pool(held.video_ids),
            spec=spec or IndexSpec(),
            provenance=self.provenance,
        )

    def pool(self, ids, head=None):
        videos = gallery(FeatureStore.open(self.store.path), ids)
        embeds, mask = torch.from_numpy(np.array(videos.frame_embeds)), torch.from_numpy(videos.frame_mask)
        return (head or self.head).pool_video(embeds, mask).numpy()

    def reindex(self, add=(), delete=(), **changes):
        options = {"pool": self.pool, "provenance": self.provenance} | changes
        return update_index(
            self.generations, add_ids=add, add_paths=[f"/videos/{v}.mp4" for v in add], delete=delete, **options
        )

    def extract_and_add(self, ids, seed=1, **changes):
        add_videos(self.store, list(ids), seed=seed)
        return self.reindex(add=list(ids), **changes)

    def searcher(self):
        return Searcher(self.generations, self.store.path, self.head)

    def ids(self):
        with self.generations.open() as generation:
            rows = generation.rows()
            return dict(zip(rows.video_ids, rows.numbers.tolist(), strict=True))


@pytest.fixture
def corpus(tmp_path):
    return Corpus(tmp_path)


def brute_force(corpus, texts, ids):
    """The head's own scores of every text with every indexed video."""
    videos = gallery(corpus.store, ids)
    return corpus.head.score(
        torch.from_numpy(texts), torch.from_numpy(np.array(videos.frame_embeds)), torch.from_numpy(videos.frame_mask)
    ).numpy()


@pytest.mark.parametrize("kind", ["mean-pool", "xpool", "dits"])
def test_search_equals_brute_force_when_the_shortlist_is_everything(tmp_path, kind):
    corpus = Corpus(tmp_path, kind=kind)
    texts = corpus.store.texts().text_embeds[:7]
    searcher = corpus.searcher()
    ids = list(corpus.ids())
    sims = brute_force(corpus, texts, ids)
    for hits, row in zip(searcher.search(texts, top=5, shortlist=60), sims, strict=True):
        assert [hit.video_id for hit in hits] == [ids[i] for i in np.argsort(-row)[:5]]
        assert [hit.score for hit in hits] == pytest.approx(sorted(row, reverse=True)[:5], abs=1e-5)
        assert hits[0].path == f"/videos/{hits[0].video_id}.mp4"


def test_search_of_one_text_and_of_a_tiny_corpus(tmp_path):
    corpus = Corpus(tmp_path, videos=3)
    hits = corpus.searcher().search(corpus.store.texts().text_embeds[0], top=10)
    assert len(hits) == 1
    assert sorted(hit.video_id for hit in hits[0]) == ["v0000", "v0001", "v0002"]
    with pytest.raises(BadInput, match="top"):
        corpus.searcher().search(corpus.store.texts().text_embeds[0], top=0)


def test_other_head_or_features_are_refused(tmp_path, corpus):
    with pytest.raises(FingerprintMismatch, match="another head"):
        Searcher(corpus.generations, corpus.store.path, make_head("xpool", seed=7))
    other = FeatureStore.create(tmp_path / "other", SETTINGS | {"decoder": "another"})
    with pytest.raises(FingerprintMismatch, match="'none' != 'another'"):
        Searcher(corpus.generations, other.path, corpus.head)
    with pytest.raises(MissingData, match="no index"):
        Searcher(GenerationStore(tmp_path / "nothing"), corpus.store.path, corpus.head)


# -- reindex ---------------------------------------------------------------------------------------------------------


def test_add_and_delete(corpus):
    before = corpus.ids()
    result = corpus.extract_and_add(["new1", "new2"])
    assert result.contract() == {
        "generation": "gen-000002",
        "added": 2,
        "deleted": 0,
        "total": 62,
        "verified": True,
    }
    assert result.how == "appended"
    assert result.verified["recall@10"] == 1.0
    result = corpus.reindex(delete=["v0003", "new1"])
    assert (result.added, result.deleted, result.total, result.how) == (0, 2, 60, "appended")
    after = corpus.ids()
    assert after == {k: v for k, v in before.items() if k != "v0003"} | {"new2": 61}, "numbers are stable"
    searcher = corpus.searcher()
    found = {h.video_id for hits in searcher.search(corpus.store.texts().text_embeds, top=60) for h in hits}
    assert found == set(after), "what was deleted is never found, all else can be"


def test_ids_that_are_there_are_left_alone_and_replaced_on_demand(corpus):
    assert corpus.reindex(add=["v0001"]).how == "nothing to do"
    assert corpus.generations.names() == ["gen-000001"]
    result = corpus.reindex(add=["v0001"], delete=["v0001"])
    assert (result.added, result.deleted, result.total) == (1, 1, 60)
    assert corpus.ids()["v0001"] == 60
    with pytest.raises(BadInput, match="nobody"):
        corpus.reindex(delete=["nobody"])
    with pytest.raises(BadInput, match="at least one video"):
        corpus.reindex(delete=list(corpus.ids()))


def test_many_deletions_compact(corpus):
    result = corpus.reindex(delete=[f"v{i:04d}" for i in range(0, 60, 3)])
    assert result.how == "rebuilt: 20 of 60 vectors are deleted"
    with corpus.generations.open() as generation:
        assert generation.info["dead"] == 0
        assert len(generation.rows().vectors) == 40


@pytest.mark.parametrize("factory", ["Flat", "HNSW16", "IVF8,SQ8", "IVF8,RaBitQ,Refine(SQ8)"])
def test_updated_equals_built(tmp_path, factory):
    """Adding and deleting give the search results of an index built anew from the same videos."""
    search = {"nprobe": 8} if "IVF" in factory else {"efSearch": 200} if "HNSW" in factory else {}
    search |= {"k_factor_rf": 8} if "Refine" in factory else {}
    corpus = Corpus(tmp_path, videos=300, spec=IndexSpec(factory, search))
    assert corpus.extract_and_add([f"n{i}" for i in range(30)]).how == "appended"
    assert corpus.reindex(delete=[f"v{i:04d}" for i in range(30)]).how == "appended"
    texts = corpus.store.texts().text_embeds[::7]
    ids = list(corpus.ids())
    sims = brute_force(corpus, texts, ids)
    for hits, row in zip(corpus.searcher().search(texts, top=1, shortlist=300), sims, strict=True):
        assert hits[0].video_id == ids[int(row.argmax())]


def test_another_head_rebuilds_from_cached_features_and_keeps_numbers(corpus):
    numbers = corpus.ids()
    head = make_head("dits", seed=5)
    asked: list[str] = []

    def pool(ids):
        asked.extend(ids)
        return corpus.pool(ids, head)

    result = corpus.reindex(pool=pool, provenance=Provenance(head_fingerprint(head), SETTINGS))
    assert result.how.startswith("rebuilt: head ")
    assert sorted(asked) == sorted(numbers)
    assert corpus.ids() == numbers
    Searcher(corpus.generations, corpus.store.path, head).close()
    with pytest.raises(FingerprintMismatch):
        corpus.searcher()


def test_an_index_that_misses_too_much_is_never_switched_to(tmp_path):
    corpus = Corpus(tmp_path, videos=300)
    with pytest.raises(BadInput, match=r"recall@10 of IVF64,SQ8.*>= 0.99"):
        corpus.reindex(spec=IndexSpec("IVF64,SQ8", {"nprobe": 1}), policy=Policy(min_recall=0.99))
    assert corpus.generations.names() == ["gen-000001"] == [corpus.generations.current()]


def test_rollback_is_seen_by_an_open_searcher(corpus):
    searcher = corpus.searcher()
    corpus.extract_and_add(["new1"])
    assert searcher.generation == "gen-000001"
    assert searcher.refresh()
    assert searcher.generation == "gen-000002"
    corpus.generations.rollback()
    assert searcher.refresh()
    assert not searcher.refresh()
    found = {h.video_id for hits in searcher.search(corpus.store.texts().text_embeds[-2:], top=60) for h in hits}
    assert "new1" not in found


SEARCHER = textwrap.dedent(
    """
    import json, sys
    from pathlib import Path
    sys.path[:0] = sys.argv[2:]
    from retrieval_case import make_head
    from pipeline.retrieve.search import Searcher
    from pipeline.stores.features import FeatureStore
    from pipeline.stores.generations import GenerationStore

    folder = Path(sys.argv[1])
    searcher = Searcher(GenerationStore(folder / "index"), folder / "features", make_head("xpool"))
    texts = FeatureStore.open(folder / "features").texts().text_embeds[:3]
    while not (folder / "stop").exists():
        searcher.refresh()
        hits = {hit.video_id for found in searcher.search(texts, top=1000) for hit in found}
        print(json.dumps([searcher.generation, sorted(hits)]), flush=True)
    """
)


@pytest.mark.parametrize("steps", [6, pytest.param(20, marks=pytest.mark.slow)])
def test_generations_come_and_go_under_a_searching_process(tmp_path, steps):
    """Additions and deletions, a prune after each, while another process searches: never a wrong id, never an error."""
    corpus = Corpus(tmp_path, videos=40)
    alive = {corpus.generations.current(): set(corpus.ids())}
    here = Path(__file__).parents[1]
    command = [sys.executable, "-c", SEARCHER, str(tmp_path), str(here), str(here.parent)]
    with open(tmp_path / "answers", "w") as answers, open(tmp_path / "errors", "w") as errors:
        process = subprocess.Popen(command, stdout=answers, stderr=errors, env=os.environ | {"OMP_NUM_THREADS": "1"})

    def answered():
        assert process.poll() is None, (tmp_path / "errors").read_text()
        return [json.loads(line) for line in (tmp_path / "answers").read_text().splitlines(True) if line.endswith("\n")]

    generator = np.random.default_rng(0)
    for step in range(steps):
        while not answered() or answered()[-1][0] != corpus.generations.current():
            time.sleep(0.005)  # until the live generation has been searched
        add_videos(corpus.store, [f"s{step}a", f"s{step}b"], seed=step)
        live = sorted(corpus.ids())
        gone = list(generator.choice(live, 2, replace=False))
        result = corpus.reindex(add=[f"s{step}a", f"s{step}b"], delete=gone)
        alive[result.generation] = set(corpus.ids())
        assert alive[result.generation] == (set(live) - set(gone)) | {f"s{step}a", f"s{step}b"}
        corpus.generations.prune(keep=1)
    found = answered()
    (tmp_path / "stop").touch()
    assert process.wait(timeout=60) == 0, (tmp_path / "errors").read_text()
    assert len({name for name, _ in found}) in (steps, steps + 1)  # the last one, perhaps: nothing waits for it
    for name, hits in found:
        assert set(hits) == alive[name], f"a search saw something else than {name}"


REINDEXER = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    sys.path.insert(0, sys.argv[2])
    import numpy as np
    from pipeline.retrieve.index import IndexSpec
    from pipeline.retrieve.updates import Provenance, build_index, update_index
    from pipeline.stores.generations import GenerationStore

    def pool(ids):
        return np.stack([np.random.default_rng(int(v[1:])).standard_normal(32) for v in ids])

    generations, provenance = GenerationStore(Path(sys.argv[1])), Provenance("head", {"a": 1})
    spec = IndexSpec("HNSW8", {"efSearch": 64})
    print("ready", flush=True)
    if generations.current() is None:
        ids = [f"v{i}" for i in range(200)]
        build_index(generations, ids, ids, pool(ids), spec=spec, provenance=provenance)
    while True:
        with generations.open() as live:
            ids = live.rows().video_ids
        top = max(int(v[1:]) for v in ids) + 1
        new = [f"v{i}" for i in range(top, top + 5)]
        update_index(generations, add_ids=new, add_paths=new, delete=ids[:5], pool=pool, provenance=provenance)
        generations.prune(keep=2)
    """
)


@pytest.mark.parametrize("kills", [5, pytest.param(100, marks=pytest.mark.slow)])
def test_kill_at_random_moments_of_a_reindex(tmp_path, kills):
    """After each SIGKILL the live generation is whole: files as written, ids unique, each vector its own video's."""
    generations = GenerationStore(tmp_path)
    generator = np.random.default_rng(kills)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", REINDEXER, str(tmp_path), str(Path(__file__).parents[2])]
    seen, cycle = set(), 0.0
    for kill in range(kills):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        if kill % 3 == 0:  # let it get somewhere, and see how long a reindex takes on this machine just now
            first = _next_generation(generations, process)
            cycle = _next_generation(generations, process) - first
        time.sleep(float(generator.uniform(0.0, 2 * cycle)))
        process.send_signal(signal.SIGKILL)
        process.wait()
        with generations.open() as live:
            seen.add(live.name)
            live.verify_files()
            rows = live.rows()
            rows.check()
            assert len(rows) == 200
            for place in generator.choice(len(rows), 20, replace=False):
                expected = np.random.default_rng(int(rows.video_ids[place][1:])).standard_normal(32)
                held = np.asarray(rows.vectors[rows.owners == place][0], np.float64)
                assert held @ expected / np.linalg.norm(expected) == pytest.approx(1.0, abs=2e-3)
    assert len(seen) > kills // 3


def _next_generation(generations, process):
    """Wait until another generation is live; the moment at which it was. Fails if its writer dies."""
    before = generations.current()
    while generations.current() == before:
        assert process.poll() is None, "the writer died"
        time.sleep(0.002)
    return time.monotonic()
