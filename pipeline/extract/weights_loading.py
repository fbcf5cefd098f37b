"""From a model's name and a tag or file to an open_clip model in float32 on the CPU; never a pickle that can run code.

open_clip loads .pt files with `weights_only` and .safetensors as they are. OpenAI's own releases are TorchScript
archives, which carry their tensors in a form that torch reads without running Python; they imply QuickGELU.
"""

import difflib
import hashlib
import os
import warnings
import zipfile
from pathlib import Path
from typing import Any

from pipeline import torchvision_guard
from pipeline.errors import BadInput

SHAPES_CLIP = "shapes-clip"
_WEIGHT_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".npz")


def build_model(
    name: str, pretrained: str | None, *, quick_gelu: bool | None = None, random_seed: int | None = None
) -> tuple[Any, Any, str]:
    """(model in eval mode, tokenizer, what the fingerprint calls the weights). Raises BadInput."""
    torchvision_guard.ensure()
    import open_clip

    if name == SHAPES_CLIP:
        from pipeline.extract import shapes_clip

        shapes_clip.register()
    _require_known_model(name)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="QuickGELU mismatch")  # settled below, by the weights
        if random_seed is not None:
            model, source = _untrained(name, quick_gelu, random_seed), f"random:{random_seed}"
        elif name == SHAPES_CLIP and pretrained in (None, SHAPES_CLIP):
            model, source = _untrained(name, quick_gelu, 0), SHAPES_CLIP
            model.load_state_dict(shapes_clip.state_dict())
        else:
            model, source = _trained(name, pretrained, quick_gelu)
    return model.eval().requires_grad_(False), open_clip.get_tokenizer(name), source


def weights_digest(model: Any) -> str:
    """sha256 over names, shapes and values of all weights: the same for the same weights, whatever file held them."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(memoryview(tensor.detach().contiguous().flatten().view(torch.uint8).numpy()))
    return digest.hexdigest()


def _require_known_model(name: str) -> None:
    import open_clip

    known = open_clip.list_models()
    if name in known or name.startswith(("hf-hub:", "local-dir:")):
        return
    close = difflib.get_close_matches(name, [*known, SHAPES_CLIP], n=5, cutoff=0.4)
    raise BadInput(
        f"unknown model {name!r}",
        fix=f"use one of {', '.join(close)}"
        if close
        else "see `python -c 'import open_clip; print(open_clip.list_models())'`",
    )


def _untrained(name: str, quick_gelu: bool | None, seed: int) -> Any:
    import open_clip
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return open_clip.create_model(
            name, pretrained=None, load_weights=False, pretrained_text=False, force_quick_gelu=bool(quick_gelu)
        )


def _trained(name: str, pretrained: str | None, quick_gelu: bool | None) -> tuple[Any, str]:
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(name)
    if name.startswith(("hf-hub:", "local-dir:")):
        return _create(name, None, bool(quick_gelu)), name
    if pretrained is None:
        raise BadInput(
            f"model {name!r} needs weights",
            fix=f"give --pretrained with a weights file or one of {', '.join(tags) or '(no tags)'}",
        )
    if os.path.isfile(pretrained):
        return _from_file(name, pretrained, tags, quick_gelu), Path(pretrained).name
    if pretrained not in tags:
        looks_like_file = pretrained.endswith(_WEIGHT_SUFFIXES) or os.sep in pretrained
        raise BadInput(
            f"no weights file {pretrained}"
            if looks_like_file
            else f"model {name!r} has no pretrained tag {pretrained!r}",
            fix=f"give a weights file that exists, or one of {', '.join(tags) or '(no tags)'}",
        )
    tag = open_clip.get_pretrained_cfg(name, pretrained)
    wants = bool(tag.get("quick_gelu", False)) if quick_gelu is None else quick_gelu
    return _create(name, pretrained, wants), pretrained


def _from_file(name: str, path: str, tags: list[str], quick_gelu: bool | None) -> Any:
    """Weights from a file, with the preprocessing of the model's published weights where those all agree."""
    if _is_torchscript(path):
        model = _create_from_archive(name, path, True if quick_gelu is None else quick_gelu)
    else:
        model = _create(name, path, bool(quick_gelu))
    import open_clip
    from open_clip.model import set_model_preprocess_cfg

    published = [open_clip.get_pretrained_cfg(name, tag) for tag in tags]
    agreed = {
        key: published[0][key]
        for key in ("mean", "std", "interpolation", "resize_mode")
        if published and all(key in cfg and cfg[key] == published[0].get(key) for cfg in published)
    }
    set_model_preprocess_cfg(model, {**model.visual.preprocess_cfg, **agreed})
    return model


def _create(name: str, pretrained: str | None, quick_gelu: bool) -> Any:
    import open_clip

    try:
        return open_clip.create_model(name, pretrained=pretrained, force_quick_gelu=quick_gelu, require_pretrained=True)
    except Exception as error:  # open_clip raises plain RuntimeErrors, and whatever its downloads raise
        reason = " ".join(str(error).split())[:300]
        raise BadInput(
            f"weights {pretrained or name!r} cannot be loaded into {name!r} ({type(error).__name__}: {reason})",
            fix="check that file and model belong together; without network, give a local weights file",
        ) from error


def _is_torchscript(path: str) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(Path(member).name == "constants.pkl" for member in archive.namelist())


def _create_from_archive(name: str, path: str, quick_gelu: bool) -> Any:
    import torch

    model = _untrained(name, quick_gelu, 0)
    state = torch.jit.load(path, map_location="cpu").state_dict()
    state = {key: value.float() for key, value in state.items() if key in model.state_dict()}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise BadInput(
            f"{path} does not hold weights of {name!r} ({reason})", fix="name the model it was made for"
        ) from None
    return model
