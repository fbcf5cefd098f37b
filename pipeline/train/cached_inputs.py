"""Cached activations, as the top blocks that train want them.

Notation: F frames, L tokens, W width of a tower, K blocks cached, k <= K blocks that train.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from dits_head.clip_top import LowerBlocks, pad_rows
from pipeline.stores.features import FeatureStore, TextFeatures, VideoFeatures
from pipeline.stores.mapped import MappedRagged
from pipeline.stores.shards import Ragged
from pipeline.train.joint_batches import TEXT_BATCH, VIDEO_BATCH, blocks_of


class TokenCache:
    """What enters the top k blocks for some videos and their captions, read from disk where it is asked for.

    Kept in memory once read if it takes at most `keep_bytes`. Where the store holds what enters K > k blocks, `lower`
    is the K - k between: run once if the tokens are kept, else at each reading. Its results are rounded to float16, so
    that they are what `extract --cache-blocks k` would have stored.
    """

    def __init__(
        self,
        store: FeatureStore,
        videos: VideoFeatures,
        texts: TextFeatures,
        lower: LowerBlocks | None = None,
        keep_bytes: int = 0,
    ):
        self._frames = store.frame_tokens(videos.video_ids)
        self._texts = store.text_tokens(texts.caption_ids) if len(texts) else {}
        self._lower = lower if lower is not None and len(lower) else None
        frame_bytes = sum(column.nbytes for column in self._frames.values())
        if frame_bytes + sum(column.nbytes for column in self._texts.values()) > keep_bytes:
            return
        if self._lower is None:
            self._frames = {name: column[:] for name, column in self._frames.items()}  # type: ignore[misc]
        else:
            self._advance(len(videos), len(texts))

    def _advance(self, videos: int, texts: int) -> None:
        frames = np.concatenate([_float16(self._frame_tokens(rows)) for rows in blocks_of(videos, VIDEO_BATCH)])
        rows = [
            tokens[:length]
            for padded, lengths in (self.texts(rows) for rows in blocks_of(texts, TEXT_BATCH))
            for tokens, length in zip(_float16(padded), lengths.tolist(), strict=True)
        ]
        offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
        places = np.stack([np.zeros(texts, np.int64), np.arange(texts)], axis=1)
        self._frames = {"frame_tokens": frames}  # type: ignore[dict-item]
        self._texts = {"text_tokens": MappedRagged([Ragged(np.concatenate(rows), offsets)], places)}
        self._lower = None

    def frames(self, batches: Sequence[np.ndarray]) -> Iterator[Tensor]:
        """For each array of n rows of videos: (n, F, L, W) float32."""
        return map(self._frame_tokens, batches)

    @torch.no_grad()
    def _frame_tokens(self, rows: np.ndarray) -> Tensor:
        scale = self._frames["frame_token_scale"][rows] if "frame_token_scale" in self._frames else None
        tokens = _restored(self._frames["frame_tokens"][rows], scale)
        if self._lower is None:
            return tokens
        entered = self._lower.image(tokens.flatten(0, 1).to(self._lower.device))
        return entered.half().float().unflatten(0, tokens.shape[:2])

    @torch.no_grad()
    def texts(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """n rows of captions -> (n, L, W) float32, the shorter ones padded; lengths (n,)."""
        ragged = self._texts["text_tokens"].take(rows)
        scale = self._texts["text_token_scale"].take(rows).values if "text_token_scale" in self._texts else None
        tokens, lengths = pad_rows(_restored(ragged.values, scale), torch.from_numpy(ragged.offsets))
        if self._lower is not None:
            tokens = self._lower.text(tokens.to(self._lower.device)).half().float()
        return tokens, lengths


def _restored(tokens: np.ndarray, scale: np.ndarray | None) -> Tensor:
    """float16 as float32; int8 times the scale of each token."""
    values = torch.from_numpy(np.ascontiguousarray(tokens)).float()
    return values if scale is None else values * torch.from_numpy(scale).float()[..., None]


def _float16(tokens: Tensor) -> np.ndarray:
    halves: np.ndarray = tokens.half().cpu().numpy()
    return halves
