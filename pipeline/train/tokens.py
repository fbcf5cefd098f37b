"""Batches of cached activations, for training CLIP's top blocks together with a head.

Notation: B pairs of a batch, F frames, L tokens, W width of a tower.
"""

import numpy as np
import torch
from torch import Tensor

from dits_head.clip_top import ClipTop, pad_rows
from pipeline.stores.features import FeatureStore, TextFeatures, VideoFeatures
from pipeline.train.batches import PairData, positives

EMBED_BATCH = 64  # videos, or 16 times as many texts, whose tokens are embedded at once


class TokenCache:
    """The activations of some videos and their captions, read from disk where they are asked for.

    Kept in memory once read if they take at most `keep_bytes`.
    """

    def __init__(self, store: FeatureStore, videos: VideoFeatures, texts: TextFeatures, keep_bytes: int = 0):
        self._frames = store.frame_tokens(videos.video_ids)
        self._texts = store.text_tokens(texts.caption_ids)
        if sum(column.nbytes for column in self._frames.values()) <= keep_bytes:
            self._frames = {name: column[:] for name, column in self._frames.items()}  # type: ignore[misc]

    def frame_tokens(self, rows: np.ndarray) -> Tensor:
        """Rows of videos -> (n, F, L, W) float32."""
        scale = self._frames["frame_token_scale"][rows] if "frame_token_scale" in self._frames else None
        return _restored(self._frames["frame_tokens"][rows], scale)

    def text_tokens(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Rows of texts -> (n, L, W) float32 padded with zeros, lengths (n,)."""
        ragged = self._texts["text_tokens"].take(rows)
        scale = self._texts["text_token_scale"].take(rows).values if "text_token_scale" in self._texts else None
        return pad_rows(_restored(ragged.values, scale), torch.from_numpy(ragged.offsets))


def _restored(tokens: np.ndarray, scale: np.ndarray | None) -> Tensor:
    """float16 as float32; int8 times the scale of each token."""
    values = torch.from_numpy(np.ascontiguousarray(tokens)).float()
    return values if scale is None else values * torch.from_numpy(scale).float()[..., None]


class TokenSource:
    """Batches for `JointModel.training_loss`, in the order of the pairs of `data`."""

    def __init__(self, data: PairData, cache: TokenCache, device: torch.device):
        self._data, self._cache, self._device = data, cache, device

    def __len__(self) -> int:
        return len(self._data)

    def batch(self, pairs: np.ndarray) -> dict[str, Tensor]:
        """B pairs, given as rows of texts. A video that several pairs share is read once."""
        video = self._data.text_to_video[pairs]
        distinct, place = np.unique(video, return_inverse=True)
        frames = self._cache.frame_tokens(distinct)
        texts, lengths = self._cache.text_tokens(pairs)
        return {
            "text_inputs": texts.to(self._device),
            "text_lengths": lengths.to(self._device),
            "frame_inputs": frames[torch.from_numpy(place)].to(self._device),
            "frame_mask": torch.from_numpy(self._data.frame_mask[video]).to(self._device),
            "positives": positives(video, self._data.sentence[pairs]).to(self._device),
        }


@torch.inference_mode()
def embed_videos(top: ClipTop, cache: TokenCache, count: int) -> np.ndarray:
    """Frame embeddings of the first `count` videos of the cache through the top blocks: (V, F, D) float16."""
    device = next(top.parameters()).device
    parts = [
        top.frame_embeds(cache.frame_tokens(rows).to(device)).half().cpu().numpy()
        for rows in _blocks(count, EMBED_BATCH)
    ]
    return np.concatenate(parts)


@torch.inference_mode()
def embed_texts(top: ClipTop, cache: TokenCache, count: int) -> np.ndarray:
    """Text embeddings of the first `count` captions of the cache: (T, D) float32."""
    device = next(top.parameters()).device
    parts = []
    for rows in _blocks(count, 16 * EMBED_BATCH):
        tokens, lengths = cache.text_tokens(rows)
        parts.append(top.text_embeds(tokens.to(device), lengths.to(device)).cpu().numpy())
    return np.concatenate(parts)


def _blocks(count: int, size: int) -> list[np.ndarray]:
    return [np.arange(start, min(start + size, count)) for start in range(0, count, size)]
