"""The samplers against slow plain versions and diffusers' scheduler; the keyed noise."""

from __future__ import annotations

import math

import pytest
import torch
from head_helpers import scrambled
from torch import Tensor

from dits_head.blocks import NoiseNetwork
from dits_head.samplers import diffuse, keyed_noise, random_noise, reverse_chain, truncated_sampler
from dits_head.schedule import make_schedule

D = 16


def make_network(conditions: int = 0) -> NoiseNetwork:
    return scrambled(NoiseNetwork(D, blocks=2, conditions=conditions))


def plain_eps(network: NoiseNetwork, x: Tensor, s: int, condition: Tensor | None) -> Tensor:
    """The network on one sample at a time."""
    step = torch.tensor([s])
    rows = [
        network(x[i : i + 1], network.modulation(step, None if condition is None else condition[i : i + 1]))
        for i in range(len(x))
    ]
    return torch.cat(rows)


@pytest.mark.parametrize("schedule_name", ["linear", "literal"])
@pytest.mark.parametrize("with_condition", [True, False])
@pytest.mark.parametrize("with_noise", [True, False])
def test_truncated_sampler_is_equation_8(schedule_name: str, with_condition: bool, with_noise: bool) -> None:
    T, T_prime = 6, 4
    schedule, network = make_schedule(schedule_name, T), make_network(int(with_condition))
    start, condition = torch.randn(3, D), torch.randn(3, D) if with_condition else None
    z = {s: torch.randn(3, D) for s in range(1, T_prime + 1)}

    v, expected = start, []
    for s in (4, 3, 2, 1):
        alpha, alpha_bar, beta = (table[s - 1].item() for table in (schedule.alpha, schedule.alpha_bar, schedule.beta))
        chi = (1 - alpha) / math.sqrt(alpha - alpha * alpha_bar)
        v = v - chi * plain_eps(network, v, s, condition)
        if with_noise and s > 1:
            v = v + math.sqrt(beta) * z[s]
        expected.append(v)

    noise = z.__getitem__ if with_noise else None
    states = truncated_sampler(start, network, schedule, T_prime, condition=condition, noise=noise)
    assert len(states) == T_prime
    for state, wanted in zip(states, expected, strict=True):
        torch.testing.assert_close(state, wanted, atol=2e-5, rtol=1e-4)


def test_no_steps_return_the_start() -> None:
    start = torch.randn(2, D)
    assert truncated_sampler(start, make_network(), make_schedule("linear", 3), 0) == [start]


@pytest.mark.parametrize(("name", "T"), [("linear", 200), ("literal", 10)])
def test_the_reverse_chain_is_diffusers_ddpm(name: str, T: int) -> None:
    """The whole chain, step by step with DDPMScheduler (variance beta), from equal generators."""
    diffusers = pytest.importorskip("diffusers")
    schedule, network = make_schedule(name, T), make_network()
    scheduler = diffusers.DDPMScheduler(
        num_train_timesteps=T, trained_betas=schedule.beta.tolist(), variance_type="fixed_large", clip_sample=False
    )
    scheduler.set_timesteps(T)
    ours, theirs = (torch.Generator().manual_seed(3) for _ in range(2))
    with torch.no_grad():
        x = torch.randn(4, D, generator=theirs)
        for t in scheduler.timesteps:
            eps = network(x, network.modulation(t[None] + 1))
            x = scheduler.step(eps, t, x, generator=theirs).prev_sample
        got = reverse_chain(network, schedule, random_noise(torch.empty(4, D), ours))
    torch.testing.assert_close(got, x, atol=1e-4 * x.abs().max().item(), rtol=1e-3)


def test_reverse_chain_recovers_a_known_gap() -> None:
    """With the exact eps of a point distribution at delta_0, the chain ends at delta_0."""
    schedule, delta = make_schedule("literal", 10), torch.randn(1, D)

    class Oracle(NoiseNetwork):
        def modulation(self, s: Tensor, condition: Tensor | None = None) -> list:
            return [(s,)]

        def forward(self, x: Tensor, modulation: list) -> Tensor:
            alpha_bar = schedule.alpha_bar[modulation[0][0] - 1].float()
            return (x - alpha_bar.sqrt() * delta) / (1 - alpha_bar).sqrt()

    got = reverse_chain(Oracle(D, blocks=1), schedule, random_noise(delta, torch.Generator().manual_seed(0)))
    torch.testing.assert_close(got, delta, atol=1e-4, rtol=1e-4)


def test_diffuse_is_the_forward_process() -> None:
    schedule, s = make_schedule("literal", 5), torch.tensor([1, 3, 5])
    delta, z = torch.randn(3, D), torch.randn(3, D)
    got = diffuse(delta, s, z, schedule)
    for i, step in enumerate(s.tolist()):
        alpha_bar = math.prod(1 - beta for beta in schedule.beta[:step].tolist())
        torch.testing.assert_close(got[i], math.sqrt(alpha_bar) * delta[i] + math.sqrt(1 - alpha_bar) * z[i])
    assert got.dtype == torch.float32


@pytest.mark.parametrize("schedule_name", ["linear", "literal"])
def test_gradients_are_finite_over_forty_steps(schedule_name: str) -> None:
    network, start = make_network(), torch.randn(4, D, requires_grad=True)
    z = random_noise(start, torch.Generator().manual_seed(0))
    truncated_sampler(start, network, make_schedule(schedule_name, 40), 40, noise=z)[-1].square().sum().backward()
    gradients = [start.grad, *(parameter.grad for parameter in network.parameters())]
    assert all(gradient is not None and gradient.isfinite().all() and gradient.any() for gradient in gradients)


def test_keyed_noise_is_a_function_of_seed_text_and_step() -> None:
    text = torch.randn(50, 64)
    draw = keyed_noise(text, seed=1)(3)
    order = torch.randperm(50)
    assert torch.equal(keyed_noise(text[order], seed=1)(3), draw[order])
    assert torch.equal(keyed_noise(text[7:8], seed=1)(3), draw[7:8])
    for other in (keyed_noise(text, seed=2)(3), keyed_noise(text, seed=1)(4), keyed_noise(text + 1e-6, seed=1)(3)):
        assert abs(torch.corrcoef(torch.stack([draw.flatten(), other.flatten()]))[0, 1]) < 0.1


def test_keyed_noise_is_standard_normal() -> None:
    draws = keyed_noise(torch.randn(2000, 64), seed=0)(1).double()
    n = draws.numel()
    assert abs(draws.mean()) < 5 / math.sqrt(n)
    assert abs(draws.var() - 1) < 5 * math.sqrt(2 / n)
    quantiles = draws.flatten().sort().values[torch.arange(1, 20) * n // 20]
    expected = torch.special.ndtri(torch.arange(1, 20).double() / 20)
    assert (quantiles - expected).abs().max() < 0.02
    correlation = torch.corrcoef(draws.T) - torch.eye(64)  # between dimensions
    assert correlation.abs().max() < 5 / math.sqrt(2000)
