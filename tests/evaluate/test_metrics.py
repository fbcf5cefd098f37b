"""Metrics against slow, obvious oracles; tie rules against the published code's own lines; streaming against the
matrix."""

import doctest

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pipeline.evaluate.metrics as metrics
from pipeline.errors import BadInput
from pipeline.evaluate.bootstrap import figures, intervals, paired_difference
from pipeline.evaluate.metrics import (
    TIES,
    count_t2v,
    count_v2t,
    count_v2t_group_max,
    query_ranks,
    retrieval_metrics,
    tie_rule,
    video_to_text_metrics,
)
from pipeline.evaluate.rank_counts import count_ranks, grid_from_matrix

settings.register_profile("retrieve", deadline=None, max_examples=60)
settings.load_profile("retrieve")


def slow_counts(right: float, others: list[tuple[int, float]], place: int) -> tuple[int, int, int]:
    """better, tied, tied before: one comparison at a time."""
    better = sum(score > right for _, score in others)
    tied = sum(score == right for _, score in others)
    return better, tied, sum(score == right and index < place for index, score in others)


def slow_t2v(sims, own):
    return [
        slow_counts(row[v], [(j, s) for j, s in enumerate(row) if j != v], v) for row, v in zip(sims, own, strict=True)
    ]


def slow_v2t(sims, own):
    out = []
    for video in sorted(set(own.tolist())):
        mine = [t for t in range(len(own)) if own[t] == video]
        best = max(sims[t, video] for t in mine)
        place = min(t for t in mine if sims[t, video] == best)
        out.append(slow_counts(best, [(t, sims[t, video]) for t in range(len(own)) if t not in mine], place))
    return out


def slow_group_max(sims, own):
    captioned = sorted(set(own.tolist()))
    table = [[max(sims[t, v] for t in range(len(own)) if own[t] == g) for g in captioned] for v in captioned]
    return slow_t2v(np.array(table), range(len(captioned)))


