"""X-Pool and DITS written straight from the papers, with nothing done to make them fast: the benchmarks' rival.

Every sample gets its own modulation in every step, the single token attends to itself with queries and keys, and X-Pool
builds a vector for every (text, video) pair. Loads the weights of `dits_head`, so that both compute the same loss.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dits_head.config import HeadConfig
from dits_head.schedule import make_schedule


class PlainBlock(nn.Module):
    """DiT's adaLN-zero block (facebookresearch/DiT `models.py`)."""

    def __init__(self, dim: int, heads: int = 16) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(approximate="tanh"), nn.Linear(4 * dim, dim))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c)[:, None].chunk(6, dim=-1)  # (N, 1, D)
        x = x + gate1 * self.attend(self.norm1(x) * (1 + scale1) + shift1)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)

    def attend(self, x: Tensor) -> Tensor:
        N, L, D = x.shape
        q, k, v = self.qkv(x).view(N, L, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(N, L, D))


class PlainNetwork(nn.Module):
    """eps(x, s): (N, D), (N,) -> (N, D)."""

    def __init__(self, dim: int, blocks: int) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(256, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.blocks = nn.ModuleList(PlainBlock(dim) for _ in range(blocks))
        self.norm = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.final_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 2 * dim))
        self.final = nn.Linear(dim, dim)

    def forward(self, x: Tensor, s: Tensor) -> Tensor:
        frequency = torch.exp(-math.log(10_000) * torch.arange(128, device=x.device) / 128)
        angle = s[:, None].float() * frequency
        c = self.time(torch.cat([angle.cos(), angle.sin()], dim=-1))  # (N, D)
        x = x[:, None]  # (N, 1, D)
        for block in self.blocks:
            x = block(x, c)
        shift, scale = self.final_modulation(c)[:, None].chunk(2, dim=-1)
        return self.final(self.norm(x) * (1 + scale) + shift)[:, 0]


class PlainXPool(nn.Module):
    """layer6ai-labs/xpool `modules/transformer.py`: (T, D), (V, F, D) -> (V, T, D)."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out, self.linear = (nn.Linear(dim, dim) for _ in range(5))
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(dim) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def forward(self, text: Tensor, frames: Tensor) -> Tensor:
        text, frames = self.norm1(text), self.norm1(frames)
        q, k, v = self.query(text), self.key(frames), self.value(frames)
        weights = (k @ q.T / math.sqrt(q.shape[-1])).softmax(dim=1)  # (V, F, T)
        pooled = self.norm2(self.out((v.transpose(1, 2) @ weights).transpose(1, 2)))  # (V, T, D)
        return self.norm3(pooled + self.dropout(self.linear(pooled)))


class PlainHead(nn.Module):
    """X-Pool (T' = 0) or DITS, with the contrastive loss."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.pooling = PlainXPool(config.dim, config.pooling_dropout)
        self.network = PlainNetwork(config.dim, config.blocks) if config.steps else None
        self.logit_scale = nn.Parameter(torch.tensor(math.log(config.init_logit_scale)))
        self.chi, self.steps = make_schedule(config.schedule, config.T).chi, config.steps

    def training_loss(self, text: Tensor, frames: Tensor) -> Tensor:
        text, frames = text.float(), frames.float()
        aligned = text
        for s in range(self.steps, 0, -1):
            assert self.network is not None
            step = torch.full((len(text),), s, device=text.device)
            aligned = aligned - self.chi[s - 1].item() * self.network(aligned, step)
        pooled = self.pooling(text, frames)  # (V, T, D)
        pooled = pooled / pooled.norm(dim=-1, keepdim=True)
        aligned = aligned / aligned.norm(dim=-1, keepdim=True)
        logits = self.logit_scale.exp() * torch.bmm(pooled.transpose(0, 1), aligned[:, :, None])[..., 0]  # (T, V)
        target = torch.arange(len(text), device=text.device)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

    def load(self, state: dict[str, Tensor]) -> None:
        """Take the weights of a `RetrievalHead`; its missing queries and keys keep their random start."""
        own = self.state_dict()
        for name, tensor in state.items():
            name = name.replace("aligner.eps.0.", "network.").replace("network.time1", "network.time.0")
            name = name.replace("network.time2", "network.time.2").replace("final_adaLN", "final_modulation.1")
            name = (
                name.replace(".adaLN.", ".adaLN_modulation.1.").replace(".fc1.", ".mlp.0.").replace(".fc2.", ".mlp.2.")
            )
            if name.startswith("network.") and ".value." in name:
                own[name.replace(".value.", ".qkv.")][-len(tensor) :] = tensor
            elif name.startswith("network."):
                own[name.replace(".out.", ".proj.")].copy_(tensor)
            else:
                own[name].copy_(tensor)
        own["pooling.key.bias"].zero_()
        self.load_state_dict(own)
