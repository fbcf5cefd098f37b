"""The retrieval head: its contract for every system, exact reproducibility, and that each system learns."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from head_helpers import scrambled
from torch import Tensor

from dits_head.config import HEADS, HeadConfig
from dits_head.head import HeadNeedsVideo, RetrievalHead, build_head
from dits_head.pooling import Videos
from dits_head.samplers import keyed_noise, truncated_sampler
from dits_head.three_views import ThreeViews

T, V, FRAMES, D = 70, 150, 6, 32

SYSTEMS: dict[str, dict] = {
    "mean-pool": {"head": "mean-pool"},
    "xpool": {"head": "xpool"},
    "xpool-dropout": {"head": "xpool", "dropout": 0.3},
    "xpool-dropout-video": {"head": "xpool", "dropout": 0.3, "dropout_per": "video"},
    "mlp-index": {"head": "mlp", "index_loss": 0.5},
    "fixed-prior": {"head": "fixed-prior"},
    "diffusion-pretrain": {"head": "diffusion"},
    "diffusion-finetune": {"head": "diffusion", "stage": "finetune"},
    "cca": {"head": "cca"},
    "three-views": {"head": "three-views"},
    "three-views-one-vector": {"head": "three-views", "index_vectors": 1, "pool_query": "aligned"},
    "dits": {},
    "dits-absolute": {"relative": False},
    "dits-linear": {"schedule": "linear", "noise_train": False, "normalise": True},
    "dits-literal": {"noise_eval": True},
    "dits-3-steps": {"T_prime": 3},
    "dits-aligned-query": {"pool_query": "aligned"},
    "dits-t": {"condition": "t"},
    "dits-v": {"condition": "v"},
    "dits-tv": {"condition": "tv", "noise_eval": True},
    "dits-t-v": {"gap": "t-v"},
    "tmass": {"head": "tmass", "num_frames": FRAMES},
    "tmass-normal": {"head": "tmass", "num_frames": FRAMES, "prior": "normal"},
    "tmass-lite": {"head": "tmass-lite", "num_frames": FRAMES},
}
NEED_VIDEO = {"dits-v", "dits-tv", "dits-t-v", "tmass", "tmass-normal", "tmass-lite"}


def make(system: str) -> RetrievalHead:
    head = build_head(HeadConfig(dim=D, blocks=2, **({"T": 4} | SYSTEMS[system])))
    for one in head.heads if isinstance(head, ThreeViews) else [head]:
        scrambled(one.aligner, 0.1)
        scrambled(one.pooling, 0.3)
    generator = torch.Generator().manual_seed(5)
    texts, means = torch.randn(40, D, generator=generator), torch.randn(20, D, generator=generator)
    head.fit(texts, means, torch.arange(40) % 20)
    return head.eval()


@pytest.fixture(scope="module")
def data() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    text, frames = torch.randn(T, D, generator=generator), torch.randn(V, FRAMES, D, generator=generator)
    mask = torch.rand(V, FRAMES, generator=generator) > 0.3
    mask[:, 0] = True
    return text, frames, mask


def test_every_head_is_covered() -> None:
    assert {SYSTEMS[name].get("head", "dits") for name in SYSTEMS} == set(HEADS)


@pytest.mark.parametrize("system", SYSTEMS)
def test_scores_are_the_same_bits_whatever_they_are_computed_with(
    system: str, data: tuple[Tensor, Tensor, Tensor]
) -> None:
    """One by one or together, in any order, prepared in parts: the rank of a video can depend on nothing else."""
    head, (text, frames, mask) = make(system), data
    sims = head.score(text, frames, mask)
    assert sims.shape == (T, V)
    assert sims.dtype == torch.float32
    assert sims.abs().max() <= 1 + 1e-5
    some, order = torch.randperm(T)[:37], torch.randperm(V)
    assert torch.equal(head.score(text[some], frames[order], mask[order]), sims[some][:, order])
    texts, videos = head.prepare_texts(text), head.prepare_videos(frames, mask)
    assert torch.equal(head.score_prepared(texts[3:4], videos[order[:5]]), sims[3:4, order[:5]])
    assert torch.equal(head.prepare_texts(text[some]), texts[some])
    if isinstance(videos, Videos):
        assert torch.equal(head.prepare_videos(frames[9:11], mask[9:11]).basis, videos[9:11].basis)


@pytest.mark.parametrize("system", SYSTEMS)
def test_shortlists_score_as_the_full_matrix(system: str, data: tuple[Tensor, Tensor, Tensor]) -> None:
    head, (text, frames, mask) = make(system), data
    candidates = torch.stack([torch.randperm(V)[:9] for _ in range(T)])
    pairs = head.score_pairs(head.prepare_texts(text), head.prepare_videos(frames, mask)[candidates])
    torch.testing.assert_close(pairs, head.score(text, frames, mask).gather(1, candidates), atol=1e-6, rtol=0)


@pytest.mark.parametrize("system", SYSTEMS)
def test_align_text_and_pool_video_serve_an_index_or_say_why_not(
    system: str, data: tuple[Tensor, Tensor, Tensor]
) -> None:
    head, (text, frames, mask) = make(system), data
    vectors = head.pool_video(frames, mask)
    width = 3 * D if "three-views" in system else D
    assert vectors.shape == ((V, width) if head.config.vectors == 1 else (V, head.config.vectors, width))
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(vectors.shape[:-1]))
    assert head.indexable == (system not in NEED_VIDEO)
    if system in NEED_VIDEO:
        with pytest.raises(HeadNeedsVideo, match="cannot align a text alone"):
            head.align_text(text)
        return
    aligned = head.align_text(text)
    assert aligned.shape == (T, width)
    assert torch.equal(head.align_text(text[[4, 66]]), aligned[[4, 66]])
    assert torch.equal(head.align_text(text), aligned)


def test_score_is_the_cosine_of_the_aligned_text_and_the_video_pooled_for_the_text(
    data: tuple[Tensor, Tensor, Tensor],
) -> None:
    text, frames, mask = data
    for system, query_is_aligned in (("dits", False), ("dits-aligned-query", True), ("dits-literal", False)):
        head = make(system)
        aligned = head.align_text(text)
        pooled = head.pooling(aligned if query_is_aligned else text, frames, mask)
        expected = F.cosine_similarity(aligned, pooled, dim=-1).T
        torch.testing.assert_close(head.score(text, frames, mask), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("system", SYSTEMS)
def test_pair_vectors_are_what_the_score_compares(system: str, data: tuple[Tensor, Tensor, Tensor]) -> None:
    text, frames, mask = (x[:40] for x in data)
    head = make(system)
    if system in NEED_VIDEO:
        with pytest.raises(HeadNeedsVideo):
            head.pair_vectors(text, frames, mask)
        return
    compared, video = head.pair_vectors(text, frames, mask)
    scores = head.score(text, frames, mask).diagonal()
    torch.testing.assert_close(F.cosine_similarity(compared, video, dim=-1), scores, atol=1e-6, rtol=0)
    assert torch.equal(compared, head.align_text(text))


def test_systems_that_need_the_video_against_a_loop_over_pairs(data: tuple[Tensor, Tensor, Tensor]) -> None:
    text, frames, mask = (x[:6] for x in data)
    for system in ("dits-v", "dits-tv", "dits-t-v"):
        head = make(system)
        sims, sampler = head.score(text, frames, mask), head.aligner
        for i in range(6):
            for j in range(6):
                t, v = text[i : i + 1], head.pooling(text[i : i + 1], frames[j : j + 1], mask[j : j + 1])[0]
                noise = keyed_noise(math.sqrt(D) * F.normalize(t, dim=-1), 24) if head.config.noise_eval else None
                t, v = (math.sqrt(D) * F.normalize(x, dim=-1) for x in (t, v))
                condition = {"dits-v": v, "dits-tv": torch.cat([t, v], -1), "dits-t-v": None}[system]
                start, still = (v, t) if system == "dits-t-v" else (t, v)
                moved = truncated_sampler(
                    start, sampler.network, sampler.schedule, head.config.steps, condition=condition, noise=noise
                )[-1]
                torch.testing.assert_close(sims[i, j], F.cosine_similarity(moved, still)[0], atol=1e-6, rtol=0)


def test_tmass_lite_takes_the_best_of_its_drawn_texts(data: tuple[Tensor, Tensor, Tensor]) -> None:
    head, (text, frames, mask) = make("tmass-lite"), (x[:5] for x in data)
    sims = head.score(text, frames, mask)
    for i in range(5):
        for j in range(5):
            t = F.normalize(text[i], dim=-1)
            cosines = (F.normalize(frames[j], dim=-1) @ t) * mask[j]
            radius = torch.exp(head.aligner.linear(cosines))
            video = head.pooling(text[i : i + 1], frames[j : j + 1], mask[j : j + 1])[0, 0]
            drawn = [F.cosine_similarity(t + radius * z, video, dim=0) for z in head.aligner.draws]
            torch.testing.assert_close(sims[i, j], max(drawn), atol=1e-6, rtol=0)


@pytest.mark.parametrize("system", SYSTEMS)
def test_one_seed_one_training_step(system: str, data: tuple[Tensor, Tensor, Tensor]) -> None:
    """All random numbers come from the generator; every trainable parameter gets a finite gradient."""
    head, batch = make(system).train(), [x[:8] for x in data]
    losses = [head.training_loss(*batch, generator=torch.Generator().manual_seed(1)) for _ in range(2)]
    assert losses[0][0] == losses[1][0]
    weights = {"index": head.config.index_loss, "support": head.config.support or 0.0}
    total = sum(weights.get(name, 1.0) * value for name, value in losses[0][1].items())
    assert losses[0][0].item() == pytest.approx(float(total), rel=1e-5)
    losses[0][0].backward()
    trainable = {name: p for name, p in head.named_parameters() if p.requires_grad}
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trainable.values())


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_system_lowers_its_loss_on_a_toy(system: str) -> None:
    """Videos are a rotation of their texts plus noise; 30 steps must at least take a tenth off the loss."""
    torch.manual_seed(0)
    head = build_head(HeadConfig(dim=D, blocks=2, init_logit_scale=10.0, **({"T": 4} | SYSTEMS[system]))).train()
    text = 3 * torch.randn(16, D)
    frames = (text @ torch.linalg.qr(torch.randn(D, D)).Q)[:, None] + torch.randn(16, FRAMES, D)
    mask = torch.ones(16, FRAMES, dtype=torch.bool)
    optimizer = torch.optim.AdamW([p for p in head.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for step in range(30):
        loss, _ = head.training_loss(text, frames, mask, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


def test_pretraining_the_diffusion_leaves_pooling_and_temperature_alone(data: tuple[Tensor, Tensor, Tensor]) -> None:
    baseline = make("xpool-dropout")
    head = build_head(HeadConfig(head="diffusion", dim=D, blocks=2, T=4, dropout=0.3)).train()
    taken = head.start_from(baseline.state_dict())
    assert set(taken) == set(baseline.state_dict())
    head.training_loss(*(x[:8] for x in data), generator=torch.Generator().manual_seed(0))[0].backward()
    assert all(p.grad is None for name, p in head.named_parameters() if not name.startswith("aligner."))
    assert not head.pooling.training
    assert torch.equal(head.state_dict()["pooling.query.weight"], baseline.state_dict()["pooling.query.weight"])


def test_dits_starts_as_xpool(data: tuple[Tensor, Tensor, Tensor]) -> None:
    """The network's output is zero at first, so that training starts from the baseline."""
    dits, xpool = (build_head(HeadConfig(head=head, dim=D)).eval() for head in ("dits", "xpool"))
    torch.testing.assert_close(dits.score(*data), xpool.score(*data), atol=1e-6, rtol=0)


