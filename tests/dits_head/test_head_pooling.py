"""X-Pool against a loop over pairs; the identity against the plain layers, forward and backward; mean pooling."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from head_helpers import scrambled
from torch import Tensor

from dits_head.pooling import MeanPool, Videos, XPool, windows

T, V, FRAMES, D = 5, 4, 6, 16


@pytest.fixture
def data() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    text, frames = torch.randn(T, D, generator=generator), torch.randn(V, FRAMES, D, generator=generator)
    mask = torch.rand(V, FRAMES, generator=generator) > 0.4
    mask[:, 0] = True
    return text, frames.masked_fill(~mask[..., None], torch.nan), mask  # what is masked must never be read


def trained(dropout: float = 0.0, dropout_per: str = "pair") -> XPool:
    return scrambled(XPool(D, dropout, dropout_per), 0.4)


def plain_xpool(pool: XPool, text: Tensor, frames: Tensor, mask: Tensor) -> Tensor:
    """X-Pool's published layers, one pair after the other: (V, T, D)."""
    rows = []
    for video, keep in zip(frames, mask, strict=True):
        x = pool.norm1(video[keep])
        k, v = pool.key(x), pool.value(x)
        for t in text:
            q = pool.query(pool.norm1(t))
            attention = torch.softmax(k @ q / math.sqrt(D), dim=0)
            h = pool.norm2(pool.out(attention @ v))
            rows.append(pool.norm3(h + pool.linear(h)))
    return torch.stack(rows).view(len(frames), len(text), D)


def test_plain_form_and_identity_equal_the_loop(data: tuple[Tensor, Tensor, Tensor]) -> None:
    pool, (text, _, _) = trained().eval(), data
    expected = plain_xpool(pool, *data)
    torch.testing.assert_close(pool(*data), expected, atol=1e-5, rtol=1e-5)
    pooled = pool.pool(*data)
    torch.testing.assert_close(pooled.vectors(), expected, atol=1e-5, rtol=1e-5)
    cosines = F.cosine_similarity(expected, text, dim=-1)
    torch.testing.assert_close(pooled.cosines(F.normalize(text, dim=-1)), cosines, atol=1e-6, rtol=1e-5)


def test_identity_has_the_gradients_of_the_plain_form(data: tuple[Tensor, Tensor, Tensor]) -> None:
    pool, (text, frames, mask) = trained().train(), data
    weight = torch.randn(V, T)
    gradients = []
    for cosines in (
        lambda t: pool.pool(t, frames, mask).cosines(F.normalize(t, dim=-1)),
        lambda t: F.cosine_similarity(plain_xpool(pool, t, frames, mask), t, dim=-1),
    ):
        t = text.clone().requires_grad_()
        gradients.append(torch.autograd.grad((cosines(t) * weight).sum(), [t, *pool.parameters()]))
    for identity, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(identity, plain, atol=2e-6, rtol=1e-3)


def test_a_new_xpool_is_attention_with_identity_projections(data: tuple[Tensor, Tensor, Tensor]) -> None:
    text, frames, mask = data
    pooled = XPool(D).eval()(*data)
    for v in range(V):
        x = F.layer_norm(frames[v][mask[v]], (D,))
        for t in range(T):
            weights = torch.softmax(x @ F.layer_norm(text[t], (D,)) / math.sqrt(D), dim=0)
            expected = F.layer_norm(2 * F.layer_norm(weights @ x, (D,)), (D,))
            torch.testing.assert_close(pooled[v, t], expected, atol=1e-5, rtol=1e-5)


def test_own_videos_and_own_texts(data: tuple[Tensor, Tensor, Tensor]) -> None:
    pool, (text, frames, mask) = trained().eval(), data
    everything = pool(*data)
    own = torch.stack([everything[i, i] for i in range(V)])
    torch.testing.assert_close(pool.pool(text[:V], frames, mask).own(), own, atol=1e-5, rtol=1e-5)
    each = pool.pool_prepared(pool.queries(text[:V])[:, None], pool.prepare(frames, mask))
    torch.testing.assert_close(each.vectors()[:, 0], own, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        each.cosines(F.normalize(text[:V], dim=-1)[:, None])[:, 0],
        F.cosine_similarity(own, text[:V]),
        atol=1e-6,
        rtol=0,
    )


