"""Samplers over time steps: the truncated sampler (DITS, eq. 8), DDPM's reverse chain (eq. 7), the fixed prior (eq. 3).

Notation: N samples, D width, s a time step (counts down), S steps. Noise comes from a `Noise` function, never from the
global generator: `random_noise` draws for training, `keyed_noise` gives each text its own fixed draw at evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from dits_head.blocks import Modulation, NoiseNetwork, step_modulations
from dits_head.schedule import Schedule

Noise = Callable[[int], Tensor]  # time step -> z ~ N(0, I), (N, D)


def truncated_sampler(
    start: Tensor,
    network: NoiseNetwork,
    schedule: Schedule,
    T_prime: int,
    *,
    condition: Tensor | None = None,
    noise: Noise | None = None,
) -> list[Tensor]:
    """Eq. 8: v_{T'} = start; v_{s-1} = v_s - chi_s eps(v_s, s) + lambda_s z, for s = T'..1.

    Args:
        start: v_{T'}, (N, D).
        network: eps(x, s, c).
        T_prime: Steps taken, the last T' of the schedule's.
        condition: c, (N, C * D).
        noise: z of each step; None samples deterministically.

    Returns:
        The states v_{T'-1}, ..., v_0, (N, D) each, the aligned vector last; just [start] for T' = 0.
    """
    keep = torch.ones_like(schedule.alpha)
    return _sample(start, network, schedule, T_prime, keep, condition, noise) or [start]


def reverse_chain(
    network: NoiseNetwork, schedule: Schedule, noise: Noise, *, condition: Tensor | None = None
) -> Tensor:
    """Eq. 7, DDPM's whole chain: delta_T ~ N(0, I), delta_{s-1} = delta_s / sqrt(alpha_s) - chi_s eps + sigma_s z.

    Returns delta_0 (N, D). The step is the truncated sampler's, but for the factor 1 / sqrt(alpha_s) on the state.
    """
    T = len(schedule.beta)
    return _sample(noise(T + 1), network, schedule, T, schedule.alpha.rsqrt(), condition, noise)[-1]


def fixed_prior(text: Tensor, sigma2: float, noise: Noise) -> Tensor:
    """Eq. 3: t + delta with delta ~ N(0, sigma^2 I); text (N, D)."""
    return text + math.sqrt(sigma2) * noise(1)


def diffuse(delta: Tensor, s: Tensor, z: Tensor, schedule: Schedule) -> Tensor:
    """q(delta_s | delta_0): sqrt(alpha_bar_s) delta_0 + sqrt(1 - alpha_bar_s) z; delta, z (N, D), s (N,) in 1..T."""
    alpha_bar = schedule.alpha_bar.to(s.device)[s - 1, None]  # (N, 1)
    return (alpha_bar.sqrt() * delta + (1 - alpha_bar).sqrt() * z).to(delta.dtype)


def _sample(
    x: Tensor,
    network: NoiseNetwork,
    schedule: Schedule,
    steps: int,
    keep: Tensor,
    condition: Tensor | None,
    noise: Noise | None,
) -> list[Tensor]:
    """x_{s-1} = keep_s x_s - chi_s eps(x_s, s, c) + lambda_s z for s = steps..1 (z = 0 at s = 1); all states."""
    keeps, chi, lam = keep.tolist(), schedule.chi.tolist(), schedule.lam.tolist()
    modulations = _modulations(network, steps, x.device, condition)
    states = []
    for s in range(steps, 0, -1):
        kept = x if keeps[s - 1] == 1 else keeps[s - 1] * x
        x = torch.add(kept, network(x, modulations[s - 1]), alpha=-chi[s - 1])  # (N, D)
        if noise is not None and s > 1:
            x = torch.add(x, noise(s), alpha=lam[s - 1])
        states.append(x)
    return states


def _modulations(network: NoiseNetwork, steps: int, device: torch.device, condition: Tensor | None) -> list[Modulation]:
    """The modulation of each step 1..steps. Without a condition it is shared by the samples, and one product a layer
    makes it for all steps; with one, it is made for each step and sample."""
    s = torch.arange(1, steps + 1, device=device)
    if condition is None:
        return step_modulations(network.modulation(s))
    return [network.modulation(step, condition) for step in s.split(1)]


def random_noise(like: Tensor, generator: torch.Generator | None) -> Noise:
    """A fresh draw a call, shaped like `like` (N, D)."""
    return lambda s: torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)


def keyed_noise(text: Tensor, seed: int) -> Noise:
    """z as a function of (seed, text, step): the same text gets the same draw in whatever batch it comes.

    Each text's bits are hashed to a 64-bit key; splitmix64 of (key, step, dimension) gives uniform numbers, Box-Muller
    makes them normal. Exact equality of the text embedding is what counts, to the last bit.
    """
    key, column = _key(text, seed), torch.arange(text.shape[-1], device=text.device)

    def draw(s: int) -> Tensor:
        lane = _splitmix64(key + _splitmix64(torch.tensor(s, device=text.device)))  # (N, 1)
        return _normal(lane, column).to(text.dtype)

    return draw


class PairNoise:
    """Draws that are a function of (seed, text, video, number): the same pair gets the same ones in whatever batch.

    text (N, D), video (N, ...) flattened; each draw is (N, D).
    """

    def __init__(self, text: Tensor, video: Tensor, seed: int) -> None:
        self._key = _splitmix64(_key(text, seed) + _splitmix64(_key(video, seed)))  # (N, 1)
        self._column = torch.arange(text.shape[-1], device=text.device)

    def uniform(self, number: int) -> Tensor:
        """On (0, 1)."""
        return _uniform(_splitmix64(self._lane(number) + 2 * self._column)).float()

    def normal(self, number: int) -> Tensor:
        return _normal(self._lane(number), self._column).float()

    def _lane(self, number: int) -> Tensor:
        return _splitmix64(self._key + _splitmix64(torch.tensor(number, device=self._key.device)))  # (N, 1)


def _key(vectors: Tensor, seed: int) -> Tensor:
    """Hash the bits of vectors (N, D): (N, 1) int64."""
    column = torch.arange(vectors.shape[-1], device=vectors.device)
    bits = vectors.float().contiguous().view(torch.int32).long()
    return _splitmix64((bits * (2 * _splitmix64(column) + 1)).sum(-1, keepdim=True) + seed)


def _normal(lane: Tensor, column: Tensor) -> Tensor:
    """Box-Muller of two uniform numbers each: (N, 1), (D,) -> (N, D) float64."""
    u1, u2 = (_uniform(_splitmix64(lane + 2 * column + i)) for i in (0, 1))  # (N, D) each, in (0, 1)
    return (-2 * u1.log()).sqrt() * (2 * math.pi * u2).cos()


def _uniform(bits: Tensor) -> Tensor:
    """The top 53 bits of int64 numbers as float64 in (0, 1)."""
    return ((_shift(bits, 11)).double() + 0.5) * 2.0**-53


def _splitmix64(x: Tensor) -> Tensor:
    """Steele et al. 2014; int64 with wrap-around."""
    x = x + -7046029254386353131  # 0x9E3779B97F4A7C15
    x = (x ^ _shift(x, 30)) * -4658895280553007687  # 0xBF58476D1CE4E5B9
    x = (x ^ _shift(x, 27)) * -7723592293110705685  # 0x94D049BB133111EB
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
