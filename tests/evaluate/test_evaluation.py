"""Evaluation on a real store with real heads: against the head's own full matrix, within memory, through the index."""

import json

import numpy as np
import pytest
import torch
from retrieval_case import add_videos, make_head, make_store

from pipeline.errors import BadInput, CorruptShard, FingerprintMismatch, MissingData
from pipeline.evaluate.evaluation import Options, compare, evaluate
from pipeline.evaluate.index_loss import IndexedGallery
from pipeline.evaluate.metrics import retrieval_metrics, video_to_text_metrics
from pipeline.retrieve.index import IndexSpec
from pipeline.retrieve.scorer import WORKSPACE, Scorer, bytes_beside, head_fingerprint
from pipeline.retrieve.updates import Provenance, build_index
from pipeline.stores.features import text_to_video
from pipeline.stores.generations import GenerationStore


def full_matrix(head, videos, texts):
    with torch.no_grad():
        sims = head.score(
            torch.from_numpy(texts.text_embeds),
            torch.from_numpy(np.array(videos.frame_embeds)),
            torch.from_numpy(videos.frame_mask),
        )
    return sims.numpy(), text_to_video(texts, videos)


@pytest.mark.parametrize("kind", ["mean-pool", "xpool", "dits"])
def test_equals_the_metrics_of_the_full_matrix(tmp_path, kind):
    store, head = make_store(tmp_path / "f", videos=300, captions=3), make_head(kind)
    videos, texts = store.videos("test"), store.texts("test")
    evaluation = evaluate(head, videos, texts, Options(resamples=50))
    sims, own = full_matrix(head, videos, texts)
    metrics = evaluation.metrics
    assert metrics["t2v"] == retrieval_metrics(sims, own)
    assert metrics["v2t"] == video_to_text_metrics(sims, own)
    assert metrics["v2t_group_max"] == video_to_text_metrics(sims, own, captions="group-max")
    for rule, row in metrics["by_tie_rule"].items():
        assert row == retrieval_metrics(sims, own, ties=rule)
    assert 0 < metrics["t2v"]["R@1"] < 100, "a case that could not tell good from bad"
    low, high = metrics["intervals"]["t2v"]["R@1"]
    assert low <= metrics["t2v"]["R@1"] <= high


def test_ranks_do_not_depend_on_the_memory_limit(tmp_path):
    store, head = make_store(tmp_path / "f", videos=600, captions=1), make_head("xpool")
    videos, texts = store.videos(), store.texts()
    scorer = Scorer(head, videos)
    least = 2 * 256 * scorer.video_bytes + WORKSPACE
    assert Scorer(head, videos, memory_limit=least).block == 256
    assert scorer.block >= 600
    limits = (least + bytes_beside(600, 600, head.config.dim), 2_000_000_000)
    a, b = (evaluate(head, videos, texts, Options(resamples=10, memory_limit=limit)) for limit in limits)
    assert a.metrics["protocol"]["memory_bytes"]["needed"] == limits[0]
    for name in ("better", "tied", "tied_before"):
        assert np.array_equal(getattr(a.t2v_counts, name), getattr(b.t2v_counts, name))
    assert a.metrics["protocol"]["memory_bytes"]["needed"] < b.metrics["protocol"]["memory_bytes"]["needed"]


def test_a_memory_limit_that_cannot_hold_is_refused(tmp_path):
    store = make_store(tmp_path / "f")
    with pytest.raises(BadInput, match=r"memory-limit.*MB more"):
        evaluate(make_head(), store.videos(), store.texts(), Options(memory_limit=1_000_000))


def test_protocol_card_and_contract(tmp_path, caplog):
    store, head = make_store(tmp_path / "f"), make_head()
    card = {"split": "test", "selected_on": "val", "label": "toy"}
    evaluation = evaluate(head, store.videos(), store.texts(), Options(resamples=10), protocol=card)
    contract = json.loads(json.dumps(evaluation.contract()))
    assert contract.keys() == {"t2v", "v2t", "index", "protocol"}
    assert contract["t2v"].keys() == {"R@1", "R@5", "R@10", "MdR", "MnR", "queries", "gallery"}
    assert contract["index"] is None
    protocol = contract["protocol"]
    assert {key: protocol[key] for key in card} == card
    assert (protocol["queries"], protocol["videos"]) == ({"t2v": 80, "v2t": 40}, 40)
    assert protocol["head_fingerprint"] == head_fingerprint(head) != head_fingerprint(make_head(seed=1))
    assert "80 texts x 40 videos" in caplog.messages[0]
    assert "MB" in caplog.messages[0]


