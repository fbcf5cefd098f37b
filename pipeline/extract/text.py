"""Captions to embeddings without computing what nobody sees.

CLIP's text tower is causal and reads its output at the end-of-text token, so the tokens after it cannot matter: a
batch may be cut to its longest sentence and give the same embeddings. Sentences are sorted by length, so that the cut
is close for all of a batch, and each distinct sentence is encoded once. Towers that are not causal, or that pool
elsewhere, are left uncut.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from pipeline.extract.encoder import Encoder


def embed_sentences(encoder: "Encoder", sentences: Sequence[str], batch_size: int) -> "torch.Tensor":
    """N sentences -> (N, D) float32 on the CPU."""
    import torch

    distinct = list(dict.fromkeys(sentences))
    if not distinct:
        return torch.zeros(0, encoder.dim)
    tokens = encoder.tokenizer(distinct)
    tower = cuttable_tower(encoder.model)
    lengths = _lengths(tower, tokens) if tower is not None else torch.full((len(distinct),), tokens.shape[1])
    order = torch.argsort(lengths, stable=True)
    embeds = torch.empty(len(distinct), encoder.dim)
    with torch.inference_mode():
        for rows in order.split(batch_size):
            batch = tokens[rows, : int(lengths[rows].max())].to(encoder.device)
            encoded = encoder.model.encode_text(batch) if tower is None else encode_cut(tower, batch)
            embeds[rows] = encoded.float().cpu()
    row_of = {sentence: row for row, sentence in enumerate(distinct)}
    return embeds[[row_of[sentence] for sentence in sentences]]


def cuttable_tower(model: Any) -> Any | None:
    """The text tower (a CLIP or an open_clip TextTransformer) if it is causal and reads at end-of-text, else None."""
    tower = getattr(model, "text", model)
    mask = getattr(tower, "attn_mask", None)
    if mask is None or getattr(tower, "cls_emb", None) is not None or getattr(tower, "use_pad_mask", False):
        return None
    return tower if _pool_type(tower) in ("argmax", "eos") else None


def encode_cut(tower: Any, tokens: "torch.Tensor") -> "torch.Tensor":
    """open_clip's encode_text for (N, L) tokens with L up to the context length -> (N, D)."""
    import torch
    from open_clip.transformer import text_global_pool

    length, dtype = tokens.shape[1], tower.transformer.get_cast_dtype()
    hidden = tower.token_embedding(tokens).to(dtype) + tower.positional_embedding[:length].to(dtype)
    hidden = tower.transformer(hidden, attn_mask=tower.attn_mask[:length, :length])
    pooled = text_global_pool(tower.ln_final(hidden), tokens, _pool_type(tower), eos_token_id=_eos_id(tower))
    projection = tower.text_projection
    if projection is None:
        return pooled
    return projection(pooled) if isinstance(projection, torch.nn.Linear) else pooled @ projection


def _lengths(tower: Any, tokens: "torch.Tensor") -> "torch.Tensor":
    """Tokens up to and including the one that the embedding is read at."""
    at = tokens.argmax(dim=-1) if _pool_type(tower) == "argmax" else tokens.eq(_eos_id(tower) or 0).int().argmax(dim=-1)
    return at + 1


def _pool_type(tower: Any) -> str | None:
    return getattr(tower, "text_pool_type", None) or getattr(tower, "pool_type", None)


def _eos_id(tower: Any) -> int | None:
    own = getattr(tower, "text_eos_id", None)
    return own if own is not None else getattr(tower, "eos_id", None)
