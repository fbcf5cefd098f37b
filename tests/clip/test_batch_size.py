"""A batch that does not fit the memory is halved, and the fastest size is found; the device's memory is simulated."""

import numpy as np
import pytest
import torch

from pipeline.clip.batch_size import Halving, fastest_batch
from pipeline.clip.encoder import load_encoder
from pipeline.errors import BadInput, UserError


class Device:
    """A device that holds `room` rows; counts the batches that were asked of it."""

    def __init__(self, room):
        self.room, self.asked = room, []

    def __call__(self, batch):
        self.asked.append(len(batch))
        if len(batch) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")
        return batch * 2


def test_a_batch_is_halved_until_it_fits_and_the_limit_is_kept(caplog):
    device, fitting = Device(room=10), Halving()
    batch = torch.arange(37)
    torch.testing.assert_close(torch.cat(fitting(device, batch)), batch * 2)
    assert device.asked == [37, 18, 9, 9, 9, 9, 1]
    assert fitting.limit == 9
    device.asked.clear()
    torch.testing.assert_close(torch.cat(fitting(device, batch[:20])), batch[:20] * 2)
    assert device.asked == [9, 9, 2]  # no second crash
    assert "a batch of 37 does not fit into the memory: going on with 18" in caplog.text


def test_a_single_row_that_does_not_fit_is_an_error_that_says_what_to_do():
    with pytest.raises(UserError, match=r"one frame does not fit.*out of memory.*Fix: give --device cpu"):
        Halving()(Device(room=0), torch.arange(4))


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
