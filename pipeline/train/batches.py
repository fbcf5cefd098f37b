"""Which caption-video pairs make a batch, and where their features lie while training.

Everything that chance decides follows from (seed, epoch) alone, so that a run resumed in mid-epoch sees the same
batches as one that was never interrupted.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import BadInput
from pipeline.stores.features import FeatureStore, TextFeatures, VideoFeatures, text_to_video

MIN_VIDEOS = 100  # to hold validation out of: fewer leave a split that could not tell two checkpoints apart
MIN_TO_TRAIN = 2  # a contrastive loss needs a negative
HOLD_OUT_SEED = 24  # one for all runs, so that seeds differ in training alone
HOLD_OUT = 0.1  # of the training videos, where a data set brings no validation split


@dataclass(frozen=True)
class PairData:
    """The caption-video pairs of one split."""

    text_embeds: np.ndarray  # (T, D)
    frame_embeds: np.ndarray  # (V, F, D), may be a map of a file
    frame_mask: np.ndarray  # (V, F) bool
    text_to_video: np.ndarray  # (T,) row of each text's video
    sentence: np.ndarray  # (T,) equal numbers for equal sentences

    @classmethod
    def of(cls, videos: VideoFeatures, texts: TextFeatures) -> "PairData":
        sentences = {sentence: number for number, sentence in enumerate(dict.fromkeys(texts.captions))}
        return cls(
            texts.text_embeds,
            videos.frame_embeds,
            videos.frame_mask,
            text_to_video(texts, videos),
            np.array([sentences[sentence] for sentence in texts.captions], dtype=np.int64),
        )

    def __len__(self) -> int:
        return len(self.text_embeds)


class BatchSource:
    """Batches on one device.

    The features are read into its memory once, in order, if they take at most `resident_fraction` of the `free_bytes`
    there; otherwise they stay mapped from disk and are copied batch by batch. What makes a batch of resident features
    is gathered on the device, from pairs that were copied there once an epoch: no step waits for the host.
    """

    def __init__(self, data: PairData, device: torch.device, free_bytes: int, resident_fraction: float = 0.5):
        self.device = device
        self.resident = data.frame_embeds.nbytes + data.text_embeds.nbytes <= resident_fraction * free_bytes
        self._frames = torch.from_numpy(data.frame_embeds[:]).to(device) if self.resident else data.frame_embeds
        self._texts = torch.from_numpy(data.text_embeds).to(device if self.resident else "cpu")
        self._mask, self._video, self._sentence = (
            torch.from_numpy(array).to(device) for array in (data.frame_mask, data.text_to_video, data.sentence)
        )

    def __len__(self) -> int:
        return len(self._texts)

    def batches(self, batches: Sequence[np.ndarray]) -> Iterator[dict[str, Tensor]]:
        return (self.batch(pairs) for pairs in torch.from_numpy(np.stack(batches)).to(self.device))

    def batch(self, pairs: Tensor) -> dict[str, Tensor]:
        """Gather B pairs, given as rows (B,) of texts.

        Returns:
            text_embeds (B, D) and frame_embeds (B, F, D) in float32, frame_mask (B, F), and positives (B, B): True
            where text i describes video j, because the video or the sentence is the same.
        """
        video = self._video[pairs]
        if isinstance(self._frames, Tensor):
            frames = self._frames[video]
        else:
            frames = torch.from_numpy(self._frames[video.cpu().numpy()])
        texts = self._texts[pairs.to(self._texts.device)]
        return {
            "text_embeds": texts.to(self.device, torch.float32),
            "frame_embeds": frames.to(self.device, torch.float32),
            "frame_mask": self._mask[video],
            "positives": positives(video, self._sentence[pairs]),
        }


def positives(video: Tensor, sentence: Tensor) -> Tensor:
    """(B,), (B,) -> (B, B) bool: the same video or the same sentence; such pairs are no negatives of each other."""
    return (video[:, None] == video) | (sentence[:, None] == sentence)


def epoch_batches(pairs: int, batch_size: int, seed: int, epoch: int, devices: int = 1) -> list[np.ndarray]:
    """Shuffle the rows 0 to pairs - 1 by (seed, epoch) and cut them into batches, which all devices share.

    The last, incomplete batch is dropped (its contrastive loss would have fewer negatives), unless it is the only one;
    that one is cut to a multiple of `devices`.
    """
    order = np.random.default_rng([seed, epoch]).permutation(pairs)
    if pairs < batch_size:
        return [order[: pairs // devices * devices]]
    return list(order[: pairs // batch_size * batch_size].reshape(-1, batch_size))


Split = tuple[VideoFeatures, TextFeatures]


def training_features(store: FeatureStore) -> tuple[Split, Split, str]:
    """Choose the training and the validation split: (train, validation, what the validation split is).

    The test split is never read. A data set without captions for validation has a tenth of its training videos held
    out, the same whatever a run's seed; then there must be MIN_VIDEOS of them. Raises BadInput where too few videos
    have captions.
    """
    videos, texts = store.videos("train", mmap=True), store.texts("train")
    captioned = np.array(sorted(set(texts.video_ids)))
    val_texts = store.texts("val")
    needed = MIN_TO_TRAIN if len(val_texts) else MIN_VIDEOS
    if len(captioned) < needed:
        hold_out = "" if len(val_texts) else " and hold some out for validation"
        raise BadInput(
            f"{store.path}: too few training videos to train a head{hold_out}",
            expected=f"at least {needed} with captions in the train split",
            got=f"{len(captioned)} (and {len(set(store.texts().video_ids)) - len(captioned)} in other splits)",
            fix="use a head trained on a larger data set (`--head-dir`), or mean pooling, which needs no training",
        )
    if len(val_texts):
        return (videos, texts), (store.videos("val"), val_texts), "val"
    order = np.random.default_rng(HOLD_OUT_SEED).permutation(captioned)
    held = set(order[: max(1, round(HOLD_OUT * len(captioned)))].tolist())
    rest, val = (_only(videos, texts, held, inside) for inside in (False, True))
    return rest, val, f"{len(held)} of {len(captioned)} training videos held out"


def _only(videos: VideoFeatures, texts: TextFeatures, chosen: set[str], inside: bool) -> Split:
    def rows(ids: Sequence[str]) -> np.ndarray:
        return np.flatnonzero([(video_id in chosen) == inside for video_id in ids])

    return videos.select(rows(videos.video_ids)), texts.select(rows(texts.video_ids))
