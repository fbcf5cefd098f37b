"""The transformer towers of open_clip's models: where their blocks are, how one is called, what follows the last.

Two kinds of blocks: open_clip's own (`OpenClipTop`: CLIP, and the text towers of SigLIP, PE, MobileCLIP), and timm's
vision transformers (`TimmTop`: the image towers of SigLIP, PE and MobileCLIP-B, of EVA and ViTamin). `image_tower` and
`text_tower` say which, or raise `Uncacheable` with the reason.

A text is cached with the token that it is pooled at in the last place: a causal tower sees nothing after that token,
so the rest is cut off; in a tower that looks both ways the order of the tokens does not matter any more above the
position embedding, so the pooled one may change places with the last.

Notation: N sequences, L tokens each, W width of the tower, D joint space, K blocks.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

_OPEN_CLIP_PARTS = ("ln_1", "attn", "attention", "ls_1", "ln_2", "mlp", "ls_2")


class Uncacheable(ValueError):
    """This tower's top blocks cannot be cached; the message says why."""


class OpenClipStep(nn.Module):
    """(block, tokens (N, L, W)) -> (N, L, W) for open_clip's blocks."""

    def __init__(self, causal: bool):
        super().__init__()
        self.causal = causal

    def forward(self, block: Any, tokens: Tensor) -> Tensor:
        return block(tokens, attn_mask=_causal_mask(tokens) if self.causal else None)


class TimmStep(nn.Module):
    """(block, tokens (N, L, W)) -> (N, L, W) for timm's blocks; `rope`: the rotary positions of all of them."""

    rope: Tensor | None

    def __init__(self, rope: Tensor | None):
        super().__init__()
        self.register_buffer("rope", None if rope is None else rope.detach().clone(), persistent=False)

    def forward(self, block: Any, tokens: Tensor) -> Tensor:
        return block(tokens) if self.rope is None else block(tokens, rope=self.rope)

    def attend(self, block: Any, tokens: Tensor) -> Tensor:
        """The first half of a block: attention and its residual."""
        if hasattr(block, "ls1"):  # timm's Block
            return tokens + block.drop_path1(block.ls1(block.attn(block.norm1(tokens))))
        attended = block.attn(block.norm1(tokens), rope=self.rope)
        return tokens + block.drop_path1(attended if block.gamma_1 is None else block.gamma_1 * attended)

    @staticmethod
    def feed(block: Any, tokens: Tensor) -> Tensor:
        """The second half of a block: MLP and its residual, each token for itself."""
        if hasattr(block, "ls2"):
            return tokens + block.drop_path2(block.ls2(block.mlp(block.norm2(tokens))))
        fed = block.mlp(block.norm2(tokens))
        return tokens + block.drop_path2(fed if block.gamma_2 is None else block.gamma_2 * fed)


class TopBlocks(nn.Module, ABC):
    """The top of one tower: K blocks and what follows them, down to the embedding.

    forward(tokens (N, L, W), last (N,) or None) -> (N, D); `last`: the place of the token that a text is pooled at.
    """

    def __init__(self, blocks: Sequence[nn.Module], step: nn.Module):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.step = step
        self.gradient_checkpointing = False

    def forward(self, tokens: Tensor, last: Tensor | None = None) -> Tensor:
        for block in self.blocks[:-1]:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                tokens = checkpoint(self.step, block, tokens, use_reentrant=False)
            else:
                tokens = self.step(block, tokens)  # (N, L, W)
        return self.finish(self.blocks[-1], tokens, last)

    @abstractmethod
    def finish(self, block: Any, tokens: Tensor, last: Tensor | None) -> Tensor:
        """The last block, pooling, norm, projection: (N, L, W) -> (N, D)."""


