"""Exact scores and moments of a shortlist, on frames read for it alone.

Text queries are scored by the head. A query may be a weighted sum of texts: its score is the weighted sum of the texts'
exact scores, and, since a score is a cosine with the aligned text, the same sum of aligned texts of unit length ranks
the index's vectors by it. Pictures and videos are compared by raw CLIP embeddings, frame with frame: the head's text
side does not apply to them.

Notation: T texts, Q queries, K candidates a query, N distinct candidates, F frames, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import normalize

from dits_head.head import RetrievalHead
from pipeline.stores.features import VideoFeatures

Compare = Callable[[NDArray[np.float32], VideoFeatures], tuple[NDArray[np.float32], NDArray[np.int64]]]
_PAIRS_AT_ONCE = 2048  # candidates scored at a time: 60 KB each for 12 x 512


class Queries(Protocol):
    """Q queries, as two-stage search takes them."""

    def vectors(self) -> NDArray[np.float32]:
        """What the index is asked, (Q, M, D): a query's candidates are those of any of its M vectors."""

    def scores(self, videos: VideoFeatures, candidates: NDArray[np.int64]) -> NDArray[np.float32]:
        """Exact scores (Q, K) of candidates (Q, K), rows of `videos`; -inf where -1 stands."""

    def moments(self, videos: VideoFeatures, query: NDArray[np.int64]) -> NDArray[np.int64]:
        """The frame (N,) of each video that its query (N,) attends to most."""


class TextQueries:
    """Q queries, each a weighted sum of T texts, aligned at their own cost: a text alone is not padded to a batch.

    A text's bits then depend on how many are aligned with it, by float32 rounding; `evaluate` pads instead.
    """

    def __init__(self, head: RetrievalHead, text_embeds: NDArray[Any], weights: NDArray[Any]) -> None:
        self.head, self.weights = head, np.asarray(weights, np.float32)
        self._device = next(head.parameters()).device
        self._texts = head.prepare_texts(_tensor(text_embeds, self._device), rows=max(1, len(text_embeds)))

    def vectors(self) -> NDArray[np.float32]:
        aligned = self._texts if self._texts.ndim == 2 else self._texts[:, 0]
        return (self.weights @ normalize(aligned, dim=-1).cpu().numpy())[:, None]

    def scores(self, videos: VideoFeatures, candidates: NDArray[np.int64]) -> NDArray[np.float32]:
        query, text = np.nonzero(self.weights)
        scores, K = np.zeros(candidates.shape, np.float32), candidates.shape[1]
        for start in range(0, len(query), max(1, _PAIRS_AT_ONCE // K)):
            q, t = (x[start : start + max(1, _PAIRS_AT_ONCE // K)] for x in (query, text))
            rows = np.maximum(candidates[q], 0).ravel()
            frames, mask = (_tensor(x[rows], self._device) for x in (videos.frame_embeds, videos.frame_mask))
            own = self.head.score_each(self._texts[torch.from_numpy(t.repeat(K))], frames, mask)
            np.add.at(scores, q, self.weights[q, t, None] * own.cpu().numpy().reshape(len(q), K))
        return np.where(candidates >= 0, scores, -np.inf)

    def moments(self, videos: VideoFeatures, query: NDArray[np.int64]) -> NDArray[np.int64]:
        """By the weighted sum of what the query's wanted texts (of positive weight) attend to."""
        frames, mask = _tensor(videos.frame_embeds, self._device), _tensor(videos.frame_mask, self._device)
        total = torch.zeros(mask.shape, device=self._device)
        for text in np.flatnonzero((self.weights[query] > 0).any(axis=0)).tolist():
            here = np.flatnonzero(self.weights[query, text] > 0)
            rows = torch.from_numpy(here).to(self._device)
            texts = self._texts[text : text + 1].expand(len(here), *self._texts.shape[1:])
            weight = _tensor(self.weights[query[here], text], self._device)[:, None]
            total[rows] += weight * self.head.frame_weights(texts, frames[rows], mask[rows])
        return total.argmax(dim=1).cpu().numpy()


class FrameQuery:
    """One query by frames, (F, D) raw CLIP embeddings. The shortlist comes from the vectors that an index would hold of
    a video of these frames; `compare` gives the exact cosine (N,) with each video, and the frame (N,) to show."""

    def __init__(self, head: RetrievalHead, frames: NDArray[Any], compare: Compare) -> None:
        self._head, self._frames, self._compare = head, np.asarray(frames, np.float32), compare

    def vectors(self) -> NDArray[np.float32]:
        device = next(self._head.parameters()).device
        mask = torch.ones(1, len(self._frames), dtype=torch.bool, device=device)
        pooled = self._head.pool_video(_tensor(self._frames[None], device), mask).cpu().numpy()
        return pooled.reshape(1, -1, pooled.shape[-1])

    def scores(self, videos: VideoFeatures, candidates: NDArray[np.int64]) -> NDArray[np.float32]:
        cosines = self._compare(self._frames, videos)[0]
        return np.where(candidates >= 0, cosines[candidates], -np.inf)

    def moments(self, videos: VideoFeatures, query: NDArray[np.int64]) -> NDArray[np.int64]:
        return self._compare(self._frames, videos)[1]


def best_frame(picture: NDArray[np.float32], videos: VideoFeatures) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Picture against frame: the cosine (N,) of a picture (1, D) with the frame of each video that is most like it, and
    which frame that is (N,)."""
    cosines = np.where(videos.frame_mask, _unit(videos.frame_embeds) @ _unit(picture[0]), -np.inf)
    return cosines.max(axis=1).astype(np.float32), cosines.argmax(axis=1)


def mean_frames(frames: NDArray[np.float32], videos: VideoFeatures) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Video against video: the cosine (N,) of the means of both videos' unit frames, and the frame (N,) of each video
    that is most like the mean of the query's frames (F, D)."""
    query = _unit(_unit(frames).mean(axis=0))
    unit = _unit(videos.frame_embeds) * videos.frame_mask[..., None]
    cosines = np.where(videos.frame_mask, unit @ query, -np.inf)
    return (_unit(unit.sum(axis=1)) @ query).astype(np.float32), cosines.argmax(axis=1)


def _unit(vectors: NDArray[Any]) -> NDArray[np.float32]:
    vectors = np.asarray(vectors, np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def _tensor(array: NDArray[Any], device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)
