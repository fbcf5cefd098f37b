"""What turns a text into the vector that is compared with the video: one class a system.

An aligner has all that sets its system apart: what it does to a text, how it scores, what it minimises. The head
(`dits_head.head`) adds pooling, temperature and batching, and knows no system by name.

Notation: N samples (texts, or text-video pairs), T texts, V videos, B pairs of a batch, F frames, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from dits_head.blocks import NoiseNetwork
from dits_head.config import HeadConfig
from dits_head.losses import noise_loss
from dits_head.numerics import normalise
from dits_head.pooling import MeanPool, Pooled, Videos, XPool, clean
from dits_head.samplers import (
    Noise,
    PairNoise,
    diffuse,
    fixed_prior,
    keyed_noise,
    random_noise,
    reverse_chain,
    truncated_sampler,
)
from dits_head.schedule import make_schedule

CONDITION_VECTORS = {"none": 0, "t": 1, "v": 1, "tv": 2}

Losses = dict[str, tuple[float, Tensor]]  # name -> weight, loss; what is minimised is their weighted sum


@dataclass(frozen=True)
class TrainingBatch:
    """B matching pairs, and what the head offers to make losses of them."""

    text: Tensor  # (B, D)
    frame_embeds: Tensor  # (B, F, D)
    frame_mask: Tensor  # (B, F)
    generator: torch.Generator | None
    """Where all random numbers come from; None: torch's global generator."""
    pool: Callable[[Tensor], Pooled]
    """Pool every video for every text, given aligned (B, D); `HeadConfig.pool_query` says which text attends."""
    index_cosines: Callable[[Tensor], Tensor]
    """Cosines (V, T) of aligned texts (B, D) with the vectors that an index holds."""
    contrast: Callable[[Tensor], Tensor]
    """Contrastive loss of cosines (V, T)."""


class Aligner(nn.Module):
    """Base of every aligner, and of a head of your own: aligns texts alone, trained by the contrastive loss.

    A subclass writes `forward`; one whose score needs the video sets `needs_video` and writes `cosines` and `losses`.
    """

    needs_video: str | None = None
    """Why a text cannot be aligned without the video (then no index can hold it); None if it can."""
    freezes_pooling = False
    """Whether pooling and temperature stay as they are while this aligner trains."""
    closed_form = False
    """Whether `RetrievalHead.fit` must solve for something on the training split, before and while the head trains."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.config = config

    @classmethod
    def make_pooling(cls, config: HeadConfig) -> XPool | MeanPool:
        """The pooling that goes with this aligner."""
        return XPool(config.dim, config.pooling_dropout, config.dropout_per)

    def fit(self, pooling: Any, texts: Tensor, means: Tensor, text_to_video: Tensor) -> None:
        """What `RetrievalHead.fit` does, of an aligner with a `closed_form`."""
        raise NotImplementedError

    def forward(self, text: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Align texts: (N, D) -> (N, D), of any length. In evaluation mode a text's result depends on nothing else."""
        raise NotImplementedError

    def prepare(self, videos: Videos, frame_embeds: Tensor, frame_mask: Tensor) -> Videos:
        """Add to prepared videos what `cosines` needs of their frames (V, F, D)."""
        return videos

    def cosines(self, text: Tensor, pooled: Pooled, videos: Videos) -> Tensor:
        """Score: (V, T) cosines of compared texts, (T, D) or each video's own (V, T, D), with the pooled videos."""
        return pooled.cosines(normalise(text))

    def losses(self, batch: TrainingBatch) -> Losses:
        """What is minimised on a batch."""
        aligned = self(batch.text, batch.generator)  # (B, D)
        losses = {"contrastive": (1.0, batch.contrast(batch.pool(aligned).cosines(normalise(aligned))))}
        if self.config.index_loss:
            losses["index"] = (self.config.index_loss, batch.contrast(batch.index_cosines(aligned)))
        return losses

    def scaled(self, x: Tensor) -> Tensor:
        """A vector as the aligner takes it: of unit length if `HeadConfig.normalise` says so."""
        return normalise(x) if self.config.normalise else x

    def noise(self, text: Tensor, generator: torch.Generator | None) -> Noise | None:
        """The noise z of texts (N, D): fresh in training, a function of the text at evaluation, None where off."""
        if self.training:
            return random_noise(text, generator) if self.config.noise_train else None
        return keyed_noise(text, self.config.noise_seed) if self.config.noise_eval else None