def test_several_texts_that_are_equal_tie_and_it_is_said(tmp_path):
    store = make_store(tmp_path / "f", captions=1)
    videos, texts = store.videos(), store.texts()
    videos.frame_embeds[5], videos.frame_mask[5] = videos.frame_embeds[4], videos.frame_mask[4]
    evaluation = evaluate(make_head("xpool"), videos, texts, Options(resamples=10))
    assert any("queries tie" in line for line in evaluation.lines)
    rows = evaluation.metrics["by_tie_rule"]
    assert rows["optimistic"]["MnR"] < rows["average"]["MnR"] < rows["pessimistic"]["MnR"]


def test_normalised_rows_equal_the_dense_formulas(tmp_path):
    store, head = make_store(tmp_path / "f", videos=60, captions=2), make_head("xpool")
    add_videos(store, [f"train{i}" for i in range(30)], split="train", seed=9)
    videos, texts, bank = store.videos("test"), store.texts("test"), store.texts("train")
    options = Options(resamples=10, normalisations=("dual-softmax", "query-bank"))
    rows = evaluate(head, videos, texts, options, bank=bank).metrics["normalised"]
    sims, own = full_matrix(head, videos, texts)
    sims = sims.astype(np.float64)

    def softmax(x, axis):
        weights = np.exp(x - x.max(axis=axis, keepdims=True))
        return weights / weights.sum(axis=axis, keepdims=True)

    expected = retrieval_metrics(sims * softmax(100 * sims, 0), own)
    assert rows["t2v dual softmax (all test queries at once)"] == expected | {"ties": "average"}
    expected = video_to_text_metrics(sims * softmax(100 * sims, 1), own)
    assert rows["v2t dual softmax (all test videos at once)"] == expected | {"ties": "average"}
    banked = full_matrix_of_bank(head, videos, bank)
    inverted = np.exp(20 * sims) / np.exp(20 * banked).sum(0)
    hub = np.isin(sims.argmax(1), banked.argmax(1))
    assert 0 < hub.sum() < len(hub)
    expected = retrieval_metrics(np.where(hub[:, None], inverted, sims), own)
    assert rows["t2v query-bank normalisation (bank of 60 training texts)"] == expected | {"ties": "average"}


def full_matrix_of_bank(head, videos, bank):
    return Scorer(head, videos).full(bank.text_embeds).astype(np.float64)


def test_save_and_compare(tmp_path):
    store = make_store(tmp_path / "f", videos=80)
    videos, texts = store.videos(), store.texts()
    for name, kind in (("a", "mean-pool"), ("b", "xpool")):
        evaluate(make_head(kind), videos, texts, Options(resamples=10)).save(tmp_path / name)
    a, b = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in "ab")
    result = compare(tmp_path / "a", tmp_path / "b", resamples=200)
    for direction in ("t2v", "v2t"):
        for figure in ("R@1", "R@5", "R@10", "MdR", "MnR"):
            row = result[direction][figure]
            assert (row["a"], row["b"]) == pytest.approx((a[direction][figure], b[direction][figure]))
            assert row["interval"][0] <= row["difference"] <= row["interval"][1]
    same = compare(tmp_path / "a", tmp_path / "a", resamples=20)
    assert same["t2v"]["R@1"]["interval"] == (0.0, 0.0)
    for name in ("metrics.json", "t2v.json", "v2t.json"):  # of an old version, or edited: nobody can tell
        whole = (tmp_path / "b" / name).read_text()
        plain = {key: value for key, value in json.loads(whole).items() if key not in ("checksum", "sealed")}
        (tmp_path / "b" / name).write_text(json.dumps(plain))
        with pytest.raises(CorruptShard, match=f"{name} has no checksum.*Fix: run `python cli.py evaluate` again"):
            compare(tmp_path / "a", tmp_path / "b", resamples=20)
        (tmp_path / "b" / name).write_text(whole)


def test_compare_aligns_queries_and_refuses_others(tmp_path):
    store, head = make_store(tmp_path / "f", videos=50), make_head("xpool")
    videos, texts = store.videos(), store.texts()
    evaluate(head, videos, texts, Options(resamples=10)).save(tmp_path / "a")
    shuffled = videos.select(np.random.default_rng(0).permutation(50))
    evaluate(head, shuffled, texts, Options(resamples=10)).save(tmp_path / "b")
    assert compare(tmp_path / "a", tmp_path / "b", resamples=20)["t2v"]["MnR"]["interval"] == (0.0, 0.0)
    evaluate(head, videos, texts.select(np.arange(60)), Options(resamples=10)).save(tmp_path / "c")
    with pytest.raises(BadInput, match="other queries"):
        compare(tmp_path / "a", tmp_path / "c")
    with pytest.raises(MissingData, match="no evaluation"):
        compare(tmp_path / "a", tmp_path / "nowhere")


