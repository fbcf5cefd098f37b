"""Several devices share a batch: the losses and weights are those of one device that has it all."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import refused
from safetensors.torch import load_file

from pipeline.train.joint_batches import JointSource

SCRIPT = Path(__file__).parents[1] / "devices_script.py"


@pytest.mark.parametrize("head", ["mlp", *(pytest.param(head, marks=pytest.mark.slow) for head in ("xpool", "dits"))])
def test_two_devices_equal_one(tmp_path, head):
    """The same loss to 1e-5 in each of ten steps, and the same weights after them, dropout and noise included."""
    losses, weights = {}, {}
    for devices in (1, 2):
        place = tmp_path / str(devices)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (SCRIPT.parents[1], SCRIPT.parent)))}
        subprocess.run([sys.executable, SCRIPT, place, str(devices), head], env=environment, check=True, timeout=120)
        losses[devices] = json.loads((place / "losses.json").read_text())
        weights[devices] = torch.load(place / "final.pt")
    assert len(losses[1]) == 10
    np.testing.assert_allclose(losses[1], losses[2], rtol=1e-5)
    assert len(set(losses[1])) == 10
    for name, weight in weights[1].items():
        torch.testing.assert_close(
            weights[2][name], weight, rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.mark.slow
@pytest.mark.slow_sample
def test_two_devices_print_one_result_and_leave_the_same_run(tmp_path, extracted):
    """The real command line with and without --devices 2: one result, the same run, the same weights."""
    command = [sys.executable, "cli.py", "train-head", "--head", "mlp", "--epochs", "2", "--batch-size", "8", "--json"]
    results, weights = [], []
    for devices in (2, 1):
        place = tmp_path / str(devices)
        shutil.copytree(extracted, place)
        given = [*command, "--devices", str(devices), "--workspace", str(place)]
        done = subprocess.run(given, capture_output=True, text=True, check=True, timeout=120)
        results.append(json.loads(done.stdout))  # one object, printed once
        (head_dir,) = (place / "heads/shapes").glob("mlp-*")
        weights.append(load_file(head_dir / "model.safetensors"))
        assert ("on each: a head alone trains no faster" in done.stderr) == (devices == 2)
    assert results[0]["run"] == results[1]["run"]
    for name, weight in weights[1].items():
        torch.testing.assert_close(weights[0][name], weight, rtol=1e-4, atol=1e-6)


def test_a_batch_that_cannot_be_shared_is_refused(extracted):
    error = refused("train-head", "--devices", "2", "--batch-size", "5", "--workspace", extracted)
    assert "multiple of the 2 devices" in error


class Rows:
    """Inputs that are their rows."""

    def frame_inputs(self, batches):
        return (torch.from_numpy(rows) for rows in batches)

    def text_inputs(self, rows):
        return torch.from_numpy(rows), torch.ones(len(rows))


def test_positives_are_those_of_the_whole_batch():
    from training_script import toy_pairs

    data, pairs = toy_pairs(), np.array([0, 7, 1, 30])  # captions 0 and 1 are of the same video
    parts = [next(JointSource(data, Rows(), torch.device("cpu"), rank, 2).batches([pairs])) for rank in (0, 1)]
    assert [part["text_inputs"].tolist() for part in parts] == [[0, 7], [1, 30]]
    for part in parts:
        expected = torch.eye(4, dtype=torch.bool)
        expected[0, 2] = expected[2, 0] = True
        assert torch.equal(part["positives"], expected)
