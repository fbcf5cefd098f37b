"""Rules that cut files into clips: every moment is in a clip, lengths keep their bounds."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import BadInput
from pipeline.video.windows import Split, even_windows, parse_split, scene_windows

SECONDS = st.floats(0.1, 500, allow_nan=False)


@given(seconds=SECONDS, length=st.floats(0.5, 40), overlap=st.floats(0.1, 1), least=st.floats(0, 1))
def test_windows_of_equal_length_cover_the_file(seconds, length, overlap, least):
    length = round(length, 2)
    stride = max(0.1, round(length * overlap, 2))
    windows = even_windows(seconds, length, stride, least * length)
    assert windows[0][0] == 0
    assert seconds <= windows[-1][1] < seconds + 0.002
    for (start, end), (later, _) in pairwise(windows):
        assert start < later <= end  # no gap
    assert all(math.isclose(end - start, length, abs_tol=0.002) for start, end in windows[:-1])
    if len(windows) > 1:
        assert least * length - 0.002 <= windows[-1][1] - windows[-1][0] <= (1 + least) * length + 0.002


def test_a_stride_longer_than_the_clip_leaves_gaps_and_drops_a_short_tail():
    assert even_windows(41, 10, 20, 5) == [(0.0, 10.0), (20.0, 30.0)]
    assert even_windows(46, 10, 20, 5) == [(0.0, 10.0), (20.0, 30.0), (40.0, 46.0)]


@given(seconds=SECONDS, cuts=st.lists(st.floats(0, 500), max_size=60), least=st.floats(0, 5), ratio=st.floats(2, 9))
def test_scenes_cover_the_file_within_their_bounds(seconds, cuts, least, ratio):
    most = max(0.5, ratio * least)
    windows = scene_windows(seconds, cuts, least, most)
    assert windows[0][0] == 0
    assert seconds <= windows[-1][1] < seconds + 0.002
    assert all(end == later for (_, end), (later, _) in pairwise(windows))
    lengths = [end - start for start, end in windows]
    assert max(lengths) <= most + 0.002
    assert len(windows) == 1 or min(lengths) >= min(least, most / 2) - 0.002


def test_a_cut_belongs_to_the_scene_that_it_begins():
    """Its bound is rounded down to a millisecond, so that the first frame is not the last of the scene before."""
    (_, end), (start, _) = scene_windows(2.0, [1.00096], 0.1, 10)
    assert start == end == 1.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("every:10", Split("", 10.0, 10.0, 5.0)), ("every:10:2.5", Split("", 10.0, 2.5, 5.0)),
        ("scenes", Split("transnetv2", min_length=1.0, max_length=30.0)),
        ("scenes:adaptive", Split("adaptive", min_length=1.0, max_length=30.0)),
    ],
)  # fmt: skip
def test_rules(text, expected):
    assert parse_split(text) == expected


def test_names_of_rules():
    slugs = [parse_split(text).slug for text in ("every:10", "every:10:2.5", "scenes", "scenes:content")]
    assert slugs == ["every-10", "every-10-2.5", "scenes-transnetv2", "scenes-content"]


@pytest.mark.parametrize(
    ("text", "bounds"),
    [
        ("every", ()), ("every:", ()), ("every:0", ()), ("every:-3", ()), ("every:nan", ()), ("every:10:0", ()),
        ("every:1:2:3", ()), ("scenes:ffmpeg", ()), ("shots", ()), ("every:10", (11.0,)), ("every:10", (None, 20.0)),
        ("scenes", (5.0, 6.0)),
    ],
)  # fmt: skip
def test_bad_rules_are_refused(text, bounds):
    with pytest.raises(BadInput):
        parse_split(text, *bounds)