def test_bad_input(tmp_path):
    store = make_store(tmp_path / "f")
    videos, texts = store.videos(), store.texts()
    with pytest.raises(BadInput, match="nothing to evaluate"):
        evaluate(make_head(), videos, texts.select(np.arange(0)))
    with pytest.raises(MissingData, match="v0000"):
        evaluate(make_head(), videos.select(np.arange(1, 40)), texts)
    with pytest.raises(BadInput, match="tie rule"):
        Options(ties="luck")
    assert Options(ties="expected") == Options(ties="average")
    with pytest.raises(BadInput, match="normalisation"):
        Options(normalisations=("magic",))
    with pytest.raises(BadInput, match="training split"):
        evaluate(make_head(), videos, texts, Options(normalisations=("query-bank",), resamples=5))
    wide = make_store(tmp_path / "f").videos()
    wide = type(wide)(**{**vars(wide), "frame_embeds": np.repeat(wide.frame_embeds, 2, axis=2)})
    with pytest.raises(FingerprintMismatch, match="width"):
        evaluate(make_head(), wide, texts)


def indexed(tmp_path, head, videos, spec=None):
    generations = GenerationStore(tmp_path / "index")
    vectors = head.pool_video(torch.from_numpy(np.array(videos.frame_embeds)), torch.from_numpy(videos.frame_mask))
    made_with = Provenance(head_fingerprint(head), {"model": "toy"})
    spec = spec or IndexSpec()
    build_index(generations, videos.video_ids, videos.paths, vectors.numpy(), spec=spec, provenance=made_with)
    return generations


def test_index_part(tmp_path):
    store, head = make_store(tmp_path / "f", videos=150, captions=1), make_head("dits")
    videos, texts = store.videos(), store.texts()
    generations = indexed(tmp_path, head, videos)
    with generations.open() as generation:
        gallery = IndexedGallery.of(generation, videos, head)
        evaluation = evaluate(head, videos, texts, Options(resamples=10, shortlist=50), index=gallery)
    part, t2v = evaluation.contract()["index"], evaluation.contract()["t2v"]
    assert part.keys() == {"shortlist_recall", "R@1", "loss", "queries_per_second", "bytes"}
    assert part["shortlist_recall"].keys() == {"10", "50", "100", "500"}
    assert part["shortlist_recall"]["500"] == 100.0, "a shortlist of everything keeps everything"
    assert list(part["shortlist_recall"].values()) == sorted(part["shortlist_recall"].values())
    assert part["R@1"] + part["loss"] == pytest.approx(t2v["R@1"])
    assert part["bytes"] == generations.open().index_path.stat().st_size

    everything = evaluate(head, videos, texts, Options(resamples=10, shortlist=150), index=gallery)
    assert everything.metrics["index"]["loss"] == 0.0
    sims, own = full_matrix(head, videos, texts)
    vectors = np.asarray(generations.open().rows().vectors, np.float32)
    scorer = Scorer(head, videos)
    near = np.argsort(-(scorer.queries(scorer.texts(texts.text_embeds)) @ vectors.T), axis=1)[:, :10]
    kept = 100 * np.mean([sims[t].argmax() in near[t] for t in range(len(own))])
    assert part["shortlist_recall"]["10"] == pytest.approx(kept, abs=1.0)
    hits = [own[t] in near[t] and sims[t, own[t]] >= sims[t, near[t]].max() for t in range(len(own))]
    assert evaluation.metrics["index_details"]["R@1_by_shortlist"]["10"] == pytest.approx(100 * np.mean(hits), abs=1.0)


def test_index_of_a_larger_corpus_is_restricted_to_the_gallery(tmp_path):
    store, head = make_store(tmp_path / "f", videos=60), make_head("xpool")
    add_videos(store, [f"other{i}" for i in range(100)], split="train", seed=4)
    generations = indexed(tmp_path, head, store.videos())
    videos, texts = store.videos("test"), store.texts("test")
    with generations.open() as generation:
        gallery = IndexedGallery.of(generation, videos, head)
        evaluation = evaluate(head, videos, texts, Options(resamples=10, shortlist=60), index=gallery)
        assert evaluation.metrics["index"]["loss"] == 0.0
        assert evaluation.metrics["index_details"]["exact_scores_per_query"] == 60
        with pytest.raises(FingerprintMismatch, match="another head"):
            IndexedGallery.of(generation, videos, make_head("xpool", seed=3))
    add_videos(store, ["late"], seed=5)
    with generations.open() as generation, pytest.raises(MissingData, match="late"):
        IndexedGallery.of(generation, store.videos("test"), head)