def test_positives_reach_the_loss(data: tuple[Tensor, Tensor, Tensor]) -> None:
    """Two captions of one video: as negatives they cost log 2 a row at least."""
    head, (text, frames, mask) = make("xpool").train(), (x[:1].repeat_interleave(2, dim=0) for x in data)
    plain, _ = head.training_loss(text, frames, mask)
    assert plain.item() == pytest.approx(0.6931, abs=1e-3)
    merged, _ = head.training_loss(text, frames, mask, positives=torch.ones(2, 2, dtype=torch.bool))
    assert merged.item() == 0


def test_logit_scale_is_clamped_at_100(data: tuple[Tensor, Tensor, Tensor]) -> None:
    head = make("xpool").train()
    head.logit_scale.data.fill_(9.0)
    head.training_loss(*(x[:4] for x in data))
    assert head.logit_scale.exp().item() == pytest.approx(100, rel=1e-5)


def test_bad_input_is_named(data: tuple[Tensor, Tensor, Tensor]) -> None:
    head, (text, frames, mask) = make("dits"), data
    with pytest.raises(ValueError, match="expected width 32"):
        head.align_text(torch.randn(2, 64))
    with pytest.raises(ValueError, match="expected width 32"):
        head.prepare_videos(torch.randn(2, FRAMES, 64), mask[:2])
    with pytest.raises(ValueError, match=r"video 1 has no frame \(1 such\)"):
        head.prepare_videos(frames[:2], torch.tensor([[True] * FRAMES, [False] * FRAMES]))
    with pytest.raises(ValueError, match="pass prepare_texts"):
        head.score_prepared(head.align_text(text), head.prepare_videos(frames, mask))


def test_half_precision_features_are_taken_as_they_are(data: tuple[Tensor, Tensor, Tensor]) -> None:
    head, (text, frames, mask) = make("dits"), data
    half = head.score(text, frames.half(), mask)
    assert torch.equal(half, head.score(text, frames.half().float(), mask))


def test_empty_sets_give_empty_results(data: tuple[Tensor, Tensor, Tensor]) -> None:
    head, (text, frames, mask) = make("dits"), data
    assert head.align_text(text[:0]).shape == (0, D)
    assert head.score(text[:0], frames, mask).shape == (0, V)
    assert head.score(text, frames[:0], mask[:0]).shape == (T, 0)


def test_autocast_changes_a_training_step_by_half_precision_only(data: tuple[Tensor, Tensor, Tensor]) -> None:
    batch, gradients = [x[:8] for x in data], []
    for enabled in (False, True):
        head = make("dits").train()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss, _ = head.training_loss(*batch, generator=torch.Generator().manual_seed(0))
        loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in head.parameters() if p.grad is not None]))
    assert gradients[1].dtype == torch.float32
    assert F.cosine_similarity(gradients[0], gradients[1], dim=0) > 0.99
