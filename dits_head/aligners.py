"""What turns a text into the vector that is compared with the video: one class a system.

Notation: N samples (texts, or text-video pairs), D width.

    aligner(start (N, D), noise=..., condition=...) -> states, a list of (N, D), the aligned vectors last

T-MASS alone differs: its radius comes from the frames, so it offers the pieces of its own score.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from dits_head.blocks import NoiseNetwork
from dits_head.config import HeadConfig
from dits_head.losses import noise_loss
from dits_head.numerics import normalise
from dits_head.samplers import Noise, diffuse, fixed_prior, reverse_chain, truncated_sampler
from dits_head.schedule import make_schedule

CONDITION_VECTORS = {"none": 0, "t": 1, "v": 1, "tv": 2}


class Identity(nn.Module):
    """mean-pool and X-Pool: the text as it is."""

    def forward(self, start: Tensor, noise: Noise | None = None, condition: Tensor | None = None) -> list[Tensor]:
        return [start]


class MLP(nn.Module):
    """t + fc2(gelu(fc1(LN(t)))), zero at the start: what one residual block does without any time step."""

    def __init__(self, dim: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, int(dim * mlp_ratio))
        self.fc2 = nn.Linear(int(dim * mlp_ratio), dim)
        nn.init.zeros_(self.fc2.weight)
        nn.init.zeros_(self.fc2.bias)

    def forward(self, start: Tensor, noise: Noise | None = None, condition: Tensor | None = None) -> list[Tensor]:
        return [start + self.fc2(nn.functional.gelu(self.fc1(self.norm(start))))]


class FixedPrior(nn.Module):
    """t + delta, delta ~ N(0, sigma^2 I) (eq. 3)."""

    def __init__(self, sigma2: float) -> None:
        super().__init__()
        self.sigma2 = sigma2

    def forward(self, start: Tensor, noise: Noise, condition: Tensor | None = None) -> list[Tensor]:
        return [fixed_prior(start, self.sigma2, noise)]


class Walker(nn.Module):
    """The noise network(s) and the schedule that DITS and the diffusion baseline share."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.T_prime = config.steps
        self.schedule = make_schedule(config.schedule, config.T)
        self.eps = nn.ModuleList(
            NoiseNetwork(
                config.dim,
                blocks=config.blocks,
                mlp_ratio=config.mlp_ratio,
                conditions=CONDITION_VECTORS[config.condition],
            )
            for _ in range(1 if config.tied else config.steps)
        )

    @property
    def networks(self) -> list[NoiseNetwork]:
        return [cast(NoiseNetwork, network) for network in self.eps]


class DITS(Walker):
    """The truncated sampler from the text itself (eq. 8)."""

    def forward(self, start: Tensor, noise: Noise | None = None, condition: Tensor | None = None) -> list[Tensor]:
        return truncated_sampler(start, self.networks, self.schedule, self.T_prime, condition=condition, noise=noise)


class Diffusion(Walker):
    """t + delta_0, with delta_0 from DDPM's reverse chain (eq. 7)."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        self.loss_kind = config.noise_loss

    def forward(self, start: Tensor, noise: Noise, condition: Tensor | None = None) -> list[Tensor]:
        return [start + reverse_chain(self.networks, self.schedule, noise, condition=condition)]

    def noise_loss(self, delta: Tensor, condition: Tensor | None, generator: torch.Generator | None) -> Tensor:
        """E |eps(delta_s, s, c) - z| over uniform s and normal z, for gaps delta (N, D) (DDPM's simple objective)."""
        T = len(self.schedule.beta)
        s = torch.randint(1, T + 1, (len(delta),), generator=generator, device=delta.device)
        z = torch.randn(delta.shape, generator=generator, device=delta.device)
        x = diffuse(delta, s, z, self.schedule)
        network = self.networks[0]
        return noise_loss(network(x, network.modulation(s, condition)), z, self.loss_kind)


class StochasticText(nn.Module):
    """T-MASS (Wang et al., CVPR 2024): t + R * z, R = exp(linear(cosines of text and frames)), z ~ N(0, I).

    t has unit length. R is a radius for each dimension; `HeadConfig.radius` is the starting length of R * z.
    """

    draws: Tensor

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.linear = nn.Linear(config.num_frames, config.dim)
        nn.init.zeros_(self.linear.weight)
        nn.init.constant_(self.linear.bias, math.log(config.radius / math.sqrt(config.dim)))
        draw = torch.randn(config.samples, config.dim, generator=torch.Generator().manual_seed(config.noise_seed))
        self.register_buffer("draws", draw, persistent=False)  # (M, D), the same for every pair at evaluation

    def forward(self, unit_text: Tensor, frames: Tensor) -> Tensor:
        """R of texts (N, D) for the unit frames (N, F, D) of a video each, zeros where masked: (N, D)."""
        return self.linear(torch.einsum("nd,nfd->nf", unit_text, frames)).exp()

    def support(self, unit_text: Tensor, radius: Tensor, unit_video: Tensor) -> Tensor:
        """The support text t + R * (v - t) / |v - t|: the text's mass on the side of its video, (N, D)."""
        return unit_text + radius * normalise(unit_video - unit_text)

    def best_cosine(self, unit_text: Tensor, radius: Tensor, unit_video: Tensor) -> Tensor:
        """max over the M draws of cos(t + R * z_m, v), (N, D) each -> (N,); no (N, M, D) tensor is built."""
        z = self.draws  # (M, D)
        dot = (unit_text * unit_video).sum(-1, keepdim=True) + (radius * unit_video) @ z.T  # (N, M)
        square = 1 + 2 * (unit_text * radius) @ z.T + radius.square() @ z.square().T  # (N, M) |t + R z|^2, |t| = 1
        return (dot * square.rsqrt()).amax(-1)


def build_aligner(config: HeadConfig) -> nn.Module:
    if config.head in ("dits", "diffusion"):
        return (DITS if config.head == "dits" else Diffusion)(config)
    if config.head == "mlp":
        return MLP(config.dim, config.mlp_ratio)
    if config.head == "fixed-prior":
        return FixedPrior(config.sigma2)
    if config.head == "tmass":
        return StochasticText(config)
    return Identity()
