"""Exact scores of a trained head on cached frames: tiles for exhaustive evaluation, pairs for re-ranking a shortlist.

A ``Scorer`` holds a gallery's frames (memory-mapped if the
store gave a map) and prepares videos in blocks, as many at a time as ``memory_limit`` allows; the head computes the
same bits for a pair whatever the block.

Notation: T texts, V videos, F frames, D width, K candidates a text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dits_head.head import RetrievalHead
from pipeline.device import free_bytes, halving
from pipeline.errors import BadInput, FingerprintMismatch
from pipeline.stores.features import VideoFeatures

MB = 1_000_000
DEFAULT_MEMORY = 2_000 * MB
WORKSPACE = 96 * MB  # a tile and its coefficients, whatever the block
LEAST_BLOCK = 256


def head_fingerprint(head: RetrievalHead) -> str:
    """16 hex digits over the configuration and every weight: an index made with another head is told apart."""
    digest = hashlib.sha256(json.dumps(head.config.to_dict(), sort_keys=True).encode())
    for name, tensor in sorted(head.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def bytes_beside(texts: int, videos: int, dim: int) -> int:
    """Bytes of an exhaustive evaluation beside the prepared videos: the texts (as given, sorted, aligned), the counters
    of every query, and a block of scores (T, 256) with temporaries of twice its size."""
    return 3 * 4 * texts * dim + 16 * 8 * (texts + videos) + 3 * 4 * LEAST_BLOCK * texts


class Scorer:
    """One head and one gallery of V videos."""

    def __init__(self, head: RetrievalHead, videos: VideoFeatures, *, memory_limit: int = DEFAULT_MEMORY) -> None:
        width = videos.frame_embeds.shape[2]
        if width != head.config.dim:
            raise FingerprintMismatch(
                "the head and the features differ in width", expected=head.config.dim, got=width,
                fix="train a head on these features, or give the features it was trained on",
            )  # fmt: skip
        self.head, self.videos = head.eval(), videos
        self.device = next(head.parameters()).device
        self._held: tuple[int, Any] | None = None  # the block that is prepared: its start, and what scoring needs
        self.block = self._fitting_block(memory_limit)
        if self.device.type != "cpu" and len(self.videos):  # a device's memory is shared: what was free may be gone
            _, self.block = halving(self._hold_first, self.block, LEAST_BLOCK)

    # -- memory --------------------------------------------------------------------------------------------------------

    @property
    def video_bytes(self) -> int:
        """Bytes that one prepared video takes (about 2 F + 2 float32 vectors), measured on the head itself."""
        return sum(v.nbytes for v in vars(self._prepare(np.arange(1))).values()) if len(self.videos) else 0

    @property
    def bytes_needed(self) -> int:
        """Peak bytes of scoring beside the texts: the prepared block (twice while it is made) and the workspace."""
        return 2 * min(self.block, len(self.videos)) * self.video_bytes + WORKSPACE

    def _fitting_block(self, limit: int) -> int:
        """The largest block of videos (a multiple of 256) whose preparation fits; BadInput if none does."""
        if self.device.type != "cpu":
            limit = min(limit, free_bytes(self.device))
        least = 2 * min(LEAST_BLOCK, len(self.videos)) * self.video_bytes + WORKSPACE
        if limit < least:
            what = "--memory-limit is too small for the smallest block"
            raise BadInput(what, expected=f"{(least - limit) / MB:.0f} MB more")
        blocks = int((limit - WORKSPACE) / (2 * max(self.video_bytes, 1))) // LEAST_BLOCK
        return max(1, blocks) * LEAST_BLOCK

    # -- texts ---------------------------------------------------------------------------------------------------------

    def texts(self, text_embeds: NDArray[Any]) -> torch.Tensor:
        """Prepare texts (T, D) for scoring, once for whatever they are scored against."""
        return self.head.prepare_texts(self._tensor(text_embeds))

    def queries(self, texts: torch.Tensor) -> NDArray[np.float32]:
        """Index queries (T, D) of prepared `texts`: the aligned texts. BadInput for a head that no index can hold."""
        if reason := self.head.config.needs_video:
            raise BadInput(
                f"no index can hold head {self.head.config.head!r}: {reason}", fix="evaluate without --index"
            )
        return (texts if texts.ndim == 2 else texts[:, 0]).cpu().numpy()

    # -- scores --------------------------------------------------------------------------------------------------------

    def tile(self, texts: torch.Tensor, rows: slice, columns: slice) -> NDArray[np.float32]:
        """Scores of a slice of prepared `texts` with a slice of the gallery that lies within one block."""
        start, prepared = self._prepared_block(columns)
        return self._numpy(texts[rows], prepared[columns.start - start : columns.stop - start])

    def full(self, text_embeds: NDArray[Any]) -> NDArray[np.float32]:
        """Scores of a few texts with every video, (T, V)."""
        texts = self.texts(text_embeds)
        parts = [self._numpy(texts, prepared) for _, prepared in self.blocks()]
        return np.concatenate(parts, axis=1)

    def pairs(self, texts: torch.Tensor, candidates: NDArray[np.int64]) -> NDArray[np.float32]:
        """Scores (T, K) of prepared texts with their candidates (T, K), rows of the gallery; -inf where -1 stands.

        Each candidate of the batch is prepared once.
        """
        wanted, place = np.unique(np.maximum(candidates, 0), return_inverse=True)
        prepared = self._rows(wanted)
        index = torch.from_numpy(place.reshape(candidates.shape)).to(self.device)
        scores = self.head.score_pairs(texts, prepared[index]).cpu().numpy()
        return np.where(candidates >= 0, scores, -np.inf)

    def relevant_pairs(
        self, text_embeds: NDArray[Any], own: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The two vectors that are compared for each text and its own video: the aligned text and v|t, (T, D) each.

        Args:
            text_embeds: (T, D).
            own: (T,) rows of the gallery.

        Raises:
            BadInput: the head's compared text depends on the video.
        """
        if reason := self.head.config.needs_video:
            raise BadInput(f"no gap of head {self.head.config.head!r}: {reason}", fix="choose another --run")
        parts = []
        for start in range(0, len(own), LEAST_BLOCK):
            texts, rows = self._tensor(text_embeds[start : start + LEAST_BLOCK]), own[start : start + LEAST_BLOCK]
            frames, mask = self.videos.frame_embeds[rows], self.videos.frame_mask[rows]
            pair = self.head.pair_vectors(texts, self._tensor(frames), torch.from_numpy(mask).to(self.device))
            parts.append([x.cpu().numpy() for x in pair])
        compared, pooled = (np.concatenate(part) for part in zip(*parts, strict=True))
        return compared, pooled

    def blocks(self) -> Iterator[tuple[int, Any]]:
        """The gallery in prepared blocks: (start, prepared)."""
        for start in range(0, len(self.videos), self.block):
            yield self._prepared_block(slice(start, min(start + self.block, len(self.videos))))

    # -- parts ---------------------------------------------------------------------------------------------------------

    def _prepared_block(self, columns: slice) -> tuple[int, Any]:
        """The block that holds these columns; it stays prepared until another one is asked for."""
        start = columns.start // self.block * self.block
        if self._held is None or self._held[0] != start:
            self._held = None  # let go of the old one first
            self._held = start, self._prepare(np.arange(start, min(start + self.block, len(self.videos))))
        return self._held

    def _hold_first(self, size: int) -> None:
        """Prepare the gallery's first `size` videos; the block before is let go of first."""
        self._held = None
        self._held = 0, self._prepare(np.arange(min(size, len(self.videos))))

    def _rows(self, wanted: NDArray[np.int64]) -> Any:
        """Prepared videos of any rows: taken from the block if one holds the whole gallery."""
        if self.block >= len(self.videos):
            return self._prepared_block(slice(0, len(self.videos)))[1][torch.from_numpy(wanted).to(self.device)]
        return self._prepare(wanted)

    def _prepare(self, rows: NDArray[np.int64]) -> Any:
        embeds, mask = self.videos.frame_embeds[rows], self.videos.frame_mask[rows]
        return self.head.prepare_videos(self._tensor(embeds), torch.from_numpy(mask).to(self.device))

    def _tensor(self, array: NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def _numpy(self, texts: torch.Tensor, prepared: Any) -> NDArray[np.float32]:
        return self.head.score_prepared(texts, prepared).cpu().numpy()
