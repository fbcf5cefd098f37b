"""Devices are resolved in one place, and blocks halve when a device's memory runs out."""

import numpy as np
import pytest
import torch
from command_line import refused

from dits_head.config import HeadConfig
from dits_head.head import build_head
from pipeline.device import FittingParts, free_bytes, halving, resolve_device
from pipeline.errors import BadInput, UserError
from pipeline.retrieve.index import gpu_count
from pipeline.retrieve.scorer import Scorer
from pipeline.stores.features import VideoFeatures


def test_devices_are_resolved_or_refused():
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device() == torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    for name in ("cuda:77", "nonsense", "mps:9"):
        with pytest.raises(BadInput, match="--device cpu"):
            resolve_device(name)
    assert free_bytes(torch.device("cpu")) > 1e6


@pytest.mark.parametrize("command", ["evaluate", "index", "figures", "train-head"])
def test_every_command_refuses_a_device_that_is_not_there(extracted, command):
    assert "cuda:77" in refused(command, "--device", "cuda:77", "--workspace", extracted)


def test_an_index_that_must_be_built_on_a_gpu_is_refused_without_one(extracted):
    if gpu_count():
        pytest.skip("FAISS has a GPU here")
    said = refused("index", "--gpu", "--device", "cpu", "--run", "zero-shot", "--workspace", extracted)
    assert "no GPU for FAISS" in said
    assert "Fix: leave --gpu out" in said


def out_of_memory_above(limit):
    def work(size):
        if size > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        return list(range(size))

    return work


@pytest.mark.parametrize(("limit", "fitted"), [(1000, 1000), (999, 500), (3, 3), (1, 1)])
def test_a_block_halves_until_it_fits(limit, fitted):
    result, size = halving(out_of_memory_above(limit), 1000)
    assert size == fitted == len(result)


def test_a_block_that_never_fits_is_one_clear_error():
    with pytest.raises(UserError, match=r"smallest block, of 4 \(CUDA out of memory"):
        halving(out_of_memory_above(3), 64, least=4)


class Memory:
    """A device that holds `room` rows; counts the batches that were asked of it."""

    def __init__(self, room):
        self.room, self.asked = room, []

    def __call__(self, batch):
        self.asked.append(len(batch))
        if len(batch) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")
        return batch * 2


def test_a_batch_is_halved_until_it_fits_and_the_limit_is_kept(caplog):
    device, fitting = Memory(room=10), FittingParts()
    batch = torch.arange(37)
    torch.testing.assert_close(torch.cat(fitting(device, batch)), batch * 2)
    assert device.asked == [37, 18, 9, 9, 9, 9, 1]
    assert fitting.limit == 9
    device.asked.clear()
    torch.testing.assert_close(torch.cat(fitting(device, batch[:20])), batch[:20] * 2)
    assert device.asked == [9, 9, 2]  # no second crash
    assert "out of memory: going on with blocks of 18" in caplog.text


def test_a_single_row_that_does_not_fit_is_an_error_that_says_what_to_do():
    with pytest.raises(
        UserError,
        match=r"block, of 1 \(CUDA out of memory.*Fix: free the device's memory",
    ):
        FittingParts()(Memory(room=0), torch.arange(4))


def test_a_scorer_scores_the_same_in_the_blocks_that_fit(monkeypatch):
    rng = np.random.default_rng(0)
    videos = VideoFeatures(
        [str(n) for n in range(2000)],
        [f"{n}.mp4" for n in range(2000)],
        ["test"] * 2000,
        rng.standard_normal((2000, 3, 16)).astype(np.float16),
        np.ones((2000, 3), bool),
        np.zeros((2000, 3)),
    )
    texts = rng.standard_normal((5, 16)).astype(np.float32)
    scorer = Scorer(build_head(HeadConfig(head="xpool", dim=16)).eval(), videos)
    expected, prepare = scorer.full(texts), scorer._prepare
    monkeypatch.setattr(scorer, "_prepare", lambda rows: out_of_memory_above(600)(len(rows)) and prepare(rows))
    _, scorer.block = halving(scorer._hold_first, 2048, 256)  # as on a GPU
    assert scorer.block == 512
    assert np.array_equal(scorer.full(texts), expected)
