"""Embed captions without encoding padding.

CLIP's text tower is causal and reads its output at the end-of-text token, so the tokens after it cannot matter: a
batch may be cut to its longest sentence and give the same embeddings. Sentences are sorted by length, so that the cut
is close for all of a batch, and each distinct sentence is encoded once. Towers that are not causal, or that pool
elsewhere, are left uncut: SigLIP's reads its last position, and attends to the padding (no mask), so that cutting it
would give another embedding (docs/results/encoders.md has the figures).
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from dits_head.towers import text_pool, text_tower
from pipeline.clip.long_captions import average_windows, text_windows, windows_of
from pipeline.clip.tokenizers import token_lengths
from pipeline.errors import BadInput

if TYPE_CHECKING:
    import torch

    from pipeline.clip.activations import Captured


class TextEncoder(Protocol):
    """The encoder interface of this module; `pipeline.clip.encoder.Encoder` implements it."""

    model: Any
    tokenizer: Any
    device: Any
    settings: dict[str, Any]

    @property
    def dim(self) -> int: ...


def embed_sentences(
    encoder: TextEncoder, sentences: Sequence[str], batch_size: int, long_captions: str = "cut"
) -> "torch.Tensor":
    """Embed N sentences -> (N, D) float32 on the CPU; `long_captions`: "cut" or "windows" beyond the context."""
    if long_captions == "windows":
        return _embed_windows(encoder, sentences, batch_size)
    return encode_sentences(encoder, sentences, batch_size)[0]


def _embed_windows(encoder: TextEncoder, sentences: Sequence[str], batch_size: int) -> "torch.Tensor":
    import torch

    require_windows(encoder)
    distinct = list(dict.fromkeys(sentences))
    if not distinct:
        return torch.zeros(0, encoder.dim)
    tokens, offsets = _windows(encoder.tokenizer, distinct)
    embeds, _ = _encode_tokens(encoder, tokens, _mattering(encoder, tokens), batch_size)
    whole = torch.from_numpy(average_windows(embeds.numpy(), offsets))
    row_of = {sentence: row for row, sentence in enumerate(distinct)}
    return whole[[row_of[sentence] for sentence in sentences]]


def _windows(tokenizer: Any, texts: Sequence[str]) -> "tuple[torch.Tensor, np.ndarray]":
    """N captions -> tokens of all their windows (sum W, context), offsets (N + 1,): caption i has rows o[i]:o[i+1]."""
    import torch
    from open_clip.tokenizer import SimpleTokenizer

    if isinstance(tokenizer, SimpleTokenizer):
        windows, offsets = windows_of(texts, tokenizer, tokenizer.context_length)
        return torch.from_numpy(windows), offsets

    def lengths(pieces: Sequence[str]) -> Sequence[int]:
        found = token_lengths(tokenizer, pieces)
        assert found is not None  # require_windows asked before
        return found

    pieces = [text_windows(text, lengths, tokenizer.context_length) for text in texts]
    return tokenizer([piece for of in pieces for piece in of]), np.cumsum([0, *map(len, pieces)])


def require_windows(encoder: TextEncoder) -> None:
    """Check that the encoder's tokenizer tells how long a text is, which windows are made by. Raises BadInput."""
    if token_lengths(encoder.tokenizer, ["a"]) is None:
        raise BadInput(
            f"{encoder.settings['model']} has a tokenizer of its own that does not tell how many tokens a text has",
            fix="leave --long-captions at cut",
        )


def encode_sentences(
    encoder: TextEncoder, sentences: Sequence[str], batch_size: int, cache_blocks: int = 0
) -> "tuple[torch.Tensor, list[np.ndarray]]":
    """N sentences -> embeddings (N, D) float32 on the CPU and, for `cache_blocks` > 0, what entered so many of the top
    blocks: N arrays (length of the sentence, W) float16."""
    import torch

    distinct = list(dict.fromkeys(sentences))
    if not distinct:
        return torch.zeros(0, encoder.dim), []
    embeds, activations = _encode_tokens(encoder, *tokenise(encoder, distinct), batch_size, cache_blocks)
    row_of = {sentence: row for row, sentence in enumerate(distinct)}
    places = [row_of[sentence] for sentence in sentences]
    return embeds[places], [activations[place] for place in places] if cache_blocks else []


