"""The retrieval head: aligns texts, pools videos, scores texts against videos, and says what to minimise.

Notation: T texts, V videos, K candidates a text, F frames, D width, B pairs of a training batch.

    head = build_head(HeadConfig(head="dits", dim=512))
    loss, parts = head.training_loss(text_embeds, frame_embeds, frame_mask, positives=positives, generator=generator)
    sims = head.eval().score(text_embeds, frame_embeds, frame_mask)  # (T, V)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from dits_head.aligners import Aligner, TrainingBatch
from dits_head.config import HeadConfig
from dits_head.losses import contrastive_loss
from dits_head.numerics import normalise, tiles
from dits_head.pooling import MeanPool, PairVectors, Pooled, Videos, XPool
from dits_head.registry import aligner_class

MAX_LOG_SCALE = math.log(100)  # CLIP's clamp on logit_scale

# Work is cut into tiles of one fixed shape (the last one padded), because a matrix product's rounding depends on its
# shape: so a text's alignment and a pair's score are the same bits whatever else is computed with them.
ROWS = 32  # texts aligned at once
TILE = (64, 128)  # texts x videos scored at once
PAIR_TILE = (8, 32)  # the same where every pair needs vectors of its own


class HeadNeedsVideo(ValueError):
    """The system's text cannot be aligned without the video, so no index can hold it."""


