"""The built-in data set `shapes-hard`: clips with a gap of their own, under captions of differing detail.

The second world that claims are made on: what a text-only aligner can undo in `shapes` lies on the side of the videos
here as well. `shapes_hard_world.py` says how; the backbone is `shapes-clip`, as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.datasets.shapes import World, make_clips, refuse_files
from pipeline.datasets.shapes_hard_world import clip_captions, clip_frames
from pipeline.stores.manifest import Manifest

SHAPES_HARD = World("shapes-hard", 1, clip_frames, clip_captions)


def generate(
    dataset_dir: Path,
    train: int = 2000,
    val: int = 200,
    test: int = 1000,
    seed: int = 0,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Manifest:
    """`shapes.make_clips` of this data set."""
    return make_clips(SHAPES_HARD, dataset_dir, {"train": train, "val": val, "test": test}, seed, workers, progress)


def build(videos: Path | None, annotations: Path | None, dataset_dir: Path, **options: Any) -> Manifest:
    """As `shapes.build`."""
    refuse_files(SHAPES_HARD, videos or annotations)
    return generate(dataset_dir, **options)
