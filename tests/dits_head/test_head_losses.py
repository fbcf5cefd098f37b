"""The contrastive loss against loops, with several captions a video; the noise loss."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dits_head.losses import contrastive_loss, noise_loss


def naive(sims: list[list[float]], scale: float, positives: list[list[bool]]) -> float:
    """Row by row and column by column: -log of the own video's share among itself and the true negatives."""
    B, total = len(sims), 0.0
    for i in range(B):
        row = [math.exp(scale * sims[i][j]) for j in range(B) if j == i or not positives[i][j]]
        column = [math.exp(scale * sims[j][i]) for j in range(B) if j == i or not positives[j][i]]
        total += math.log(sum(row)) + math.log(sum(column)) - 2 * scale * sims[i][i]
    return total / (2 * B)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=8), st.floats(0.5, 20), st.integers(0, 999))
@settings(max_examples=60, deadline=None)
def test_captions_of_one_video_are_no_negatives(videos: list[int], scale: float, seed: int) -> None:
    """Batches in which some texts share their video: their columns are copies of one another."""
    owner = torch.tensor(videos)
    sims = torch.rand(len(videos), 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)[:, owner]
    positives = owner[:, None] == owner
    got = contrastive_loss(sims, scale, positives).item()
    assert got == pytest.approx(naive(sims.tolist(), scale, positives.tolist()), rel=1e-9, abs=1e-9)


def test_without_positives_only_the_diagonal_matches() -> None:
    sims = torch.randn(6, 6)
    diagonal = torch.eye(6, dtype=torch.bool)
    torch.testing.assert_close(contrastive_loss(sims, 3.0), contrastive_loss(sims, 3.0, diagonal))
    torch.testing.assert_close(contrastive_loss(sims, 3.0), contrastive_loss(sims, 3.0, torch.zeros_like(diagonal)))


def test_false_negatives_receive_no_gradient() -> None:
    sims = torch.randn(4, 4, requires_grad=True)
    positives = torch.eye(4, dtype=torch.bool)
    positives[0, 2] = positives[2, 0] = True
    contrastive_loss(sims, 5.0, positives).backward()
    assert sims.grad is not None
    assert sims.grad[0, 2] == sims.grad[2, 0] == 0
    assert (sims.grad != 0).sum() == 14


def test_noise_loss() -> None:
    a, b = torch.tensor([[1.0, -2.0]]), torch.tensor([[0.0, 1.0]])
    assert noise_loss(a, b, "l1").item() == 2.0
    assert noise_loss(a, b, "l2").item() == 5.0
