"""SQL conditions over metadata: the videos that meet them, and what a hostile one is told."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from retrieval_case import make_head, make_store

from pipeline.errors import BadInput
from pipeline.retrieve import search as search_module
from pipeline.retrieve.filters import VideoFilter
from pipeline.retrieve.index import IndexSpec
from pipeline.retrieve.scorer import head_fingerprint
from pipeline.retrieve.search import Searcher
from pipeline.retrieve.updates import Policy, Provenance, build_index
from pipeline.stores.generations import GenerationStore
from pipeline.stores.indexed_videos import IndexedVideos
from pipeline.stores.metadata import write_metadata

IDS = ["a.mp4", "b.mp4", "c.mp4#t=0,10", "c.mp4#t=10,20", "d.mp4"]
METADATA = {
    "a.mp4": {"year": "2019", "camera": "left", "day": "2019-05-01"},
    "b.mp4": {"year": "2020", "camera": "left", "note": "it's o'clock"},
    "c.mp4": {"year": "2021", "camera": "right"},
    "c.mp4#t=10,20": {"year": "2022", "camera": "right"},
}


@pytest.fixture
def videos(tmp_path):
    write_metadata(tmp_path, METADATA)
    table = pa.table({"number": range(5), "video_id": IDS, "path": [f"/v/{i.split('#')[0]}" for i in IDS]})
    return VideoFilter(IndexedVideos(table.cast(pa.schema([("number", pa.int64()), *_strings()]))), tmp_path)


def _strings():
    return [(name, pa.large_string()) for name in ("video_id", "path")]


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("year >= 2020 AND camera = 'left'", {"b.mp4"}),
        ("year = 2021", {"c.mp4#t=0,10"}),  # of the file, for the clip without a row of its own
        ("YEAR BETWEEN 2021 AND 2022", {"c.mp4#t=0,10", "c.mp4#t=10,20"}),
        ("camera IN ('left', 'up') OR year IS NULL", {"a.mp4", "b.mp4", "d.mp4"}),
        ("NOT camera = 'left'", {"c.mp4#t=0,10", "c.mp4#t=10,20"}),
        ("day < DATE '2020-01-01'", {"a.mp4"}),
        ("note = 'it''s o''clock' -- a comment", {"b.mp4"}),
        ("path LIKE '/v/c%' AND contains(lower(camera), 'igh')", {"c.mp4#t=0,10", "c.mp4#t=10,20"}),
        ("year % 2 = 0 AND \"camera\" ILIKE 'LEFT'", {"b.mp4"}),
        ("year > 3000", set()),
    ],
)
def test_a_condition_selects(videos, condition, expected):
    mask = videos.mask(condition)
    assert {video_id for video_id, met in zip(IDS, mask, strict=True) if met} == expected


@pytest.mark.parametrize(
    "condition",
    [
        "1); DROP TABLE clips; --",
        "true); ATTACH '/tmp/x.db'; SELECT (true",
        "true) UNION SELECT 1 FROM clips WHERE (true",
        "true) ORDER BY (year",
        "true) LIMIT (1",
        "true) GROUP BY ALL HAVING (true",
        "year IN (SELECT 1)",
        "EXISTS (SELECT * FROM read_csv('/etc/passwd'))",
        "(SELECT count(*) FROM read_text('/etc/passwd')) > 0",
        "read_text('/etc/passwd') IS NOT NULL",
        "getenv('HOME') = 'x'",
        "current_setting('threads') = 1",
        "repeat('x', 1000000000) = camera",
        "length(lpad(camera, 2000000000, 'x')) > 1",
        "list_sum(range(1000000000)) > 1",
        "row_number() OVER () > 1",
        "list_filter([1], x -> x > 0) = [1]",
        "COLUMNS(*) > 1",
        "$1 = 1",
        "nothing = 1",
        "__row = 1",
        "year = 'abc'",
        'camera = "left"',
        "year >",
        "",
        "year = 1 OR " * 500 + "year = 1",
        "(" * 2000 + "true" + ")" * 2000,
    ],
)
def test_a_hostile_or_wrong_condition_is_one_line_that_names_the_columns(videos, condition):
    with pytest.raises(BadInput, match=r"expected an SQL condition over video_id \(large_string\).*year \(int64\)"):
        videos.mask(condition)
    assert videos.mask("year = 2019").sum() == 1  # and nothing is broken after it


def test_metadata_is_not_needed(tmp_path):
    table = pa.table({"number": [0], "video_id": ["a"], "path": ["/v/a"]})
    videos = VideoFilter(IndexedVideos(table.cast(pa.schema([("number", pa.int64()), *_strings()]))), tmp_path)
    assert videos.mask("video_id = 'a'").tolist() == [True]


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("factory", ["Flat", "HNSW16", "IVF4,Flat"])
def test_filtered_search_equals_ranking_what_is_left(tmp_path, monkeypatch, factory, exact):
    """With every vector searched, filtering inside the index and comparing one by one find the same."""
    if not exact:
        monkeypatch.setattr(search_module, "EXACT_VECTORS", 0)
        monkeypatch.setattr(search_module, "EXACT_SHARE", 0.0)
    store, head = make_store(tmp_path / "features", videos=80), make_head("xpool", index_vectors=2)
    held = store.videos()
    vectors = head.pool_video(*(_torch(x) for x in (held.frame_embeds, held.frame_mask))).numpy()
    spec = IndexSpec(factory, {"HNSW16": {"efSearch": 200}, "IVF4,Flat": {"nprobe": 4}}.get(factory, {}))
    generations = GenerationStore(tmp_path / "index")
    build_index(
        generations, list(held.video_ids), list(held.paths), vectors,
        spec=spec, provenance=Provenance(head_fingerprint(head), store.settings),
    )  # fmt: skip
    write_metadata(store.path, {v: {"odd": i % 2 == 1} for i, v in enumerate(held.video_ids)})
    searcher = Searcher(generations, store.path, head)
    texts = store.texts().text_embeds[:5]
    everything = searcher.search(texts, top=80, shortlist=80)
    odd = searcher.search(texts, top=80, shortlist=80, where="odd")
    assert [[h.video_id for h in hits] for hits in odd] == [
        [h.video_id for h in hits if int(h.video_id[1:]) % 2] for hits in everything
    ]
    assert searcher.search(texts, where="NOT odd AND odd") == [[]] * 5
    assert all(h.video_id != "v0001" for h in searcher.similar("v0001", where="odd", top=80))


@pytest.mark.parametrize(("factory", "search"), [("HNSW8", {"efSearch": 8}), ("IVF16,Flat", {"nprobe": 1})])
def test_a_filter_that_starves_the_index_loses_nothing(tmp_path, monkeypatch, factory, search):
    """It leaves the videos that are least like the query: neither a graph nor lists come across them all."""
    monkeypatch.setattr(search_module, "EXACT_VECTORS", 0)
    monkeypatch.setattr(search_module, "EXACT_SHARE", 0.0)
    store, head = make_store(tmp_path / "features", videos=400), make_head("mean-pool")
    held = store.videos()
    vectors = head.pool_video(*(_torch(x) for x in (held.frame_embeds, held.frame_mask))).numpy()
    generations = GenerationStore(tmp_path / "index")
    build_index(
        generations, list(held.video_ids), list(held.paths), vectors, spec=IndexSpec(factory, search),
        provenance=Provenance(head_fingerprint(head), store.settings), policy=Policy(min_recall=0.0),
    )  # fmt: skip
    text = store.texts().text_embeds[0]
    cosines = vectors @ text / np.linalg.norm(text)
    far = np.argsort(cosines)[:100]
    write_metadata(store.path, {held.video_ids[i]: {"far": True} for i in far})
    (hits,) = Searcher(generations, store.path, head).search(text, where="far", top=10, shortlist=100)
    assert [hit.video_id for hit in hits] == [held.video_ids[i] for i in far[::-1][:10]]


def _torch(array):
    return torch.from_numpy(np.array(array))
