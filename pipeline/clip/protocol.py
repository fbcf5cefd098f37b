"""The encoder protocol: all that extraction and search ask of a model, whoever made it.

`pipeline.clip.encoder.Encoder` implements it for open_clip's models, whose top blocks can be trained besides;
`pipeline.clip.st_encoder.SentenceTransformersEncoder` for the image-text models of `sentence-transformers`. Another
library is one more file like that one, and one more prefix in `pipeline.clip.embedders`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.frame_size import FrameSize

if TYPE_CHECKING:
    import numpy as np
    import torch

ST_PREFIX = "st:"


class Embedder(Protocol):
    """Frames and captions to embeddings in one space."""

    settings: dict[str, Any]
    """Its part of a store's fingerprint: model, pretrained, weights_sha256, activation, preprocessing, dtype,
    embed_dim."""
    frame_size: FrameSize
    """The frames that it takes; the decoding processes make them so."""

    @property
    def dim(self) -> int:
        """D, the width of an embedding."""

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of a frame."""

    @property
    def context_length(self) -> int | None:
        """Tokens after which a caption is cut; None: it tells no limit."""

    def embed_frames(self, frames: "np.ndarray | torch.Tensor") -> "torch.Tensor":
        """(N, H, W, 3) uint8 RGB of `frame_size` -> (N, D) float32 on the CPU."""

    def embed_texts(
        self, sentences: Sequence[str], *, batch_size: int = 256, long_captions: str = "cut"
    ) -> "torch.Tensor":
        """N sentences -> (N, D) float32 on the CPU; `long_captions`: "cut", or "windows" over all tokens."""

    def count_cut(self, sentences: Sequence[str]) -> int | None:
        """How many sentences are longer than the context; None where the tokenizer does not tell."""
