"""A store's clips decoded again and again, in the order asked for: what end-to-end training reads in every epoch.

The same decoder, frames and pixels as in `extract`, by the same processes; uint8 frames travel.

Notation: V clips, F frames, H x W the encoder's size.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.clip.encoder import Encoder
from pipeline.clip.text import tokenise
from pipeline.errors import BadInput
from pipeline.video.fetch import local_path
from pipeline.video.job import DecodeSettings, Job
from pipeline.video.limits import DecodeFailure
from pipeline.video.pool import Decoded, DecodePool


def require_files(sources: Sequence[str]) -> None:
    """Raises BadInput that names the first local file that is not there."""
    for source in sources:
        path = local_path(source)
        if path is not None and not Path(path).exists():
            raise BadInput(
                f"no video file {path}: end-to-end training decodes the videos in every epoch",
                fix="put it back where `extract` found it, or train with --train-blocks, which needs no videos",
            )


class DecodedInputs:
    """The clips `jobs` and `captions` as inputs of all of CLIP; frame_mask (V, F): the frames that the store has."""

    def __init__(
        self,
        jobs: Sequence[Job],
        frame_mask: np.ndarray,
        captions: Sequence[str],
        encoder: Encoder,
        settings: DecodeSettings,
        workers: int,
    ):
        self._jobs, self._counts = jobs, frame_mask.sum(axis=1)
        self._settings, self._workers = settings, workers
        self._tokens, self._lengths = tokenise(encoder, captions)

    def frame_inputs(self, batches: Sequence[np.ndarray]) -> Iterator[Tensor]:
        """For each array of n rows of clips: (n, F, H, W, 3) uint8, black where a clip has fewer frames.

        Decoding runs ahead over the batches. Raises BadInput for a clip that is not what the store was made of.
        """
        order = np.concatenate(batches).tolist()
        jobs = [replace(self._jobs[row], index=place) for place, row in enumerate(order)]
        with DecodePool(jobs, self._settings, self._workers) as pool:
            results = iter(pool)
            for rows in batches:
                yield torch.from_numpy(np.stack([self._clip(row, next(results)) for row in rows.tolist()]))

    def _clip(self, row: int, result: tuple[Job, Decoded | DecodeFailure]) -> np.ndarray:
        job, decoded = result
        if isinstance(decoded, DecodeFailure):
            slow = "run the same command again on a less busy machine: it goes on where it stopped"
            raise BadInput(
                f"{job.source} cannot be decoded any more ({decoded.kind}: {decoded.message})",
                fix=slow
                if decoded.kind == "TimeLimit"
                else "put the file back as it was when its features were extracted",
            )
        if len(decoded.frames) != self._counts[row]:
            raise BadInput(
                f"{job.source} is not the file that its features were extracted from",
                expected=f"{self._counts[row]} frames",
                got=len(decoded.frames),
                fix="extract the data set again",
            )
        size = self._settings.size
        clip = np.zeros((self._settings.num_frames, size.height, size.width, 3), np.uint8)
        clip[: len(decoded.frames)] = decoded.frames
        return clip

    def text_inputs(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """n rows of captions -> token ids (n, L), cut to the longest of them, and their lengths (n,)."""
        places = torch.from_numpy(rows)
        lengths = self._lengths[places]
        return self._tokens[places, : int(lengths.max())], lengths
