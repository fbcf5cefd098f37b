"""The noise network against a full DiT block with queries, keys and 16 heads; its modulation; its start at zero."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from head_helpers import scrambled
from torch import Tensor, nn

from dits_head.blocks import Block, NoiseNetwork, modulate, step_modulations, timestep_embedding

D = 32


def full_block(block: Block, x: Tensor, c: Tensor, heads: int) -> Tensor:
    """DiT's block as published, on (N, 1, D) tokens with a condition (N, D), and arbitrary queries and keys."""
    attention = nn.MultiheadAttention(D, heads, batch_first=True)
    with torch.no_grad():
        attention.in_proj_weight[2 * D :], attention.in_proj_bias[2 * D :] = block.value.weight, block.value.bias
        attention.out_proj.weight.copy_(block.out.weight)
        attention.out_proj.bias.copy_(block.out.bias)
        attention.in_proj_bias[: 2 * D].normal_()
    shift1, scale1, gate1, shift2, scale2, gate2 = block.adaLN(F.silu(c))[:, None].chunk(6, dim=-1)
    norm = nn.LayerNorm(D, elementwise_affine=False, eps=1e-6)
    h = norm(x) * (1 + scale1) + shift1
    x = x + gate1 * attention(h, h, h, need_weights=False)[0]
    h = norm(x) * (1 + scale2) + shift2
    return x + gate2 * block.fc2(nn.GELU(approximate="tanh")(block.fc1(h)))


@pytest.mark.parametrize("heads", [1, 16])
def test_block_equals_full_attention_on_one_token(heads: int) -> None:
    block = scrambled(Block(D, mlp_ratio=4.0))
    x, c = torch.randn(5, D), torch.randn(5, D)
    modulation = block.adaLN(F.silu(c)).chunk(6, dim=-1)
    torch.testing.assert_close(
        block(x, modulation), full_block(block, x[:, None], c, heads)[:, 0], atol=2e-6, rtol=1e-5
    )


def test_network_equals_full_blocks_with_the_modulation_of_each_sample() -> None:
    network = scrambled(NoiseNetwork(D, blocks=2))
    x, s = torch.randn(6, D), torch.tensor([1, 2, 3, 1, 2, 3])
    c = network.time2(F.silu(network.time1(timestep_embedding(s))))
    h = x[:, None]
    for block in network.blocks:
        assert isinstance(block, Block)
        h = full_block(block, h, c, heads=16)
    shift, scale = network.final_adaLN(F.silu(c)).chunk(2, dim=-1)
    expected = network.final(F.layer_norm(h[:, 0], (D,), eps=1e-6) * (1 + scale) + shift)

    torch.testing.assert_close(network(x, network.modulation(s)), expected, atol=1e-5, rtol=1e-5)
    together = step_modulations(network.modulation(torch.arange(1, 4)))
    for i, step in enumerate(s.tolist()):
        alone = network(x[i : i + 1], together[step - 1])
        torch.testing.assert_close(alone, expected[i : i + 1], atol=1e-5, rtol=1e-5)


def test_modulate_shared_and_per_sample_agree_in_value_and_gradient() -> None:
    x, shift, scale = torch.randn(7, D), torch.randn(D, requires_grad=True), torch.randn(D, requires_grad=True)
    shared = modulate(x, shift, scale)
    each = modulate(x, shift.expand(7, D), scale.expand(7, D))
    torch.testing.assert_close(shared, each, atol=1e-6, rtol=1e-5)
    weight = torch.randn(7, D)
    for a, b in zip(
        torch.autograd.grad((shared * weight).sum(), (shift, scale)),
        torch.autograd.grad((each * weight).sum(), (shift, scale)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_network_starts_at_zero_and_every_parameter_learns_once_the_gates_open() -> None:
    network = NoiseNetwork(D, conditions=2)
    x, c = torch.randn(3, D), torch.randn(3, 2 * D)
    assert not network(x, network.modulation(torch.tensor([4]), c)).any()
    scrambled(network)
    network(x, network.modulation(torch.tensor([4]), c)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())


def test_timestep_embedding_is_dits_sinusoid() -> None:
    embedding = timestep_embedding(torch.tensor([0, 7]))
    assert embedding.shape == (2, 256)
    assert embedding[0].tolist() == [1.0] * 128 + [0.0] * 128
    angle = 7 * math.exp(-math.log(10_000) * 5 / 128)
    assert embedding[1, 5].item() == pytest.approx(math.cos(angle), abs=1e-6)
    assert embedding[1, 128 + 5].item() == pytest.approx(math.sin(angle), abs=1e-6)
