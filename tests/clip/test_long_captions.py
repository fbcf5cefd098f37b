"""Windows over long captions: every token once, in order; a short caption is as the tokenizer alone gives it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from standins import write_video

from pipeline.clip.encoder import load_encoder
from pipeline.clip.long_captions import average_windows, clip_tokenizer, token_count, token_windows, windows_of
from pipeline.clip.stored import embed_queries
from pipeline.errors import BadInput, FingerprintMismatch
from pipeline.extract.corpus import extract_manifest
from pipeline.extract.settings import ExtractSettings, settings_of
from pipeline.resolve import resolve_store
from pipeline.stores.manifest import Manifest, VideoEntry
from pipeline.workspace import Workspace


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


SHORT = "a small red circle moves left"
LONG = "a small red circle moves left, then a large blue star grows. " * 12


def test_the_encoder_reads_all_windows_and_leaves_short_captions_alone():
    encoder = load_encoder("shapes-clip", device="cpu", precision="float32")
    cut = encoder.embed_texts([SHORT, LONG]).numpy()
    whole = encoder.embed_texts([SHORT, LONG, SHORT], batch_size=3, long_captions="windows").numpy()
    np.testing.assert_allclose(whole[[0, 2]], cut[[0, 0]], atol=1e-5)
    windows, _ = windows_of([LONG], encoder.tokenizer, encoder.tokenizer.context_length)
    assert len(windows) > 3
    pieces = [encoder.tokenizer.decode(row[row > 0].tolist()[1:-1]) for row in windows]
    each = np.stack([encoder.embed_texts([piece])[0].numpy() for piece in pieces])
    expected = average_windows(each, np.array([0, len(each)]))[0]
    np.testing.assert_allclose(whole[1], expected, atol=1e-4)
    ends = [LONG + "a small red circle", LONG + "a large white bar on a plum background"]
    assert np.ptp(encoder.embed_texts(ends).numpy(), axis=0).max() < 1e-5, "cut: the end is lost"
    assert np.ptp(encoder.embed_texts(ends, long_captions="windows").numpy(), axis=0).max() > 0.01
    assert encoder.embed_texts([], long_captions="windows").shape == (0, encoder.dim)


def test_windows_are_part_of_the_fingerprint_and_of_every_later_query(tmp_path):
    write_video(tmp_path / "a.mp4", seed="a")
    manifest = Manifest("own", str(tmp_path), (VideoEntry("a", "a.mp4", "test", (LONG,)),))
    workspace = Workspace(tmp_path / "workspace")
    settings = ExtractSettings(
        num_frames=2, workers=1, device="cpu", precision="float32", long_captions="windows", min_coverage=0
    )
    extract_manifest(workspace, manifest, settings, progress=False)
    store = resolve_store(workspace).store
    assert store.settings["long_captions"] == "windows"
    assert "long_captions" not in ExtractSettings().fingerprint_part()
    np.testing.assert_allclose(embed_queries(store, [LONG]), store.texts().text_embeds, atol=1e-5)
    assert settings_of(store).long_captions == "windows", "what reindex adds is embedded alike"
    with pytest.raises(FingerprintMismatch, match="long_captions"):
        extract_manifest(workspace, manifest, ExtractSettings(num_frames=2, device="cpu"), progress=False)


def test_settings_refuse_what_cannot_be():
    with pytest.raises(BadInput, match="--long-captions windows does not go with --cache-blocks") as refusal:
        ExtractSettings(long_captions="windows", cache_blocks=2)
    assert "\n" not in str(refusal.value)
    with pytest.raises(BadInput, match="cut"):
        ExtractSettings(long_captions="windowed")
