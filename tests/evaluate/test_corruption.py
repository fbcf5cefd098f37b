"""Damage to captions and frames: what every damage keeps, and that chance follows from the seed and the id alone."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluate.corruption import DAMAGE, damage_captions, drop_words, keep_frames, swap_words

words = st.lists(st.text("abcé'-", min_size=1, max_size=6), max_size=12)
shares = st.floats(0, 1)
seeds = st.integers(0, 2**32 - 1)


def chances(sentence, seed):
    return np.random.default_rng(seed).random(len(sentence.split()))


@given(words, shares, shares, seeds)
def test_dropping_leaves_a_nonempty_subsequence_that_shrinks_with_p(tokens, p, q, seed):
    sentence = " ".join(tokens)
    few, many = (drop_words(sentence, share, chances(sentence, seed)).split() for share in sorted((p, q)))
    for left, whole in ((few, tokens), (many, few)):
        rest = iter(whole)
        assert all(word in rest for word in left), "not in the order in which they stood"
    assert bool(many) == bool(tokens)


@given(words, shares, seeds)
def test_swapping_keeps_every_word_within_a_place_of_where_it_stood(tokens, p, seed):
    numbered = [f"{word}{i}" for i, word in enumerate(tokens)]
    sentence = " ".join(numbered)
    swapped = swap_words(sentence, p, chances(sentence, seed)).split()
    assert Counter(swapped) == Counter(numbered)
    assert all(abs(swapped.index(word) - i) <= 1 for i, word in enumerate(numbered))


@given(st.text(max_size=30), seeds)
def test_no_damage_is_no_change(sentence, seed):
    for damage in DAMAGE.values():
        assert damage(sentence, 0.0, chances(sentence, seed)) == sentence


def test_total_damage():
    chance = np.array([0.2, 0.9, 0.5, 0.1])
    assert drop_words("a b c d", 1.0, chance) == "b"
    assert swap_words("a b c d", 1.0, chance) == "b a d c"


def test_words_are_hit_as_often_as_asked():
    captions = [" ".join(f"w{i}" for i in range(10))] * 2000
    ids = [f"c{i}" for i in range(2000)]
    kept = [len(c.split()) for c in damage_captions(captions, ids, "dropped", 0.3, seed=1)]
    assert np.mean(kept) == pytest.approx(7, abs=0.1)


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_captions_damage_depends_on_the_seed_and_its_id_alone(kind):
    captions, ids = [f"the quick brown fox number {i} jumps over it" for i in range(50)], [f"c{i}" for i in range(50)]
    damaged = damage_captions(captions, ids, kind, 0.4, seed=3)
    assert damage_captions(captions[7:9], ids[7:9], kind, 0.4, seed=3) == damaged[7:9]
    assert damage_captions(captions, ids, kind, 0.4, seed=4) != damaged
    assert len({damage.replace(str(i), "") for i, damage in enumerate(damaged)}) > 10  # each has a damage of its own


@given(st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=1, max_size=5), st.integers(1, 8), seeds)
def test_frames_that_are_left_were_there_and_are_as_many_as_asked(rows, count, seed):
    mask = np.array(rows)
    mask[:, 2] = True
    for chance in (None, seed):
        left = keep_frames(mask, count, chance)
        assert not (left & ~mask).any()
        assert (left.sum(1) == np.minimum(mask.sum(1), count)).all()
        assert np.array_equal(left, keep_frames(mask, count, chance))
    assert not (keep_frames(mask, count, seed) & ~keep_frames(mask, count + 1, seed)).any()


def test_frames_are_left_evenly():
    mask = np.ones((1, 12), bool)
    assert [np.flatnonzero(keep_frames(mask, count)[0]).tolist() for count in (1, 3, 6)] == [
        [6],
        [2, 6, 10],
        [1, 3, 5, 7, 9, 11],
    ]
