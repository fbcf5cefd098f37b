"""CLIP's top K blocks as a module of their own, fed with cached activations.

End-to-end training runs every layer on every frame in every epoch. The activations that enter block L - K do not
change while only the top K blocks train; cached once, they make an epoch cost K blocks and no decoding. With K = L
everything but the patch and token embeddings trains.

Works for open_clip's own transformer (`ResidualAttentionBlock`); `refusal` says why another tower will not do.

Notation: N sequences, L tokens each, W width of the tower, D joint space, K blocks.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

_BLOCK_PARTS = ("ln_1", "attn", "attention", "ls_1", "ln_2", "mlp", "ls_2")


class TopBlocks(nn.Module):
    """The top of one tower: K residual attention blocks, the final norm, the projection into the joint space.

    forward(tokens (N, L, W), last (N,) or None) -> (N, D). In the image tower the class token (position 0) becomes
    the embedding; in the text tower the end-of-text token, whose position `last` gives, and attention is causal.

    The last block is evaluated for that one token only: its other rows are never read. This is exact, and saves the
    query, output and MLP work of L - 1 tokens.
    """

    def __init__(self, blocks: nn.ModuleList, norm: nn.Module, projection: Any, *, causal: bool):
        super().__init__()
        self.blocks = blocks
        self.norm = norm
        # open_clip keeps the projection as a (W, D) parameter, or as a Linear
        self.projection = projection
        self.causal = causal
        self.gradient_checkpointing = False

    def forward(self, tokens: Tensor, last: Tensor | None = None) -> Tensor:
        mask = _causal_mask(tokens) if self.causal else None
        for block in self.blocks[:-1]:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                tokens = checkpoint(block, tokens, None, None, mask, use_reentrant=False)
            else:
                tokens = block(tokens, attn_mask=mask)  # (N, L, W)
        pooled = self._last_block(self.blocks[-1], tokens, last)  # (N, W)
        pooled = self.norm(pooled)
        if isinstance(self.projection, nn.Linear):
            return self.projection(pooled)
        return pooled if self.projection is None else pooled @ self.projection  # (N, D)

    @staticmethod
    def _last_block(block: Any, tokens: Tensor, last: Tensor | None) -> Tensor:
        rows = torch.arange(len(tokens), device=tokens.device)
        position = torch.zeros_like(rows) if last is None else last
        query = tokens[rows, position].unsqueeze(1)  # (N, 1, W)
        normed = block.ln_1(tokens)
        mask = None
        if last is not None:  # causal: the end-of-text token sees itself and what stands before it
            after = torch.arange(tokens.shape[1], device=tokens.device)[None, :] > position[:, None]  # (N, L)
            mask = torch.zeros(after.shape, dtype=normed.dtype, device=tokens.device).masked_fill(after, float("-inf"))
            mask = mask[:, None, :].repeat_interleave(block.attn.num_heads, dim=0)  # (N * heads, 1, L)
        attended = block.attention(normed[rows, position].unsqueeze(1), k_x=normed, v_x=normed, attn_mask=mask)
        query = query + block.ls_1(attended)
        return (query + block.ls_2(block.mlp(block.ln_2(query)))).squeeze(1)


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
        """Trainable float32 copies. Raises ValueError where the towers are not open_clip's own, or k is too large."""
        if reason := refusal(model):
            raise ValueError(reason)
        layers = depth(model)
        if not 1 <= k <= layers:
            raise ValueError(f"cannot take the top {k} blocks: the towers have {layers}; use 1 to {layers}")
        image_blocks, text_blocks = _towers(model)
        image, text = _image_parts(model), _text_parts(model)
        top = cls(
            TopBlocks(_copies(image_blocks, k), _copy(image[0]), _copy(image[1]), causal=False),
            TopBlocks(_copies(text_blocks, k), _copy(text[0]), _copy(text[1]), causal=True),
        )
        return top.requires_grad_(True)  # type: ignore[return-value]  # a model that only encodes is frozen

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
        for top, blocks, parts in zip(
            (self.image, self.text), _towers(model), (_image_parts(model), _text_parts(model)), strict=True
        ):
            k = len(top.blocks)
            for mine, theirs in zip(top.blocks, list(blocks)[-k:], strict=True):
                theirs.load_state_dict(mine.state_dict())
            parts[0].load_state_dict(top.norm.state_dict())
            if isinstance(parts[1], nn.Linear):
                parts[1].load_state_dict(top.projection.state_dict())
            elif parts[1] is not None:
                parts[1].copy_(top.projection)


