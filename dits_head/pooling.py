"""Pooling of frame embeddings: X-Pool (text-conditioned) and the mean, both as combinations of a few vectors a video.

Notation: V videos, T texts, F frames, D width, J basis vectors a video; a_f attention weights of one text on one video.

The identity that makes exact scoring cheap. With u_f = out(value(LN1(frame_f))) and sum_f a_f = 1, X-Pool's output for
one pair is a function of the F numbers a_f alone:

    LN2   sum_f a_f u_f  ->  sum_f (a_f / s_2) gamma_2 * centred(u_f) + beta_2,     s_2^2 = a' G a / D + eps
    +x    h + linear(h)  ->  sum_f (a_f / s_2) y_f + y_F,                           y_F from beta_2 and the linear bias
    LN3                  ->  sum_j w_j / s_3 gamma_3 * centred(y_j) + beta_3,       s_3^2 = w' H w / D + eps

with w = (a / s_2, 1), and Gram matrices G (F x F) of centred(u) and H (F+1 x F+1) of centred(y). So a video is F + 1
basis vectors gamma_3 * centred(y_j) (beta_3 joins them as the last), a pair is its J = F + 2 coefficients, the norm of
the pooled vector is one more Gram matrix, and its dot product with any vector is a dot product with the basis: two
matrix products over all pairs and O(F^2) arithmetic, never a vector a pair. Exact in training too, unless each pair
draws its own dropout mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Protocol

import torch
from torch import Tensor, nn

from dits_head.numerics import no_autocast, normalise


@dataclass(frozen=True)
class Videos:
    """Everything about videos that does not depend on a text; index it along the videos (`videos[10:20]`).

    keys (V, F, D) and mask (V, F) give the attention; basis (V, J, D) spans the pooled vector, and the Gram matrices
    give its layer norms and length. float32, but for the mask (bool). Mean pooling has J = 1 and no other use for F.
    """

    keys: Tensor  # (V, F, D) standardised frames: LN1 without its gain and shift
    mask: Tensor  # (V, F)
    gram_attention: Tensor  # (V, F, F)   G / D
    gram_residual: Tensor  # (V, F+1, F+1)  H / D
    basis: Tensor  # (V, J, D)
    gram_basis: Tensor  # (V, J, J)
    frames: Tensor  # (V, F, D) unit frames, zero where masked; (V, 0) unless the head compares texts with frames

    def __getitem__(self, index: slice | Tensor) -> Videos:
        return Videos(*(getattr(self, field.name)[index] for field in fields(self)))

    def __len__(self) -> int:
        return len(self.basis)

    @property
    def nbytes(self) -> int:
        return sum(getattr(self, field.name).nbytes for field in fields(self))

    @classmethod
    def concatenate(cls, parts: Sequence[Videos]) -> Videos:
        return cls(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    def flatten(self) -> Videos:
        """(T, K) videos -> (T * K,)."""
        return Videos(*(getattr(self, field.name).flatten(0, 1) for field in fields(self)))


class Pooled(Protocol):
    """The vectors v|t of V videos pooled for T texts, in whichever form is cheap.

    Where each video was pooled for its own T' texts, T reads T' and the texts are (V, T', D).
    """

    def vectors(self) -> Tensor:
        """(V, T, D)."""

    def own(self) -> Tensor:
        """The vector of video i for text i, (B, D), for V = T = B."""

    def cosines(self, unit_texts: Tensor) -> Tensor:
        """Cosines of unit texts (T, D) or (V, T', D) with the vectors pooled for them: (V, T)."""


@dataclass(frozen=True)
class Combination:
    """Pooled vectors as coefficients (V, J, T) in the basis of each video."""

    coefficients: Tensor
    videos: Videos

    @no_autocast
    def vectors(self) -> Tensor:
        return self.coefficients.mT @ self.videos.basis

    @no_autocast
    def own(self) -> Tensor:
        return torch.einsum("jbb,bjd->bd", self.coefficients.transpose(0, 1), self.videos.basis)

    @no_autocast
    def cosines(self, unit_texts: Tensor) -> Tensor:
        length = _form(self.videos.gram_basis, self.coefficients).clamp_min(1e-24).rsqrt().squeeze(1)
        return (self.coefficients * _dots(self.videos.basis, unit_texts)).sum(1) * length


@dataclass(frozen=True)
class PairVectors:
    """Pooled vectors (V, T, D), one by one."""

    pooled: Tensor

    def vectors(self) -> Tensor:
        return self.pooled

    def own(self) -> Tensor:
        return torch.einsum("bbd->bd", self.pooled)

    @no_autocast
    def cosines(self, unit_texts: Tensor) -> Tensor:
        if unit_texts.ndim == 3:  # each video's own texts
            return (normalise(self.pooled) * unit_texts).sum(-1)
        return torch.einsum("vtd,td->vt", normalise(self.pooled), unit_texts)


class XPool(nn.Module):
    """X-Pool (Gorti et al., CVPR 2022): one-head attention of a text over a video's frames.

    LayerNorm1 (shared) on text and frames; q, k, v, out projections; LayerNorm2; x + dropout(linear(x)); LayerNorm3.
    Every projection starts as the identity with zero bias. `dropout_per`: see `HeadConfig`.

    The key projection acts on the query instead, (K'q).x = q.(Kx): T rows to project where the frames are V * F. It has
    no bias, which would add the same number to all of a video's logits and so leave the softmax as it is; for the same
    reason LN1's shift is left out there. LN1's gain and shift act on the matrices that follow, not on the frames, so
    that training on cached features never takes a gradient with respect to V * F rows of input.
    """

    def __init__(self, dim: int, dropout: float = 0.0, dropout_per: str = "pair") -> None:
        super().__init__()
        self.query, self.value, self.out, self.linear = (nn.Linear(dim, dim) for _ in range(4))
        self.key = nn.Linear(dim, dim, bias=False)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(dim) for _ in range(3))
        self.dropout = dropout
        self.dropout_per = dropout_per
        for linear in (self.query, self.key, self.value, self.out, self.linear):
            nn.init.eye_(linear.weight)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)

    def pool(
        self, text: Tensor, frame_embeds: Tensor, frame_mask: Tensor, generator: torch.Generator | None = None
    ) -> Pooled:
        """Every video pooled for every text, (T, D), (V, F, D), (V, F): through the identity, unless each pair draws
        its own dropout mask."""
        if self.training and self.dropout > 0 and self.dropout_per == "pair":
            return PairVectors(self(text, frame_embeds, frame_mask, generator))
        return self.pool_prepared(self.queries(text), self.prepare(frame_embeds, frame_mask, generator))

    def forward(
        self, text: Tensor, frame_embeds: Tensor, frame_mask: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Every video pooled for every text, layer by layer: (T, D), (V, F, D), (V, F) -> (V, T, D).

        The plain form, which builds a vector a pair: for training with per-pair dropout, and as the definition that
        `pool_prepared` is tested against.
        """
        frames = self._standardised(frame_embeds, frame_mask)  # (V, F, D)
        weights = self._attention(frames, frame_mask, self.queries(text))  # (V, F, T)
        attended = torch.einsum("vft,vfd->vtd", weights, self._attended(frames))  # (V, T, D); sum of weights is 1
        hidden = self.norm2(attended)
        return self.norm3(hidden + self._drop(self.linear(hidden), generator))  # (V, T, D)

    @no_autocast
    def queries(self, text: Tensor) -> Tensor:
        """(T, D) -> (T, D), K'q / sqrt(D) times LN1's gain: the logits of the attention are its dot products with the
        standardised frames."""
        scale = self.norm1.weight * text.shape[-1] ** -0.5
        return self.query(self.norm1(text.float())) @ self.key.weight * scale

    @no_autocast
    def prepare(self, frame_embeds: Tensor, frame_mask: Tensor, generator: torch.Generator | None = None) -> Videos:
        """All of a video's work that needs no text: (V, F, D), (V, F) -> Videos with J = F + 2."""
        D = frame_embeds.shape[-1]
        frames = self._standardised(frame_embeds, frame_mask)  # (V, F, D)
        centred = _centred(self._attended(frames))  # (V, F, D)
        last = self.norm2.bias.expand(len(frames), 1, D)
        hidden = torch.cat([self.norm2.weight * centred, last], dim=1)  # (V, F+1, D)
        linear = hidden @ self.linear.weight.T
        linear = torch.cat([linear[:, :-1], linear[:, -1:] + self.linear.bias], dim=1)
        if self.dropout_per == "video":  # one mask a video is a linear map of its basis: the identity stays exact
            linear = linear * self._drop(torch.ones_like(linear[:, :1]), generator)
        residual = _centred(hidden + linear)  # (V, F+1, D)
        last = self.norm3.bias.expand(len(frames), 1, D)
        basis = torch.cat([self.norm3.weight * residual, last], dim=1)  # (V, F+2, D)
        return Videos(frames, frame_mask, _gram(centred) / D, _gram(residual) / D, basis, _gram(basis), basis[:, 0, :0])

    @no_autocast
    def pool_prepared(self, queries: Tensor, videos: Videos) -> Combination:
        """The same from `queries` (T, D) and `prepare`d videos; with (V, T', D) each video meets its own T' texts."""
        return self._combine(self._attention(videos.keys, videos.mask, queries), videos)

    @no_autocast
    def pool_windows(self, videos: Videos, count: int) -> Combination:
        """Equal attention within each of `count` stretches of the video (T = count): vectors that need no text."""
        return self._combine(windows(videos.mask, count).to(videos.basis.dtype), videos)

    @no_autocast
    def attention(self, text: Tensor, frame_embeds: Tensor, frame_mask: Tensor) -> Tensor:
        """Attention weights of text i over the frames of video i: (N, D), (N, F, D), (N, F) -> (N, F), each row 1."""
        frames = self._standardised(frame_embeds, frame_mask)
        return self._attention(frames, frame_mask, self.queries(text)[:, None])[..., 0]

    @no_autocast
    def pool_each(self, text: Tensor, frame_embeds: Tensor, frame_mask: Tensor) -> Tensor:
        """Video i pooled for text i, layer by layer: (N, D), (N, F, D), (N, F) -> (N, D), at inference.

        The weights sum to 1 and the projections are affine, so the frames are averaged before they are projected: three
        products with N rows, where `prepare` makes three with N * (F + 1).
        """
        frames = self._standardised(frame_embeds, frame_mask)
        weights = self._attention(frames, frame_mask, self.queries(text)[:, None])  # (N, F, 1)
        hidden = self.norm2(self._attended((weights.mT @ frames)[:, 0]))
        return self.norm3(hidden + self.linear(hidden))

    def _standardised(self, frame_embeds: Tensor, frame_mask: Tensor) -> Tensor:
        """LN1 without its gain and shift: (V, F, D)."""
        frames = clean(frame_embeds, frame_mask)
        return nn.functional.layer_norm(frames, frames.shape[-1:], eps=self.norm1.eps)

    def _attended(self, frames: Tensor) -> Tensor:
        """out(value(LN1(frame))) of standardised frames (V, F, D): what attention averages."""
        weight, bias = self.value.weight * self.norm1.weight, self.value(self.norm1.bias)
        return self.out(nn.functional.linear(frames, weight, bias))

    def _attention(self, keys: Tensor, mask: Tensor, query: Tensor) -> Tensor:
        """Softmax of the logits over the frames, (V, F, T)."""
        logits = _dots(keys, query).masked_fill(~mask[..., None], -torch.inf)
        return logits.softmax(dim=1)

    def _combine(self, weights: Tensor, videos: Videos) -> Combination:
        """Attention weights (V, F, T) -> the pooled vectors; see the module's text."""
        one = torch.ones_like(weights[:, :1])
        scaled = weights * (_form(videos.gram_attention, weights) + self.norm2.eps).rsqrt()  # LN2
        residual = torch.cat([scaled, one], dim=1)  # (V, F+1, T)
        residual = residual * (_form(videos.gram_residual, residual) + self.norm3.eps).rsqrt()  # LN3
        return Combination(torch.cat([residual, one], dim=1), videos)  # (V, F+2, T)

    def _drop(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Dropout whose mask comes from `generator`."""
        if not self.training or self.dropout == 0:
            return x
        return x * torch.empty_like(x).bernoulli_(1 - self.dropout, generator=generator) / (1 - self.dropout)


class MeanPool(nn.Module):
    """The mean of a video's unit-length frames, whatever the text: zero-shot CLIP's pooling (CLIP4Clip's meanP)."""

    def pool(
        self, text: Tensor, frame_embeds: Tensor, frame_mask: Tensor, generator: torch.Generator | None = None
    ) -> Combination:
        return self.pool_prepared(text, self.prepare(frame_embeds, frame_mask))

    def queries(self, text: Tensor) -> Tensor:
        return text

    def prepare(self, frame_embeds: Tensor, frame_mask: Tensor) -> Videos:
        """(V, F, D), (V, F) -> Videos with J = 1."""
        basis = self.of_means(mean_frames(frame_embeds, frame_mask))[:, None]  # (V, 1, D)
        unused = basis.new_empty(len(basis), 0)
        return Videos(unused, frame_mask, unused, unused, basis, _gram(basis), unused)

    def pool_each(self, text: Tensor, frame_embeds: Tensor, frame_mask: Tensor) -> Tensor:
        """Video i pooled, whatever text i is: (N, D), (N, F, D), (N, F) -> (N, D)."""
        return self.prepare(frame_embeds, frame_mask).basis[:, 0]

    def of_means(self, means: Tensor) -> Tensor:
        """The pooled vectors of videos with these mean unit frames, (V, D)."""
        return means

    def pool_prepared(self, queries: Tensor, videos: Videos) -> Combination:
        return Combination(videos.basis.new_ones(len(videos), 1, queries.shape[-2]), videos)

    def pool_windows(self, videos: Videos, count: int) -> Combination:
        return Combination(videos.basis.new_ones(len(videos), 1, count), videos)


def windows(mask: Tensor, count: int) -> Tensor:
    """Attention weights (V, F, count) of equal stretches of each video's frames, (V, F) mask.

    A video with fewer frames than stretches leaves some of them empty; these take all frames.
    """
    frames = mask.sum(1, keepdim=True)  # (V, 1)
    place = (mask.cumsum(1) - 1) * count // frames.clamp_min(1)  # (V, F): the stretch of each frame
    member = (place[..., None] == torch.arange(count, device=mask.device)) & mask[..., None]  # (V, F, count)
    member = member | (mask[..., None] & ~member.any(1, keepdim=True))
    return member / member.sum(1, keepdim=True)


def _dots(vectors: Tensor, texts: Tensor) -> Tensor:
    """Dot products of each video's vectors (V, J, D) with the texts (T, D), or its own texts (V, T', D): (V, J, T)."""
    if texts.ndim == 3:
        return vectors @ texts.mT
    V, J, _ = vectors.shape
    return (vectors.flatten(0, 1) @ texts.T).view(V, J, -1)  # one matrix product, not V small ones


def _form(gram: Tensor, w: Tensor) -> Tensor:
    """Quadratic forms w' G w: (V, J, J), (V, J, T) -> (V, 1, T)."""
    return (w * (gram @ w)).sum(1, keepdim=True)


def _gram(x: Tensor) -> Tensor:
    """(V, J, D) -> (V, J, J)."""
    return x @ x.mT


def _centred(x: Tensor) -> Tensor:
    return x - x.mean(-1, keepdim=True)


def mean_frames(frame_embeds: Tensor, frame_mask: Tensor) -> Tensor:
    """The mean of each video's unit-length frames: (V, F, D), (V, F) -> (V, D)."""
    return normalise(clean(frame_embeds, frame_mask)).sum(1) / frame_mask.sum(1)[:, None]


def clean(frame_embeds: Tensor, frame_mask: Tensor) -> Tensor:
    """float32 frames with zeros where masked, so that whatever stands there cannot leak."""
    return frame_embeds.float().masked_fill(~frame_mask[..., None], 0)
