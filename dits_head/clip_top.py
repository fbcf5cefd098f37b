"""CLIP's top K blocks as a module of their own, fed with cached activations.

End-to-end training runs every layer on every frame in every epoch. The activations that enter block L - K do not
change while only the top K blocks train; cached once, they make an epoch cost K blocks and no decoding. With K = L
everything but the patch and token embeddings trains.

Works for the towers that `dits_head.towers` knows; `refusal` says why another will not do.

Notation: N sequences, L tokens each, W width of the tower, D joint space, K blocks.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dits_head.towers import TopBlocks, Uncacheable, image_tower, text_tower


class ClipTop(nn.Module):
    """The top K blocks of both towers of an open_clip model, copied out of it.

    frame_embeds(tokens (..., L, W_image)) -> (..., D); text_embeds(tokens (N, L, W_text), lengths (N,)) -> (N, D).
    `write_back` puts the (trained) weights into an open_clip model again.
    """

    def __init__(self, image: TopBlocks, text: TopBlocks):
        super().__init__()
        self.image = image
        self.text = text

    @classmethod
    def from_open_clip(cls, model: nn.Module, k: int) -> "ClipTop":
        """Trainable float32 copies. Raises ValueError where a tower cannot be taken apart, or k is too large."""
        layers = depth(model)
        if not 1 <= k <= layers:
            raise ValueError(f"cannot take the top {k} blocks: the towers have {layers}; use 1 to {layers}")
        top = copy.deepcopy(cls(*_views(model, k))).float()
        return top.requires_grad_(True)  # a model that only encodes is frozen

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        self.image.gradient_checkpointing = self.text.gradient_checkpointing = enabled

    def frame_embeds(self, tokens: Tensor) -> Tensor:
        lead = tokens.shape[:-2]
        return self.image(tokens.flatten(0, -3)).unflatten(0, lead)

    def text_embeds(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        return self.text(tokens, lengths - 1)

    def levels(self) -> list[nn.Module]:
        """The blocks from the bottom to the top, both towers' of equal depth together."""
        return [nn.ModuleList(pair) for pair in zip(self.image.blocks, self.text.blocks, strict=True)]

    @torch.no_grad()
    def write_back(self, model: nn.Module) -> None:
        """Copy the weights into `model`, in whose top blocks they belong; the rest of it is left alone."""
        for top, theirs in zip((self.image, self.text), _views(model, len(self.image.blocks)), strict=True):
            theirs.load_state_dict(top.state_dict())


class LowerBlocks(nn.Module):
    """The frozen blocks between the cache and the top: from what enters the top K blocks to what enters the top k.

    image(tokens (N, L, W)) -> (N, L, W), and text likewise: of a causal tower what pads a text changes nothing before,
    and the texts of others are all of one length.
    """

    def __init__(
        self,
        image_blocks: Sequence[nn.Module],
        text_blocks: Sequence[nn.Module],
        image_step: nn.Module,
        text_step: nn.Module,
    ):
        super().__init__()
        self.image_blocks, self.text_blocks = nn.ModuleList(image_blocks), nn.ModuleList(text_blocks)
        self.image_step, self.text_step = image_step, text_step
        self.requires_grad_(False).eval()

    @classmethod
    def from_open_clip(cls, model: nn.Module, cached: int, k: int) -> "LowerBlocks":
        """Copies of the `cached` top blocks but the top `k`, in float32; none where cached = k."""
        image, text = image_tower(model), text_tower(model)
        image_blocks, text_blocks = ([*tower.blocks][-cached:][: cached - k] for tower in (image, text))
        return copy.deepcopy(cls(image_blocks, text_blocks, image.step, text.step)).float()

    def __len__(self) -> int:
        return len(self.image_blocks)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def image(self, tokens: Tensor) -> Tensor:
        for block in self.image_blocks:
            tokens = self.image_step(block, tokens)
        return tokens

    def text(self, tokens: Tensor) -> Tensor:
        for block in self.text_blocks:
            tokens = self.text_step(block, tokens)
        return tokens


def depth(model: Any) -> int:
    """How many blocks the towers have; where they differ, the lower number. Raises Uncacheable."""
    return min(len(image_tower(model).blocks), len(text_tower(model).blocks))


def refusal(model: Any) -> str | None:
    """None where `ClipTop` can take this model's top blocks; otherwise the reason, naming what was found."""
    try:
        depth(model)
    except Uncacheable as reason:
        return str(reason)
    return None


def _views(model: nn.Module, k: int) -> tuple[TopBlocks, TopBlocks]:
    """The tops of both towers around the model's own weights."""
    image, text = image_tower(model), text_tower(model)
    return image.top(list(image.blocks)[-k:]), text.top(list(text.blocks)[-k:])


def pad_rows(values: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Ragged rows as one block: values (sum of lengths, W), offsets (N + 1,) -> tokens (N, L, W), lengths (N,)."""
    lengths = offsets.diff()
    rows = torch.split(values, lengths.tolist())
    return nn.utils.rnn.pad_sequence(list(rows), batch_first=True), lengths
