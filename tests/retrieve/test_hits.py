"""Moments, mixed queries, pictures and videos as queries, clips of one file: each against a plain slow version."""

import numpy as np
import pytest
import torch
from retrieval_case import DIM, FRAMES, make_head, make_store

from pipeline.errors import BadInput, MissingData
from pipeline.retrieve.hits import Hit, best_hits
from pipeline.retrieve.index import IndexSpec
from pipeline.retrieve.scorer import head_fingerprint
from pipeline.retrieve.search import Searcher
from pipeline.retrieve.updates import Provenance, build_index
from pipeline.stores.features import ClipSource, FeatureStore, VideoFeatures
from pipeline.stores.generations import GenerationStore
from pipeline.stores.lookup import VideoLookup


def searcher_of(folder, store, head):
    held = store.videos()
    vectors = head.pool_video(torch.from_numpy(np.array(held.frame_embeds)), torch.from_numpy(held.frame_mask)).numpy()
    build_index(
        GenerationStore(folder / "index"), list(held.video_ids), list(held.paths), vectors,
        spec=IndexSpec(), provenance=Provenance(head_fingerprint(head), store.settings),
    )  # fmt: skip
    return Searcher(GenerationStore(folder / "index"), store.path, head)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def plain_attention(head, text, frames):
    """X-Pool's equation 3 as it stands: softmax of (W_q LN t)(W_k LN f)' / sqrt(D), for one text and one video."""
    pool, aligned = head.pooling, head.align_text(torch.from_numpy(text[None]))
    query = aligned if head.config.pool_query == "aligned" else torch.from_numpy(text[None])
    keys = pool.key(pool.norm1(torch.from_numpy(frames).float()))
    return (pool.query(pool.norm1(query)) @ keys.T / DIM**0.5).softmax(-1)[0].detach().numpy()


@pytest.mark.parametrize("kind", ["xpool", "dits", "mean-pool"])
def test_a_hits_moment_is_the_frame_that_is_attended_to_most(tmp_path, kind):
    store, head = make_store(tmp_path / "features", videos=12), make_head(kind)
    searcher, held = searcher_of(tmp_path, store, head), store.videos()
    texts = store.texts().text_embeds[:4]
    row = {video_id: i for i, video_id in enumerate(held.video_ids)}
    for text, hits in zip(texts, searcher.search(texts, top=12), strict=True):
        assert len(hits) == 12
        for hit in hits:
            i = row[hit.video_id]
            frames = np.array(held.frame_embeds[i][held.frame_mask[i]])
            if kind == "mean-pool":
                weights = unit(frames.astype(np.float32)) @ unit(
                    head.align_text(torch.from_numpy(text[None])).numpy()[0]
                )
            else:
                weights = plain_attention(head, text, frames)
            assert hit.moment == held.frame_pts[i][int(np.argmax(weights))]
            assert (hit.start, hit.end) == (None, None)


def test_a_mixture_of_texts_is_scored_as_the_sum_of_their_scores(tmp_path):
    store, head = make_store(tmp_path / "features", videos=30), make_head("dits", index_vectors=2)
    searcher, held = searcher_of(tmp_path, store, head), store.videos()
    texts = store.texts().text_embeds[:3]
    sims = head.score(
        torch.from_numpy(texts), torch.from_numpy(np.array(held.frame_embeds)), torch.from_numpy(held.frame_mask)
    ).numpy()
    weights = np.array([[0.5, 0.5, -0.5], [1.0, 0.0, 0.0]])
    found = searcher.search(texts, weights, top=30, shortlist=30)
    for hits, wanted in zip(found, weights @ sims, strict=True):
        assert [hit.video_id for hit in hits] == [held.video_ids[i] for i in np.argsort(-wanted)]
        assert [hit.score for hit in hits] == pytest.approx(sorted(wanted, reverse=True), abs=1e-5)


def test_one_text_alone_is_the_same_but_for_rounding(tmp_path):
    store, head = make_store(tmp_path / "features", videos=30), make_head("dits")
    searcher, texts = searcher_of(tmp_path, store, head), store.texts().text_embeds[:5]
    for text, together in zip(texts, searcher.search(texts), strict=True):
        alone = searcher.search(text)[0]
        assert [hit.video_id for hit in alone] == [hit.video_id for hit in together]
        assert [hit.score for hit in alone] == pytest.approx([hit.score for hit in together], abs=1e-5)


@pytest.mark.parametrize("kind", ["xpool", "mean-pool"])
def test_pictures_and_videos_are_compared_by_raw_clip(tmp_path, kind):
    store, head = make_store(tmp_path / "features", videos=30), make_head(kind)
    searcher, held = searcher_of(tmp_path, store, head), store.videos()
    frames = [unit(np.array(f[m], np.float32)) for f, m in zip(held.frame_embeds, held.frame_mask, strict=True)]
    picture = frames[7][1] * 3
    wanted = [float((f @ unit(picture)).max()) for f in frames]
    hits = searcher.search_image(picture, top=30, shortlist=30)
    assert [hit.video_id for hit in hits] == [held.video_ids[i] for i in np.argsort(wanted)[::-1]]
    assert (hits[0].video_id, hits[0].moment) == ("v0007", 1.0)
    assert hits[0].score == pytest.approx(1.0, abs=1e-3)

    means = unit(np.stack([f.mean(0) for f in frames]))
    wanted = means @ means[3]
    others = [int(i) for i in np.argsort(-wanted) if i != 3]
    hits = searcher.similar("v0003", top=30, shortlist=30)
    assert [hit.video_id for hit in hits] == [held.video_ids[i] for i in others]
    assert [hit.score for hit in hits] == pytest.approx([float(wanted[i]) for i in others], abs=1e-3)
    again = searcher.similar_to(np.array(held.frame_embeds[3][held.frame_mask[3]]), top=31, shortlist=31)
    assert again[0].video_id == "v0003"
    with pytest.raises(MissingData, match="nobody"):
        searcher.similar("nobody")