def slow_summary(counts, ties):
    """R@1, R@5, R@10, MdR, MnR from a plain list of ranks."""
    ranks = []
    for better, tied, before in counts:
        ranks += {
            "optimistic": [1 + better],
            "pessimistic": [1 + better + tied],
            "average": [1 + better + tied / 2],
            "xpool": [1 + better + before],
            "clip4clip": [1 + better + i for i in range(tied + 1)],
        }[ties]
    ranks.sort()
    n = len(ranks)
    median = ranks[n // 2] if n % 2 else (ranks[n // 2 - 1] + ranks[n // 2]) / 2
    return {f"R@{k}": 100 * sum(r <= k for r in ranks) / n for k in (1, 5, 10)} | {"MdR": median, "MnR": sum(ranks) / n}


@st.composite
def problems(draw):
    """A small matrix, often with ties, and texts that may repeat a video, skip one and come in any order."""
    texts, videos = draw(st.integers(1, 12)), draw(st.integers(1, 9))
    values = st.sampled_from([0.0, -0.0, 0.25, 1.0, -1.0]) if draw(st.booleans()) else st.floats(-1, 1, width=32)
    sims = np.array(draw(st.lists(values, min_size=texts * videos, max_size=texts * videos)), np.float32)
    own = draw(st.lists(st.integers(0, videos - 1), min_size=texts, max_size=texts))
    return sims.reshape(texts, videos), np.array(own)


def test_expected_is_an_alias_of_average():
    sims, own = np.array([[1.0, 1.0, 0.0]]), np.array([0])
    assert (
        retrieval_metrics(sims, own, ties="expected")
        == retrieval_metrics(sims, own)
        == retrieval_metrics(sims, own, ties="average")
    )
    assert retrieval_metrics(sims, own, ties="expected")["MnR"] == 1.5
    assert tie_rule("expected") == "average"


def triples(counts):
    return list(zip(counts.better.tolist(), counts.tied.tolist(), counts.tied_before.tolist(), strict=True))


@given(problems(), st.sampled_from(TIES))
def test_metrics_equal_the_slow_oracle(problem, ties):
    sims, own = problem
    kept, kept_own = sims.copy(), own.copy()
    row = retrieval_metrics(sims, own, ties=ties)
    expected = slow_summary(slow_t2v(sims, own), ties)
    assert {k: row[k] for k in expected} == pytest.approx(expected)
    assert (row["queries"], row["gallery"]) == sims.shape
    assert np.array_equal(sims, kept), "sims were changed"
    assert np.array_equal(own, kept_own), "text_to_video was changed"

    best = video_to_text_metrics(sims, own, ties=ties)
    expected = slow_summary(slow_v2t(sims, own), ties)
    assert {k: best[k] for k in expected} == pytest.approx(expected)
    assert (best["queries"], best["gallery"]) == (len(set(own.tolist())), len(own))

    grouped = video_to_text_metrics(sims, own, ties=ties, captions="group-max")
    expected = slow_summary(slow_group_max(sims, own), ties)
    assert {k: grouped[k] for k in expected} == pytest.approx(expected)
    assert grouped["queries"] == grouped["gallery"] == best["queries"]


@given(problems(), st.integers(1, 5))
def test_streamed_counts_equal_the_matrix(problem, tile):
    sims, own = problem
    order = np.argsort(own, kind="stable")
    sims, own = sims[order], own[order]
    counts = count_ranks(grid_from_matrix(sims, own, tile))
    assert triples(counts.t2v) == triples(count_t2v(sims, own)) == slow_t2v(sims, own)
    assert triples(counts.v2t) == triples(count_v2t(sims, own)) == slow_v2t(sims, own)
    assert triples(counts.v2t_group_max) == triples(count_v2t_group_max(sims, own)) == slow_group_max(sims, own)
    assert counts.captioned.tolist() == sorted(set(own.tolist()))


def clip4clip_compute_metrics(x):
    """The published lines (ArrowLuo/CLIP4Clip, metrics.py) for a square matrix with the right answers on its
    diagonal."""
    sx = np.sort(-x, axis=1)
    d = np.diag(-x)[:, np.newaxis]
    ind = np.where(sx - d == 0)[1]
    return {
        "R@1": float(np.sum(ind == 0)) * 100 / len(ind),
        "R@5": float(np.sum(ind < 5)) * 100 / len(ind),
        "R@10": float(np.sum(ind < 10)) * 100 / len(ind),
        "MdR": np.median(ind) + 1,
        "MnR": np.mean(ind) + 1,
    }


def xpool_ranks(x):
    """X-Pool's double argsort of a square matrix, with a stable sort (torch leaves the order of ties open)."""
    order = np.argsort(-x, axis=1, kind="stable")
    return np.diagonal(np.argsort(order, axis=1, kind="stable")) + 1


@given(st.integers(0, 10_000), st.integers(2, 14))
def test_legacy_rules_equal_the_published_lines(seed, n):
    x = np.random.default_rng(seed).integers(0, 4, (n, n)).astype(np.float32)
    mine = retrieval_metrics(x, np.arange(n), ties="clip4clip")
    assert {k: mine[k] for k in mine if k not in ("queries", "gallery")} == pytest.approx(clip4clip_compute_metrics(x))
    assert query_ranks(count_t2v(x, np.arange(n)), "xpool").tolist() == xpool_ranks(x).tolist()


def test_nan_is_refused_except_by_the_legacy_rule_that_drops_the_row():
    sims = np.eye(4, dtype=np.float32)
    sims[2, 0] = np.nan
    for ties in set(TIES) - {"xpool"}:
        with pytest.raises(BadInput, match="NaN in row 2"):
            retrieval_metrics(sims, np.arange(4), ties=ties)
    assert retrieval_metrics(sims, np.arange(4), ties="xpool")["queries"] == 3
    padded = np.eye(4, dtype=np.float32)
    padded[1, 1] = -np.inf
    assert retrieval_metrics(padded, np.arange(4), ties="xpool")["queries"] == 3
    assert retrieval_metrics(padded, np.arange(4))["queries"] == 4
    with pytest.raises(BadInput, match="NaN in row 2"):
        count_ranks(grid_from_matrix(sims, np.arange(4), 2))


@pytest.mark.parametrize(
    ("sims", "own", "words"),
    [
        (np.zeros((2, 3)), np.array([0]), "do not fit"),
        (np.zeros(3), np.array([0]), "do not fit"),
        (np.zeros((2, 3)), np.array([0, 3]), "outside the gallery"),
        (np.zeros((2, 3)), np.array([0, -1]), "outside the gallery"),
        (np.zeros((2, 3)), np.array([0.0, 1.0]), "indices"),
        (np.zeros((0, 3)), np.zeros(0, int), "no query"),
    ],
)
def test_bad_input_is_refused(sims, own, words):
    with pytest.raises(BadInput, match=words):
        retrieval_metrics(sims, own)


def test_unknown_rules_are_refused():
    with pytest.raises(BadInput, match="tie rule"):
        retrieval_metrics(np.eye(2), np.arange(2), ties="luck")
    with pytest.raises(BadInput, match="caption rule"):
        video_to_text_metrics(np.eye(2), np.arange(2), captions="mean")


def test_the_worked_example_of_the_docstring():
    assert doctest.testmod(metrics).attempted >= 5
    assert doctest.testmod(metrics).failed == 0


def test_large_matrix_is_counted_in_pieces(monkeypatch):
    generator = np.random.default_rng(3)
    sims, own = generator.integers(0, 50, (301, 40)).astype(np.float32), generator.integers(0, 40, 301)
    whole = triples(count_t2v(sims, own))
    monkeypatch.setattr(metrics, "_ROWS_AT_ONCE", 7)
    assert triples(count_t2v(sims, own)) == whole == slow_t2v(sims, own)


# -- bootstrap -------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 30), min_size=1, max_size=12), st.integers(0, 1000))
def test_weighted_figures_equal_those_of_the_repeated_sample(ranks, seed):
    ranks = np.array(ranks, float)
    weights = np.random.default_rng(seed).integers(0, 4, (3, len(ranks)))
    weights[:, 0] += 1
    rows = figures(ranks, weights.astype(float))
    for b in range(3):
        sample = np.repeat(ranks, weights[b])
        assert rows["MdR"][b] == np.median(sample)
        assert rows["MnR"][b] == pytest.approx(sample.mean())
        assert rows["R@5"][b] == pytest.approx(100 * np.mean(sample <= 5))


def test_interval_covers_the_truth_about_as_often_as_it_says():
    """Hits with probability 0.4, four queries a video that share their luck: only resampling videos covers 95 %."""
    generator = np.random.default_rng(0)
    clusters = np.repeat(np.arange(100), 4)
    by_video = by_query = 0
    for trial in range(200):
        ranks = np.where(np.repeat(generator.random(100) < 0.4, 4), 1, 20)
        low, high = intervals(ranks, clusters, resamples=300, seed=trial)["R@1"]
        by_video += low <= 40 <= high
        low, high = intervals(ranks, np.arange(400), resamples=300, seed=trial)["R@1"]
        by_query += low <= 40 <= high
    assert 180 <= by_video <= 198
    assert by_query < 160


def test_paired_difference_is_exact_seeded_and_narrower_than_unpaired():
    generator = np.random.default_rng(1)
    hard = generator.random(500)
    a = np.where(hard < 0.5, 1, 30)
    b = np.where(hard < 0.53, 1, 30)
    rows = paired_difference(a, b, np.arange(500), seed=7)
    assert rows == paired_difference(a, b, np.arange(500), seed=7)
    row = rows["R@1"]
    assert row["difference"] == pytest.approx(100 * (np.mean(b == 1) - np.mean(a == 1)))
    assert row["interval"][0] > 0, "the same queries improve, so the paired interval excludes zero"
    own = intervals(b, np.arange(500), seed=7)["R@1"]
    assert row["interval"][1] - row["interval"][0] < (own[1] - own[0]) / 2
    assert paired_difference(a, a, np.arange(500))["R@1"]["interval"] == (0.0, 0.0)


def test_paired_difference_refuses_other_queries():
    with pytest.raises(BadInput, match="same queries"):
        paired_difference(np.ones(3), np.ones(4), np.arange(3))
