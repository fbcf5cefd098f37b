"""A small feature store with real heads, for the tests of stage 3: every text resembles some frames of its video."""

from pathlib import Path

import numpy as np
import torch

from dits_head.config import HeadConfig
from dits_head.head import RetrievalHead, build_head
from pipeline.stores.features import FeatureStore, TextFeatures, VideoFeatures

DIM, FRAMES = 32, 4
SETTINGS = {"model": "toy", "embed_dim": DIM, "num_frames": FRAMES, "decoder": "none", "dtype": "float16"}


def make_store(
    folder: Path, videos: int = 40, captions: int = 2, *, split: str = "test", seed: int = 0
) -> FeatureStore:
    store = FeatureStore.create(folder, SETTINGS)
    add_videos(store, [f"v{i:04d}" for i in range(videos)], captions, split=split, seed=seed)
    return store


def add_videos(store: FeatureStore, ids: list[str], captions: int = 2, *, split: str = "test", seed: int = 0) -> None:
    """Random frames, some masked; a caption is the mean of two frames, and noise."""
    generator = np.random.default_rng(seed)
    frames = generator.standard_normal((len(ids), FRAMES, DIM)).astype(np.float32)
    mask = np.arange(FRAMES)[None] < generator.integers(2, FRAMES + 1, (len(ids), 1))
    videos = VideoFeatures(
        ids,
        [f"/videos/{v}.mp4" for v in ids],
        [split] * len(ids),
        frames.astype(np.float16),
        mask,
        np.where(mask, np.arange(FRAMES)[None] * 1.0, np.nan),
    )
    store.write_videos(videos, inputs=ids)
    noise = generator.standard_normal((len(ids), captions, DIM))
    texts = (frames[:, :2].mean(1)[:, None] + 0.8 * noise).reshape(-1, DIM).astype(np.float32)
    owners = [v for v in ids for _ in range(captions)]
    store.write_texts(
        TextFeatures(
            [f"{v}#{i}" for v in ids for i in range(captions)],
            owners,
            [split] * len(owners),
            [f"caption {i} of {v}" for v in ids for i in range(captions)],
            texts,
        )
    )


def make_head(kind: str = "dits", seed: int = 0, **changes: object) -> RetrievalHead:
    """A head whose weights are not the trivial ones that it starts with."""
    options: dict[str, object] = {"dits": {"T_prime": 3, "blocks": 1}}.get(kind, {}) | changes  # type: ignore[assignment]
    options = {"index_vectors": 1, **options}  # one, so that tests can say which vector is which video's
    head = build_head(HeadConfig(head=kind, dim=DIM, **options))  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return head.eval()