def test_uniform_pooling_is_the_later_layers_on_the_mean_value(data: tuple[Tensor, Tensor, Tensor]) -> None:
    pool, (_, frames, mask) = trained().eval(), data
    got = pool.pool_windows(pool.prepare(frames, mask), 1).vectors()[:, 0]
    for v in range(V):
        h = pool.norm2(pool.out(pool.value(pool.norm1(frames[v][mask[v]])).mean(0)))
        torch.testing.assert_close(got[v], pool.norm3(h + pool.linear(h)), atol=1e-5, rtol=1e-5)


def test_dropout_per_pair_differs_between_pairs_and_follows_the_generator(data: tuple[Tensor, Tensor, Tensor]) -> None:
    pool, (text, frames, mask) = trained(dropout=0.5).train(), data
    same_text = text[:1].expand(T, D)
    draw = lambda: pool.pool(same_text, frames, mask, torch.Generator().manual_seed(2)).vectors()  # noqa: E731
    vectors = draw()
    assert not torch.allclose(vectors[:, 0], vectors[:, 1])
    assert torch.equal(vectors, draw())
    assert torch.allclose(pool.eval().pool(same_text, frames, mask).vectors(), pool(same_text, frames, mask), atol=1e-5)


def test_dropout_per_video_is_one_mask_on_the_linear_layer(data: tuple[Tensor, Tensor, Tensor]) -> None:
    """Against the plain layers with that mask: here the identity is exact in training too."""
    pool, (text, frames, mask) = trained(dropout=0.5, dropout_per="video").train(), data
    got = pool.pool(text, frames, mask, torch.Generator().manual_seed(2)).vectors()
    keep = torch.empty(V, 1, D).bernoulli_(0.5, generator=torch.Generator().manual_seed(2)) / 0.5
    for v in range(V):
        x = pool.norm1(frames[v][mask[v]])
        weights = torch.softmax(pool.key(x) @ pool.query(pool.norm1(text)).T / math.sqrt(D), dim=0)
        h = pool.norm2(pool.out(weights.T @ pool.value(x)))
        torch.testing.assert_close(got[v], pool.norm3(h + keep[v] * pool.linear(h)), atol=1e-5, rtol=1e-5)


def test_dropout_keeps_its_share_and_its_mean() -> None:
    pool = XPool(D, dropout=0.3).train()
    dropped = pool._drop(torch.ones(200, 200), torch.Generator().manual_seed(0))
    assert (dropped == 0).float().mean().item() == pytest.approx(0.3, abs=0.01)
    assert dropped.mean().item() == pytest.approx(1, abs=0.02)


def test_mean_pooling_averages_unit_frames(data: tuple[Tensor, Tensor, Tensor]) -> None:
    text, frames, mask = data
    pooled = MeanPool().pool(*data)
    for v in range(V):
        mean = F.normalize(frames[v][mask[v]], dim=-1).mean(0)
        for t in range(T):
            torch.testing.assert_close(pooled.vectors()[v, t], mean)
            cosine = pooled.cosines(F.normalize(text, dim=-1))[v, t]
            torch.testing.assert_close(cosine, F.cosine_similarity(mean, text[t], dim=0))


def test_videos_are_indexed_along_the_videos(data: tuple[Tensor, Tensor, Tensor]) -> None:
    _, frames, mask = data
    videos = XPool(D).prepare(frames, mask)
    index = torch.tensor([[2, 0], [1, 2]])
    for part, expected in ((videos[1:3], [1, 2]), (videos[index].flatten(), [2, 0, 1, 2])):
        assert len(part) == len(expected)
        assert torch.equal(part.keys, videos.keys[expected])
        assert torch.equal(part.gram_basis, videos.gram_basis[expected])
    assert torch.equal(Videos.concatenate([videos[:1], videos[1:]]).basis, videos.basis)


def test_windows_are_equal_stretches_of_the_frames_that_exist() -> None:
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2, [True] * 2 + [False] * 4])
    weights = windows(mask, 3)
    third, pair, one = 1 / 2, 1 / 2, 1.0
    assert weights[0].T.tolist() == [[third, third, 0, 0, 0, 0], [0, 0, third, third, 0, 0], [0, 0, 0, 0, third, third]]
    assert weights[1].T.tolist() == [[pair, pair, 0, 0, 0, 0], [0, 0, one, 0, 0, 0], [0, 0, 0, one, 0, 0]]
    # two frames in three stretches: the empty one takes all
    assert weights[2].T.tolist() == [[one, 0, 0, 0, 0, 0], [0, one, 0, 0, 0, 0], [third, third, 0, 0, 0, 0]]
    assert torch.equal(windows(mask, 1)[..., 0], mask / mask.sum(1, keepdim=True))
