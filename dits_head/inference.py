"""A corpus through a trained head, block by block: aligned texts, and the vectors that an index holds."""

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch

from dits_head.head import RetrievalHead

BLOCK = 1024  # videos or texts at a time


class Frames(Protocol):
    """frame_embeds (V, F, D), an array or a map of a file, and frame_mask (V, F) bool."""

    @property
    def frame_embeds(self) -> Any: ...
    @property
    def frame_mask(self) -> np.ndarray: ...


@torch.inference_mode()
def align_texts(head: RetrievalHead, text_embeds: np.ndarray) -> np.ndarray:
    """(T, D) -> (T, D) float32. Raises HeadNeedsVideo where the head's alignment depends on the video."""
    device = next(head.parameters()).device
    blocks = [
        head.align_text(torch.from_numpy(np.asarray(text_embeds[start : start + BLOCK], np.float32)).to(device)).cpu()
        for start in range(0, len(text_embeds), BLOCK)
    ]
    return torch.cat(blocks).numpy() if blocks else np.zeros_like(text_embeds, dtype=np.float32)


def pool_videos(head: RetrievalHead, videos: Frames) -> np.ndarray:
    """(V, D) float32, or (V, M, D) where the head keeps M vectors a video."""
    return np.concatenate(list(pooled_blocks(head, videos)))


def pooled_blocks(head: RetrievalHead, videos: Frames) -> Iterator[np.ndarray]:
    """The same, BLOCK videos at a time."""
    device = next(head.parameters()).device
    for start in range(0, len(videos.frame_mask), BLOCK):
        with torch.inference_mode():
            frames = torch.from_numpy(np.asarray(videos.frame_embeds[start : start + BLOCK], np.float32)).to(device)
            mask = torch.from_numpy(videos.frame_mask[start : start + BLOCK]).to(device)
            yield head.pool_video(frames, mask).cpu().numpy()