class OpenClipTop(TopBlocks):
    """The top of a tower of open_clip's own.

    Where one token becomes the embedding (the class token at place 0; in a text the one that `last` names), the last
    block is evaluated for that token alone: its other rows are never read. This is exact, and saves the query, output
    and MLP work of L - 1 tokens. `pooling`: "token", or "mean" over the patches, normalised before or after.
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        norm: nn.Module,
        projection: Any,
        *,
        causal: bool,
        pooling: str = "token",
        norm_after_pooling: bool = True,
    ):
        super().__init__(blocks, OpenClipStep(causal))
        self.norm = norm
        # open_clip keeps the projection as a (W, D) parameter, or as a Linear
        self.projection = projection
        self.causal = causal
        self.pooling, self.norm_after_pooling = pooling, norm_after_pooling

    def finish(self, block: Any, tokens: Tensor, last: Tensor | None) -> Tensor:
        if self.pooling == "token":
            pooled = self.norm(self._pooled_token(block, tokens, last))  # (N, W)
        else:
            patches = self.step(block, tokens)[:, 1:]
            if self.norm_after_pooling:
                pooled = self.norm(patches.mean(dim=1))
            else:
                pooled = self.norm(patches).mean(dim=1)
        if isinstance(self.projection, nn.Linear):
            return self.projection(pooled)
        return pooled if self.projection is None else pooled @ self.projection  # (N, D)

    def _pooled_token(self, block: Any, tokens: Tensor, last: Tensor | None) -> Tensor:
        rows = torch.arange(len(tokens), device=tokens.device)
        position = torch.zeros_like(rows) if last is None else last
        query = tokens[rows, position].unsqueeze(1)  # (N, 1, W)
        normed = block.ln_1(tokens)
        mask = None
        if self.causal:  # the end-of-text token sees itself and what stands before it
            after = torch.arange(tokens.shape[1], device=tokens.device)[None, :] > position[:, None]  # (N, L)
            mask = torch.zeros(after.shape, dtype=normed.dtype, device=tokens.device).masked_fill(after, float("-inf"))
            mask = mask[:, None, :].repeat_interleave(block.attn.num_heads, dim=0)  # (N * heads, 1, L)
        attended = block.attention(normed[rows, position].unsqueeze(1), k_x=normed, v_x=normed, attn_mask=mask)
        query = query + block.ls_1(attended)
        return (query + block.ls_2(block.mlp(block.ln_2(query)))).squeeze(1)


class TimmTop(TopBlocks):
    """The top of a timm vision transformer: its blocks, norms, pooling and heads.

    Attention pooling reads every token of the last block, as the mean does. A class token alone needs the attention of
    all tokens but the MLP of one.
    """

    def __init__(self, blocks: Sequence[nn.Module], tower: Any):
        trunk = tower.trunk
        super().__init__(blocks, TimmStep(_rope(trunk)))
        self.norm, self.fc_norm = trunk.norm, trunk.fc_norm
        self.attn_pool = trunk.attn_pool
        self.head_drop, self.head, self.projection = trunk.head_drop, trunk.head, tower.head
        self.token = trunk.attn_pool is None and trunk.global_pool == "token"
        includes_prefix = isinstance(trunk.attn_pool, nn.Module) and type(trunk).__name__ == "Eva"
        self.first = 0 if includes_prefix or getattr(trunk, "pool_include_prefix", False) else trunk.num_prefix_tokens

    def finish(self, block: Any, tokens: Tensor, last: Tensor | None) -> Tensor:
        step: Any = self.step
        if self.token:
            pooled = self.norm(step.feed(block, step.attend(block, tokens)[:, :1]))[:, 0]
        else:
            pooled = self.norm(step(block, tokens))[:, self.first :]
            pooled = pooled.mean(dim=1) if self.attn_pool is None else self.attn_pool(pooled)
        return self.projection(self.head(self.head_drop(self.fc_norm(pooled))))


@dataclass(frozen=True)
class Tower:
    """One tower of a model, not copied: its blocks from the bottom to the top, and what they take.

    `tokens` and `width` are L and W of a whole input; `top(blocks)` is a TopBlocks around some of the topmost.
    """

    blocks: Sequence[nn.Module]
    tokens: int
    width: int
    step: nn.Module
    top: Callable[[Sequence[nn.Module]], TopBlocks]
    batch_first: bool = True


def image_tower(model: Any) -> Tower:
    """The image tower of an open_clip model. Raises Uncacheable."""
    visual: Any = getattr(model, "visual", None)
    if hasattr(visual, "trunk"):
        return _timm_tower(visual)
    transformer = _own_transformer(visual, "image")
    pool = getattr(visual, "pool_type", "tok")
    if getattr(visual, "attn_pool", None) is not None or pool not in ("tok", "avg"):
        raise Uncacheable(f"the image tower pools by {pool!r} or by attention of open_clip's own (CoCa)")
    pooling, after = "token" if pool == "tok" else "mean", bool(getattr(visual, "final_ln_after_pool", False))
    length, width = visual.positional_embedding.shape
    return Tower(
        list(transformer.resblocks),
        length,
        width,
        OpenClipStep(False),
        lambda blocks: OpenClipTop(
            blocks, visual.ln_post, visual.proj, causal=False, pooling=pooling, norm_after_pooling=after
        ),
        transformer.batch_first,
    )


def text_tower(model: Any) -> Tower:
    """The text tower of an open_clip model. Raises Uncacheable."""
    text = getattr(model, "text", model)  # CustomTextCLIP keeps its text tower in .text, CLIP in itself
    transformer = _own_transformer(text, "text")
    if getattr(text, "cls_emb", None) is not None or getattr(text, "use_pad_mask", False):
        raise Uncacheable("the text tower masks by token ids (CoCa), which the activations do not show")
    if text_pool(text) not in ("argmax", "eos", "last", "first"):
        raise Uncacheable(f"the text tower pools by {text_pool(text)!r}, not at one token")
    causal = getattr(text, "attn_mask", None) is not None
    length, width = text.positional_embedding.shape
    return Tower(
        list(transformer.resblocks),
        length,
        width,
        OpenClipStep(causal),
        lambda blocks: OpenClipTop(blocks, text.ln_final, text.text_projection, causal=causal),
        transformer.batch_first,
    )


def text_pool(text: Any) -> str | None:
    """How a text tower pools: "argmax", "eos", "last", "first", or "none"."""
    return getattr(text, "text_pool_type", None) or getattr(text, "pool_type", None)


def _own_transformer(tower: Any, what: str) -> Any:
    transformer = getattr(tower, "transformer", None)
    blocks = getattr(transformer, "resblocks", None)
    if blocks is None:
        kind = type(transformer if transformer is not None else tower).__name__
        raise Uncacheable(
            f"the {what} tower is a {kind}, no transformer of open_clip's or vision transformer of timm's"
        )
    missing = [part for part in _OPEN_CLIP_PARTS if not hasattr(blocks[0], part)]
    if missing:
        raise Uncacheable(f"the {what} tower's blocks are {type(blocks[0]).__name__} without {missing[0]}")
    return transformer


def _timm_tower(visual: Any) -> Tower:
    trunk = visual.trunk
    kind = type(trunk).__name__
    if kind not in ("VisionTransformer", "Eva"):
        raise Uncacheable(_why_not(trunk))
    block = type(trunk.blocks[0]).__name__
    if block not in ("Block", "EvaBlock"):
        raise Uncacheable(f"the image tower's blocks are timm's {block}; Block and EvaBlock are supported")
    if getattr(trunk, "rope_mixed", False):
        raise Uncacheable("the image tower's rotary positions are trained and differ from block to block")
    if trunk.attn_pool is None and trunk.global_pool not in ("token", "avg"):
        raise Uncacheable(f"the image tower pools by {trunk.global_pool!r}; token, avg and map are supported")
    return Tower(
        list(trunk.blocks),
        trunk.patch_embed.num_patches + trunk.num_prefix_tokens,
        trunk.embed_dim,
        TimmStep(_rope(trunk)),
        lambda blocks: TimmTop(blocks, visual),
    )


def _why_not(trunk: Any) -> str:
    """Why no top of this timm model can be cached, and which of its stages could be."""
    stages = getattr(trunk, "stages", None)
    kind = type(trunk).__name__
    if stages is None:
        return f"the image tower is timm's {kind}; VisionTransformer and Eva are supported"
    reason = f"the image tower is timm's {kind}: {len(stages)} stages on maps of different sizes, no equal blocks"
    attending = [
        number
        for number, stage in enumerate(stages)
        if any("attention" in type(module).__name__.lower() for module in stage.modules())
    ]
    if not attending or attending[-1] != len(stages) - 1:
        return f"{reason}, convolutions to the last"
    count = len(stages[-1].blocks)
    return (
        f"{reason}, with batch norm in them; of its stages only the last ({count} attention blocks, "
        f"stages[{attending[0]}]) could be, without the convolutions below"
    )


def _rope(trunk: Any) -> Tensor | None:
    """The rotary positions that every block gets, from timm's own module."""
    rope = getattr(trunk, "rope", None)
    if rope is None:
        return None
    return rope.get_embed() if hasattr(rope, "feat_shape") else rope.get_embed(shape=trunk.patch_embed.grid_size)


def _causal_mask(tokens: Tensor) -> Tensor:
    length = tokens.shape[1]
    return torch.full((length, length), float("-inf"), dtype=tokens.dtype, device=tokens.device).triu(1)
