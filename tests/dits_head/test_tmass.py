"""T-MASS as published, against a plain transcription of its code, one pair at a time; the draws of a pair."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dits_head.config import HeadConfig
from dits_head.head import build_head
from dits_head.samplers import PairNoise

B, FRAMES, D = 6, 4, 16


def case(prior: str = "uniform") -> tuple:
    torch.manual_seed(0)
    head = build_head(
        HeadConfig(head="tmass", dim=D, num_frames=FRAMES, prior=prior, dropout=0.0, init_logit_scale=20.0)
    )
    text, frames = 3 * torch.randn(B, D), 2 * torch.randn(B, FRAMES, D)
    mask = torch.ones(B, FRAMES, dtype=torch.bool)
    mask[0, 3] = False
    return head, text, frames, mask


def plain_radius(head, text: Tensor, frames: Tensor, mask: Tensor) -> Tensor:
    """exp of the linear layer on the cosines of one text (D,) with the frames (F, D) of one video."""
    cosines = torch.stack([F.cosine_similarity(text, frame, dim=0) for frame in frames]) * mask
    return (head.aligner.linear.weight @ cosines + head.aligner.linear.bias).exp()


def plain_contrastive(head, texts: list[Tensor], pooled: Tensor) -> Tensor:
    """CLIP's loss on cos(texts[i], v_j | t_i), pooled (V, T, D)."""
    rows = [[F.cosine_similarity(texts[i], pooled[j, i], dim=0) for j in range(B)] for i in range(B)]
    logits = head.logit_scale.exp() * torch.stack([torch.stack(row) for row in rows])
    t2v = sum(-logits[i].log_softmax(0)[i] for i in range(B)) / B
    v2t = sum(-logits[:, i].log_softmax(0)[i] for i in range(B)) / B
    return (t2v + v2t) / 2


def test_the_radius_layer_starts_as_the_identity_and_published_settings_are_the_defaults() -> None:
    head, *_ = case()
    assert torch.equal(head.aligner.linear.weight, torch.eye(D, FRAMES))
    assert not head.aligner.linear.bias.any()
    config = HeadConfig(head="tmass")
    assert (config.dropout, config.support, config.prior, config.samples) == (0.3, 0.8, "uniform", 20)


@pytest.mark.parametrize("prior", ["uniform", "normal"])
def test_the_loss_is_the_published_one(prior: str) -> None:
    head, text, frames, mask = case(prior)
    head.train()
    loss, parts = head.training_loss(text, frames, mask, generator=torch.Generator().manual_seed(3))

    chance = torch.Generator().manual_seed(3)
    z = torch.rand(B, D, generator=chance) if prior == "uniform" else 0.003 * torch.randn(B, D, generator=chance)
    pooled = head.pooling(text, frames, mask)  # (V, T, D)
    radius = [plain_radius(head, text[i], frames[i], mask[i]) for i in range(B)]
    sampled = [text[i] + z[i] * radius[i] for i in range(B)]
    support = []
    for i in range(B):
        pointer = sum(pooled[i, t] for t in range(B)) / B - text[i]
        support.append(pointer / pointer.norm() * radius[i] + text[i])
    contrastive, of_support = plain_contrastive(head, sampled, pooled), plain_contrastive(head, support, pooled)
    assert parts["contrastive"] == pytest.approx(contrastive.item(), rel=1e-5)
    assert parts["support"] == pytest.approx(of_support.item(), rel=1e-5)
    assert loss.item() == pytest.approx((contrastive + 0.8 * of_support).item(), rel=1e-5)


@pytest.mark.parametrize("prior", ["uniform", "normal"])
def test_the_score_is_the_best_of_twenty_draws_of_the_pair(prior: str) -> None:
    head, text, frames, mask = case(prior)
    sims = head.eval().score(text, frames, mask)
    pooled = head.pooling(text, frames, mask)
    for i in range(B):
        for j in range(B):
            unit = F.normalize(frames[j], dim=-1).masked_fill(~mask[j, :, None], 0)
            noise = PairNoise(text[i : i + 1], unit.flatten()[None], 24)
            draws = [noise.uniform(m)[0] if prior == "uniform" else 0.003 * noise.normal(m)[0] for m in range(20)]
            radius = plain_radius(head, text[i], frames[j], mask[j])
            best = max(F.cosine_similarity(text[i] + radius * z, pooled[j, i], dim=0) for z in draws)
            torch.testing.assert_close(sims[i, j], best, atol=1e-5, rtol=0)


def test_a_pairs_draws_are_its_own_and_of_their_distribution() -> None:
    text, video = torch.randn(400, 64), torch.randn(400, 24)
    noise = PairNoise(text, video, 1)
    draw, order = noise.uniform(3), torch.randperm(400)
    assert torch.equal(PairNoise(text[order], video[order], 1).uniform(3), draw[order])
    others = (PairNoise(text, video, 2).uniform(3), noise.uniform(4), PairNoise(text, video.roll(1, 0), 1).uniform(3))
    for other in others:
        assert abs(torch.corrcoef(torch.stack([draw.flatten(), other.flatten()]))[0, 1]) < 0.05
    n = draw.numel()
    assert 0 <= draw.min() < 0.01
    assert 0.99 < draw.max() <= 1
    assert abs(draw.mean() - 0.5) < 5 / math.sqrt(12 * n)
    assert abs(draw.var() - 1 / 12) < 0.005
    normal = noise.normal(0)
    assert abs(normal.mean()) < 5 / math.sqrt(n)
    assert abs(normal.var() - 1) < 5 * math.sqrt(2 / n)
