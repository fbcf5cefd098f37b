"""Training: batches follow from the seed, a killed run ends with the same weights, other settings are refused."""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from training_script import run, toy_pairs

from pipeline.errors import BadInput, FingerprintMismatch
from pipeline.train.batches import BatchSource, epoch_batches
from pipeline.train.loop import TrainSettings, learning_rate, parameter_groups

SCRIPT = Path(__file__).parents[1] / "training_script.py"


def test_an_epoch_visits_every_pair_once_and_follows_from_the_seed():
    batches = epoch_batches(103, 10, seed=1, epoch=2)
    rows = np.concatenate(batches)
    assert len(batches) == 10
    assert len(set(rows.tolist())) == 100  # the incomplete batch is dropped
    assert all(np.array_equal(a, b) for a, b in zip(batches, epoch_batches(103, 10, seed=1, epoch=2), strict=True))
    assert not np.array_equal(rows, np.concatenate(epoch_batches(103, 10, seed=1, epoch=3)))
    assert [len(batch) for batch in epoch_batches(7, 32, seed=1, epoch=0)] == [7]
    assert [len(batch) for batch in epoch_batches(7, 32, seed=1, epoch=0, devices=2)] == [6]


def test_batches_know_their_positives_and_are_the_same_resident_or_not():
    data = toy_pairs()
    data.sentence[5] = data.sentence[0]  # caption 5 (video 2) says what caption 0 (video 0) says
    pairs = np.array([0, 1, 5, 40])
    resident, travelling = (BatchSource(data, torch.device("cpu"), free) for free in (1 << 30, 0))
    assert resident.resident
    assert not travelling.resident
    batch, same = (source.batch(torch.from_numpy(pairs)) for source in (resident, travelling))
    assert all(torch.equal(batch[name], same[name]) for name in batch)
    expected = torch.eye(4, dtype=torch.bool)
    expected[0, 1] = expected[1, 0] = expected[0, 2] = expected[2, 0] = True
    assert torch.equal(batch["positives"], expected)
    assert torch.equal(batch["frame_embeds"][2], torch.from_numpy(data.frame_embeds[2]).float())


def test_learning_rate_warms_up_and_falls():
    settings = TrainSettings(lr=2.0, warmup=0.1)
    rates = [learning_rate(step, 100, settings) for step in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[9] == rates[10] == max(rates) == 2.0
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    assert 0 < rates[-1] < 0.01


def test_norms_and_biases_do_not_decay():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.LayerNorm(3))
    matrices, others = parameter_groups(model, 0.2)
    assert (len(matrices["params"]), matrices["weight_decay"]) == (1, 0.2)
    assert (len(others["params"]), others["weight_decay"]) == (3, 0.0)


@pytest.mark.parametrize("wrong", [{"lr": 0}, {"epochs": 0}, {"batch_size": -1}, {"warmup": 1.0}])
def test_settings_that_cannot_work_are_refused(wrong):
    with pytest.raises(BadInput):
        TrainSettings(**wrong)


def test_same_seed_same_weights_and_best_epoch_is_kept(tmp_path):
    first, second, other = (run(tmp_path / str(n), 3, seed=seed) for n, seed in enumerate((24, 24, 25)))
    weights = [torch.load(tmp_path / str(n) / "final.pt") for n in range(3)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert any(not torch.equal(weights[0][name], weights[2][name]) for name in weights[0])
    assert first.best == max(first.history, key=lambda row: (row["R@1"], -row["MnR"]))
    assert first.history[-1]["R@1"] > first.history[0]["R@1"]
    lines = [json.loads(line) for line in (tmp_path / "0" / "metrics.jsonl").read_text().splitlines()]
    assert lines == first.history == second.history
    assert other.history != first.history


def test_killed_runs_end_with_the_same_weights(tmp_path):
    """kill -9 at random moments, in mid-epoch and in mid-write, then go on: the same bits as without interruption."""
    run(tmp_path / "whole", 3)
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parent.parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), str(tmp_path / "killed"), "3"]
    chance = random.Random(0)
    kills = 0
    for _ in range(20):
        child = subprocess.Popen(command, env=environment)
        deadline = time.monotonic() + 60
        before = progress(tmp_path / "killed")
        if kills < 2:
            while child.poll() is None and progress(tmp_path / "killed") == before and time.monotonic() < deadline:
                time.sleep(0.001)  # until it has got somewhere
            time.sleep(chance.random() * 0.05)
            child.send_signal(signal.SIGKILL)
            kills += child.wait() == -signal.SIGKILL
        elif child.wait(timeout=60) == 0:
            break
    assert kills == 2
    whole, resumed = (torch.load(tmp_path / name / "final.pt") for name in ("whole", "killed"))
    assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []
    assert (tmp_path / "whole/metrics.jsonl").read_text() == (tmp_path / "killed/metrics.jsonl").read_text()


def progress(run_dir):
    try:
        return json.loads((run_dir / "resume.json").read_text())["step"]
    except (FileNotFoundError, json.JSONDecodeError):
        return -1


def test_a_run_with_other_settings_is_refused(tmp_path):
    run(tmp_path, 1)
    with pytest.raises(FingerprintMismatch, match="epochs: 1 != 2"):
        run(tmp_path, 2)
