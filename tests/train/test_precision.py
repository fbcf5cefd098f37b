"""Precision of a head's training keeps to float32's loss curve; a step never waits for the device."""

from types import MethodType

import numpy as np
import pytest
import torch
from command_line import refused
from lightning_fabric import Fabric
from torch.utils._python_dispatch import TorchDispatchMode
from training_script import DIM, toy_pairs

from dits_head.config import HeadConfig
from dits_head.distill import Student
from dits_head.head import build_head
from pipeline.errors import BadInput
from pipeline.train import loop
from pipeline.train.batches import BatchSource, epoch_batches
from pipeline.train.finetune import FinetuneTask, TuneSettings
from pipeline.train.precision import of_fabric, products
from pipeline.train.tasks import DistillTask, HeadTask, TeacherSource, fit_closed_form

CPU = torch.device("cpu")
HEADS = ("xpool", "mlp", "dits", "three-views", "tmass-lite")


def new_head(name):
    torch.manual_seed(0)
    still = {"noise_train": False, "T": 20, "blocks": 1} if name == "dits" else {}
    frames = {"num_frames": 4} if name.startswith("tmass") else {}
    return build_head(HeadConfig(head=name, dim=DIM, **still, **frames))


def curve(name, precision, run_dir):
    """The losses of 40 steps through the real loop, and the model."""
    head, data, losses = new_head(name), toy_pairs(), []
    fit_closed_form(head, data)
    plain = head.training_loss

    def recorded(**batch):
        loss, terms = plain(**batch)
        losses.append((loss.item(), loss.dtype))
        return loss, terms

    head.training_loss = MethodType(lambda _, **batch: recorded(**batch), head)
    loop.train(
        head,
        BatchSource(data, CPU, free_bytes=1 << 30),
        loop.parameter_groups(head, 0.2),
        loop.TrainSettings(lr=1e-3, epochs=8, batch_size=24),
        run_dir,
        identity={},
        validate=lambda _: {"R@1": 1.0, "MnR": 1.0},
        fabric=Fabric(accelerator="cpu", devices=1, precision=of_fabric(precision)),
    )
    assert {dtype for _, dtype in losses} == {torch.float32}
    return np.array([loss for loss, _ in losses]), head


@pytest.mark.parametrize("name", HEADS)
def test_the_loss_curve_in_bfloat16_is_that_of_float32(name, tmp_path):
    expected, _ = curve(name, "float32", tmp_path / "float32")
    found, head = curve(name, "bfloat16", tmp_path / "bfloat16")
    assert len(expected) == 40
    assert expected[-5:].mean() < 0.9 * expected[:5].mean()
    if name != "xpool":  # whose folded pooling leaves autocast altogether
        assert not np.array_equal(found, expected)  # it did compute otherwise
    np.testing.assert_allclose(found, expected, rtol=TOLERANCE)
    assert {parameter.dtype for parameter in head.parameters()} == {torch.float32}


TOLERANCE = 0.02


class NothingWaits(TorchDispatchMode):
    """Refuses every operation for which the host would wait for a GPU: reading a number, and results whose size depends
    on the data."""

    WAITS = frozenset(
        {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "_unique2", "unique_dim", "equal"}
    )

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function.overloadpacket.__name__ not in self.WAITS, f"{function} waits for the device"
        if function.overloadpacket.__name__ in ("index", "index_put", "index_put_"):
            assert not any(of is not None and of.dtype == torch.bool for of in args[1]), f"{function}: mask"
        return function(*args, **(kwargs or {}))


def test_the_guard_sees_what_waits():
    for reading in (torch.Tensor.item, bool, lambda x: x[x > 0]):
        with pytest.raises(AssertionError, match=r"waits|mask"), NothingWaits():
            reading(torch.ones(1))


@pytest.mark.parametrize("name", [*HEADS, "student"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_step_waits_for_nothing(name, precision):
    data = toy_pairs()
    source = BatchSource(data, CPU, free_bytes=1 << 30)
    if name == "student":
        source = TeacherSource(source, data.text_embeds)
    model = (Student(new_head("mlp")) if name == "student" else new_head(name)).train()
    optimizer = torch.optim.AdamW(loop.parameter_groups(model, 0.2), lr=1e-3, fused=True)
    batches = source.batches(epoch_batches(len(data), 24, 1, 0))
    for _ in range(2):  # what the first step makes once may wait; the second may not
        with NothingWaits() if _ else torch.enable_grad():
            batch = next(batches)
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
                loss, _terms = model.training_loss(**batch)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            torch.isfinite(norm)
            optimizer.step()


def test_precision_is_part_of_what_a_run_is_where_it_was_chosen():
    assert HeadTask().identity() == HeadTask("float32").identity() == {}
    assert HeadTask("bfloat16").identity() == {"precision": "bfloat16"}
    assert DistillTask("t", "tf32").identity()["precision"] == "tf32"
    assert "precision" not in FinetuneTask(TuneSettings(1)).identity()
    assert of_fabric(FinetuneTask(TuneSettings(1), "bfloat16").precision) == "bf16-mixed"


def test_tf32_is_refused_on_a_cpu_and_leaves_nothing(extracted):
    with pytest.raises(BadInput, match="only NVIDIA GPUs"), products("tf32", CPU):
        pass
    heads = set((extracted / "heads").rglob("*"))
    said = refused("train-head", "--precision", "tf32", "--device", "cpu", "--head", "mlp", "--workspace", extracted)
    assert "only NVIDIA GPUs multiply in TF32" in said
    assert set((extracted / "heads").rglob("*")) == heads
