"""Distillation: the student's loss, what it leaves alone, and a run from teacher to student on files."""

import json

import pytest
import torch
import torch.nn.functional as F
from command_line import refused, run
from head_helpers import scrambled
from retrieval_case import DIM, FRAMES, add_videos, make_head, make_store

from dits_head.config import HeadConfig
from dits_head.distill import Student
from dits_head.head import HeadNeedsVideo, build_head
from pipeline.errors import FingerprintMismatch
from pipeline.evaluate.metrics import retrieval_metrics
from pipeline.resolve import resolve_head, resolve_store
from pipeline.stores import checkpoints
from pipeline.stores.integrity import read_json
from pipeline.train.loop import TrainSettings
from pipeline.train.run import RunOptions, train_head
from pipeline.train.tasks import DistillTask, HeadTask
from pipeline.workspace import Workspace

SETTINGS = TrainSettings(lr=3e-3, epochs=2, batch_size=40)


def batch(count=8):
    chance = torch.Generator().manual_seed(3)
    text, targets = torch.randn(2, count, DIM, generator=chance)
    frames = torch.randn(count, FRAMES, DIM, generator=chance)
    return text, frames, torch.ones(count, FRAMES, dtype=torch.bool), torch.eye(count, dtype=torch.bool), targets


def test_the_loss_is_the_distance_in_direction_and_reaches_the_aligner_alone():
    head = make_head("dits", T_prime=1)
    text, frames, mask, positives, targets = batch()
    loss, parts = Student(head).training_loss(text, frames, mask, positives, targets)
    expected = 1 - F.cosine_similarity(head.align_text(text), targets).mean()
    assert parts == {"distill": loss.item()}
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=0)
    longer, _ = Student(head).training_loss(text, frames, mask, positives, 7 * targets)
    torch.testing.assert_close(longer, loss)
    loss.backward()
    assert {name.split(".")[0] for name, p in head.named_parameters() if p.grad is not None} == {"aligner"}


def test_a_student_that_needs_the_video_cannot_learn_texts():
    head = build_head(HeadConfig(dim=DIM, blocks=1, condition="v"))
    with pytest.raises(HeadNeedsVideo):
        Student(head).training_loss(*batch())


def test_one_step_learns_what_ten_do():
    chance = torch.Generator().manual_seed(5)
    teacher = scrambled(build_head(HeadConfig(dim=DIM, blocks=1)), 0.3).eval()
    student = Student(build_head(HeadConfig(dim=DIM, blocks=1, T_prime=1))).train()
    texts = torch.randn(256, DIM, generator=chance)
    targets = teacher.align_text(texts)
    optimizer = torch.optim.AdamW([p for p in student.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(150):
        loss, _ = student.training_loss(texts, None, None, None, targets)  # frames are not looked at
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    assert losses[0] > 0.02


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A toy store with a train and a val split, and a teacher that moves texts a long way in three steps."""
    place = Workspace(tmp_path_factory.mktemp("distill"))
    store = make_store(place.features_dir("toy", "toy"), videos=60, split="train")
    add_videos(store, [f"w{i}" for i in range(20)], split="val", seed=1)
    for name, head in (("teacher", make_head("dits", T_prime=3)), ("xpool", make_head("xpool"))):
        record = {"head": head.config.to_dict(), "encoder": store.settings, "run": name, "selected_on": "val"}
        checkpoints.save_head(place.head_dir("toy", name), head.state_dict(), record)
    return place


def test_a_run_says_what_it_was_distilled_from_and_keeps_the_teachers_pooling(workspace):
    chosen = resolve_store(workspace)
    config = HeadConfig(dim=DIM, blocks=1, T_prime=1, index_vectors=1)
    what, student = (workspace, chosen, config, SETTINGS), RunOptions("student")
    train_head(*what, DistillTask("teacher"), retrieval_metrics, student)
    record = read_json(workspace.head_dir("toy", "student") / "config.json")
    assert record["distilled_from"] == {"run": "teacher", "contrast": 0.0}
    teacher, learnt = (resolve_head(workspace, chosen, name).head for name in ("teacher", "student"))
    assert all(
        torch.equal(a, b) for a, b in zip(teacher.pooling.parameters(), learnt.pooling.parameters(), strict=True)
    )
    with pytest.raises(FingerprintMismatch, match="distilled_from"):
        train_head(*what, DistillTask("xpool"), retrieval_metrics, student)
    with pytest.raises(FingerprintMismatch, match="distilled_from"):
        train_head(*what, HeadTask(), retrieval_metrics, student)  # nor is it a plain run


def test_the_command_line(workspace):
    here = ("--workspace", workspace.root)
    dits = ("train-head", "--head", "dits", "--set", "T_prime=1", "--set", "blocks=1", "--epochs", "1")
    result = json.loads(run(*dits, "--distill", "teacher", "--json", *here).stdout)
    assert result["head"] == "dits"
    assert "teacher (xpool) aligns no text" in refused(*dits, "--distill", "xpool", *here)
    assert "student (three-views) aligns no text by itself: it is solved" in refused(
        "train-head", "--distill", "teacher", *here
    )
    assert "student (xpool) aligns no text" in refused("train-head", "--head", "xpool", "--distill", "teacher", *here)
    assert "no trained head" in refused(*dits, "--distill", "nope", *here)
    assert "--train-blocks" in refused(*dits, "--distill", "teacher", "--train-blocks", "1", *here)
