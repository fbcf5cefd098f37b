"""Cached activations, as the top blocks that train take them.

Notation: F frames, L tokens, W width of a tower, K blocks cached, k <= K blocks that train.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from dits_head.clip_top import LowerBlocks, pad_rows
from pipeline.stores.activations import FRAMES, TEXTS, restore
from pipeline.stores.features import FeatureStore, TextFeatures, VideoFeatures
from pipeline.stores.mapped import MappedRagged
from pipeline.stores.shards import Ragged
from pipeline.train.joint_batches import TEXT_BATCH, VIDEO_BATCH, blocks_of


class CachedInputs:
    """The activations that enter the top k blocks, for some videos and their captions, read from disk on demand.

    Kept in memory once read if they take at most `keep_bytes`. Where the store holds what enters K > k blocks, `lower`
    is the K - k between: run once if the activations are kept, else at each reading. Its results are rounded to
    float16, so that they are what `extract --cache-blocks k` would have stored.
    """

    def __init__(
        self,
        store: FeatureStore,
        videos: VideoFeatures,
        texts: TextFeatures,
        lower: LowerBlocks | None = None,
        keep_bytes: int = 0,
    ):
        self._of_frames = store.frame_activations(videos.video_ids)
        self._of_texts = store.text_activations(texts.caption_ids) if len(texts) else {}
        self._lower = lower if lower is not None and len(lower) else None
        frame_bytes = sum(column.nbytes for column in self._of_frames.values())
        if frame_bytes + sum(column.nbytes for column in self._of_texts.values()) > keep_bytes:
            return
        if self._lower is None:
            self._of_frames = {name: column[:] for name, column in self._of_frames.items()}  # type: ignore[misc]
        else:
            self._keep_advanced(len(videos), len(texts))

    def _keep_advanced(self, videos: int, texts: int) -> None:
        """Keep what leaves the lower blocks in memory, in place of what enters them."""
        frames = np.concatenate([_float16(self._frame_activations(rows)) for rows in blocks_of(videos, VIDEO_BATCH)])
        of_texts = [
            activations[:length]
            for padded, lengths in (self.text_inputs(rows) for rows in blocks_of(texts, TEXT_BATCH))
            for activations, length in zip(_float16(padded), lengths.tolist(), strict=True)
        ]
        offsets = np.concatenate([[0], np.cumsum([len(one) for one in of_texts])]).astype(np.int64)
        places = np.stack([np.zeros(texts, np.int64), np.arange(texts)], axis=1)
        self._of_frames = {f"{FRAMES}s": frames}  # type: ignore[dict-item]
        self._of_texts = {f"{TEXTS}s": MappedRagged([Ragged(np.concatenate(of_texts), offsets)], places)}
        self._lower = None

    def frame_inputs(self, batches: Sequence[np.ndarray]) -> Iterator[Tensor]:
        """For each array of n rows of videos: (n, F, L, W) float32."""
        return map(self._frame_activations, batches)

    @torch.no_grad()
    def _frame_activations(self, rows: np.ndarray) -> Tensor:
        stored = {name: column[rows] for name, column in self._of_frames.items()}
        activations = torch.from_numpy(restore(stored, FRAMES))  # (n, F, L, W)
        if self._lower is None:
            return activations
        advanced = self._lower.image(activations.flatten(0, 1).to(self._lower.device))  # (n * F, L, W)
        return advanced.half().float().unflatten(0, activations.shape[:2])

    @torch.no_grad()
    def text_inputs(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """n rows of captions -> (n, L, W) float32, the shorter ones padded; lengths (n,)."""
        stored = {name: column.take(rows) for name, column in self._of_texts.items()}
        values = restore({name: ragged.values for name, ragged in stored.items()}, TEXTS)
        offsets = next(iter(stored.values())).offsets
        activations, lengths = pad_rows(torch.from_numpy(values), torch.from_numpy(offsets))
        if self._lower is not None:
            activations = self._lower.text(activations.to(self._lower.device)).half().float()
        return activations, lengths


def _float16(activations: Tensor) -> np.ndarray:
    halves: np.ndarray = activations.half().cpu().numpy()
    return halves
