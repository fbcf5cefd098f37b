"""Damage to queries and videos, to see what a system's R@1 bears: words dropped or swapped, frames removed.

Pure functions of what is given. A caption's damage follows from (seed, its id) alone, so that every system meets the
same damaged captions; the words dropped at a small probability are dropped at a larger one too.

Notation: V videos, F frames.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Chance = NDArray[np.float64]  # one uniform number in [0, 1) a word


def drop_words(sentence: str, p: float, chance: Chance) -> str:
    """Every word is dropped with probability p, independently; one that is left over is kept.

    >>> drop_words("a dog catches a ball", 0.5, np.array([0.1, 0.9, 0.6, 0.4, 0.7]))
    'dog catches ball'
    """
    words = sentence.split()
    kept = chance[: len(words)] >= p
    if words and not kept.any():
        kept[int(np.argmax(chance[: len(words)]))] = True
    return sentence if kept.all() else " ".join(word for word, keep in zip(words, kept, strict=True) if keep)


def swap_words(sentence: str, p: float, chance: Chance) -> str:
    """From left to right, a word changes places with the next one with probability p; no word moves twice.

    >>> swap_words("a dog catches a ball", 0.5, np.array([0.1, 0.0, 0.6, 0.4, 0.7]))
    'dog a catches ball a'
    """
    words = sentence.split()
    place, swapped = 0, False
    while place + 1 < len(words):
        if chance[place] < p:
            words[place : place + 2] = reversed(words[place : place + 2])
            place, swapped = place + 1, True
        place += 1
    return " ".join(words) if swapped else sentence


DAMAGE = {"dropped": drop_words, "swapped": swap_words}


def damage_captions(captions: Sequence[str], ids: Sequence[str], kind: str, p: float, seed: int) -> list[str]:
    """Each caption damaged by the `kind` of DAMAGE; its chance is drawn from (seed, its id)."""
    damaged = []
    for caption, name in zip(captions, ids, strict=True):
        chance = np.random.default_rng([seed, zlib.crc32(name.encode())]).random(len(caption.split()))
        damaged.append(DAMAGE[kind](caption, p, chance))
    return damaged


def keep_frames(mask: NDArray[np.bool_], count: int, seed: int | None = None) -> NDArray[np.bool_]:
    """A mask (V, F) with `count` of each video's frames left (all, where it has no more): the middles of as many equal
    stretches, or drawn at random by `seed`. What is drawn for a smaller count is part of what is drawn for a larger."""
    left = np.zeros_like(mask)
    chance = np.random.default_rng(seed).random(mask.shape)
    for video, row in enumerate(mask):
        frames = np.flatnonzero(row)
        if count >= len(frames):
            chosen = frames
        elif seed is None:
            chosen = frames[((np.arange(count) + 0.5) * len(frames) / count).astype(int)]
        else:
            chosen = frames[np.argsort(chance[video, frames])[:count]]
        left[video, chosen] = True
    return left
