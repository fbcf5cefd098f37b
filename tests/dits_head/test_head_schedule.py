"""Schedule: golden numbers, the formulas written out, and DDPM's step against diffusers."""

from __future__ import annotations

import math

import pytest
import torch

from dits_head.schedule import RANGES, make_schedule


def test_golden_values() -> None:
    long, short = make_schedule("linear", 1000), make_schedule("linear", 10)
    assert long.alpha_bar[500].item() == pytest.approx(0.0777966584, abs=5e-11)
    assert long.alpha_bar[999].item() == pytest.approx(4.035829765e-05, abs=5e-15)
    assert long.alpha_bar.sum().item() == pytest.approx(275.5132333968, abs=5e-11)
    assert short.alpha_bar[9].item() == pytest.approx(0.9037394162, abs=5e-11)


@pytest.mark.parametrize("name", RANGES)
@pytest.mark.parametrize("T", [1, 10, 40])
def test_every_table_by_its_formula(name: str, T: int) -> None:
    tables = make_schedule(name, T)
    first, last = RANGES[name]
    alpha_bar = 1.0
    for s in range(1, T + 1):
        beta = first if T == 1 else first + (last - first) * (s - 1) / (T - 1)
        alpha = 1 - beta
        alpha_bar *= alpha
        expected = (beta, alpha, alpha_bar, (1 - alpha) / math.sqrt(alpha - alpha * alpha_bar), math.sqrt(beta))
        assert [table[s - 1].item() for table in tables] == pytest.approx(expected, rel=1e-12)
    assert all(table.dtype == torch.float64 for table in tables)


def test_the_noise_of_the_literal_reading_dwarfs_a_text() -> None:
    """Why DITS draws none at retrieval by default: over ten steps it is several times as long as a CLIP text."""
    schedule = make_schedule("literal", 10)
    total = math.sqrt(512 * schedule.lam[1:].square().sum())
    assert 45 < total < 60
