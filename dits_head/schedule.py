"""The variance schedule and every coefficient derived from it, in float64.

Notation: T is the table's length, s = 1..T a time step; row s - 1 of each table belongs to step s.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

RANGES = {
    "linear": (1e-4, 0.02),  # DDPM's range (Ho et al. 2020): small steps, alpha_bar[10] = 0.904 at T = 10
    "literal": (0.1, 0.99),  # "A linear variance schedule with beta = 0.1 and beta = 0.99", read word for word
}


class Schedule(NamedTuple):
    """Tables of T float64 values."""

    # q(delta_s | delta_{s-1}) = N(sqrt(alpha_s) delta_{s-1}, beta_s I)
    beta: Tensor
    alpha: Tensor
    # q(delta_s | delta_0) = N(sqrt(alpha_bar_s) delta_0, (1 - alpha_bar_s) I)
    alpha_bar: Tensor
    # p(delta_{s-1} | delta_s) = N(delta_s / sqrt(alpha_s) - chi_s eps, lam_s^2 I)        (eq. 7)
    # v_{s-1} = v_s - chi_s eps(v_s, s) + lam_s z                                         (eq. 8)
    chi: Tensor  # (1 - alpha_s) / sqrt(alpha_s - alpha_s alpha_bar_s)
    lam: Tensor  # sigma_s, with sigma_s^2 = beta_s; no noise is drawn at s = 1


def reach(schedule: Schedule, steps: int, dim: int) -> tuple[float, float]:
    """How far eq. 8 can move a vector: the sum of chi over the last `steps` steps, which bounds the steps for a network
    of unit output, and the length that the noise of all of them is expected to have at width `dim`."""
    return float(schedule.chi[:steps].sum()), float((dim * schedule.lam[1:steps].square().sum()).sqrt())


def make_schedule(name: str, T: int) -> Schedule:
    """The schedule `name` (a key of RANGES) with beta linear over T steps."""
    first, last = RANGES[name]
    beta = torch.linspace(first, last, T, dtype=torch.float64)
    alpha = 1 - beta
    alpha_bar = alpha.cumprod(0)
    chi = (1 - alpha) / (alpha - alpha * alpha_bar).sqrt()
    return Schedule(beta, alpha, alpha_bar, chi, lam=beta.sqrt())
