"""Near-duplicate groups against brute force over all pairs."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import BadInput
from pipeline.retrieve import near_duplicates
from pipeline.retrieve.near_duplicates import group_duplicates, whole_videos


def brute_force(vectors, files, threshold):
    """Sets of rows: start with each video alone, and join the sets of every pair that reaches the threshold."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    sets = [{i} for i in range(len(vectors))]
    for i in range(len(vectors)):
        for j in range(i):
            if unit[i] @ unit[j] >= threshold and (files is None or files[i] != files[j]):
                joined = next(s for s in sets if i in s) | next(s for s in sets if j in s)
                sets = [s for s in sets if not s & joined] + [joined]
    return {frozenset(s) for s in sets if len(s) > 1}


@given(st.integers(0, 10**6), st.integers(1, 60), st.sampled_from([7, 16, 64]), st.booleans())
def test_groups_equal_brute_force(seed, count, block, with_files):
    generator = np.random.default_rng(seed)
    centres = generator.standard_normal((max(1, count // 3), 6))
    vectors = centres[generator.integers(0, len(centres), count)] + 0.2 * generator.standard_normal((count, 6))
    files = generator.integers(0, max(1, count // 2), count) if with_files else None
    found = group_duplicates(vectors, files, 0.95, block=block)
    groups = [frozenset(found.rows[found.group == g].tolist()) for g in range(len(found))]
    assert set(groups) == brute_force(vectors, files, 0.95)
    assert [len(g) for g in groups] == sorted(map(len, groups), reverse=True)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for g in range(len(found)):
        rows = found.rows[found.group == g]
        np.testing.assert_allclose(found.cosine[found.group == g], unit[rows] @ unit[rows[0]], atol=1e-5)


def test_nothing_alike_and_bad_thresholds(monkeypatch):
    assert len(group_duplicates(np.eye(5), None, 0.9)) == 0
    for threshold in (0.0, 1.1, float("nan")):
        with pytest.raises(BadInput, match="--threshold"):
            group_duplicates(np.eye(5), None, threshold)
    monkeypatch.setattr(near_duplicates, "MAX_PAIRS", 5)
    with pytest.raises(BadInput, match="raise it"):
        group_duplicates(np.ones((5, 3)), None, 0.9)


def test_exact_copies_reach_one():
    vectors = np.random.default_rng(0).standard_normal((200, 512)).astype(np.float16)
    assert len(group_duplicates(np.concatenate([vectors, vectors]), None, 1.0)) == 200


def test_vectors_of_a_video_side_by_side_without_the_deleted():
    vectors = np.arange(12.0).reshape(6, 2)
    assert whole_videos(vectors, np.array([0, 0, 1, 1, 2, 2]), 3).tolist() == vectors.reshape(3, 4).tolist()
    assert whole_videos(vectors, np.array([1, 1, -1, -1, 0, 0]), 2).tolist() == [[8, 9, 10, 11], [0, 1, 2, 3]]
    with pytest.raises(BadInput, match="different numbers"):
        whole_videos(vectors, np.array([0, 0, 0, 1, 1, -1]), 2)
