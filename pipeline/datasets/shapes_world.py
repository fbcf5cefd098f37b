"""The world of the built-in data set `shapes`: what a clip shows and what its captions say.

Pure functions of a seed: nothing here touches a file. A clip is one to three scenes with hard cuts, a scene one or two
moving objects before a plain background. A frame's canonical caption (`frame_caption`) uses one word an attribute and
no motion: this is what the backbone `shapes-clip` is trained on. A clip's captions (`clip_captions`) each describe a
*part* of the clip, partly in other words, with motion: text is terse, and most of the video is beside the point.

Random draws use only `random.Random(str).random()`, whose sequence Python guarantees for every version, so that the
same seed gives the same clips and captions everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations
from random import Random
from typing import TypeVar

FRAME_SIDE = 96  # pixels; frames are square
FPS = 10

# Each attribute: canonical word -> other words for the same thing. No word stands twice within one attribute.
COLOURS: Mapping[str, tuple[str, ...]] = {
    "red": ("crimson", "scarlet"),
    "green": ("emerald", "lime"),
    "blue": ("azure", "cobalt"),
    "yellow": ("golden", "lemon"),
    "orange": ("tangerine", "amber"),
    "purple": ("violet", "lavender"),
    "pink": ("rose", "salmon"),
    "white": ("snowy", "ivory"),
    "cyan": ("turquoise", "aqua"),
    "brown": ("chocolate", "chestnut"),
}
SHAPES: Mapping[str, tuple[str, ...]] = {
    "circle": ("disc", "ball"),
    "square": ("box", "block"),
    "triangle": ("wedge", "pyramid"),
    "star": ("pentagram", "starlet"),
    "cross": ("plus", "crucifix"),
    "ring": ("hoop", "donut"),
    "diamond": ("rhombus", "gem"),
    "heart": ("valentine", "sweetheart"),
    "crescent": ("moon", "sickle"),
    "bar": ("stick", "rod"),
}
SIZES: Mapping[str, tuple[str, ...]] = {"small": ("tiny", "little"), "large": ("big", "huge")}
BACKGROUNDS: Mapping[str, tuple[str, ...]] = {
    "black": ("ebony", "pitch"),
    "gray": ("ashen", "slate"),
    "navy": ("midnight", "indigo"),
    "maroon": ("burgundy", "wine"),
    "forest": ("jungle", "mossy"),
    "plum": ("eggplant", "mulberry"),
}
# The backbone knows no motion, so a motion has phrases only. No phrase is part of another.
MOTIONS: Mapping[str, tuple[str, ...]] = {
    "left": ("drifts leftward", "slides to the left", "heads left"),
    "right": ("drifts rightward", "slides to the right", "heads right"),
    "up": ("rises", "climbs upward", "floats up"),
    "down": ("sinks", "falls", "drops downward"),
    "orbit": ("goes round and round", "orbits", "loops around"),
    "shake": ("trembles", "jitters", "shakes in place"),
    "grow": ("swells", "grows", "expands"),
    "shrink": ("shrinks", "dwindles", "fades to a dot"),
    "spin": ("spins", "rotates on the spot", "twirls"),
    "rest": ("stays put", "rests", "stands still"),
}
OWN_WORD_SHARE = 0.5  # how often a clip's caption uses the backbone's own word for an attribute

_RADIUS = {"small": 14.0, "large": 22.0}  # pixels
_TRAVEL = 20.0  # pixels from the middle of a straight path to its ends

T = TypeVar("T")


@dataclass(frozen=True)
class Object:
    colour: str
    shape: str
    size: str
    motion: str
    middle: tuple[float, float]  # pixels (x, y): the middle of its path
    shade: int  # added to its colour


@dataclass(frozen=True)
class Scene:
    background: str
    objects: tuple[Object, ...]
    num_frames: int


@dataclass(frozen=True)
class Clip:
    scenes: tuple[Scene, ...]


def pick(rng: Random, options: Sequence[T]) -> T:
    return options[int(rng.random() * len(options))]


# ---------------------------------------------------------------------------------------------- what a clip shows


def make_clip(seed: int, split: str, index: int) -> Clip:
    """The clip number `index` of a split; depends on nothing else. One scene, anywhere in it, lasts longest."""
    rng = Random(f"shapes/{seed}/{split}/{index}")
    num_scenes = pick(rng, (1, 1, 2, 2, 3))
    longest = int(rng.random() * num_scenes)
    scenes = []
    for number in range(num_scenes):
        # A clip of one scene has two objects: with one, its captions could not tell it from others.
        num_objects = 2 if num_scenes == 1 else pick(rng, (1, 2, 2))
        num_frames = 18 + int(rng.random() * 7) if number == longest else 6 + int(rng.random() * 4)
        scenes.append(make_scene(rng, num_objects, num_frames))
    return Clip(tuple(scenes))


def make_scene(rng: Random, num_objects: int, num_frames: int) -> Scene:
    """Objects of one scene differ in colour and in shape, and their paths' middles keep 36 pixels apart."""
    while True:
        # All are drawn again together: beside an object in the middle of the frame there is no place for another.
        objects = tuple(_make_object(rng) for _ in range(num_objects))
        if all(
            one.colour != other.colour and one.shape != other.shape and math.dist(one.middle, other.middle) >= 36
            for one, other in combinations(objects, 2)
        ):
            return Scene(pick(rng, tuple(BACKGROUNDS)), objects, num_frames)


