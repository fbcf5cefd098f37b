"""The world of `shapes-hard`: scenes as in `shapes`, filmed by a camera that the backbone never saw, told otherwise.

Three things set it apart, all fixed before any head was compared (docs/reference/shapes.md):

- a camera (`Camera`): colour cast, haze, a lit ground, tilt, distance and drift, partly the same for all clips: frames
  lie off what `shapes-clip` was trained on, so that the gap has a side in the videos too;
- distractors: two clips of three have one more scene, that no caption speaks of;
- captions of differing detail: two objects by name alone, with their motion, or with size, motion and backdrop.

Pure functions of a seed, by the same draws as `shapes_world`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations
from random import Random

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.datasets import shapes_world as usual
from pipeline.datasets.shapes_drawing import render
from pipeline.datasets.shapes_world import BACKGROUNDS, FRAME_SIDE, SIZES, Clip, Object, Scene, pick

OWN_WORD_SHARE = 0.85  # how often a caption uses the backbone's own word for an attribute
CAST = (1.0, 0.77, 0.52)  # of red, green and blue: evening light, on all clips
CAST_SPREAD = 0.06  # of a clip's own gains about it
HAZE = (0.2, 0.28)  # least and most share of HAZE_RGB in a clip's pixels
HAZE_RGB = (150, 140, 120)
GROUND_LIGHT = 30.0  # added to the ground's pixels from one edge of the frame to the other
TILT = 5.0  # degrees, most
DISTANCE = (1.0, 1.05)  # least and most; objects shrink by it
DRIFT = 4.0  # pixels, most, from a clip's middle to its ends


@dataclass(frozen=True)
class Camera:
    """How one clip is filmed."""

    gains: tuple[float, float, float]
    haze: float
    light: tuple[float, float]  # the direction in which the ground grows lighter, unit length
    tilt: float  # degrees
    distance: float
    drift: tuple[float, float]  # pixels from the middle of the clip to its end


@dataclass(frozen=True)
class HardClip:
    clip: Clip  # in the order shown
    told: tuple[int, ...]  # which of its scenes captions speak of
    camera: Camera


def make_clip(seed: int, split: str, index: int) -> HardClip:
    """The clip number `index` of a split; depends on nothing else."""
    rng = Random(f"shapes-hard/{seed}/{split}/{index}")
    told = list(usual.make_clip(seed, f"hard/{split}", index).scenes)
    scenes: list[tuple[Scene, bool]] = [(scene, True) for scene in told]
    for _ in range(pick(rng, (0, 1, 1))):
        scene = usual.make_scene(rng, pick(rng, (1, 2)), 6 + int(rng.random() * 4))
        scenes.insert(int(rng.random() * (len(scenes) + 1)), (scene, False))
    gains = tuple(gain * (1 + CAST_SPREAD * (2 * rng.random() - 1)) for gain in CAST)
    angle = 2 * math.pi * rng.random()
    camera = Camera(
        (gains[0], gains[1], gains[2]),
        HAZE[0] + (HAZE[1] - HAZE[0]) * rng.random(),
        (math.cos(angle), math.sin(angle)),
        TILT * (2 * rng.random() - 1),
        DISTANCE[0] + (DISTANCE[1] - DISTANCE[0]) * rng.random(),
        (DRIFT * (2 * rng.random() - 1), DRIFT * (2 * rng.random() - 1)),
    )
    return HardClip(
        Clip(tuple(scene for scene, _ in scenes)),
        tuple(number for number, (_, of) in enumerate(scenes) if of),
        camera,
    )


def clip_frames(seed: int, split: str, index: int) -> Iterator[NDArray[np.uint8]]:
    """Its frames in order, (FRAME_SIDE, FRAME_SIDE, 3) uint8 RGB."""
    hard = make_clip(seed, split, index)
    moments = [(scene, n / (scene.num_frames - 1)) for scene in hard.clip.scenes for n in range(scene.num_frames)]
    for number, (scene, time) in enumerate(moments):
        yield film(render(scene, time), hard.camera, number / (len(moments) - 1))


def film(frame: NDArray[np.uint8], camera: Camera, time: float) -> NDArray[np.uint8]:
    """A frame as the camera sees it at `time` in [0, 1] of the clip."""
    ground = frame[0, 0].astype(np.float32)
    turn, zoom = math.radians(camera.tilt), camera.distance
    cos, sin, middle = zoom * math.cos(turn), zoom * math.sin(turn), (FRAME_SIDE - 1) / 2
    x, y = (middle + way * (2 * time - 1) for way in camera.drift)
    matrix = (cos, sin, x - cos * middle - sin * middle, -sin, cos, y + sin * middle - cos * middle)
    fill = tuple(int(channel) for channel in frame[0, 0])
    moved = Image.fromarray(frame).transform(
        frame.shape[:2], Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=fill
    )
    seen = np.asarray(moved, np.float32)
    place = np.linspace(0, 1, FRAME_SIDE, dtype=np.float32)
    lit = camera.light[0] * place[None, :] + camera.light[1] * place[:, None]
    lit = (lit - lit.min()) / (lit.max() - lit.min())
    is_ground = np.clip(1 - np.abs(seen - ground).sum(-1) / 90, 0, 1)
    seen = seen + (GROUND_LIGHT * lit * is_ground)[..., None]
    seen = seen * np.array(camera.gains, np.float32)
    seen = (1 - camera.haze) * seen + camera.haze * np.array(HAZE_RGB, np.float32)
    return np.clip(seen + 0.5, 0, 255).astype(np.uint8)


def clip_captions(seed: int, split: str, index: int, count: int = 4) -> tuple[str, ...]:
    """`count` different captions of `make_clip(seed, split, index)`, each true of a scene that is no distractor."""
    hard = make_clip(seed, split, index)
    told = Clip(tuple(hard.clip.scenes[number] for number in hard.told))
    rng = Random(f"shapes-hard/{seed}/{split}/{index}/captions")
    captions: dict[str, None] = {}
    while len(captions) < count:
        captions[_caption(rng, told)] = None
    return tuple(captions)


def _caption(rng: Random, told: Clip) -> str:
    pairs = [scene for scene in told.scenes if len(scene.objects) == 2]
    detail = rng.random()
    if not pairs or detail < 0.4:
        return usual.part_caption(rng, told, OWN_WORD_SHARE)
    scene = pick(rng, [scene for scene in pairs for _ in range(scene.num_frames)])
    one, other = pick(rng, list(permutations(scene.objects)))
    ground = usual.word(rng, BACKGROUNDS, scene.background, OWN_WORD_SHARE)
    before = f" before {usual.article(ground)} backdrop"
    if detail < 0.65:  # by name alone
        return f"{_named(rng, one)} and {_named(rng, other)}{before}"
    return f"{_in_full(rng, one)} while {_in_full(rng, other)}{before}"


def _named(rng: Random, item: Object) -> str:
    return usual.article(_noun(rng, item))


def _in_full(rng: Random, item: Object) -> str:
    words = _noun(rng, item)
    if item.motion not in ("grow", "shrink"):
        words = f"{usual.word(rng, SIZES, item.size, OWN_WORD_SHARE)} {words}"
    return f"{usual.article(words)} {pick(rng, usual.MOTIONS[item.motion])}"


def _noun(rng: Random, item: Object) -> str:
    colour = usual.word(rng, usual.COLOURS, item.colour, OWN_WORD_SHARE)
    return f"{colour} {usual.word(rng, usual.SHAPES, item.shape, OWN_WORD_SHARE)}"
