"""`shapes-clip`: the tiny CLIP that comes with the package, an ordinary open_clip model for the data set `shapes`.

Its configuration and weights stand in `weights/`, made by `scripts/train_shapes_clip.py`. Of the standard tokenizer's
49,408 embedding rows the file keeps only those whose tokens `shapes` uses; `state_dict()` puts them back in their
places and leaves the others zero. Weights are stored as float16.

    register()
    model = open_clip.create_model(MODEL_NAME, pretrained=str(write_checkpoint(path)))
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from pipeline.clip import torchvision_guard
from pipeline.stores.atomic import atomic_write

MODEL_NAME = "shapes-clip"
CONFIG_PATH = Path(__file__).parent / "weights" / "shapes-clip.json"
WEIGHTS_PATH = Path(__file__).parent / "weights" / "shapes-clip.safetensors"

_EMBEDDING = "token_embedding.weight"
_TOKEN_IDS = "token_ids"


def register() -> None:
    """Register the model with open_clip; idempotent."""
    torchvision_guard.ensure()
    import open_clip

    if MODEL_NAME not in open_clip.list_models():
        open_clip.add_model_config(CONFIG_PATH)


def state_dict() -> dict[str, torch.Tensor]:
    """The whole state dict, float32, in the names and shapes of `open_clip.create_model(MODEL_NAME)`."""
    return expand(load_file(WEIGHTS_PATH))


def write_checkpoint(path: Path) -> Path:
    """Write the expanded weights to `path` (*.safetensors), as open_clip's `pretrained=` takes them."""
    with atomic_write(path) as temporary:
        save_file(state_dict(), temporary)
    return path


def compact(full: dict[str, torch.Tensor], token_ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """The state dict as it is stored: float16, and of the token embedding only the rows `token_ids` (N,) int64."""
    stored = {name: value.to(torch.float16).contiguous() for name, value in full.items()}
    stored[_EMBEDDING] = stored[_EMBEDDING][token_ids].contiguous()
    stored[_TOKEN_IDS] = token_ids.to(torch.int32)
    return stored


def expand(stored: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The inverse of `compact`, but for rounding and for the rows that it left out, which are zero."""
    full = {name: value.to(torch.float32) for name, value in stored.items() if name != _TOKEN_IDS}
    text = json.loads(CONFIG_PATH.read_text())["text_cfg"]
    embedding = torch.zeros(text["vocab_size"], text["width"])
    embedding[stored[_TOKEN_IDS].long()] = full[_EMBEDDING]
    full[_EMBEDDING] = embedding
    return full
