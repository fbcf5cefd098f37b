"""The built-in data set `shapes`: real H.264 clips of moving shapes, made by a seeded generator.

`shapes_world.py` says what the clips show and how they are described, `shapes_drawing.py` how they look; this module
makes the files. Clips lie in
`<dataset_dir>/videos/<split>-<number>.mp4`; a second run makes only those that are missing.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.datasets.shapes_drawing import render
from pipeline.datasets.shapes_world import FPS, FRAME_SIDE, clip_captions, make_clip
from pipeline.errors import BadInput
from pipeline.stores.atomic import read_json, write_json
from pipeline.stores.manifest import SPLITS, Manifest, VideoEntry, write_manifest
from pipeline.video.pool import available_cores

NAME = "shapes"
VERSION = 1  # of what a seed means; raise it when clips or captions change
_CLIPS_A_TASK = 16


def generate(
    dataset_dir: Path,
    train: int = 2000,
    val: int = 200,
    test: int = 1000,
    seed: int = 0,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Manifest:
    """Make the clips that are not there yet, write `manifest.parquet`, and return the manifest.

    A clip depends on (seed, split, number) alone: more clips asked for later leave the first ones as they are.
    `workers` is the number of processes (default: one a core); `progress(made, to_make)` is called in this process.
    Raises BadInput when a count is negative or the folder holds clips of another seed.
    """
    counts = dict(zip(SPLITS, (train, val, test), strict=True))
    if min(counts.values()) < 0:
        raise BadInput("shapes: the number of clips of a split may not be negative", got=counts)
    _claim_folder(dataset_dir, seed)
    entries = tuple(_entry(seed, split, index) for split, count in counts.items() for index in range(count))
    manifest = Manifest(NAME, str(dataset_dir.resolve()), entries, _protocol(seed, counts))
    clips = [(split, index) for split, count in counts.items() for index in range(count)]
    missing = [clip for clip, entry in zip(clips, entries, strict=True) if not (dataset_dir / entry.path).exists()]
    _write_clips(dataset_dir, seed, missing, workers or available_cores(), progress)
    write_manifest(manifest, dataset_dir / "manifest.parquet")
    return manifest


def build(videos: Path | None, annotations: Path | None, dataset_dir: Path, **options: Any) -> Manifest:
    """`generate` under the signature that all data sets share. Raises BadInput when given files: it makes its own."""
    if videos or annotations:
        raise BadInput(
            "shapes makes its own videos and captions", got=videos or annotations, fix="leave the option out"
        )
    return generate(dataset_dir, **options)


def write_clip(path: Path, seed: int, split: str, index: int) -> None:
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
            for scene in make_clip(seed, split, index).scenes:
                for number in range(scene.num_frames):
                    picture = render(scene, time=number / (scene.num_frames - 1))
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _write_clips(
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
        for number in pool.map(partial(_write_some, dataset_dir, seed), tasks):
            made += number
            if progress:
                progress(made, len(clips))


def _write_some(dataset_dir: Path, seed: int, clips: list[tuple[str, int]]) -> int:
    for split, index in clips:
        path = dataset_dir / _relative_path(split, index)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_clip(path, seed, split, index)
    return len(clips)


def _entry(seed: int, split: str, index: int) -> VideoEntry:
    return VideoEntry(_video_id(split, index), _relative_path(split, index), split, clip_captions(seed, split, index))


def _video_id(split: str, index: int) -> str:
    return f"{split}-{index:05d}"


def _relative_path(split: str, index: int) -> str:
    return f"videos/{_video_id(split, index)}.mp4"


def _protocol(seed: int, counts: dict[str, int]) -> dict[str, Any]:
    return {
        "captions": "every caption is a query of its own; each describes a part of its clip",
        "counts": counts,
        "seed": seed,
        "version": VERSION,
    }


def _claim_folder(dataset_dir: Path, seed: int) -> None:
    """Note the seed in the folder, so that clips of two seeds never lie side by side."""
    note, path = {"seed": seed, "version": VERSION}, dataset_dir / "shapes.json"
    if not path.exists():
        write_json(path, note)
    elif (found := read_json(path)) != note:
        raise BadInput(
            f"{dataset_dir} holds clips of other settings", expected=note, got=found, fix="use another folder"
        )
