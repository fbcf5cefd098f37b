"""The fastest batch is found, and an encoder goes on when memory runs out; the device's memory is simulated."""

import numpy as np
import pytest
import torch

from pipeline.clip.batch_size import fastest_batch
from pipeline.clip.encoder import load_encoder
from pipeline.errors import BadInput


@pytest.mark.parametrize(("room", "saturates", "expected"), [(100, 1000, 64), (1000, 32, 32), (4, 1000, 8)])
def test_the_fastest_batch_stops_at_the_memory_or_at_the_rate(room, saturates, expected):
    """A clock that knows a device: time for a batch grows once it is full; every size below costs the same."""
    now = [0.0]

    def encode(rows):
        if rows > room:
            raise torch.OutOfMemoryError("out of memory")
        now[0] += max(1.0, rows / saturates)

    assert fastest_batch(encode, clock=lambda: now[0]) == expected


def test_an_encoder_goes_on_when_memory_runs_out(monkeypatch):
    """Embeddings and captured activations are those of a machine with room for all."""
    encoder = load_encoder("shapes-clip", device="cpu", precision="float32")
    frames = np.random.default_rng(0).integers(0, 256, (7, *encoder.image_size, 3), dtype=np.uint8)
    expected, tokens = encoder.embed_frames_caching(frames, 2)
    whole = encoder._encode_image

    def small(pixels):
        if len(pixels) > 3:
            whole(pixels[:1])  # the blocks have run when the memory is gone
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(pixels)

    monkeypatch.setattr(encoder, "_encode_image", small)
    torch.testing.assert_close(encoder.embed_frames(frames), expected)
    found, entered = encoder.embed_frames_caching(frames, 2)
    torch.testing.assert_close(found, expected)
    np.testing.assert_allclose(entered, tokens, atol=2e-3, rtol=2e-3)


@pytest.mark.slow
def test_a_compiled_tower_gives_the_same_embeddings():
    encoder = load_encoder("shapes-clip", device="cpu", precision="float32")
    frames = np.random.default_rng(0).integers(0, 256, (5, *encoder.image_size, 3), dtype=np.uint8)
    expected = encoder.embed_frames(frames)
    encoder.compile()
    torch.testing.assert_close(encoder.embed_frames(frames), expected, rtol=1e-3, atol=1e-4)


def test_without_a_compiler_the_refusal_says_so(monkeypatch, tmp_path):
    encoder = load_encoder("shapes-clip", device="cpu", precision="float32")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BadInput, match=r"--compile needs a C\+\+ compiler.*none on the PATH.*leave --compile out"):
        encoder.compile()
