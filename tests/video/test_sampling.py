import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.video.sampling import RULES, choose_frames, end_indices, middle_indices, rule_of


def xpool_reference(frame_count: int, num_frames: int, linspace=np.linspace) -> list[int]:
    """layer6ai-labs/xpool, datasets/video_capture.py, sample='uniform', as it is written there."""
    acc_samples = min(num_frames, frame_count)
    intervals = np.array([int(x) for x in linspace(start=0, stop=frame_count, num=acc_samples + 1)])
    ranges = [(interval, intervals[index + 1] - 1) for index, interval in enumerate(intervals[:-1])]
    return [(x[0] + x[1]) // 2 for x in ranges]


def exact_linspace(start: int, stop: int, num: int) -> list[Fraction]:
    return [start + Fraction((stop - start) * index, num - 1) for index in range(num)]


@given(st.integers(1, 5000), st.integers(1, 64))
def test_middle_indices_are_xpools(frame_count, num_frames):
    """In exact arithmetic: X-Pool's floats fall short of a whole bound now and then (1324 frames in 52 parts)."""
    assert middle_indices(frame_count, num_frames) == xpool_reference(frame_count, num_frames, exact_linspace)


@pytest.mark.parametrize("num_frames", [8, 12, 16])
def test_middle_indices_are_xpools_to_the_bit_at_the_usual_counts(num_frames):
    assert all(middle_indices(count, num_frames) == xpool_reference(count, num_frames) for count in range(1, 1500))


@given(st.integers(0, 500), st.integers(1, 40))
def test_middle_indices_are_distinct_and_inside(frame_count, num_frames):
    chosen = middle_indices(frame_count, num_frames)
    assert len(chosen) == min(frame_count, num_frames)
    assert all(a < b for a, b in zip([-1, *chosen], [*chosen, frame_count], strict=True))


def test_fewer_frames_than_asked_gives_all():
    assert middle_indices(5, 12) == [0, 1, 2, 3, 4]


def test_zero_frames_asked_is_refused():
    with pytest.raises(ValueError, match="num_frames"):
        middle_indices(10, 0)


def test_window_counts_from_the_first_frame_and_is_half_open():
    times = [7.0 + index / 10 for index in range(100)]  # starts at 7 s, ten frames a second
    assert choose_frames(times, 100, start=2.0, end=3.0) == list(range(20, 30))
    assert choose_frames(times, 2, start=2.0, end=3.0) == [22, 27]
    assert choose_frames(times, 3, start=50.0) == []
    assert choose_frames([], 3) == []


@given(st.lists(st.floats(0, 100), min_size=1, max_size=60), st.integers(1, 20), st.floats(0, 50), st.floats(0, 60))
def test_window_agrees_with_filtering_first(times, num_frames, start, length):
    times.sort()
    inside = [i for i, t in enumerate(times) if times[0] + start <= t < times[0] + start + length]
    expected = [inside[i] for i in xpool_reference(len(inside), num_frames)] if inside else []
    assert choose_frames(times, num_frames, start, start + length) == expected


@pytest.mark.parametrize("num_frames", [1, 2, 8, 12])
def test_end_indices_are_those_of_linspace(num_frames):
    """Against numpy in exact arithmetic: equal distances from the first frame to the last, rounded down."""
    for count in range(1, 200):
        found = end_indices(count, num_frames)
        parts = min(count, num_frames)
        if parts > 1:
            assert found == [math.floor(Fraction(count - 1, parts - 1) * place) for place in range(parts)]
            assert (found[0], found[-1]) == (0, count - 1)
        assert len(set(found)) == len(found) == parts


def test_both_ends_of_a_window():
    times = [index / 10 for index in range(100)]
    assert choose_frames(times, 8, rule="ends") == [0, 14, 28, 42, 56, 70, 84, 99]
    assert choose_frames(times, 2, start=2.0, end=3.0, rule="ends") == [20, 29]


def test_a_store_names_its_rule():
    assert {rule: rule_of(name) for rule, name in RULES.items()} == {"middles": "middles", "ends": "ends"}
    assert rule_of("imported") == "middles"
