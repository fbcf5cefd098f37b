"""What is learnt depends on no unit: vectors times a constant, a rotated space, another width, trained and tested."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dits_head.blocks import Block
from dits_head.config import HeadConfig
from dits_head.head import build_head
from dits_head.pooling import mean_frames
from dits_head.schedule import make_schedule, reach

TOPICS, WIDTH, TRAIN, TEST, FRAMES = 8, 32, 200, 200, 2


def world(scale: float = 1.0, dim: int = WIDTH, turn: bool = False) -> tuple[Tensor, Tensor]:
    """Texts (N, D) and frames (N, F, D) of TRAIN + TEST videos: two linear views of the same topics, and noise.

    Another width holds the same vectors, turned into a larger space.
    """
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    topics, noise = draw(TRAIN + TEST, TOPICS), draw(TRAIN + TEST, FRAMES, TOPICS)
    base, other = (torch.linalg.qr(draw(WIDTH, TOPICS)).Q.T for _ in range(2))  # (TOPICS, D) orthonormal rows
    texts = topics @ (0.5 * base + other)
    frames = (topics[:, None] + 0.8 * noise) @ base + 0.3 * base[0]
    if turn or dim != WIDTH:
        axes = torch.linalg.qr(draw(dim, WIDTH)).Q.T
        texts, frames = texts @ axes, frames @ axes
    return (scale * texts).float(), (scale * frames).float()


def learnt(texts: Tensor, frames: Tensor, **settings: Any) -> float:
    """R@1 on the test videos after a short training."""
    torch.manual_seed(0)
    model = build_head(HeadConfig(dim=texts.shape[1], init_logit_scale=20.0, **settings)).train()
    mask = torch.ones(frames.shape[:2], dtype=torch.bool)
    model.fit(texts[:TRAIN], mean_frames(frames[:TRAIN], mask[:TRAIN]), torch.arange(TRAIN))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3, weight_decay=0.2)
    for step in range(25):
        rows = torch.randperm(TRAIN, generator=torch.Generator().manual_seed(step))[:40]
        loss, _ = model.training_loss(texts[rows], frames[rows], mask[rows])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    sims = model.eval().score(texts[TRAIN:], frames[TRAIN:], mask[TRAIN:])
    return 100 * float((sims.argmax(1) == torch.arange(TEST)).double().mean())


DITS = {"head": "dits", "blocks": 1, "T": 2, "noise_train": False}  # its noise is held by the tests below
SEEDS_DIFFER_BY = 5.0  # R@1 points


@pytest.mark.parametrize("head", [DITS, {"head": "three-views"}], ids=["dits", "three-views"])
def test_what_is_learnt_depends_on_no_unit(head: dict) -> None:
    usual = learnt(*world(), **head)
    assert usual > learnt(*world(), head="mean-pool") + 20
    for changed in (world(scale=0.01), world(turn=True), world(dim=2 * WIDTH)):
        assert learnt(*changed, **head) == pytest.approx(usual, abs=SEEDS_DIFFER_BY)


@pytest.mark.parametrize("relative", [True, False])
def test_dits_turns_a_text_by_the_same_angle_whatever_its_length_unless_the_unit_is_the_papers(relative: bool) -> None:
    torch.manual_seed(0)
    head = build_head(HeadConfig(dim=32, blocks=1, relative=relative)).train()
    nn.init.normal_(head.aligner.network.final.weight)
    text = torch.randn(20, 32)
    turned = [head.align_text_training(scale * text, torch.Generator().manual_seed(1)) for scale in (0.01, 1, 100)]
    angles = [F.cosine_similarity(text, one, dim=-1) for one in turned]
    same = [torch.allclose(angle, angles[1], atol=1e-4) for angle in angles]
    assert same == [relative, True, relative]


@pytest.mark.parametrize("dim", [16, 512])
def test_reach_is_what_the_sampler_adds(dim: int) -> None:
    """At its start the network is zero, so that what is added to the text is all of the noise: 2.2 times the text, or
    the same length whatever the text's."""
    torch.manual_seed(0)
    text = 7 * F.normalize(torch.randn(200, dim), dim=-1)
    for relative, start in ((True, math.sqrt(dim) / 7 * text), (False, text)):
        head = build_head(HeadConfig(dim=dim, blocks=1, relative=relative)).train()
        added = (head.align_text_training(text) - start).square().sum(-1).mean().sqrt()
        steps, noise = reach(make_schedule("literal", 10), 10, dim)
        assert added.item() == pytest.approx(noise, rel=0.05)
        assert noise == pytest.approx(2.3 * math.sqrt(dim), rel=0.02)
        assert steps == pytest.approx(19.2, abs=0.1)


def test_value_starts_as_in_dits_own_network() -> None:
    """DiT draws q, k and v as one matrix with Xavier's bound, so the value's deviation is sqrt(2 / 4 D)."""
    torch.manual_seed(0)
    assert Block(512, 4.0).value.weight.std().item() == pytest.approx(math.sqrt(0.5 / 512), rel=0.02)