class Identity(Aligner):
    """X-Pool: the text as it is."""

    def forward(self, text: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return self.scaled(text)


class MeanPooled(Identity):
    """The same, and the mean of the frames."""

    @classmethod
    def make_pooling(cls, config: HeadConfig) -> MeanPool:
        return MeanPool()


class MLP(Aligner):
    """t + fc2(gelu(fc1(LN(t)))), zero at the start: what one residual block does without any time step."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        hidden = int(config.dim * config.mlp_ratio)
        self.norm = nn.LayerNorm(config.dim)
        self.fc1 = nn.Linear(config.dim, hidden)
        self.fc2 = nn.Linear(hidden, config.dim)
        nn.init.zeros_(self.fc2.weight)
        nn.init.zeros_(self.fc2.bias)

    def forward(self, text: Tensor, generator: torch.Generator | None = None) -> Tensor:
        text = self.scaled(text)
        return text + self.fc2(nn.functional.gelu(self.fc1(self.norm(text))))  # (N, D)


class FixedPrior(Aligner):
    """t + delta, delta ~ N(0, sigma^2 I) (eq. 3)."""

    def forward(self, text: Tensor, generator: torch.Generator | None = None) -> Tensor:
        text, noise = self.scaled(text), self.noise(text, generator)
        assert noise is not None  # the config refuses this head without
        return fixed_prior(text, self.config.sigma2, noise)  # (N, D)


class Sampler(Aligner):
    """The noise network and the schedule that DITS and the diffusion baseline share."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        self.schedule = make_schedule(config.schedule, config.T)
        conditions = CONDITION_VECTORS[config.condition]
        network = NoiseNetwork(config.dim, blocks=config.blocks, mlp_ratio=config.mlp_ratio, conditions=conditions)
        self.eps = nn.ModuleList([network])  # a list of one: the name that checkpoints hold

    def scaled(self, x: Tensor) -> Tensor:
        """A vector as the sampler takes it; `HeadConfig.relative`: of length sqrt(D), as long as eq. 8's z."""
        return math.sqrt(self.config.dim) * normalise(x) if self.config.relative else super().scaled(x)

    @property
    def network(self) -> NoiseNetwork:
        network = self.eps[0]
        assert isinstance(network, NoiseNetwork)
        return network

    def condition(self, text: Tensor, video: Tensor | None = None) -> Tensor | None:
        """The vectors c that the noise network sees, side by side: (N, C * D)."""
        wanted = self.config.condition  # "none", "t", "v" or "tv"
        chosen = [x for name, x in (("t", text), ("v", video)) if x is not None and name in wanted]
        return torch.cat(chosen, dim=-1) if chosen else None


class DITS(Sampler):
    """The truncated sampler from the text itself (eq. 8).

    With a condition on v, or the gap t - v, it samples once a pair, from or towards the pooled video.
    """

    def forward(self, text: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return self.sample(text, None, generator)

    def sample(self, text: Tensor, video: Tensor | None, generator: torch.Generator | None) -> Tensor:
        """v_0 of texts (N, D) and, where the system needs them, their pooled videos (N, D): (N, D)."""
        text, video = self.scaled(text), None if video is None else self.scaled(video)
        start = video if video is not None and self.config.gap == "t-v" else text  # v_{T'}
        return truncated_sampler(
            start,
            self.network,
            self.schedule,
            self.config.steps,
            condition=self.condition(text, video),
            noise=self.noise(text, generator),
        )[-1]

    def cosines(
        self, text: Tensor, pooled: Pooled, videos: Videos | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        if self.config.needs_video is None:
            return pooled.cosines(normalise(text))
        video = pooled.vectors()  # (V, T, D)
        text = text.expand_as(video)
        moved = self.sample(text.flatten(0, 1), video.flatten(0, 1), generator).view_as(video)
        still = text if self.config.gap == "t-v" else video
        return (normalise(moved) * normalise(still)).sum(-1)  # (V, T)

    def losses(self, batch: TrainingBatch) -> Losses:
        if self.config.needs_video is None:
            return super().losses(batch)
        cosines = self.cosines(batch.text, batch.pool(batch.text), generator=batch.generator)
        return {"contrastive": (1.0, batch.contrast(cosines))}


class Diffusion(Sampler):
    """t + delta_0, with delta_0 from DDPM's reverse chain (eq. 7).

    Stage `pretrain` fits the noise to the gaps of a frozen pooling, `finetune` trains all through the chain.
    """

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        self.freezes_pooling = config.stage == "pretrain"

    def forward(self, text: Tensor, generator: torch.Generator | None = None) -> Tensor:
        text, noise = self.scaled(text), self.noise(text, generator)
        assert noise is not None  # the config refuses this head without
        delta = reverse_chain(self.network, self.schedule, noise, condition=self.condition(text))  # (N, D)
        return text + delta

    def losses(self, batch: TrainingBatch) -> Losses:
        if not self.freezes_pooling:
            return super().losses(batch)
        t, v = self.scaled(batch.text), self.scaled(batch.pool(batch.text).own())
        return {"noise": (1.0, self.noise_loss(v - t, self.condition(t), batch.generator))}

    def noise_loss(self, delta: Tensor, condition: Tensor | None, generator: torch.Generator | None) -> Tensor:
        """E |eps(delta_s, s, c) - z| over uniform s and normal z, for gaps delta (N, D) (DDPM's simple objective)."""
        T = len(self.schedule.beta)
        s = torch.randint(1, T + 1, (len(delta),), generator=generator, device=delta.device)  # (N,)
        z = torch.randn(delta.shape, generator=generator, device=delta.device)  # (N, D)
        x = diffuse(delta, s, z, self.schedule)  # (N, D)
        return noise_loss(self.network(x, self.network.modulation(s, condition)), z, self.config.noise_loss)


class StochasticText(Aligner):
    """What both forms of T-MASS (Wang et al., CVPR 2024) share: t + R * z, R = exp(linear(cosines of t and frames))."""

    needs_video = "T-MASS draws a text whose radius depends on the video's frames"

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        self.linear = nn.Linear(config.num_frames, config.dim)

    def radius(self, unit_text: Tensor, unit_frames: Tensor) -> Tensor:
        """R of texts (N, D) for the frames (N, F, D) of a video each, zeros where masked: (N, D)."""
        return self.linear(torch.einsum("nd,nfd->nf", unit_text, unit_frames)).exp()

    def prepare(self, videos: Videos, frame_embeds: Tensor, frame_mask: Tensor) -> Videos:
        return replace(videos, frames=normalise(clean(frame_embeds, frame_mask)))

    def cosines(self, text: Tensor, pooled: Pooled, videos: Videos) -> Tensor:
        """The best of M draws of each text: (V, T)."""
        video = normalise(pooled.vectors())  # (V, T, D)
        texts = text.expand_as(video).flatten(0, 1)  # (V * T, D)
        frames = videos.frames[:, None].expand(-1, video.shape[1], -1, -1).flatten(0, 1)  # (V * T, F, D)
        return self.best_cosine(texts, frames, video.flatten(0, 1)).view(video.shape[:2])

    def best_cosine(self, text: Tensor, unit_frames: Tensor, unit_video: Tensor) -> Tensor:
        """max over M draws of cos(t + R * z_m, v|t), (N, D), (N, F, D), (N, D) -> (N,)."""
        raise NotImplementedError

    def support(self, text: Tensor, radius: Tensor, video: Tensor) -> Tensor:
        """The support text t + R * (v - t) / |v - t|: the text's mass on the side of its video, (N, D)."""
        return text + radius * normalise(video - text)

    def both_losses(self, batch: TrainingBatch, pooled: Pooled, sampled: Tensor, support: Tensor) -> Losses:
        """Contrastive losses of the sampled texts and of the support texts, (B, D) each."""
        assert self.config.support is not None  # resolved by the config
        return {
            "contrastive": (1.0, batch.contrast(pooled.cosines(normalise(sampled)))),
            "support": (self.config.support, batch.contrast(pooled.cosines(normalise(support)))),
        }


class TMASS(StochasticText):
    """T-MASS as published (github.com/Jiamian-Wang/T-MASS-text-video-retrieval, modules/stochastic_module.py).

    The text keeps its length; z is uniform on [0, 1), or normal with deviation 0.003; R's layer starts as the identity
    without bias. The support text points to v|t averaged over the batch's texts. At evaluation each pair has M draws
    of its own; ours are a function of (noise_seed, text, frames), so that a score depends on nothing else.
    """

    NORMAL_STD = 0.003

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        nn.init.eye_(self.linear.weight)  # (D, F)
        nn.init.zeros_(self.linear.bias)

    def losses(self, batch: TrainingBatch) -> Losses:
        pooled = batch.pool(batch.text)
        radius = self.radius(normalise(batch.text), normalise(clean(batch.frame_embeds, batch.frame_mask)))  # (B, D)
        draw = torch.rand if self.config.prior == "uniform" else torch.randn
        z = draw(batch.text.shape, generator=batch.generator, device=batch.text.device)  # (B, D)
        sampled = batch.text + radius * (z if self.config.prior == "uniform" else self.NORMAL_STD * z)
        support = self.support(batch.text, radius, pooled.vectors().mean(1))  # (B, D)
        return self.both_losses(batch, pooled, sampled, support)

    def best_cosine(self, text: Tensor, unit_frames: Tensor, unit_video: Tensor) -> Tensor:
        radius = self.radius(normalise(text), unit_frames)  # (N, D)
        noise = PairNoise(text, unit_frames.flatten(1), self.config.noise_seed)
        best = text.new_full((len(text),), -torch.inf)
        for m in range(self.config.samples):
            z = noise.uniform(m) if self.config.prior == "uniform" else self.NORMAL_STD * noise.normal(m)
            best = torch.maximum(best, (normalise(text + radius * z) * unit_video).sum(-1))
        return best


class TMASSLite(StochasticText):
    """Our cheaper reading of T-MASS: unit-length texts, z ~ N(0, I), the same M draws for every pair at evaluation.

    `HeadConfig.radius` is the starting length of R * z; the support text points to the text's own v|t.
    """

    draws: Tensor

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        nn.init.zeros_(self.linear.weight)
        nn.init.constant_(self.linear.bias, math.log(config.radius / math.sqrt(config.dim)))
        draw = torch.randn(config.samples, config.dim, generator=torch.Generator().manual_seed(config.noise_seed))
        self.register_buffer("draws", draw, persistent=False)  # (M, D)

    def losses(self, batch: TrainingBatch) -> Losses:
        pooled, unit = batch.pool(batch.text), normalise(batch.text)
        radius = self.radius(unit, normalise(clean(batch.frame_embeds, batch.frame_mask)))  # (B, D)
        sampled = unit + radius * random_noise(unit, batch.generator)(1)  # (B, D)
        support = self.support(unit, radius, normalise(pooled.own()))  # (B, D)
        return self.both_losses(batch, pooled, sampled, support)

    def best_cosine(self, text: Tensor, unit_frames: Tensor, unit_video: Tensor) -> Tensor:
        """No (N, M, D) tensor is built."""
        unit, z = normalise(text), self.draws  # (N, D), (M, D)
        radius = self.radius(unit, unit_frames)  # (N, D)
        dot = (unit * unit_video).sum(-1, keepdim=True) + (radius * unit_video) @ z.T  # (N, M)
        square = 1 + 2 * (unit * radius) @ z.T + radius.square() @ z.square().T  # (N, M) |t + R z|^2, |t| = 1
        return (dot * square.rsqrt()).amax(-1)