def _make_object(rng: Random) -> Object:
    shape = pick(rng, tuple(SHAPES))
    # A spinning circle would look at rest.
    motions = [m for m in MOTIONS if not (m == "spin" and shape in ("circle", "ring"))]
    return Object(
        colour=pick(rng, tuple(COLOURS)),
        shape=shape,
        size=pick(rng, tuple(SIZES)),
        motion=pick(rng, motions),
        middle=(24 + rng.random() * (FRAME_SIDE - 48), 24 + rng.random() * (FRAME_SIDE - 48)),
        shade=int(rng.random() * 25) - 12,
    )


def placement(item: Object, time: float) -> tuple[float, float, float, float]:
    """Centre x, centre y, radius (pixels) and turn (degrees) of an object at `time` in [0, 1] of its scene."""
    x, y = item.middle
    radius, turn = _RADIUS[item.size], 0.0
    way = _TRAVEL * (2 * time - 1)
    if item.motion in ("left", "right"):
        x += way if item.motion == "right" else -way
    elif item.motion in ("up", "down"):
        y += way if item.motion == "down" else -way
    elif item.motion == "orbit":
        x, y = x + 14 * math.cos(4 * math.pi * time), y + 14 * math.sin(4 * math.pi * time)
    elif item.motion == "shake":
        x, y = x + 4 * math.sin(37 * time), y + 4 * math.cos(53 * time)
    elif item.motion == "grow":
        radius = 9 + 16 * time
    elif item.motion == "shrink":
        radius = 25 - 16 * time
    elif item.motion == "spin":
        turn = 360 * time
    return x, y, radius, turn


# ---------------------------------------------------------------------------------------------- what is said of it


def frame_caption(rng: Random, scene: Scene, time: float) -> str:
    """A canonical caption of one frame: "a small red circle at the top left and a white bar on a plum background".

    Sizes, places, the second object and the background are each left out now and then; either object may come first.
    """
    objects = list(scene.objects)
    if rng.random() < 0.5:
        objects.reverse()
    if rng.random() < 0.2:
        objects = objects[:1]
    phrases = []
    for item in objects:
        steady = item.motion not in ("grow", "shrink")
        size = f"{item.size} " if steady and rng.random() < 0.5 else ""
        where = f" at the {_place(item, time)}" if rng.random() < 0.5 else ""
        phrases.append(f"a {size}{item.colour} {item.shape}{where}")
    ground = f" on a {scene.background} background" if rng.random() < 0.5 else ""
    return " and ".join(phrases) + ground


def _place(item: Object, time: float) -> str:
    x, y, _, _ = placement(item, time)
    third = FRAME_SIDE / 3
    row = ("top", "", "bottom")[min(max(int(y // third), 0), 2)]
    column = ("left", "", "right")[min(max(int(x // third), 0), 2)]
    return f"{row} {column}".strip() or "center"


def clip_captions(seed: int, split: str, index: int, count: int = 4) -> tuple[str, ...]:
    """`count` different captions of `make_clip(seed, split, index)`, each true of a part of it."""
    clip = make_clip(seed, split, index)
    rng = Random(f"shapes/{seed}/{split}/{index}/captions")
    captions: dict[str, None] = {}
    while len(captions) < count:
        captions[part_caption(rng, clip)] = None
    return tuple(captions)


def part_caption(rng: Random, clip: Clip, own: float | None = None) -> str:
    """Two scenes in order, or the scene of a random moment: its two objects, or its only one in detail."""
    own = OWN_WORD_SHARE if own is None else own
    if len(clip.scenes) > 1 and rng.random() < 0.25:
        first, later = pick(rng, list(combinations(clip.scenes, 2)))
        return f"{_moving(rng, pick(rng, first.objects), own)}, then {_moving(rng, pick(rng, later.objects), own)}"
    scene = pick(rng, [scene for scene in clip.scenes for _ in range(scene.num_frames)])
    ground = word(rng, BACKGROUNDS, scene.background, own)
    before = f" before {article(ground)} backdrop"
    if len(scene.objects) == 1:
        return _moving(rng, scene.objects[0], own) + before
    one, other = pick(rng, list(permutations(scene.objects)))
    return f"{_moving(rng, one, own)} while {_moving(rng, other, own)}{before if rng.random() < 0.5 else ''}"


def _moving(rng: Random, item: Object, own: float) -> str:
    words = [word(rng, COLOURS, item.colour, own), word(rng, SHAPES, item.shape, own)]
    if rng.random() < 0.3 and item.motion not in ("grow", "shrink"):
        words.insert(0, word(rng, SIZES, item.size, own))
    return f"{article(' '.join(words))} {pick(rng, MOTIONS[item.motion])}"


def word(rng: Random, vocabulary: Mapping[str, tuple[str, ...]], canonical: str, own: float) -> str:
    """The backbone's own word for an attribute, `own` of the time, or another."""
    return canonical if rng.random() < own else pick(rng, vocabulary[canonical])


def article(phrase: str) -> str:
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"
