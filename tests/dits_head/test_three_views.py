"""The closed-form head and the ensemble, each against its definition written out plainly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
import torch.nn.functional as F
from head_helpers import scrambled
from torch import Tensor

from dits_head.cca import SHRINK_TEXT, SHRINK_VIDEO
from dits_head.config import HeadConfig
from dits_head.head import build_head
from dits_head.pooling import mean_frames
from dits_head.three_views import WEIGHTS, ThreeViews

V, FRAMES, D = 60, 5, 12
OWNERS = torch.arange(2 * V) % V


@pytest.fixture
def data() -> tuple[Tensor, Tensor, Tensor]:
    """Two texts a video, a linear map of its frames' mean and noise."""
    generator = torch.Generator().manual_seed(3)
    topics = torch.randn(V, D, generator=generator) * torch.linspace(0.2, 2, D)
    frames = topics[:, None] + 0.3 * torch.randn(V, FRAMES, D, generator=generator) + 1.0
    mask = torch.rand(V, FRAMES, generator=generator) > 0.3
    mask[:, 0] = True
    maps = torch.randn(D, D, generator=generator)
    texts = topics[OWNERS] @ maps + 0.3 * torch.randn(2 * V, D, generator=generator) - 2.0
    return texts, frames, mask


def plain_cca(texts: Tensor, frames: Tensor, mask: Tensor) -> np.ndarray:
    """Cosines (T, V), one expectation and one matrix square root at a time."""
    t = np.array([x / np.linalg.norm(x) for x in texts.double().numpy()])
    v = np.array(
        [
            np.mean([f / np.linalg.norm(f) for f, real in zip(of, keep, strict=True) if real], axis=0)
            for of, keep in zip(frames.double().numpy(), mask.numpy(), strict=True)
        ]
    )
    white = []
    for x, shrink in ((t, SHRINK_TEXT), (v, SHRINK_VIDEO)):
        covariance = np.cov(x.T, bias=True)
        mixed = (1 - shrink) * covariance * len(covariance) / np.trace(covariance) + shrink * np.eye(len(covariance))
        white.append(np.linalg.inv(scipy.linalg.sqrtm(mixed)))
    w_t, w_v = (w @ (x - x.mean(0)).T for w, x in zip(white, (t, v), strict=True))  # (D, T), (D, V)
    cross = np.mean([np.outer(w_t[:, i], w_v[:, owner]) for i, owner in enumerate(OWNERS)], axis=0)
    c, y = (cross.T @ w_t).T, w_v.T
    return np.array([[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in y] for a in c])


def fitted(name: str, data: tuple[Tensor, Tensor, Tensor], **settings: object) -> Any:
    torch.manual_seed(0)
    head = build_head(HeadConfig(head=name, dim=D, **settings)).eval()  # type: ignore[arg-type]
    if isinstance(head, ThreeViews):
        scrambled(head.views, 0.3)
    texts, frames, mask = data
    head.fit(texts, mean_frames(frames, mask), OWNERS)
    return head


def test_the_closed_form_is_shrunk_canonical_correlation(data: tuple[Tensor, Tensor, Tensor]) -> None:
    head, expected = fitted("cca", data), plain_cca(*data)
    np.testing.assert_allclose(head.score(*data).numpy(), expected, atol=1e-4)
    found = (expected.argmax(1) == OWNERS.numpy()).mean()
    untrained = build_head(HeadConfig(head="mean-pool", dim=D)).score(*data).argmax(1)
    assert found > 0.5 > (untrained == OWNERS).double().mean() + 0.3  # it has undone the map


def test_the_closed_form_depends_on_no_unit_and_no_axes(data: tuple[Tensor, Tensor, Tensor]) -> None:
    texts, frames, mask = data
    expected = fitted("cca", data).score(*data)
    turn = torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(1))).Q
    for other in ((10 * texts, 0.1 * frames, mask), (texts @ turn, frames @ turn, mask)):
        torch.testing.assert_close(fitted("cca", other).score(*other), expected, atol=2e-5, rtol=0)


def test_three_views_score_the_weighted_mean_of_their_heads(data: tuple[Tensor, Tensor, Tensor]) -> None:
    texts, frames, mask = data
    ensemble = fitted("three-views", data)
    xpool, mlp = ensemble.heads[:2]
    attended = xpool.pooling(texts, frames, mask)  # (V, T, D), layer by layer
    first = F.cosine_similarity(texts, attended, dim=-1).T
    unit = F.normalize(texts, dim=-1)
    moved = unit + mlp.aligner.fc2(F.gelu(mlp.aligner.fc1(mlp.aligner.norm(unit))))
    second = F.cosine_similarity(moved, mlp.pooling(texts, frames, mask), dim=-1).T
    third = torch.from_numpy(plain_cca(*data)).float()
    expected = (first + second + 0.3 * third) / 2.3
    torch.testing.assert_close(ensemble.score(*data), expected, atol=1e-4, rtol=0)
    assert WEIGHTS == (1, 1, 0.3)


def test_one_vector_a_text_serves_an_index(data: tuple[Tensor, Tensor, Tensor]) -> None:
    """Dot products with `pool_video` are the weighted mean of the heads' own; queries of the two paths are the same."""
    texts, frames, mask = data
    ensemble = fitted("three-views", data)
    expected: Tensor | float = 0.0
    for weight, head in zip(WEIGHTS, ensemble.heads, strict=True):
        vectors = head.pool_video(frames, mask)
        vectors = vectors if vectors.ndim == 3 else vectors[:, None]
        expected = expected + weight / sum(WEIGHTS) * torch.einsum(
            "td,vmd->tvm", F.normalize(head.align_text(texts), dim=-1), vectors
        )
    queries = ensemble.align_text(texts)
    torch.testing.assert_close(torch.einsum("td,vmd->tvm", queries, ensemble.pool_video(frames, mask)), expected)
    assert torch.equal(ensemble.prepare_texts(texts)[:, 0], queries)


def test_each_of_the_two_trains_as_it_would_alone(data: tuple[Tensor, Tensor, Tensor]) -> None:
    texts, frames, mask = data
    ensemble = fitted("three-views", data).train()
    batch = (texts[:V], frames, mask)
    ensemble.training_loss(*batch)[0].backward()
    for head in ensemble.heads[:2]:
        alone = build_head(head.config).train()
        alone.load_state_dict(head.state_dict())
        alone.training_loss(*batch)[0].backward()
        wanted = {name: parameter.grad for name, parameter in alone.named_parameters()}
        for name, parameter in head.named_parameters():
            torch.testing.assert_close(parameter.grad, wanted[name])
    assert all(parameter.grad is None for parameter in ensemble.heads[2].parameters())
