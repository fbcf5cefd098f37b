"""The whole of CLIP as trainable towers on decoded frames and token ids, for end-to-end training.

The same pixels, the same tokens and the same forward pass as stage 1's, so that an untouched model gives the
embeddings that the store holds.

Notation: N frames or captions, D joint space.
"""

from typing import Any

from torch import Tensor, nn

from pipeline.clip.encoder import Encoder, channel_statistics, to_pixels
from pipeline.clip.text import cuttable_tower, encode_cut

# What follows the last block of a tower, by the first name below the tower.
_ON_TOP = {"ln_post", "proj", "head", "ln_final", "text_projection", "norm", "fc_norm", "attn_pool"}
_TOWERS = {"visual", "text", "trunk"}


class WholeClip(nn.Module):
    """An encoder's open_clip model in float32, trained in place; the temperature belongs to the head."""

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: Encoder):
        super().__init__()
        self.model: Any = encoder.model.requires_grad_(True)
        for name in ("logit_scale", "logit_bias"):
            if getattr(self.model, name, None) is not None:
                getattr(self.model, name).requires_grad_(False)
        for name, value in zip(("mean", "std"), channel_statistics(self.model), strict=True):
            self.register_buffer(name, value, persistent=False)

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        self.model.set_grad_checkpointing(enabled)

    def frame_embeds(self, frames: Tensor) -> Tensor:
        """(..., H, W, 3) uint8 RGB of the encoder's size -> (..., D)."""
        pixels = to_pixels(frames.flatten(0, -4), self.mean, self.std)
        return self.model.encode_image(pixels).unflatten(0, frames.shape[:-3])

    def text_embeds(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Token ids (N, L), cut to the longest of the N where the tower allows it, and lengths (N,) -> (N, D)."""
        tower = cuttable_tower(self.model)
        return self.model.encode_text(tokens) if tower is None else encode_cut(tower, tokens)

    def levels(self) -> list[nn.Module]:
        """What is below the blocks, then the blocks from the bottom to the top, equal distance from the top together.

        One level only, everything, where a tower is no transformer of blocks.
        """
        towers = (self.model.visual, getattr(self.model, "text", self.model))
        blocks = [_blocks_of(tower) for tower in towers]
        if not all(blocks):
            return [self]
        depth = max(len(of) for of in blocks)
        levels = [nn.ModuleList(of[-n] for of in blocks if n <= len(of)) for n in range(depth, 0, -1)]
        above = {id(parameter) for level in levels for parameter in level.parameters()}
        below = [
            parameter
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad and id(parameter) not in above and not _is_on_top(name)
        ]
        return [nn.ParameterList(below), *levels]


def _blocks_of(tower: Any) -> list[nn.Module]:
    """The blocks of a transformer of open_clip's or timm's; none of another tower."""
    own = getattr(getattr(tower, "transformer", None), "resblocks", ())
    return list(own) or list(getattr(getattr(tower, "trunk", None), "blocks", ()))


def _is_on_top(name: str) -> bool:
    return next(part for part in name.split(".") if part not in _TOWERS) in _ON_TOP
