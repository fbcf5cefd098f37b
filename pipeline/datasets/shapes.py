"""The built-in data set `shapes`: real H.264 clips of moving shapes, made by a seeded generator.

`shapes_world.py` says what the clips show and how they are described, `shapes_drawing.py` how they look; this module
makes the files, of any `World`. Clips lie in `<dataset_dir>/videos/<split>-<number>.mp4`; a second run makes only those
that are missing.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.datasets.shapes_drawing import render
from pipeline.datasets.shapes_world import FPS, FRAME_SIDE, clip_captions, make_clip
from pipeline.errors import BadInput
from pipeline.stores.atomic import write_json
from pipeline.stores.integrity import read_json
from pipeline.stores.manifest import SPLITS, Manifest, VideoEntry, write_manifest
from pipeline.video.pool import available_cores

_CLIPS_A_TASK = 16


@dataclass(frozen=True)
class World:
    """A generator of clips. Its functions are of (seed, split, number of the clip), and of nothing else."""

    name: str
    version: int
    """Of what a seed means; raise it when clips or captions change."""
    frames: Callable[[int, str, int], Iterator[NDArray[np.uint8]]]
    """A clip's frames in order, (FRAME_SIDE, FRAME_SIDE, 3) uint8 RGB."""
    captions: Callable[[int, str, int], tuple[str, ...]]


def clip_frames(seed: int, split: str, index: int) -> Iterator[NDArray[np.uint8]]:
    """The frames of `make_clip(seed, split, index)`."""
    for scene in make_clip(seed, split, index).scenes:
        for number in range(scene.num_frames):
            yield render(scene, time=number / (scene.num_frames - 1))


SHAPES = World("shapes", 1, clip_frames, clip_captions)


def generate(
    dataset_dir: Path,
    train: int = 2000,
    val: int = 200,
    test: int = 1000,
    seed: int = 0,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Manifest:
    """`make_clips` of this data set."""
    return make_clips(SHAPES, dataset_dir, {"train": train, "val": val, "test": test}, seed, workers, progress)


def make_clips(
    world: World,
    dataset_dir: Path,
    counts: dict[str, int],
    seed: int,
    workers: int | None,
    progress: Callable[[int, int], None] | None,
) -> Manifest:
    """Make the clips that are not there yet, write `manifest.parquet`, and return the manifest.

    A clip depends on (seed, split, number) alone: more clips asked for later leave the first ones as they are.
    `workers` is the number of processes (default: one a core); `progress(made, to_make)` is called in this process.
    Raises BadInput when a count is negative or the folder holds clips of another seed.
    """
    counts = {split: counts[split] for split in SPLITS}
    if min(counts.values()) < 0:
        raise BadInput(f"{world.name}: the number of clips of a split may not be negative", got=counts)
    _claim_folder(dataset_dir, world, seed)
    entries = tuple(_entry(world, seed, split, index) for split, count in counts.items() for index in range(count))
    manifest = Manifest(world.name, str(dataset_dir.resolve()), entries, _protocol(world, seed, counts))
    clips = [(split, index) for split, count in counts.items() for index in range(count)]
    missing = [clip for clip, entry in zip(clips, entries, strict=True) if not (dataset_dir / entry.path).exists()]
    _write_clips(world, dataset_dir, seed, missing, workers or available_cores(), progress)
    write_manifest(manifest, dataset_dir / "manifest.parquet")
    return manifest


def build(videos: Path | None, annotations: Path | None, dataset_dir: Path, **options: Any) -> Manifest:
    """`generate` under the signature that all data sets share. Raises BadInput when given files: it makes its own."""
    refuse_files(SHAPES, videos or annotations)
    return generate(dataset_dir, **options)


def refuse_files(world: World, given: Path | None) -> None:
    """Raises BadInput where there are files: a generator takes none."""
    if given:
        raise BadInput(f"{world.name} makes its own videos and captions", got=given, fix="leave the option out")


def write_clip(world: World, path: Path, seed: int, split: str, index: int) -> None:
    """Encode one clip: H.264 in mp4, yuv420p, FRAME_SIDE x FRAME_SIDE pixels, FPS frames a second. Atomic.

    Not fsynced: a lost clip costs milliseconds to make again, three thousand fsyncs cost a minute.
    """
    import av

    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        with av.open(str(temporary), "w", format="mp4") as container:
            stream = container.add_stream("libx264", rate=FPS, options={"preset": "veryfast", "crf": "20"})
            stream.width = stream.height = FRAME_SIDE
            stream.pix_fmt = "yuv420p"
            stream.codec_context.thread_count = 1
            for picture in world.frames(seed, split, index):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _write_clips(
    world: World,
    dataset_dir: Path,
    seed: int,
    clips: list[tuple[str, int]],
    workers: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    if not clips:
        return
    tasks = [clips[start : start + _CLIPS_A_TASK] for start in range(0, len(clips), _CLIPS_A_TASK)]
    # Not forked: the caller may hold threads (torch, a progress bar) that a fork would cut off.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(tasks)), mp_context=context) as pool:
        made = 0
        for number in pool.map(partial(_write_some, world, dataset_dir, seed), tasks):
            made += number
            if progress:
                progress(made, len(clips))


def _write_some(world: World, dataset_dir: Path, seed: int, clips: list[tuple[str, int]]) -> int:
    for split, index in clips:
        path = dataset_dir / _relative_path(split, index)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_clip(world, path, seed, split, index)
    return len(clips)


def _entry(world: World, seed: int, split: str, index: int) -> VideoEntry:
    return VideoEntry(_video_id(split, index), _relative_path(split, index), split, world.captions(seed, split, index))


def _video_id(split: str, index: int) -> str:
    return f"{split}-{index:05d}"


def _relative_path(split: str, index: int) -> str:
    return f"videos/{_video_id(split, index)}.mp4"


def _protocol(world: World, seed: int, counts: dict[str, int]) -> dict[str, Any]:
    return {
        "captions": "every caption is a query of its own; each describes a part of its clip",
        "counts": counts,
        "seed": seed,
        "version": world.version,
    }


def _claim_folder(dataset_dir: Path, world: World, seed: int) -> None:
    """Note the seed in the folder, so that clips of two seeds never lie side by side."""
    note, path = {"seed": seed, "version": world.version}, dataset_dir / "shapes.json"
    if not path.exists():
        write_json(path, note)
    elif (found := read_json(path)) != note:
        raise BadInput(
            f"{dataset_dir} holds clips of other settings", expected=note, got=found, fix="use another folder"
        )
