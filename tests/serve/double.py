"""A backend that needs no model: sentences are counted words, pictures are compared by their mean colour."""

import threading
import time
import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.errors import BadInput
from pipeline.frame_size import FrameSize
from pipeline.retrieve.hits import Hit, best_hits
from pipeline.retrieve.search import Wanted


@dataclass(frozen=True)
class Clip:
    video_id: str
    path: str
    caption: str
    moment: float = 0.5
    colour: tuple[int, int, int] = (0, 0, 0)
    metadata: dict[str, Any] = field(default_factory=dict)


def words(text: str) -> np.ndarray:
    vector = np.zeros(512, np.float32)
    for word in text.lower().split():
        vector[zlib.crc32(word.encode()) % 512] += 1
    return vector / max(1e-9, float(np.linalg.norm(vector)))


class Double:
    """Answers `where` of the one form `column = 'value'`; anything else is a mistake, as in SQL."""

    index, generation = "toy", "gen-000001"
    frame_size = FrameSize(32, 32)

    def __init__(self, clips: list[Clip], seconds: float = 0.0) -> None:
        self.clips = {clip.video_id: clip for clip in clips}
        self.seconds = seconds
        self.embedded: list[list[str]] = []
        self.searched: list[int] = []
        self.next_generation: str | None = None
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.clips)

    def embed(self, texts: list[str]) -> np.ndarray:
        self.embedded.append(list(texts))
        return np.stack([words(text) for text in texts])

    def search_vectors(self, vectors: np.ndarray, weights: np.ndarray, wanted: Wanted) -> list[list[Hit]]:
        assert self._lock.acquire(blocking=False), "one thread searches at a time"
        try:
            self.searched.append(len(weights))
            time.sleep(self.seconds)
            kept = self._kept(wanted.where)
            return [
                self._ranked({c.video_id: float(words(c.caption) @ v) for c in kept}, wanted) for v in weights @ vectors
            ]
        finally:
            self._lock.release()

    def search_image(self, image: np.ndarray, wanted: Wanted) -> list[Hit]:
        mean = image.astype(np.float32).reshape(-1, 3).mean(0)
        scores = {c.video_id: -float(np.abs(mean - np.array(c.colour)).sum()) for c in self._kept(wanted.where)}
        return self._ranked(scores, wanted)

    def similar(self, video_id: str, wanted: Wanted) -> list[Hit]:
        own = words(self.clips[video_id].caption)
        scores = {c.video_id: float(words(c.caption) @ own) for c in self._kept(wanted.where) if c.video_id != video_id}
        return self._ranked(scores, wanted)

    def location(self, video_id: str) -> str | None:
        return self.clips[video_id].path if video_id in self.clips else None

    def captions(self, video_id: str) -> list[str]:
        return [self.clips[video_id].caption]

    def metadata(self, video_id: str) -> dict[str, Any]:
        return self.clips[video_id].metadata

    def columns(self) -> dict[str, str]:
        return {name: "VARCHAR" for clip in self.clips.values() for name in clip.metadata}

    def refresh(self) -> bool:
        if self.next_generation in (None, self.generation):
            return False
        self.generation = self.next_generation
        return True

    def _kept(self, where: str | None) -> list[Clip]:
        if where is None:
            return list(self.clips.values())
        column, _, value = where.partition("=")
        if not value or column.strip() not in self.columns():
            raise BadInput("the condition cannot be read", got=where)
        return [c for c in self.clips.values() if c.metadata.get(column.strip()) == value.strip().strip("'")]

    def _ranked(self, scores: dict[str, float], wanted: Wanted) -> list[Hit]:
        best = sorted(scores, key=lambda key: -scores[key])
        ranked = [self._hit(self.clips[key], scores[key]) for key in best]
        return best_hits(ranked, wanted.top, merge=wanted.merge, per_file=wanted.per_file)

    def _hit(self, clip: Clip, score: float) -> Hit:
        if "#t=" in clip.video_id:
            start, end = (float(x) for x in clip.video_id.rpartition("#t=")[2].split(","))
            return Hit(clip.video_id, clip.path, score, start, end, clip.moment)
        return Hit(clip.video_id, clip.path, score, None, None, clip.moment)