class RetrievalHead(nn.Module):
    """One system of `HeadConfig`. See the methods; `indexable` says whether `align_text` exists.

    Vectors that are compared have width D, or a multiple of it where a head is made of several (`three_views`).
    """

    needs_video: str | None = None  # of a head that is named by its class; see `registry`

    pooling: XPool | MeanPool
    aligner: Any  # an Aligner; of which class, the config says

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.config = config
        aligner = aligner_class(config.head)
        self.pooling = aligner.make_pooling(config)  # the first to draw from torch's generator
        self.aligner = aligner(config)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(config.init_logit_scale)))
        if self.aligner.freezes_pooling:
            self.pooling.requires_grad_(False)
            self.logit_scale.requires_grad_(False)

    def train(self, mode: bool = True) -> RetrievalHead:
        """Training mode; a frozen pooling stays in evaluation mode, so that its dropout is off."""
        super().train(mode)
        if self.aligner.freezes_pooling:
            self.pooling.eval()
        return self

    @property
    def indexable(self) -> bool:
        return self.config.needs_video is None

    @property
    def closed_form(self) -> bool:
        """Whether `fit` solves for something."""
        return bool(self.aligner.closed_form)

    @torch.no_grad()
    def fit(self, text_embeds: Tensor, means: Tensor, text_to_video: Tensor) -> None:
        """Solve for what has a closed form, on a training split.

        Args:
            text_embeds: (T, D).
            means: (V, D), each video's `pooling.mean_frames`.
            text_to_video: (T,) the row of each text's video.
        """
        if self.closed_form:
            self.aligner.fit(self.pooling, text_embeds, means, text_to_video)

    # ---------------------------------------------------------------- inference

    @torch.no_grad()
    def align_text(self, text_embeds: Tensor, rows: int = ROWS) -> Tensor:
        """(T, D) -> (T, D) float32: the vectors to search an index with.

        Args:
            text_embeds: (T, D).
            rows: texts aligned at once; the last ones are padded to so many. With one and the same `rows`, a text's
                result depends on nothing but itself; with others it agrees to float32 rounding. `rows=len(text_embeds)`
                pads nothing: a text alone costs its own work.

        Raises HeadNeedsVideo where the system's score needs the video.
        """
        self._require_indexable()
        self._check_width(text_embeds)
        text = text_embeds.float()
        aligned = torch.empty_like(text)
        for real, padded in tiles(len(text), rows, text.device):
            aligned[real] = self.aligner(text[padded])[: len(aligned[real])]
        return aligned

    @torch.no_grad()
    def prepare_texts(self, text_embeds: Tensor, rows: int = ROWS) -> Tensor:
        """What `score_prepared` takes for each text, (T, D) or (T, 2, D): the compared vector and, where it differs,
        the vector that attends to the frames. `rows`: as in `align_text`."""
        text = text_embeds.float()
        if self.config.needs_video or not self.config.aligns_text:
            self._check_width(text_embeds)
            return text
        aligned = self.align_text(text, rows)
        return aligned if self.config.pool_query == "aligned" else torch.stack([aligned, text], dim=1)

    @torch.no_grad()
    def prepare_videos(self, frame_embeds: Tensor, frame_mask: Tensor) -> Videos:
        """(V, F, D), (V, F) -> Videos, to be indexed along V: everything that scoring needs of a video.

        Holds about 2 F + 2 vectors of width D a video, float32. Raises ValueError for a video without a frame.
        """
        self._check_width(frame_embeds)
        empty = (~frame_mask.any(1)).nonzero().flatten().tolist()
        if empty:
            raise ValueError(f"frame_mask: video {empty[0]} has no frame ({len(empty)} such); leave it out of the set")
        if not len(frame_embeds):
            return self._prepare(frame_embeds, frame_mask)
        return Videos.concatenate(list(self._prepared_tiles(frame_embeds, frame_mask)))

    @torch.no_grad()
    def pool_video(self, frame_embeds: Tensor, frame_mask: Tensor) -> Tensor:
        """(V, F, D), (V, F) -> unit vectors (V, M, D) float32 that need no text, for an index: X-Pool's later layers
        on equal attention within each of M = `index_vectors` stretches of the video; (V, D) for M = 1."""
        self._check_width(frame_embeds)
        tiles = [self._windows(tile) for tile in self._prepared_tiles(frame_embeds, frame_mask)]
        empty = frame_embeds.new_empty(0, self.config.vectors, self.config.dim, dtype=torch.float32)
        vectors = torch.cat(tiles) if tiles else empty
        return vectors.squeeze(1) if self.config.vectors == 1 else vectors

    def score(self, text_embeds: Tensor, frame_embeds: Tensor, frame_mask: Tensor) -> Tensor:
        """Exact cosines of every text with every video, (T, D), (V, F, D), (V, F) -> sims (T, V) float32."""
        return self.score_prepared(self.prepare_texts(text_embeds), self.prepare_videos(frame_embeds, frame_mask))

    @torch.no_grad()
    def score_prepared(self, texts: Tensor, videos: Videos) -> Tensor:
        """`prepare_texts` of T texts, `prepare_videos` of V videos -> sims (T, V) float32.

        Memory beside the result: a few tiles, whatever T and V. The same pair gets the same bits in whatever block.
        """
        compared, query = self._split(texts)
        sims = compared.new_empty(len(texts), len(videos))
        rows, columns = PAIR_TILE if self.config.needs_video else TILE
        for real_texts, padded_texts in tiles(len(texts), rows, texts.device):
            score = self._scorer(compared[padded_texts], query[padded_texts])
            for real_videos, padded_videos in tiles(len(videos), columns, texts.device):
                block = sims[real_texts, real_videos]
                block.copy_(score(videos[padded_videos]).T[: block.shape[0], : block.shape[1]])
        return sims

    @torch.no_grad()
    def score_pairs(self, texts: Tensor, videos: Videos) -> Tensor:
        """Scores of shortlists: T prepared texts, their candidates `prepared[index]` with index (T, K) -> (T, K).

        Agrees with `score_prepared` to float32 rounding. The gathered candidates are the memory, T * K * (2 F + 2) * D
        * 4 bytes: call it for a few texts at a time.
        """
        T, K = videos.basis.shape[:2]
        compared, query = (x.repeat_interleave(K, dim=0)[:, None] for x in self._split(texts))  # (T * K, 1, D)
        return self._scorer(compared, query)(videos.flatten()).view(T, K)

    @torch.no_grad()
    def score_each(self, texts: Tensor, frame_embeds: Tensor, frame_mask: Tensor) -> Tensor:
        """Score of prepared text i with its own video i, (N, D) or (N, 2, D), (N, F, D), (N, F) -> (N,) float32.

        Agrees with `score_prepared` to float32 rounding, and costs a tenth of preparing videos that are met only once.
        """
        compared, query = self._split(texts)
        if self.config.needs_video or type(self.aligner).prepare is not Aligner.prepare:  # its score needs the frames
            own = torch.arange(len(texts), device=texts.device)[:, None]
            return self.score_pairs(texts, self.prepare_videos(frame_embeds, frame_mask)[own])[:, 0]
        pooled = PairVectors(self.pooling.pool_each(query, frame_embeds, frame_mask)[:, None])
        return self.aligner.cosines(compared[:, None], pooled, None)[:, 0]

    @torch.no_grad()
    def pair_vectors(self, text_embeds: Tensor, frame_embeds: Tensor, frame_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Text i and its own video i, (N, D), (N, F, D), (N, F) -> the compared text and v|t, (N, D) float32 each.
        The cosine of the two is the pair's score. Neither has unit length.

        Raises HeadNeedsVideo where `align_text` does.
        """
        self._require_indexable()
        compared, query = self._split(self.prepare_texts(text_embeds))
        queries = self.pooling.queries(query)[:, None]  # (N, 1, D): each video meets its own text alone
        videos = self.prepare_videos(frame_embeds, frame_mask)
        return compared, self.pooling.pool_prepared(queries, videos).vectors()[:, 0]

    @torch.no_grad()
    def frame_weights(self, texts: Tensor, frame_embeds: Tensor, frame_mask: Tensor) -> Tensor:
        """How much prepared text i attends to each frame of its own video i: (N, D) or (N, 2, D), (N, F, D), (N, F) ->
        (N, F) float32, -inf where masked.

        X-Pool's attention weights (its eq. 3) where the head pools by them; else the cosine of the compared text with
        each frame, which is what mean pooling averages.
        """
        compared, query = self._split(texts)
        if isinstance(self.pooling, XPool):
            weights = self.pooling.attention(query, frame_embeds, frame_mask)
        else:
            weights = torch.einsum("nfd,nd->nf", normalise(frame_embeds.float()), normalise(compared))
        return weights.masked_fill(~frame_mask, -torch.inf)

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
        """Loss of a batch of matching pairs: text i belongs to video i.

        Args:
            text_embeds: (B, D).
            frame_embeds: (B, F, D).
            frame_mask: (B, F) bool, True where there is a frame.
            positives: (B, B) bool, pairs besides the diagonal that match as well (see `losses.contrastive_loss`).
            generator: Where all random numbers, dropout included, come from; None: torch's global generator.

        Returns:
            The loss, and its unweighted parts by name, without gradients. They stay on the device: reading one waits
            for it.
        """
        with torch.no_grad():
            self.logit_scale.clamp_(max=MAX_LOG_SCALE)
        text = text_embeds.float()

        def pool(aligned: Tensor) -> Pooled:
            query = aligned if self.config.pool_query == "aligned" else text
            return self.pooling.pool(query, frame_embeds, frame_mask, generator)

        def index_cosines(aligned: Tensor) -> Tensor:
            indexed = self._windows(self.pooling.prepare(frame_embeds, frame_mask))  # (V, M, D)
            return (indexed @ normalise(aligned).T).amax(1)  # (V, T)

        def contrast(cosines: Tensor) -> Tensor:
            return contrastive_loss(cosines.T, self.logit_scale.exp(), positives)

        parts = self.aligner.losses(
            TrainingBatch(text, frame_embeds, frame_mask, generator, pool, index_cosines, contrast)
        )
        loss = torch.stack([weight * value for weight, value in parts.values()]).sum()
        return loss, {name: value.detach() for name, (_, value) in parts.items()}

    def align_text_training(self, text_embeds: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """`align_text` with gradients and, in training mode, the noise of training: (B, D) -> (B, D)."""
        self._require_indexable()
        return self.aligner(text_embeds.float(), generator)

    def start_from(self, state: dict[str, Tensor]) -> list[str]:
        """Take every parameter that another head's state_dict has under the same name and shape; returns those names.

        For the diffusion baseline, whose pooling comes from a trained X-Pool, and for its fine-tuning.
        """
        own = self.state_dict()
        shared = {name: value for name, value in state.items() if name in own and own[name].shape == value.shape}
        self.load_state_dict(shared, strict=False)
        return sorted(shared)

    # ---------------------------------------------------------------- parts

    def _prepared_tiles(self, frame_embeds: Tensor, frame_mask: Tensor) -> Iterator[Videos]:
        for real, padded in tiles(len(frame_embeds), ROWS, frame_embeds.device):
            yield self._prepare(frame_embeds[padded], frame_mask[padded])[: len(frame_embeds[real])]

    def _prepare(self, frame_embeds: Tensor, frame_mask: Tensor) -> Videos:
        return self.aligner.prepare(self.pooling.prepare(frame_embeds, frame_mask), frame_embeds, frame_mask)

    def _scorer(self, compared: Tensor, query: Tensor) -> Callable[[Videos], Tensor]:
        """A function from videos to cosines (V, T), for texts (T, D) or for each video's own texts (V, T', D)."""
        queries = self.pooling.queries(query)
        return lambda videos: self.aligner.cosines(compared, self.pooling.pool_prepared(queries, videos), videos)

    def _split(self, texts: Tensor) -> tuple[Tensor, Tensor]:
        """The compared vectors and the pooling queries, both (T, D)."""
        if texts.ndim == 3:
            return texts[:, 0], texts[:, 1]
        if self.indexable and self.config.aligns_text and self.config.pool_query == "text":
            raise ValueError(
                f"texts {tuple(texts.shape)}: head {self.config.head!r} compares the aligned text but pools with the "
                "original one, expected (T, 2, D); pass prepare_texts(text_embeds)"
            )
        return texts, texts

    def _windows(self, videos: Videos) -> Tensor:
        """Unit vectors (V, M, D)."""
        return normalise(self.pooling.pool_windows(videos, self.config.vectors).vectors())

    def _require_indexable(self) -> None:
        if self.config.needs_video:
            raise HeadNeedsVideo(f"head {self.config.head!r} cannot align a text alone: {self.config.needs_video}")

    def _check_width(self, embeds: Tensor) -> None:
        if embeds.shape[-1] != self.config.dim:
            raise ValueError(f"embeddings {tuple(embeds.shape)}: expected width {self.config.dim}, the head's dim")


def build_head(config: HeadConfig) -> RetrievalHead:
    """The head that `config` describes, freshly initialised from torch's global generator."""
    named = aligner_class(config.head)
    head: RetrievalHead = named(config) if issubclass(named, RetrievalHead) else RetrievalHead(config)
    return head
