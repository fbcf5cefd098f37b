"""Two-stage search: the aligned text finds a shortlist in the index, the head's exact score puts it in order.

``Searcher`` is what a web page would hold: open it once, call ``search`` from any thread; ``refresh`` moves on to a
newer generation when there is one, and answers given meanwhile come whole from the old.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline import remote
from pipeline.errors import BadInput, FingerprintMismatch, MissingData
from pipeline.fingerprint import describe_difference
from pipeline.retrieve.exact_search import exact_search
from pipeline.retrieve.filters import VideoFilter
from pipeline.retrieve.hits import Hit, best_hits
from pipeline.retrieve.index import IndexSpec, VectorIndex, read
from pipeline.retrieve.scorer import RetrievalHead, Scorer, head_fingerprint
from pipeline.retrieve.shortlist import FrameQuery, Queries, TextQueries, best_frame, mean_frames
from pipeline.stores.features import FeatureStore, VideoFeatures
from pipeline.stores.generations import Generation, GenerationStore
from pipeline.stores.indexed_videos import IndexedVideos
from pipeline.stores.lookup import VideoLookup

SHORTLIST = 50
# What a filter leaves is compared one by one up to so many vectors, and up to such a share (docs/results/search.md).
EXACT_VECTORS, EXACT_SHARE = 50_000, 0.05
_DEEPEST = 5000  # candidates scored, at most, where hits of one file are merged or limited
_PAIRS_AT_ONCE = 4096  # candidates gathered at a time: 50 to 60 KB each for 12 x 512


def two_stage(
    scorer: Scorer,
    index: VectorIndex,
    gallery_rows: NDArray[np.int64],
    text_embeds: NDArray[Any],
    shortlist: int,
    *,
    only: NDArray[np.bool_] | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Exact scores (T, K) and gallery rows (T, K), both in descending order of score, of each text's shortlist.

    ``gallery_rows`` (videos of the index,): where each stands in the scorer's gallery. Missing entries: -inf and -1.
    """
    texts = scorer.texts(text_embeds)
    found = index.search(scorer.queries(texts), min(shortlist, len(gallery_rows)), only=only)[1]
    candidates = np.where(found >= 0, gallery_rows[np.maximum(found, 0)], -1)
    scores = rerank(scorer, texts, candidates)
    order = np.argsort(-scores, axis=1, kind="stable")
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(candidates, order, axis=1)


