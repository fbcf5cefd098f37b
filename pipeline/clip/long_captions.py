"""Embed captions beyond the text tower's context: truncate as CLIP does, or average over windows.

CLIP keeps the first 75 tokens of a text between its start and end marks and drops the rest; paragraphs (DiDeMo,
ActivityNet) lose their ends that way. With windows every token is read: the text is split into pieces of nearly equal
length that fit (CLIP's tokens directly; for other tokenizers the text, at its spaces), each is encoded as a text of its
own, and the caption's embedding is the mean of the normalised piece embeddings, scaled to their mean length. A caption
that fits is one window and comes out exactly as without this module.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from open_clip.tokenizer import SimpleTokenizer

CONTEXT_LENGTH = 77  # of every OpenAI-style CLIP text tower


def clip_tokenizer() -> "SimpleTokenizer":
    """Return CLIP's byte-pair tokenizer, which open_clip bundles."""
    from pipeline.clip.torchvision_guard import ensure

    ensure()
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()


def token_count(tokenizer: "SimpleTokenizer", text: str) -> int:
    """Count the tokens of a text, start and end included; CLIP truncates beyond the context length."""
    return len(tokenizer.encode(text)) + 2


def token_windows(tokens: Sequence[int], sot: int, eot: int, context_length: int = CONTEXT_LENGTH) -> np.ndarray:
    """Token ids without marks -> (W, context_length) int64: W >= 1 windows `sot piece eot 0 ...`.

    The pieces follow each other without overlap, lose nothing, and differ in length by one token at most.

    >>> token_windows([5, 6, 7], sot=1, eot=2, context_length=4).tolist()
    [[1, 5, 6, 2], [1, 7, 2, 0]]
    """
    room = context_length - 2
    if room < 1:
        raise ValueError(f"context_length must be 3 or more to hold the marks and a token, got {context_length}")
    count = max(1, -(-len(tokens) // room))
    windows = np.zeros((count, context_length), np.int64)
    for window, piece in zip(windows, np.array_split(np.asarray(tokens, np.int64), count), strict=True):
        window[: len(piece) + 2] = [sot, *piece, eot]
    return windows


def windows_of(
    captions: Iterable[str], tokenizer: "SimpleTokenizer", context_length: int = CONTEXT_LENGTH
) -> tuple[np.ndarray, np.ndarray]:
    """N captions -> windows (sum W, context_length) int64 and offsets (N + 1,): caption i has rows o[i]:o[i+1]."""
    marks: tuple[Any, Any] = (tokenizer.sot_token_id, tokenizer.eot_token_id)
    windows = [token_windows(tokenizer.encode(caption), *marks, context_length) for caption in captions]
    offsets = np.cumsum([0, *map(len, windows)])
    return np.concatenate(windows) if windows else np.zeros((0, context_length), np.int64), offsets


def text_windows(text: str, lengths: Callable[[Sequence[str]], Sequence[int]], context_length: int) -> list[str]:
    """The fewest pieces of nearly as many words each that fit the context; a text that fits is left as it is.

    For tokenizers whose ids cannot be cut anywhere: the text is cut, at its spaces (inside a word only where there is
    no space), and each piece is tokenised as a text of its own.

    Args:
        text: A caption.
        lengths: The tokens of each of some texts, marks included, uncut.
        context_length: The tokens that the encoder reads.

    Raises:
        ValueError: not even one character fits.
    """
    tokens = lengths([text])[0]
    if tokens <= context_length:
        return [text]
    for units, joint in ((text.split(), " "), (list(text), "")):
        for count in range(max(2, -(-tokens // context_length)), len(units) + 1):
            bounds = [len(units) * part // count for part in range(count + 1)]
            pieces = [joint.join(units[first:last]) for first, last in itertools.pairwise(bounds)]
            if max(lengths(pieces)) <= context_length:
                return pieces
    raise ValueError(f"context_length {context_length} holds no character of {text[:40]!r}")


def average_windows(embeds: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Window embeddings (sum W, D) float32 -> caption embeddings (N, D) float32: mean direction, mean length."""
    lengths = np.linalg.norm(embeds, axis=1, keepdims=True)
    out = np.empty((len(offsets) - 1, embeds.shape[1]), np.float32)
    for row, (first, last) in enumerate(itertools.pairwise(offsets)):
        if last - first == 1:
            out[row] = embeds[first]
            continue
        mean = (embeds[first:last] / lengths[first:last]).mean(axis=0)
        out[row] = mean / np.linalg.norm(mean) * lengths[first:last].mean()
    return out