def _encode_tokens(
    encoder: TextEncoder, tokens: "torch.Tensor", lengths: "torch.Tensor", batch_size: int, cache_blocks: int = 0
) -> "tuple[torch.Tensor, dict[int, np.ndarray]]":
    """Tokens (N, L) of which (N,) matter -> (N, D) float32 on the CPU, and {row: what entered the top blocks}."""
    import torch

    tower = cuttable_tower(encoder.model)
    order = torch.argsort(lengths, stable=True)
    embeds = torch.empty(len(tokens), encoder.dim)
    activations: dict[int, np.ndarray] = {}
    with torch.inference_mode(), _entering_top(encoder.model, cache_blocks) as captured:
        for rows in order.split(batch_size):
            batch = tokens[rows, : int(lengths[rows].max())].to(encoder.device)
            encoded = encoder.model.encode_text(batch) if tower is None else encode_cut(tower, batch)
            embeds[rows] = encoded.float().cpu()
            if cache_blocks:
                entered = _pooled_last(encoder.model, captured.parts.pop(), batch).to(torch.float16).cpu().numpy()
                activations |= {row: entered[n, : lengths[row]] for n, row in enumerate(rows.tolist())}
    return embeds, activations


def tokenise(encoder: TextEncoder, sentences: Sequence[str]) -> "tuple[torch.Tensor, torch.Tensor]":
    """Token ids (N, context) and the effective length of each row (N,): the context where the tower is not causal."""
    tokens = encoder.tokenizer(list(sentences))
    return tokens, _mattering(encoder, tokens)


def _mattering(encoder: TextEncoder, tokens: "torch.Tensor") -> "torch.Tensor":
    import torch

    tower = cuttable_tower(encoder.model)
    return torch.full((len(tokens),), tokens.shape[1]) if tower is None else _lengths(tower, tokens)


def _entering_top(model: Any, cache_blocks: int) -> "AbstractContextManager[Captured]":
    from pipeline.clip.activations import Captured, entering

    if not cache_blocks:
        return nullcontext(Captured())
    return entering(text_tower(model), cache_blocks)


def _pooled_last(model: Any, entered: "torch.Tensor", tokens: "torch.Tensor") -> "torch.Tensor":
    """Activations (N, L, W) with the token that the text is pooled at in the last place, where `TopBlocks` reads it.

    A causal tower's are as they are: they are cut after that token. In a tower that looks both ways the activations,
    which hold their positions, may change places: the pooled one with the last.
    """
    import torch

    tower = getattr(model, "text", model)
    pool = text_pool(tower)
    if tower.attn_mask is not None or pool == "last":
        return entered
    at = torch.zeros(len(tokens), dtype=torch.long, device=tokens.device)
    if pool != "first":
        at = _lengths(tower, tokens) - 1
    rows = torch.arange(len(tokens), device=tokens.device)
    swapped = entered.clone()
    swapped[rows, -1], swapped[rows, at] = entered[rows, at], entered[rows, -1]
    return swapped


def cuttable_tower(model: Any) -> Any | None:
    """Return the text tower if it is causal and pools at end-of-text, so that padding can be cut; else None."""
    tower = getattr(model, "text", model)
    mask = getattr(tower, "attn_mask", None)
    if mask is None or getattr(tower, "cls_emb", None) is not None or getattr(tower, "use_pad_mask", False):
        return None
    return tower if text_pool(tower) in ("argmax", "eos") else None


def encode_cut(tower: Any, tokens: "torch.Tensor") -> "torch.Tensor":
    """open_clip's encode_text for (N, L) tokens with L up to the context length -> (N, D)."""
    import torch
    from open_clip.transformer import text_global_pool

    length, dtype = tokens.shape[1], tower.transformer.get_cast_dtype()
    hidden = tower.token_embedding(tokens).to(dtype) + tower.positional_embedding[:length].to(dtype)
    hidden = tower.transformer(hidden, attn_mask=tower.attn_mask[:length, :length])
    pooled = text_global_pool(tower.ln_final(hidden), tokens, text_pool(tower), eos_token_id=_eos_id(tower))
    projection = tower.text_projection
    if projection is None:
        return pooled
    return projection(pooled) if isinstance(projection, torch.nn.Linear) else pooled @ projection


def _lengths(tower: Any, tokens: "torch.Tensor") -> "torch.Tensor":
    """Tokens up to and including the one that the embedding is read at."""
    at = tokens.argmax(dim=-1) if text_pool(tower) == "argmax" else tokens.eq(_eos_id(tower) or 0).int().argmax(dim=-1)
    return at + 1


def _eos_id(tower: Any) -> int | None:
    own = getattr(tower, "text_eos_id", None)
    return own if own is not None else getattr(tower, "eos_id", None)