def rerank(scorer: Scorer, texts: torch.Tensor, candidates: NDArray[np.int64]) -> NDArray[np.float32]:
    """Exact scores (T, K) of shortlists (T, K), gathered for a few texts at a time."""
    step = max(1, _PAIRS_AT_ONCE // candidates.shape[1])
    return np.concatenate(
        [scorer.pairs(texts[i : i + step], candidates[i : i + step]) for i in range(0, len(texts), step)]
    )


@dataclass(frozen=True)
class _Open:
    """Everything that belongs to one generation, so that a search never mixes two."""

    generation: Generation
    videos: IndexedVideos
    index: VectorIndex
    features: VideoLookup
    filter: VideoFilter


@dataclass(frozen=True)
class Wanted:
    """How many hits a query gets, and how clips of one file share them (see `hits.best_hits`)."""

    top: int = 10
    shortlist: int = SHORTLIST
    """Candidates that the index hands to exact scoring; more where the hits of one file are limited or merged."""
    merge: bool = False
    per_file: int | None = None
    where: str | None = None
    """An SQL condition over the videos' metadata (`filters.VideoFilter`)."""

    def __post_init__(self) -> None:
        if self.top < 1 or self.shortlist < 1 or (self.per_file is not None and self.per_file < 1):
            given = f"{self.top}, {self.shortlist}, {self.per_file}"
            raise BadInput("top, shortlist and hits of one file must be at least 1", got=given)

    @property
    def shares_files(self) -> bool:
        return self.merge or self.per_file is not None


class Searcher:
    """Search the live generation of a corpus with the head and the features that it was made with.

    Neither opening nor a search reads more than the index's own pages, and the frames, ids and paths of the shortlist.
    """

    def __init__(
        self, generations: GenerationStore, features: Path, head: RetrievalHead, gpu: int | None = None
    ) -> None:
        """`gpu`: where FAISS keeps the index, besides the CPU's memory."""
        self._generations, self._features, self.head = generations, features, head.eval()
        self._gpu = gpu
        self._open = self._load()

    @property
    def generation(self) -> str:
        return self._open.generation.name

    def __len__(self) -> int:
        return len(self._open.videos)

    def refresh(self) -> bool:
        """Move to the live generation if it is another one; says whether it was."""
        remote.refresh(self._generations.root)
        if self._generations.current() == self.generation:
            return False
        old, self._open = self._open, self._load()
        old.generation.close()
        return True

    def search(self, text_embeds: NDArray[Any], weights: NDArray[Any] | None = None, **wanted: Any) -> list[list[Hit]]:
        """Find the best videos of each query.

        Args:
            text_embeds: (T, D), as CLIP gives them.
            weights: (Q, T) makes each query a weighted sum of texts; where left out, each text is a query.
            wanted: fields of `Wanted`.
        """
        text_embeds = np.atleast_2d(text_embeds)
        weights = np.eye(len(text_embeds)) if weights is None else weights
        return self._answer(self._open, TextQueries(self.head, text_embeds, weights), Wanted(**wanted))

    def search_image(self, image_embed: NDArray[Any], **wanted: Any) -> list[Hit]:
        """Find the videos with the frame most like a picture, given its raw CLIP embedding (D,)."""
        query = FrameQuery(self.head, image_embed[None], best_frame)
        return self._answer(self._open, query, Wanted(**wanted))[0]

    def similar_to(self, frame_embeds: NDArray[Any], **wanted: Any) -> list[Hit]:
        """Find the videos most like another one, given the raw CLIP embeddings of its frames (F, D)."""
        return self._answer(self._open, FrameQuery(self.head, frame_embeds, mean_frames), Wanted(**wanted))[0]

    def similar(self, video_id: str, **wanted: Any) -> list[Hit]:
        """Find the videos most like an indexed one, itself left out. MissingData for an id that is not indexed."""
        state = self._open
        row = state.videos.row_of(video_id)
        if row is None:
            raise MissingData(
                f"the index holds no video {video_id!r}", fix="give an id that a search printed, or a file"
            )
        own = state.features.features([video_id])
        query = FrameQuery(self.head, own.frame_embeds[0, own.frame_mask[0]], mean_frames)
        return self._answer(state, query, Wanted(**wanted), without=row)[0]

    def location(self, video_id: str) -> str | None:
        """The path or URL of an indexed video; None if the index does not hold it."""
        state = self._open
        row = state.videos.row_of(video_id)
        return None if row is None else state.videos.paths([row])[0]

    def close(self) -> None:
        self._open.generation.close()

    # -- parts

    def _answer(self, state: _Open, queries: Queries, wanted: Wanted, without: int | None = None) -> list[list[Hit]]:
        """Shortlist, score exactly, rank; search deeper while merging or limiting leaves a query too few hits."""
        only = state.filter.mask(wanted.where) if wanted.where else None
        there = len(state.videos) if only is None else int(only.sum())
        vectors, depth = queries.vectors(), max(wanted.top, wanted.shortlist) + (without is not None)
        while there:
            depth = min(depth, there)
            candidates = self._candidates(state, vectors, depth, only)
            candidates[candidates == without] = -1
            found = self._ranked(state, queries, candidates, wanted)
            short = any(len(hits) < wanted.top for hits in found)
            if not (short and wanted.shares_files and depth < min(there, _DEEPEST)):
                return found
            depth *= 4
        return [[] for _ in vectors]

    def _candidates(
        self, state: _Open, vectors: NDArray[np.float32], depth: int, only: NDArray[np.bool_] | None
    ) -> NDArray[np.int64]:
        """The `depth` best videos of each vector (Q, M, D): (Q, M * depth), each once a query, -1 for repeats."""
        Q, M, D = vectors.shape
        flat = vectors.reshape(Q * M, D)
        found = state.index.search(flat, depth)[1] if only is None else _filtered(state, flat, depth, only)
        found = found.reshape(Q, -1)
        if M > 1:
            found = np.sort(found, axis=1)
            found[:, 1:][found[:, 1:] == found[:, :-1]] = -1
        return found

    def _ranked(self, state: _Open, queries: Queries, candidates: NDArray[np.int64], wanted: Wanted) -> list[list[Hit]]:
        rows = np.unique(candidates[candidates >= 0])
        ids, paths = state.videos.ids(rows), state.videos.paths(rows)
        features = state.features.features(ids)
        local = np.where(candidates >= 0, np.searchsorted(rows, candidates), -1)  # rows of the features
        scores = queries.scores(features, local)
        order = np.argsort(-scores, axis=1, kind="stable")
        scores, local = np.take_along_axis(scores, order, axis=1), np.take_along_axis(local, order, axis=1)

        def hits(query: int) -> Iterator[Hit]:
            for score, row in zip(scores[query].tolist(), local[query].tolist(), strict=True):
                if row >= 0:
                    yield Hit(ids[row], paths[row], score, *state.features.window(ids[row]))

        found = [
            best_hits(hits(query), wanted.top, merge=wanted.merge, per_file=wanted.per_file)
            for query in range(len(candidates))
        ]
        return _with_moments(found, queries, features)

    def _load(self) -> _Open:
        # The generation first: features are only ever added, so a store opened later holds all its videos.
        generation = self._generations.open()
        try:
            store = FeatureStore.open(self._features)
            require_same_encoder(generation, store)
            require_same_head(generation, self.head)
            videos, index = generation.videos(), open_index(generation, generation.owners())
            if self._gpu is not None:
                index.keep_on_gpu(self._gpu)
            return _Open(generation, videos, index, VideoLookup(store), VideoFilter(videos, store.path))
        except BaseException:
            generation.close()
            raise


def _filtered(state: _Open, vectors: NDArray[np.float32], depth: int, only: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The `depth` best of the videos that a filter leaves for each vector (Q, D): (Q, depth).

    They are compared one by one where they are few. Where they are many, the index is searched the deeper the fewer
    they are, and a vector that it finds too few for (the filter leaves what lies far from it) is compared after all.
    """

    def one_by_one(some: NDArray[np.float32]) -> NDArray[np.int64]:
        owners = np.where(only[np.maximum(state.index.owners, 0)], state.index.owners, -1)
        return exact_search(state.generation.vectors(), owners, some, depth)[1]

    share = float(only.mean())
    if share <= EXACT_SHARE or share * len(state.index.owners) <= EXACT_VECTORS:
        return one_by_one(vectors)
    found = state.index.search(vectors, depth, only=only, effort=1 / share)[1]
    starved = np.flatnonzero((found < 0).any(axis=1))
    if len(starved):
        found[starved] = one_by_one(vectors[starved])
    return found


def _with_moments(found: list[list[Hit]], queries: Queries, features: VideoFeatures) -> list[list[Hit]]:
    """The same hits, each with the time of the frame that its query attends to most."""
    row = {video_id: i for i, video_id in enumerate(features.video_ids)}
    query = np.array([number for number, hits in enumerate(found) for _ in hits], dtype=np.int64)
    shown = features.select(np.array([row[hit.video_id] for hits in found for hit in hits], dtype=np.int64))
    frame = queries.moments(shown, query) if len(query) else query
    times = iter(shown.frame_pts[np.arange(len(query)), frame].tolist())
    moments = (None if math.isnan(time) else time for time in times)  # imported features may have no times
    return [[replace(hit, moment=next(moments)) for hit in hits] for hits in found]


def open_index(generation: Generation, owners: NDArray[np.int64]) -> VectorIndex:
    """The FAISS index of a generation."""
    return read(generation.path, owners, IndexSpec.from_dict(generation.info["spec"]), known=generation.info)


def require_same_encoder(generation: Generation, store: FeatureStore) -> None:
    """FingerprintMismatch, naming every setting that differs, unless the index was made from features like these."""
    if difference := describe_difference(generation.info["encoder"], store.settings):
        raise FingerprintMismatch(
            f"index {generation.path} and features {store.path} differ: {difference}", fix="rebuild with `index`"
        )


def require_same_head(generation: Generation, head: RetrievalHead) -> None:
    """FingerprintMismatch unless the index was made with this head."""
    if generation.info["head"] != (got := head_fingerprint(head)):
        what = f"index {generation.path} was made with another head"
        raise FingerprintMismatch(what, expected=generation.info["head"], got=got, fix="rebuild with `index`")