# -- clips of one file


def clip(path, start, end, score):
    return Hit(f"{path}#t={start},{end}", path, score, float(start), float(end), start + 1.0)


def test_neighbouring_clips_become_one_hit():
    ranked = [
        clip("a", 10, 20, 0.9), clip("b", 0, 10, 0.8), clip("a", 30, 40, 0.7), clip("a", 20, 30, 0.6),
        Hit("c", "c", 0.5), clip("a", 50, 60, 0.4), clip("b", 5, 15, 0.3),
    ]  # fmt: skip
    found = best_hits(ranked, 10, merge=True)
    assert [(h.video_id, h.start, h.end, h.score, h.moment) for h in found] == [
        ("a#t=10,20", 10.0, 40.0, 0.9, 11.0),  # joined from both sides: 20 to 30 touches 30 to 40
        ("b#t=0,10", 0.0, 15.0, 0.8, 1.0),
        ("c", None, None, 0.5, None),
        ("a#t=50,60", 50.0, 60.0, 0.4, 51.0),
    ]
    assert [h.video_id for h in best_hits(ranked, 2, merge=True)] == ["a#t=10,20", "b#t=0,10"]
    assert best_hits(ranked, 2, merge=True)[0].end == 20.0, "what ranks below the last hit stretches none"
    assert best_hits(ranked, 10) == ranked
    assert [h.video_id for h in best_hits(ranked, 10, per_file=1)] == ["a#t=10,20", "b#t=0,10", "c"]
    assert [h.path for h in best_hits(ranked, 10, merge=True, per_file=1)] == ["a", "b", "c"]


def clips_store(folder, files=4, clips=20):
    """A store of clips of 10 s, recorded as extraction records them; neighbours look alike."""
    settings = {"model": "toy", "embed_dim": DIM, "num_frames": FRAMES, "decoder": "none", "dtype": "float16"}
    store, generator = FeatureStore.create(folder, settings), np.random.default_rng(0)
    for file in range(files):
        starts = np.arange(clips) * 10.0
        base = np.repeat(generator.standard_normal((clips // 5, 1, DIM)), 5, axis=0)
        frames = base + 0.3 * generator.standard_normal((clips, FRAMES, DIM))
        ids = [f"f{file}.mp4#t={start:g},{start + 10:g}" for start in starts]
        store.write_videos(
            VideoFeatures(
                ids, [f"f{file}.mp4"] * clips, ["corpus"] * clips, frames.astype(np.float16),
                np.ones((clips, FRAMES), bool), starts[:, None] + np.arange(FRAMES) * 2.5,
            ),
            inputs=ids,
            sources=[ClipSource(float(start), float(start + 10)) for start in starts],
        )  # fmt: skip
    return store


def test_clips_have_a_time_and_hits_are_limited_and_merged_beyond_the_shortlist(tmp_path):
    store, head = clips_store(tmp_path / "features"), make_head("xpool")
    searcher = searcher_of(tmp_path, store, head)
    text = np.array(store.videos().frame_embeds[12].mean(0), np.float32)
    hits = searcher.search(text, top=5)[0]
    assert hits[0].video_id.startswith("f0.mp4#t=1")
    for hit in hits:
        assert f"{hit.path}#t={hit.start:g},{hit.end:g}" == hit.video_id
        assert hit.start <= hit.moment < hit.end
    limited = searcher.search(text, top=4, shortlist=2, per_file=1)[0]
    assert sorted(hit.path for hit in limited) == ["f0.mp4", "f1.mp4", "f2.mp4", "f3.mp4"]
    merged = searcher.search(text, top=3, shortlist=5, merge=True)[0]
    assert len(merged) == 3
    assert merged[0].start <= 120 < merged[0].end
    assert merged[0].end - merged[0].start > 10
    with pytest.raises(BadInput, match="hits of one file"):
        searcher.search(text, per_file=0)


# -- the lookup


@pytest.mark.parametrize("shard_format", ["hdf5", "parquet"])
def test_the_lookup_reads_the_same_as_the_store(tmp_path, shard_format):
    settings = {"model": "toy", "embed_dim": DIM, "num_frames": FRAMES, "decoder": "none", "dtype": "float16"}
    store = FeatureStore.create(tmp_path, settings, shard_format=shard_format)
    from retrieval_case import add_videos

    for seed, ids in enumerate([["b", "ä", "a#t=0,1"], ["c", "b"], ["Z", "0"]]):  # b twice: the later one holds
        add_videos(store, ids, seed=seed)
    for _ in range(2):  # made, then read back
        lookup, whole = VideoLookup(FeatureStore.open(tmp_path)), store.videos()
        wanted = ["c", "b", "Z", "ä", "b", "a#t=0,1", "0"]
        rows = [list(whole.video_ids).index(video_id) for video_id in wanted]
        found = lookup.features(wanted)
        for name in ("frame_embeds", "frame_mask", "frame_pts"):
            np.testing.assert_array_equal(getattr(found, name), np.array(getattr(whole, name))[rows])
    assert [lookup.row(name) for name in ("", "nobody", "zz")] == [None] * 3
    assert lookup.window("a#t=0,1") == (0.0, 1.0)
    with pytest.raises(MissingData, match="'nobody'"):
        lookup.features(["b", "nobody"])
    add_videos(store, ["new"], seed=9)
    assert VideoLookup(FeatureStore.open(tmp_path)).row("new") is not None, "shards that came later are seen"