class LowerBlocks(nn.Module):
    """The frozen blocks between the cache and the top: from what enters the top K blocks to what enters the top k.

    image(tokens (N, L, W)) -> (N, L, W), and text likewise: it is causal, so what pads a text changes nothing before.
    """

    def __init__(self, image_blocks: nn.ModuleList, text_blocks: nn.ModuleList):
        super().__init__()
        self.image_blocks = image_blocks
        self.text_blocks = text_blocks
        self.requires_grad_(False).eval()

    @classmethod
    def from_open_clip(cls, model: nn.Module, cached: int, k: int) -> "LowerBlocks":
        """Copies of the `cached` top blocks but the top `k`, in float32; none where cached = k."""
        return cls(*(_copies(list(blocks)[-cached:], cached)[: cached - k] for blocks in _towers(model)))

    def __len__(self) -> int:
        return len(self.image_blocks)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def image(self, tokens: Tensor) -> Tensor:
        for block in self.image_blocks:
            tokens = block(tokens)
        return tokens

    def text(self, tokens: Tensor) -> Tensor:
        mask = _causal_mask(tokens)
        for block in self.text_blocks:
            tokens = block(tokens, attn_mask=mask)
        return tokens


def depth(model: Any) -> int:
    """How many blocks the towers have; where they differ, the lower number."""
    return min(len(blocks) for blocks in _towers(model))


def refusal(model: Any) -> str | None:
    """None where `ClipTop` can take this model's top blocks; otherwise the reason, naming what was found."""
    visual = getattr(model, "visual", None)
    text = getattr(model, "text", model)  # CustomTextCLIP keeps its text tower in .text, CLIP in itself
    for name, tower in (("image", visual), ("text", text)):
        blocks = getattr(getattr(tower, "transformer", None), "resblocks", None)
        if blocks is None:
            return f"the {name} tower is a {type(tower).__name__}, not open_clip's transformer: it cannot be cached"
        missing = [part for part in _BLOCK_PARTS if not hasattr(blocks[0], part)]
        if missing:
            return (
                f"the {name} tower's blocks are {type(blocks[0]).__name__} without {missing[0]}: they cannot be cached"
            )
    if getattr(visual, "attn_pool", None) is not None or getattr(visual, "pool_type", "tok") != "tok":
        return f"the image tower pools by {getattr(visual, 'pool_type', 'attention')!r}, not by its class token"
    pool = getattr(text, "text_pool_type", None) or getattr(text, "pool_type", None)
    if pool not in ("argmax", "eos") or getattr(text, "attn_mask", None) is None:
        return f"the text tower pools by {pool!r} or is not causal: only CLIP's end-of-text pooling is supported"
    return None


def _text_tower(model: Any) -> Any:
    return getattr(model, "text", model)


def _towers(model: Any) -> tuple[Any, Any]:
    return model.visual.transformer.resblocks, _text_tower(model).transformer.resblocks


def _image_parts(model: Any) -> tuple[Any, Any]:
    return model.visual.ln_post, model.visual.proj


def _text_parts(model: Any) -> tuple[Any, Any]:
    return _text_tower(model).ln_final, _text_tower(model).text_projection


def _copies(blocks: Any, k: int) -> nn.ModuleList:
    return nn.ModuleList(copy.deepcopy(block).float() for block in list(blocks)[-k:])


def _copy(part: Any) -> Any:
    if isinstance(part, nn.Parameter):
        return nn.Parameter(part.detach().clone().float())
    return copy.deepcopy(part).float() if isinstance(part, nn.Module) else None


def _causal_mask(tokens: Tensor) -> Tensor:
    length = tokens.shape[1]
    return torch.full((length, length), float("-inf"), dtype=tokens.dtype, device=tokens.device).triu(1)


def pad_rows(values: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Ragged rows as one block: values (sum of lengths, W), offsets (N + 1,) -> tokens (N, L, W), lengths (N,)."""
    lengths = offsets.diff()
    rows = torch.split(values, lengths.tolist())
    return nn.utils.rnn.pad_sequence(list(rows), batch_first=True), lengths
