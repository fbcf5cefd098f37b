"""A corpus through a trained head, block by block: aligned texts, and the vectors that an index holds."""

import numpy as np
import torch

from dits_head.head import RetrievalHead
from pipeline.stores.features import VideoFeatures

BLOCK = 1024  # videos or texts at a time


@torch.inference_mode()
def align_texts(head: RetrievalHead, text_embeds: np.ndarray) -> np.ndarray:
    """(T, D) -> (T, D) float32. Raises HeadNeedsVideo where the head's alignment depends on the video."""
    device = next(head.parameters()).device
    blocks = [
        head.align_text(torch.from_numpy(np.asarray(text_embeds[start : start + BLOCK], np.float32)).to(device)).cpu()
        for start in range(0, len(text_embeds), BLOCK)
    ]
    return torch.cat(blocks).numpy() if blocks else np.zeros_like(text_embeds, dtype=np.float32)


@torch.inference_mode()
def pool_videos(head: RetrievalHead, videos: VideoFeatures) -> np.ndarray:
    """(V, D) float32, or (V, M, D) where the head keeps M vectors a video."""
    device = next(head.parameters()).device
    blocks = []
    for start in range(0, len(videos), BLOCK):
        frames = torch.from_numpy(np.asarray(videos.frame_embeds[start : start + BLOCK], np.float32)).to(device)
        mask = torch.from_numpy(videos.frame_mask[start : start + BLOCK]).to(device)
        blocks.append(head.pool_video(frames, mask).cpu())
    return torch.cat(blocks).numpy()
