"""`extract --split`: the whole files of a manifest become clips.

What is measured of each file (its length, its scene changes) is appended to `clips.jsonl` in the data set's folder as
soon as it is known, so that a run that was stopped does not measure it again; a file that changed is measured anew.
"""

import json
import logging
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np

from pipeline.extract.settings import ExtractSettings
from pipeline.frame_size import FrameSize
from pipeline.progress import progress
from pipeline.stores.clip_ids import clip_id
from pipeline.stores.manifest import CORPUS, Manifest, VideoEntry
from pipeline.video.fetch import local_path
from pipeline.video.job import DecodeSettings, Job
from pipeline.video.limits import DecodeFailure
from pipeline.video.pool import Decoded, DecodePool
from pipeline.video.scenes import SceneDetector, make_detector
from pipeline.video.windows import Split

_PIECE = 30.0  # seconds of frames that a detector is fed at a time
_PIECE_FRAMES = 3600  # of a file of more than 120 frames a second some are left out
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measured:
    """seconds: the file's length; cuts: seconds at which scenes begin; stamp: size and time of the file."""

    source: str
    stamp: tuple[int, int] | None
    seconds: float
    cuts: tuple[float, ...] = ()


def split_manifest(manifest: Manifest, split: Split, settings: ExtractSettings, folder: Path) -> Manifest:
    """Cut the whole files of a manifest into clips.

    Args:
        manifest: windows in it stay as they are; a captioned whole file stays beside its clips, for its captions.
        split: the rule; it becomes part of the manifest's name, so that clips of two rules are never mixed.
        settings: decoder, limits, processes, device.
        folder: where `clips.jsonl` is kept: the data set's folder in the workspace.

    Returns:
        The manifest of the clips. A file that cannot be measured stays whole, and fails or not in stage 1.
    """
    whole = [entry for entry in manifest.entries if entry.is_whole]
    sources = [manifest.resolve(entry) for entry in whole]
    measured = _measured(sources, split, settings, folder / "clips.jsonl")
    taken = {entry.video_id for entry in manifest.entries}
    entries: list[VideoEntry] = []
    for entry in manifest.entries:
        found = measured.get(manifest.resolve(entry)) if entry.is_whole else None
        if found is None or entry.captions:
            entries.append(entry)
        if found is not None:
            clips = [_clip(entry, start, end) for start, end in split.windows(found.seconds, found.cuts)]
            entries += [clip for clip in clips if clip.video_id not in taken]
    log.info(f"--split: {len(entries)} clips of {len(manifest.entries)} entries")
    rule = {**asdict(split), "files": len(whole), "measured": len(measured)}
    if split.max_length == float("inf"):
        del rule["max_length"]
    return replace(manifest, entries=tuple(entries), protocol={**manifest.protocol, "clips": rule})


def split_name(name: str, split: Split) -> str:
    """Name of the clips of a data set.

    >>> split_name("films", Split(length=10.0, stride=10.0))
    'films.every-10'
    """
    return f"{name}.{split.slug}"


def _clip(entry: VideoEntry, start: float, end: float) -> VideoEntry:
    return VideoEntry(clip_id(entry.video_id, start, end), entry.path, CORPUS, (), start, end)


# -- measuring


def _measured(sources: Sequence[str], split: Split, settings: ExtractSettings, cache: Path) -> dict[str, Measured]:
    known = {row.source: row for row in _read(cache)}
    found = {s: known[s] for s in sources if s in known and known[s].stamp is not None and known[s].stamp == _stamp(s)}
    missing = [source for source in dict.fromkeys(sources) if source not in found]
    if not missing:
        return found
    cache.parent.mkdir(parents=True, exist_ok=True)
    decoding = settings.decoding(FrameSize(8, 8))
    rows = _lengths(missing, decoding, settings)
    if split.detector:
        rows = _scenes(rows, split.detector, decoding, settings)
    with cache.open("a") as file, progress("files") as step:
        if cache.stat().st_size and not cache.read_bytes().endswith(b"\n"):
            file.write("\n")  # the last row of a run that was killed
        for number, row in enumerate(rows, start=1):
            found[row.source] = row
            file.write(json.dumps(asdict(row)) + "\n")
            file.flush()
            step(number, len(missing))
    return found


def _read(cache: Path) -> Iterator[Measured]:
    """The rows of earlier runs, later ones last; what is not one is passed over: that file is measured again."""
    if not cache.exists():
        return
    for line in cache.read_text(errors="replace").splitlines():
        try:
            row = json.loads(line)
            stamp = tuple(row["stamp"]) if row["stamp"] else None
            yield Measured(row["source"], stamp, float(row["seconds"]), tuple(row["cuts"]))
        except (ValueError, KeyError, TypeError):
            log.debug(f"{cache}: a row that is cut off")


def _stamp(source: str) -> tuple[int, int] | None:
    """Size and modification time (ns) of a local file; None for what must be asked for."""
    path = local_path(source)
    if path is None or not os.path.isfile(path):
        return None
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


def _lengths(sources: Sequence[str], decoding: DecodeSettings, settings: ExtractSettings) -> Iterator[Measured]:
    jobs = [Job(index, source) for index, source in enumerate(sources)]
    with DecodePool(jobs, replace(decoding, measure=True), settings.worker_count) as pool:
        for job, result in pool:
            if isinstance(result, DecodeFailure):
                log.info(f"{job.source} stays whole: {result.message}")
            else:
                yield Measured(job.source, _stamp(job.source), float(result.times[1]))


def _scenes(
    rows: Iterator[Measured], detector: str, decoding: DecodeSettings, settings: ExtractSettings
) -> Iterator[Measured]:
    """Every frame of every file through a detector, file after file, a piece at a time."""
    files = list(rows)
    counts = [max(1, math.ceil(row.seconds / _PIECE)) for row in files]
    jobs: list[Job] = []
    for row, count in zip(files, counts, strict=True):
        for piece in range(count):
            end = None if piece == count - 1 else (piece + 1) * _PIECE
            jobs.append(Job(len(jobs), row.source, piece * _PIECE, end))
    size = make_detector(detector, settings.device).size
    with DecodePool(jobs, replace(decoding, num_frames=_PIECE_FRAMES, size=size), settings.worker_count) as pool:
        results = iter(pool)
        for row, count in zip(files, counts, strict=True):
            pieces = (result for _, result in islice(results, count))
            try:
                cuts = scene_cuts(pieces, make_detector(detector, settings.device))
            except DecodeFailure as failure:
                log.info(f"{row.source} stays whole: {failure.message}")
                for _ in pieces:
                    pass
            else:
                yield replace(row, cuts=tuple(cuts))


def scene_cuts(pieces: Iterable[Decoded | DecodeFailure], detector: SceneDetector) -> list[float]:
    """Seconds at which scenes begin, from all frames of a file in pieces. Raises DecodeFailure when one has failed; a
    piece without a frame is none."""
    times: list[np.ndarray] = []
    for piece in pieces:
        if isinstance(piece, Decoded):
            detector.feed(piece.frames)
            times.append(piece.times)
        elif piece.kind != "EmptyWindow":
            raise piece
    seconds = np.concatenate([*times, np.zeros(0)])
    return [float(seconds[index]) for index in detector.cuts()]
