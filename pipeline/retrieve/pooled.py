"""The pooled vectors of a corpus, in a file instead of in memory: made block by block, mapped where they are read."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dits_head.head import RetrievalHead
from dits_head.inference import Frames, pooled_blocks
from pipeline.retrieve.exact_search import normalised


def pool_to_file(head: RetrievalHead, videos: Frames, folder: Path) -> NDArray[np.float16]:
    """Pool every video, and keep the vectors as an index generation keeps them: of unit length, in float16.

    The file has no name: its space is free again when the array is let go, however the process ends.

    Args:
        head: pools the videos.
        videos: V of them, in memory or mapped; `dits_head.inference.BLOCK` are in memory at a time.
        folder: on the disk that has room for 2 D M bytes a video; made where it is missing.

    Returns:
        (V, D) float16 mapped, or (V, M, D) where the head keeps M vectors a video.

    Raises:
        BadInput: a vector is not finite, or zero.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shape: tuple[int, ...] = ()
    with tempfile.TemporaryFile(dir=folder) as file:
        for block in pooled_blocks(head, videos):
            unit = normalised(block.reshape(-1, block.shape[-1])).astype(np.float16)
            file.write(unit.data)
            shape = block.shape[1:]
        file.flush()
        shape = (len(videos.frame_mask), *shape)
        mapped: Any = np.memmap(file, np.float16, "r", shape=shape)  # keeps the file after it is closed
    return mapped  # type: ignore[no-any-return]
