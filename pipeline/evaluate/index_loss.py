"""What two-stage search loses against exhaustive scoring, and what it costs: shortlist recall, R@1 after re-ranking,
queries per second, bytes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import BadInput, MissingData
from pipeline.evaluate.metrics import count_rows, query_ranks
from pipeline.retrieve.index import VectorIndex
from pipeline.retrieve.scorer import Scorer
from pipeline.retrieve.search import open_index, require_same_head, rerank, two_stage
from pipeline.stores.features import VideoFeatures
from pipeline.stores.generations import Generation

SHORTLISTS = (10, 50, 100, 500)
_ONE_BY_ONE = 50  # queries timed alone, as a person at a search box would send them


@dataclass(frozen=True)
class IndexedGallery:
    """An index and the gallery that it is evaluated on."""

    index: VectorIndex
    rows: NDArray[np.int64]
    """Where each video of the index stands in the gallery; -1 outside it."""
    bytes: int
    """Of the index's files."""
    about: dict[str, Any]
    """Spec, counts and generation, for the report."""

    @classmethod
    def of(cls, generation: Generation, videos: VideoFeatures, head: Any) -> IndexedGallery:
        """A generation, restricted to the gallery. FingerprintMismatch for another head, MissingData for absent
        videos."""
        require_same_head(generation, head)
        rows = generation.rows()
        place = {video_id: i for i, video_id in enumerate(videos.video_ids)}
        absent = sorted(place.keys() - set(rows.video_ids))
        if absent:
            what = f"index {generation.path} lacks {len(absent)} of the gallery's {len(videos)} videos"
            raise MissingData(what, got=f"no {absent[0]!r}", fix="run `python cli.py index` on this data set")
        where = np.array([place.get(v, -1) for v in rows.video_ids], dtype=np.int64)
        about = {key: generation.info[key] for key in ("spec", "videos", "vectors")} | {"generation": generation.name}
        return cls(open_index(generation, rows.owners), where, _index_bytes(generation.path), about)


@dataclass(frozen=True)
class IndexMeasurement:
    """Two-stage search measured by shortlist length k; shares are percentages of T queries."""

    kept: dict[int, float]
    """The exhaustive best video is among the first k."""
    right: dict[int, float]
    """The right video is among the first k."""
    rerank: dict[int, float]
    """R@1 after exact re-ranking of the first k."""
    shortlist: int
    queries_per_second: float
    """In one batch."""
    latency_ms: float
    """Of one query sent alone."""
    exact_scores_per_query: float
    bytes: int
    about: dict[str, Any]

    @property
    def rerank_r1(self) -> float:
        return self.rerank[self.shortlist]

    def contract(self, loss: float) -> dict[str, Any]:
        """The "index" part of `evaluate --json`."""
        return {
            "shortlist_recall": {str(k): value for k, value in self.kept.items()},
            "R@1": self.rerank_r1,
            "loss": loss,
            "queries_per_second": self.queries_per_second,
            "bytes": self.bytes,
        }

    def details(self) -> dict[str, Any]:
        """What the report shows beside it."""
        return {
            "shortlist": self.shortlist,
            "shortlist_holds_right_video": {str(k): value for k, value in self.right.items()},
            "R@1_by_shortlist": {str(k): value for k, value in self.rerank.items()},
            "latency_ms_one_by_one": self.latency_ms,
            "exact_scores_per_query": self.exact_scores_per_query,
            "timed": "aligned text, index search and exact re-ranking, from the text embedding on",
            **self.about,
        }


def evaluate_index(
    scorer: Scorer,
    indexed: IndexedGallery,
    text_embeds: NDArray[Any],
    own: NDArray[np.int64],
    best: NDArray[np.int64],
    *,
    shortlist: int = 50,
) -> IndexMeasurement:
    """Measure two-stage search.

    Args:
        text_embeds: (T, D).
        own: (T,) the right video of each text, a row of the gallery.
        best: (T,) the video that exhaustive scoring puts first.
        shortlist: candidates that the index hands to exact re-ranking.
    """
    if shortlist < 1:
        raise BadInput("the shortlist must hold at least one video", got=shortlist)
    only = indexed.rows >= 0 if np.any(indexed.rows < 0) else None
    size = len(scorer.videos)
    lengths = sorted({min(k, size) for k in (*SHORTLISTS, shortlist)})
    texts = scorer.texts(text_embeds)
    found = indexed.index.search(scorer.queries(texts), lengths[-1], only=only)[1]
    candidates = np.where(found >= 0, indexed.rows[np.maximum(found, 0)], -1)
    depth = min(shortlist, size)
    scores = rerank(scorer, texts, candidates[:, :depth])
    wanted = [k for k in lengths if k <= depth]
    seconds = _seconds(lambda: two_stage(scorer, indexed.index, indexed.rows, text_embeds, depth, only=only))
    alone = text_embeds[:_ONE_BY_ONE, None]
    slow = _seconds(lambda: [two_stage(scorer, indexed.index, indexed.rows, t, depth, only=only) for t in alone])
    share = {k: candidates[:, : min(k, size)] for k in sorted({*SHORTLISTS, shortlist})}
    return IndexMeasurement(
        kept={k: _percent((rows == best[:, None]).any(1)) for k, rows in share.items()},
        right={k: _percent((rows == own[:, None]).any(1)) for k, rows in share.items()},
        rerank={k: _rerank_r1(scores[:, :k], candidates[:, :k], own) for k in {*wanted, depth}} | {
            shortlist: _rerank_r1(scores, candidates[:, :depth], own)
        },
        shortlist=shortlist,
        queries_per_second=len(text_embeds) / seconds,
        latency_ms=1000 * slow / len(alone),
        exact_scores_per_query=float((candidates[:, :depth] >= 0).sum(1).mean()),
        bytes=indexed.bytes,
        about=indexed.about,
    )  # fmt: skip


def _rerank_r1(scores: NDArray[Any], candidates: NDArray[np.int64], own: NDArray[np.int64]) -> float:
    """R@1 (average rank) where only the shortlist is scored; a right video outside it cannot be found."""
    hit = candidates == own[:, None]
    inside = hit.any(axis=1)
    place = hit.argmax(axis=1)
    counts = count_rows(scores, scores[np.arange(len(own)), place], place)
    return _percent(inside & (query_ranks(counts) <= 1))


def _percent(flags: NDArray[np.bool_]) -> float:
    return 100.0 * float(np.count_nonzero(flags)) / len(flags)


def _seconds(action: Any) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def _index_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("index.*") if path.suffix != ".json")
