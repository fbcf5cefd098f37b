"""Windows over long captions: every token once, in order; a short caption is as the tokenizer alone gives it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.extract.long_captions import average_windows, clip_tokenizer, token_count, token_windows, windows_of


@given(tokens=st.lists(st.integers(3, 999), max_size=200), context=st.integers(3, 77))
def test_windows_hold_every_token_once_in_order(tokens, context):
    windows = token_windows(tokens, sot=1, eot=2, context_length=context)
    pieces = []
    for window in windows.tolist():
        end = window.index(2)
        assert window[0] == 1
        assert not any(window[end + 1 :])
        pieces.append(window[1:end])
    assert [token for piece in pieces for token in piece] == tokens
    assert len(pieces) == max(1, -(-len(tokens) // (context - 2))), "no more windows than needed"
    assert max(map(len, pieces)) - min(map(len, pieces)) <= 1


def test_a_context_without_room_is_refused():
    with pytest.raises(ValueError, match="3 or more"):
        token_windows([5], 1, 2, context_length=2)


def test_averaging_keeps_single_windows_bit_for_bit_and_length_of_the_others():
    rng = np.random.default_rng(0)
    embeds = rng.normal(size=(6, 8)).astype(np.float32)
    offsets = np.array([0, 1, 4, 6])
    out = average_windows(embeds, offsets)
    assert (out[0] == embeds[0]).all()
    for row, rows in ((1, embeds[1:4]), (2, embeds[4:6])):
        direction = sum(vector / np.sqrt((vector**2).sum()) for vector in rows)
        cosine = out[row] @ direction / np.linalg.norm(out[row]) / np.linalg.norm(direction)
        assert cosine == pytest.approx(1, abs=1e-6)
        assert np.linalg.norm(out[row]) == pytest.approx(np.mean([np.linalg.norm(v) for v in rows]), rel=1e-6)
    assert average_windows(embeds[:0], np.array([0])).shape == (0, 8)


@pytest.fixture(scope="module")
def tokenizer():
    return clip_tokenizer()


def test_windows_of_real_captions_agree_with_the_tokenizer(tokenizer):
    short, long = "a red ring moves left", "a dog runs, then a cat sleeps. " * 20
    windows, offsets = windows_of([short, long, ""], tokenizer)
    assert offsets.tolist() == [0, 1, 1 + -(-len(tokenizer.encode(long)) // 75), len(windows)]
    assert windows[0].tolist() == tokenizer([short])[0].tolist()
    assert windows[-1].tolist() == tokenizer([""])[0].tolist()
    assert token_count(tokenizer, short) == 7
    assert token_count(tokenizer, long) > 77
    assert windows_of([], tokenizer)[0].shape == (0, 77)
