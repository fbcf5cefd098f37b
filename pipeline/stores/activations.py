"""Cached activations as a store keeps them: float16, or int8 with a scale a token. Quantised and restored here alone.

Notation: L tokens, W width of a tower.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.stores.shards import Ragged

DTYPES = ("float16", "int8")
FRAMES, TEXTS = "frame_token", "text_token"  # the names of the columns begin with these


def frame_columns(activations: np.ndarray, dtype: str) -> dict[str, np.ndarray]:
    """Quantise activations (V, F, L, W) into columns of a video shard."""
    return _columns(activations, dtype, FRAMES)


def text_columns(activations: Sequence[np.ndarray], dtype: str) -> dict[str, Ragged]:
    """Quantise the activations (L, W) of each caption, of varying L, into columns of a text shard."""
    offsets = np.concatenate([[0], np.cumsum([len(part) for part in activations])]).astype(np.int64)
    columns = _columns(np.concatenate(activations), dtype, TEXTS)
    return {name: Ragged(values, offsets) for name, values in columns.items()}


def restore(columns: Mapping[str, Any], name: str) -> np.ndarray:
    """Restore float32 activations (..., L, W) from the columns of `name`."""
    values = np.asarray(columns[f"{name}s"]).astype(np.float32)
    scale = columns.get(f"{name}_scale")
    return values if scale is None else values * np.asarray(scale).astype(np.float32)[..., None]


def quantise(activations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float (..., W) -> int8 (..., W) and the scale of each token, float16 (...): value = int8 * scale."""
    peak = np.abs(activations).max(axis=-1, keepdims=True).astype(np.float32)
    scale = np.maximum(peak / 127, np.finfo(np.float16).tiny).astype(np.float16)
    values = np.clip(np.rint(activations / scale.astype(np.float32)), -127, 127).astype(np.int8)
    return values, scale[..., 0]


def _columns(activations: np.ndarray, dtype: str, name: str) -> dict[str, np.ndarray]:
    if dtype == "float16":
        return {f"{name}s": activations.astype(np.float16)}
    values, scale = quantise(activations)
    return {f"{name}s": values, f"{name}_scale": scale}
