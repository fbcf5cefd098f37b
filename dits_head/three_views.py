"""Three heads in one vector: X-Pool, a residual MLP with a pooling of its own, and a map that is solved, not trained.

    q(t) = [t^, a^, sqrt(w) c^] / sqrt(2 + w)        v|t = [x^, m^, sqrt(w) y^] / sqrt(2 + w)        ^: unit length

t and x are head `xpool`'s, a and m those of head `mlp` from the unit-length text, c and y those of `cca`. The cosine
is the weighted mean of the three cosines, and one vector a text against vectors that need no text: an index holds it,
three times as wide. An ensemble: its gain is that of averaging heads that err differently. Not DITS, and no sampler.

Notation: T texts, V videos, F frames, D width, M index vectors a video.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from dits_head.config import HeadConfig
from dits_head.head import ROWS, RetrievalHead, build_head
from dits_head.numerics import normalise
from dits_head.pooling import Videos

# Of xpool, mlp and cca: best of a grid on the validation split of `shapes`, and near the best on that of real CLIP
# features, before any test figure was seen.
WEIGHTS = (1.0, 1.0, 0.3)


@dataclass(frozen=True)
class ViewedVideos:
    """Videos prepared for each of the three; indexed along them as `Videos` is."""

    xpool: Videos
    mlp: Videos
    cca: Videos

    def __getitem__(self, index: slice | Tensor) -> ViewedVideos:
        return ViewedVideos(*(part[index] for part in self.parts))

    def __len__(self) -> int:
        return len(self.xpool)

    @property
    def parts(self) -> list[Videos]:
        return [getattr(self, field.name) for field in fields(self)]


class ThreeViews(RetrievalHead):
    """The ensemble as one head. Both trained heads have their own loss and temperature, and train together."""

    def __init__(self, config: HeadConfig) -> None:
        nn.Module.__init__(self)  # no pooling and no aligner of its own
        self.config = config
        mlp = replace(config, head="mlp", normalise=True)
        xpool = replace(config, head="xpool", pool_query="text")
        self.views = nn.ModuleList([build_head(one) for one in (xpool, mlp, HeadConfig("cca", config.dim))])
        self.views[-1].requires_grad_(False)

    @property
    def heads(self) -> list[RetrievalHead]:
        return [view for view in self.views if isinstance(view, RetrievalHead)]

    def train(self, mode: bool = True) -> ThreeViews:
        nn.Module.train(self, mode)
        return self

    @property
    def closed_form(self) -> bool:
        return True

    def fit(self, text_embeds: Tensor, means: Tensor, text_to_video: Tensor) -> None:
        self.heads[-1].fit(text_embeds, means, text_to_video)

    # ---------------------------------------------------------------- inference

    @torch.no_grad()
    def align_text(self, text_embeds: Tensor, rows: int = ROWS) -> Tensor:
        """(T, D) -> (T, 3 D) float32 of unit length."""
        return self._join([head.align_text(text_embeds, rows) for head in self.heads])

    @torch.no_grad()
    def prepare_texts(self, text_embeds: Tensor, rows: int = ROWS) -> Tensor:
        """(T, D) -> (T, 2, 3 D): the compared vectors, and those that attend to the frames."""
        both = [head.prepare_texts(text_embeds, rows) for head in self.heads]  # (T, D) or (T, 2, D) each
        compared = self._join([texts if texts.ndim == 2 else texts[:, 0] for texts in both])
        query = torch.cat([texts if texts.ndim == 2 else texts[:, 1] for texts in both], dim=-1)
        return torch.stack([compared, query], dim=1)

    def prepare_videos(self, frame_embeds: Tensor, frame_mask: Tensor) -> Any:
        return ViewedVideos(*(head.prepare_videos(frame_embeds, frame_mask) for head in self.heads))

    @torch.no_grad()
    def pool_video(self, frame_embeds: Tensor, frame_mask: Tensor) -> Tensor:
        """(V, F, D), (V, F) -> unit vectors (V, M, 3 D), or (V, 3 D) for M = 1."""
        parts = [head.pool_video(frame_embeds, frame_mask) for head in self.heads]
        return self._join([part if part.ndim == parts[0].ndim else part[:, None].expand_as(parts[0]) for part in parts])

    def score_prepared(self, texts: Tensor, videos: Any) -> Tensor:
        return self._mean(
            [
                head.score_prepared(own, of)
                for head, own, of in zip(self.heads, self._own(texts), videos.parts, strict=True)
            ]
        )

    def score_pairs(self, texts: Tensor, videos: Any) -> Tensor:
        return self._mean(
            [
                head.score_pairs(own, of)
                for head, own, of in zip(self.heads, self._own(texts), videos.parts, strict=True)
            ]
        )

    @torch.no_grad()
    def score_each(self, texts: Tensor, frame_embeds: Tensor, frame_mask: Tensor) -> Tensor:
        return self._mean(
            [
                head.score_each(own, frame_embeds, frame_mask)
                for head, own in zip(self.heads, self._own(texts), strict=True)
            ]
        )

    def frame_weights(self, texts: Tensor, frame_embeds: Tensor, frame_mask: Tensor) -> Tensor:
        """Those of head `xpool`."""
        return self.heads[0].frame_weights(self._own(texts)[0], frame_embeds, frame_mask)

    def pair_vectors(self, text_embeds: Tensor, frame_embeds: Tensor, frame_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Unit vectors (N, 3 D) each; their dot product is the pair's score."""
        pairs = [head.pair_vectors(text_embeds, frame_embeds, frame_mask) for head in self.heads]
        compared, pooled = zip(*pairs, strict=True)
        return self._join(compared), self._join(pooled)

    # ---------------------------------------------------------------- training

    def training_loss(
        self,
        text_embeds: Tensor,
        frame_embeds: Tensor,
        frame_mask: Tensor,
        *,
        positives: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of the losses of the two heads that train."""
        losses: list[Tensor] = []
        parts: dict[str, Tensor] = {}
        for head in self.heads:
            if not head.closed_form:
                loss, own = head.training_loss(
                    text_embeds, frame_embeds, frame_mask, positives=positives, generator=generator
                )
                losses.append(loss)
                parts |= {f"{head.config.head} {name}": value for name, value in own.items()}
        return torch.stack(losses).sum(), parts

    def align_text_training(self, text_embeds: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """`align_text` with gradients: (B, D) -> (B, 3 D)."""
        return self._join([head.align_text_training(text_embeds, generator) for head in self.heads])

    # ---------------------------------------------------------------- parts

    def _own(self, texts: Tensor) -> Sequence[Tensor]:
        """What `prepare_texts` gave, taken apart: (T, 2, D) for each head."""
        return texts.chunk(len(WEIGHTS), dim=-1)

    def _join(self, vectors: Sequence[Tensor]) -> Tensor:
        """Vectors (..., D), one of each head, side by side in one unit vector."""
        parts = [(weight / sum(WEIGHTS)) ** 0.5 * normalise(x) for weight, x in zip(WEIGHTS, vectors, strict=True)]
        return torch.cat(parts, dim=-1)

    def _mean(self, scores: Sequence[Tensor]) -> Tensor:
        total = torch.zeros_like(scores[0])
        for weight, score in zip(WEIGHTS, scores, strict=True):
            total += weight / sum(WEIGHTS) * score
        return total
