"""Intervals over videos and seeds: what they are made of, and how often they cover the truth, by simulation."""

import doctest
from statistics import NormalDist

import numpy as np
import pytest

from pipeline.errors import BadInput
from pipeline.evaluate import bootstrap
from pipeline.evaluate.bootstrap import paired_difference, seeded_difference, seeded_interval, student_t

VIDEOS, TRIALS, RESAMPLES = 500, 500, 200


def test_student_t_as_in_the_tables():
    found = [round(student_t(0.95, df), 3) for df in (1, 2, 4, 9, 30)]
    assert found == [12.706, 4.303, 2.776, 2.262, 2.042]
    assert student_t(0.99, 2) == pytest.approx(9.925, abs=1e-3)
    assert doctest.testmod(bootstrap).failed == 0
    assert doctest.testmod(bootstrap).attempted


def simulate(generator, seeds, seed_sd, run_noise, gain=3.0):
    """Hits (2, S, Q) of two systems over S runs each. A query is answered if its luck, part of it drawn anew in each
    run (`run_noise`), lies below the run's expected R@1, which varies with standard deviation `seed_sd` (percent)."""
    shared = generator.standard_normal(VIDEOS)
    own = generator.standard_normal((2, seeds, VIDEOS))
    luck = np.sqrt(1 - run_noise**2) * shared + run_noise * own
    expected = np.array([[45.0], [45.0 + gain]]) + generator.normal(0, seed_sd, (2, seeds))
    return luck < np.vectorize(NormalDist().inv_cdf)(expected / 100)[..., None]


@pytest.mark.parametrize("run_noise", [0.0, 0.2])
@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("seed_sd", [0.4, 0.8, 1.2])
def test_nominal_95_percent_covers_between_92_and_98(seeds, seed_sd, run_noise):
    generator = np.random.default_rng([seeds, int(10 * seed_sd), int(10 * run_noise)])
    draws = generator.multinomial(VIDEOS, np.full(VIDEOS, 1 / VIDEOS), size=RESAMPLES).T / VIDEOS  # one query a video
    covered = by_videos_alone = 0
    for _ in range(TRIALS):
        hits = simulate(generator, seeds, seed_sd, run_noise)
        gained = 100.0 * (hits[1].astype(float) - hits[0])  # (S, Q)
        resampled = gained @ draws  # (S, B)
        low, high = seeded_interval(gained.mean(1), resampled)
        covered += low <= 3.0 <= high
        low, high = np.percentile(resampled.mean(0), [2.5, 97.5])
        by_videos_alone += low <= 3.0 <= high
    assert 92 <= 100 * covered / TRIALS <= 98
    assert by_videos_alone < covered


def test_the_difference_of_runs_is_that_of_the_simulation():
    """`seeded_difference` gives the interval rule what the coverage test gives it, up to the draw of the videos."""
    a, b = np.where(simulate(np.random.default_rng(0), 3, 0.8, 0.2), 1, 20)
    row = seeded_difference(a, b, np.arange(VIDEOS), resamples=500)["R@1"]
    gained = 100.0 * ((b == 1).astype(float) - (a == 1))
    weights = np.random.default_rng(5).multinomial(VIDEOS, np.full(VIDEOS, 1 / VIDEOS), size=500) / VIDEOS
    assert row["difference"] == pytest.approx(gained.mean())
    assert row["interval"] == pytest.approx(seeded_interval(gained.mean(1), gained @ weights.T), abs=0.1)


def test_one_seed_is_the_paired_interval_and_equal_seeds_add_nothing():
    generator = np.random.default_rng(1)
    hard, videos = generator.random(300), np.repeat(np.arange(100), 3)
    a, b = np.where(hard < 0.5, 1, 30), np.where(hard < 0.55, 1, 30)
    assert seeded_difference([a], [b], videos, seed=3) == paired_difference(a, b, videos, seed=3)
    once, thrice = paired_difference(a, b, videos)["R@1"], seeded_difference([a] * 3, [b] * 3, videos)["R@1"]
    assert {key: once[key] for key in ("a", "b", "difference")} == pytest.approx(
        {key: thrice[key] for key in ("a", "b", "difference")}
    )
    assert thrice["interval"] == pytest.approx(once["interval"], abs=0.5)
    same = seeded_difference([a, b], [a, b], videos)
    assert same["MdR"] == {"a": same["MdR"]["a"], "b": same["MdR"]["a"], "difference": 0.0, "interval": (0.0, 0.0)}


def test_the_interval_widens_with_the_spread_of_seeds():
    ranks = np.where(np.arange(200) < 100, 1, 9)

    def better(by):
        return np.where(np.arange(200) < 100 + by, 1, 9)

    def width(*gains):
        low, high = seeded_difference([ranks] * 3, [better(by) for by in gains], np.arange(200))["R@1"]["interval"]
        return high - low

    assert width(20, 20, 20) < width(16, 20, 24) < width(8, 20, 32)
    assert width(8, 20, 32) > 2 * student_t(0.95, 2) * 6.0 / 3**0.5


def test_other_seeds_or_queries_are_refused():
    with pytest.raises(BadInput, match="seed by seed"):
        seeded_difference([np.ones(3)], [np.ones(3)] * 2, np.arange(3))
    with pytest.raises(BadInput, match="same queries"):
        seeded_difference([np.ones(3)] * 2, [np.ones(3), np.ones(4)], np.arange(3))
