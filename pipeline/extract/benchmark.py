"""`extract --benchmark`: how fast decoding, encoding and both together go on the user's own files, and which bounds.

The three are run on the same clips, one after the other, each with what it would have in a real run: decoding with all
its processes and nobody encoding, encoding on frames that are there already, and the whole into a store that is then
thrown away.
"""

import os
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.clip.protocol import Embedder
from pipeline.errors import BadInput
from pipeline.extract.driver import extract
from pipeline.extract.settings import ExtractSettings, encoder_for
from pipeline.stores.manifest import Manifest
from pipeline.video.job import Job
from pipeline.video.pool import Decoded, DecodePool


@dataclass(frozen=True)
class Rates:
    """Seconds over `clips` clips (`frames` frames) that decode; overhead = whole / max(decode, encode)."""

    clips: int
    failed: int
    frames: int
    decode_seconds: float
    encode_seconds: float
    whole_seconds: float
    workers: int
    """Decoding processes."""
    file_bytes: int
    """Of the clips' local files."""
    device: str
    model: str

    @property
    def overhead(self) -> float:
        return self.whole_seconds / max(self.decode_seconds, self.encode_seconds)

    @property
    def bound(self) -> str:
        return "decoding" if self.decode_seconds > self.encode_seconds else "encoding"

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "overhead": self.overhead, "bound": self.bound}

    def __str__(self) -> str:
        parts = ("decode", self.decode_seconds), ("encode", self.encode_seconds), ("whole", self.whole_seconds)
        lines = [
            f"{name:6} {self.frames / seconds:8.1f} frames/s  {self.clips / seconds:7.2f} clips/s"
            for name, seconds in parts
        ]
        return "\n".join([*lines, f"whole / slower part = {self.overhead:.2f}; {self.bound} bounds the run"])


def benchmark(
    manifest: Manifest, settings: ExtractSettings, *, clips: int = 64, encoder: Embedder | None = None
) -> Rates:
    """Measure on up to `clips` clips, spread over the manifest. Raises BadInput when none of them decodes."""
    encoder = encoder or encoder_for(settings)
    step = max(1, len(manifest.entries) // clips)
    chosen = replace(manifest, entries=tuple(islice(manifest.entries[::step], clips)), protocol={})
    chosen = replace(chosen, entries=tuple(replace(entry, captions=()) for entry in chosen.entries))

    started = time.perf_counter()
    decoded = _decode(chosen, settings, encoder)
    decode_seconds = time.perf_counter() - started
    if not decoded:
        raise BadInput(
            f"none of {len(chosen.entries)} clips can be decoded", fix="run extract, and see failures.parquet"
        )

    frames = np.concatenate([result.frames for result in decoded])
    settings = replace(settings, batch_size=settings.batch_size or ExtractSettings.batch_size)
    encoder.embed_frames(frames[: settings.batch_size])  # the first batch pays for warming up
    started = time.perf_counter()
    for first in range(0, len(frames), settings.batch_size):
        encoder.embed_frames(frames[first : first + settings.batch_size])
    encode_seconds = time.perf_counter() - started

    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        started = time.perf_counter()
        extract(chosen, Path(folder) / "store", settings, encoder=encoder)
        whole_seconds = time.perf_counter() - started
    failed = len(chosen.entries) - len(decoded)
    return Rates(
        len(decoded),
        failed,
        len(frames),
        decode_seconds,
        encode_seconds,
        whole_seconds,
        workers=settings.worker_count,
        file_bytes=sum(os.path.getsize(path) for path in map(chosen.resolve, chosen.entries) if os.path.isfile(path)),
        device=settings.device,
        model=encoder.settings["model"],
    )


def _decode(manifest: Manifest, settings: ExtractSettings, encoder: Embedder) -> list[Decoded]:
    jobs = [Job(index, manifest.resolve(entry), entry.start, entry.end) for index, entry in enumerate(manifest.entries)]
    with DecodePool(jobs, settings.decoding(encoder.frame_size), settings.worker_count) as pool:
        return [result for _, result in pool if isinstance(result, Decoded)]
