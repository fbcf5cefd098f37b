"""What the server asks of a retriever."""

from typing import Any, Protocol

import numpy as np

from pipeline.frame_size import FrameSize
from pipeline.retrieve.search import Wanted


class Backend(Protocol):
    """A warm retriever over the live generation of one index."""

    @property
    def index(self) -> str:
        """The index's name."""

    @property
    def generation(self) -> str:
        """The name of the generation that answers now."""

    def __len__(self) -> int:
        """Videos and clips in the index."""

    def embed(self, texts: list[str]) -> np.ndarray:
        """(N, D) float32 of N sentences."""

    def search_vectors(self, vectors: np.ndarray, weights: np.ndarray, wanted: Wanted) -> list[list[Any]]:
        """The hits of each query: a sum of sentences' vectors (N, D), weighted by its row of `weights` (Q, N)."""

    @property
    def frame_size(self) -> FrameSize:
        """The size that the encoder takes pictures in."""

    def search_image(self, image: np.ndarray, wanted: Wanted) -> list[Any]:
        """The hits most like a picture (H, W, 3) uint8 RGB of `frame_size`."""

    def similar(self, video_id: str, wanted: Wanted) -> list[Any]:
        """The hits most like an indexed video, itself left out."""

    def location(self, video_id: str) -> str | None:
        """The path of an indexed video; None if the index does not hold it."""

    def captions(self, video_id: str) -> list[str]: ...

    def metadata(self, video_id: str) -> dict[str, Any]:
        """Its values of the columns that filters name."""

    def columns(self) -> dict[str, str]:
        """Columns that filters name, with their SQL types."""

    def refresh(self) -> bool:
        """Move to a newer generation if there is one. Searches go on meanwhile."""
