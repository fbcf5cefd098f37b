"""Batches for `dits_head.distill.Student`: those of a head, and what its teacher makes of their texts."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from pipeline.train.batches import BatchSource


class TeacherSource:
    """`source`'s batches with `targets` (B, D) beside them: the rows of the teacher's aligned texts (T, D)."""

    def __init__(self, source: BatchSource, aligned: np.ndarray):
        self._source, self._aligned = source, torch.from_numpy(aligned)

    def __len__(self) -> int:
        return len(self._source)

    def batches(self, batches: Sequence[np.ndarray]) -> Iterator[dict[str, Tensor]]:
        return map(self.batch, batches)

    def batch(self, pairs: np.ndarray) -> dict[str, Tensor]:
        targets = self._aligned[torch.from_numpy(pairs)].to(self._source.device)
        return {**self._source.batch(pairs), "targets": targets}
