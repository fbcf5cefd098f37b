"""The modality gap over relevant pairs, each caption with its own video, before and after its text is aligned.

Before: the encoder's text t against v|t; after: the aligned text against the same v|t (the paper's Figures 3 to 6 and
Table 9). Norms are given twice: of the vectors as they are (`raw`: CLIP's text and X-Pool's layer-normed v|t differ
in length, which no cosine sees), and of both at unit length. The paper does not say which it measures; its mean L1
norm of 23.76 at a mean cosine of 0.122 is what unit vectors give: |v - t|_2 = sqrt(2 - 2 * 0.122) = 1.33, and over 512
normal components |v - t|_1 = sqrt(2 / pi) * sqrt(512) * 1.33 = 23.9. So `unit` stands beside the paper's figures.
A sampler that starts from unit-length text (`HeadConfig.normalise`) also changes the text's length: compare `unit`.

Notation: T captions, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import BadInput
from pipeline.retrieve.scorer import RetrievalHead, Scorer
from pipeline.stores.features import TextFeatures, VideoFeatures, text_to_video

Vectors = NDArray[np.float32]
Values = dict[str, NDArray[Any]]  # measure -> (T,)
PAPER = {"fix CLIP": {"L1": 23.76, "cosine": 0.122}, "joint": {"L1": 18.13, "cosine": 0.168}}  # Table 9, MSR-VTT


@dataclass(frozen=True)
class RelevantPairs:
    """Captions and their own videos; (T, D) float32 each, raw."""

    text: Vectors
    """The encoder's text embedding."""
    aligned: Vectors
    """The text that the head compares."""
    video: Vectors
    """v|t, the video pooled for this text."""

    @classmethod
    def of(cls, head: RetrievalHead, videos: VideoFeatures, texts: TextFeatures) -> RelevantPairs:
        """Raises BadInput for a head whose compared text depends on the video, or lies in another space than CLIP's."""
        aligned, video = Scorer(head, videos).relevant_pairs(texts.text_embeds, text_to_video(texts, videos))
        if aligned.shape != texts.text_embeds.shape:
            raise BadInput(
                f"no gap of head {head.config.head!r}: what it compares is no vector of CLIP's space",
                fix="choose another --run",
            )
        return cls(texts.text_embeds.astype(np.float32), aligned, video)

    @property
    def before(self) -> Values:
        return gap(self.text, self.video)

    @property
    def after(self) -> Values:
        return gap(self.aligned, self.video)

    def histograms(self) -> dict[str, Values]:
        """{measure: {"before": values (T,), "after": values}}."""
        after = self.after
        return {name: {"before": values, "after": after[name]} for name, values in self.before.items()}

    def means(self) -> dict[str, dict[str, float]]:
        """{measure: {"before": mean over the pairs, "after": mean}}."""
        return {
            name: {when: float(values.mean()) for when, values in groups.items()}
            for name, groups in self.histograms().items()
        }


def gap(text: Vectors, video: Vectors) -> Values:
    """Each pair's gap, (T, D) and (T, D) -> (T,) each: the L2 and L1 norm of v - t, of unit and of raw vectors, and the
    cosine.

    >>> values = gap(np.array([[3.0, 0.0]]), np.array([[0.0, 4.0]]))
    >>> {name: round(float(of[0]), 3) for name, of in values.items()}
    {'L2 unit': 1.414, 'L1 unit': 2.0, 'L2 raw': 5.0, 'L1 raw': 7.0, 'cosine': 0.0}
    """
    unit_text, unit_video = unit(text), unit(video)
    values: Values = {}
    for name, delta in (("unit", unit_video - unit_text), ("raw", video - text)):
        values |= {f"L2 {name}": np.linalg.norm(delta, axis=1), f"L1 {name}": np.abs(delta).sum(1)}
    return values | {"cosine": (unit_text * unit_video).sum(1)}


def unit(vectors: NDArray[Any]) -> NDArray[Any]:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def principal_plane(*groups: Vectors) -> tuple[list[NDArray[Any]], NDArray[Any]]:
    """Each group (N, D) in the plane of the first two principal components of them all, (N, 2), and the parts of the
    variance that the two hold (2,)."""
    together = np.concatenate(groups).astype(np.float64)
    centre = together.mean(0)
    _, lengths, directions = np.linalg.svd(together - centre, full_matrices=False)
    parts = lengths**2 / max((lengths**2).sum(), 1e-12)
    return [(group - centre) @ directions[:2].T for group in groups], parts[:2]
