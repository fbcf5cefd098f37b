"""A reader of `shapes` captions that knows every word: text -> meaning, and what could be said of a clip."""

import re
from itertools import combinations, permutations, product

from pipeline.datasets import shapes_world as world


def _inverse(vocabulary):
    return {word: canonical for canonical, others in vocabulary.items() for word in (canonical, *others)}


COLOUR, SHAPE, SIZE, BACKGROUND = map(_inverse, (world.COLOURS, world.SHAPES, world.SIZES, world.BACKGROUNDS))
MOTION = {phrase: motion for motion, phrases in world.MOTIONS.items() for phrase in phrases}
WORDS, PHRASES = r"an? ([a-z ]+)", "|".join(MOTION)


def read_object(text):
    """(colour, shape, motion, size or None)"""
    words, phrase = re.fullmatch(rf"{WORDS} ({PHRASES})", text).groups()
    *size, colour, shape = words.split()
    return COLOUR[colour], SHAPE[shape], MOTION[phrase], SIZE[size[0]] if size else None


def read_caption(caption):
    """What a caption claims: a key that `claims` of every clip of which it is true contains."""
    shown, ground = re.fullmatch(r"(.+?)(?: before an? ([a-z]+) backdrop)?", caption).groups()
    if ", then " in shown:
        return ("order", *(read_object(part) for part in shown.split(", then ")))
    parts = [read_object(part) for part in shown.split(" while ")]
    return ("scene", *parts, BACKGROUND[ground] if ground else None)


def claims(clip):
    """Everything that captions could truly say of a clip; None stands for what is left unsaid."""

    def named(*items):
        return product(*([(o.colour, o.shape, o.motion, size) for size in (o.size, None)] for o in items))

    found = set()
    for scene in clip.scenes:
        for items in (*permutations(scene.objects, 1), *permutations(scene.objects, 2)):
            found |= {("scene", *said, ground) for said in named(*items) for ground in (scene.background, None)}
    for first, later in combinations(clip.scenes, 2):
        for pair in product(first.objects, later.objects):
            found |= {("order", *said) for said in named(*pair)}
    return found
