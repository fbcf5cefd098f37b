"""Two-stage search: the aligned text finds a shortlist in the index, the head's exact score puts it in order.

``Searcher`` is what a web page would hold: open it once, call ``search`` from any thread; ``refresh`` moves on to a
newer generation when there is one, and answers given meanwhile come whole from the old.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.errors import BadInput, FingerprintMismatch, MissingData
from pipeline.fingerprint import describe_difference
from pipeline.retrieve.index import IndexSpec, VectorIndex, read
from pipeline.retrieve.scorer import DEFAULT_MEMORY, RetrievalHead, Scorer, head_fingerprint
from pipeline.stores.features import FeatureStore, VideoFeatures
from pipeline.stores.generations import Generation, GenerationStore

SHORTLIST = 50
_PAIRS_AT_ONCE = 4096  # candidates gathered at a time: 50 to 60 KB each for 12 x 512


@dataclass(frozen=True)
class Hit:
    """One result; ``score`` is the exact cosine of the head."""

    video_id: str
    path: str
    score: float


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
    index: VectorIndex
    scorer: Scorer
    video_ids: Sequence[str]
    paths: Sequence[str]


class Searcher:
    """Search the live generation of a corpus with the head and the features that it was made with."""

    def __init__(
        self, generations: GenerationStore, features: Path, head: RetrievalHead, *, memory_limit: int = DEFAULT_MEMORY
    ) -> None:
        self._generations, self._features, self._head = generations, features, head
        self._memory_limit = memory_limit
        self._open = self._load()

    @property
    def generation(self) -> str:
        return self._open.generation.name

    def refresh(self) -> bool:
        """Move to the live generation if it is another one; says whether it was."""
        if self._generations.current() == self.generation:
            return False
        old, self._open = self._open, self._load()
        old.generation.close()
        return True

    def search(self, text_embeds: NDArray[Any], *, top: int = 10, shortlist: int = SHORTLIST) -> list[list[Hit]]:
        """The best ``top`` videos of each text (T, D), re-ranked exactly within ``shortlist`` candidates."""
        if top < 1 or shortlist < 1:
            raise BadInput("top and shortlist must be at least 1", got=f"{top}, {shortlist}")
        state = self._open
        everything = np.arange(len(state.video_ids))
        scores, rows = two_stage(state.scorer, state.index, everything, np.atleast_2d(text_embeds), max(top, shortlist))
        return [
            [Hit(state.video_ids[r], state.paths[r], float(s)) for s, r in zip(*found, strict=True) if r >= 0][:top]
            for found in zip(scores, rows, strict=True)
        ]

    def close(self) -> None:
        self._open.generation.close()

    def _load(self) -> _Open:
        # The generation first: features are only ever added, so a store opened later holds all its videos.
        generation = self._generations.open()
        try:
            rows = generation.rows()
            store = FeatureStore.open(self._features)
            require_same_encoder(generation, store)
            require_same_head(generation, self._head)
            videos = gallery(store, rows.video_ids)
            index = open_index(generation, rows.owners)
            scorer = Scorer(self._head, videos, memory_limit=self._memory_limit)
        except BaseException:
            generation.close()
            raise
        return _Open(generation, index, scorer, rows.video_ids, rows.paths)


def open_index(generation: Generation, owners: NDArray[np.int64], *, mmap: bool = True) -> VectorIndex:
    """The FAISS index of a generation."""
    return read(generation.path, owners, IndexSpec.from_dict(generation.info["spec"]), mmap=mmap)


def gallery(store: FeatureStore, video_ids: Sequence[str]) -> VideoFeatures:
    """The cached frames of these videos, in this order. MissingData names the first that the store does not hold."""
    features = store.videos(mmap=True, with_hidden=True)  # the index may not know yet that a file is gone
    row = {video_id: i for i, video_id in enumerate(features.video_ids)}
    absent = [v for v in video_ids if v not in row]
    if absent:
        what = f"{store.path} lacks features of {len(absent)} indexed videos"
        raise MissingData(what, got=f"no {absent[0]!r}", fix="extract them, or index again")
    if video_ids == features.video_ids:
        return features
    return features.select(np.array([row[v] for v in video_ids], dtype=np.int64))


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
