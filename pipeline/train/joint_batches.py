"""Batches for a head that trains with the towers under it, and a corpus through those towers.

What enters the towers are cached activations (`cached_inputs`) or frames decoded anew (`decoded_inputs`).

Notation: B pairs of a batch, F frames, D joint space.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from dits_head.joint import Towers
from pipeline.train.batches import PairData, positives

VIDEO_BATCH, TEXT_BATCH = 64, 1024  # what is embedded at once


class Inputs(Protocol):
    """What enters the towers, for the videos and captions of one split."""

    def frame_inputs(self, batches: Sequence[np.ndarray]) -> Iterator[Tensor]:
        """For each array of n rows of videos, in this order: (n, F, ...)."""

    def text_inputs(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """n rows of captions -> (n, ...), and how many tokens of each matter (n,)."""


class JointSource:
    """Batches for `JointModel.training_loss` on device `rank` of `world`, in the order of the pairs of `data`.

    The device's towers embed its own pairs, the rank-th of `world` equal parts of each batch; mask and positives are
    those of the whole batch.
    """

    def __init__(self, data: PairData, inputs: Inputs, device: torch.device, rank: int = 0, world: int = 1):
        self._data, self._inputs, self._device = data, inputs, device
        self._rank, self._world = rank, world

    def __len__(self) -> int:
        return len(self._data)

    def batches(self, batches: Sequence[np.ndarray]) -> Iterator[Mapping[str, Tensor]]:
        """For each array of B pairs, given as rows of texts. A video that several pairs share is read once."""
        own = [np.split(pairs, self._world)[self._rank] for pairs in batches]
        videos = [self._data.text_to_video[pairs] for pairs in own]
        distinct, places = zip(*(np.unique(video, return_inverse=True) for video in videos), strict=True)
        all_frames = self._inputs.frame_inputs(distinct)
        for pairs, mine, place, frames in zip(batches, own, places, all_frames, strict=True):
            texts, lengths = self._inputs.text_inputs(mine)
            video = torch.from_numpy(self._data.text_to_video[pairs])
            sentence = torch.from_numpy(self._data.sentence[pairs])
            yield {
                "text_inputs": texts.to(self._device),
                "text_lengths": lengths.to(self._device),
                "frame_inputs": frames.to(self._device)[torch.from_numpy(place).to(self._device)],
                "frame_mask": torch.from_numpy(self._data.frame_mask)[video].to(self._device),
                "positives": positives(video, sentence).to(self._device),
            }


@torch.inference_mode()
def embed_videos(towers: Towers, inputs: Inputs, rows: np.ndarray, device: torch.device) -> np.ndarray:
    """Embed the frames of V videos, given as rows of `inputs`: (V, F, D) float16."""
    frames = inputs.frame_inputs([rows[block] for block in blocks_of(len(rows), VIDEO_BATCH)])
    return np.concatenate([towers.frame_embeds(block.to(device)).half().cpu().numpy() for block in frames])


@torch.inference_mode()
def embed_texts(towers: Towers, inputs: Inputs, rows: np.ndarray, device: torch.device) -> np.ndarray:
    """Embed T captions, given as rows of `inputs`: (T, D) float32."""
    parts = []
    for block in blocks_of(len(rows), TEXT_BATCH):
        texts, lengths = inputs.text_inputs(rows[block])
        parts.append(towers.text_embeds(texts.to(device), lengths.to(device)).float().cpu().numpy())
    return np.concatenate(parts)


def blocks_of(count: int, size: int) -> list[np.ndarray]:
    """Rows 0 to count - 1 in blocks of at most `size`."""
    return [np.arange(start, min(start + size, count)) for start in range(0, count, size)]
