"""Load an open_clip model in float32 on the CPU from a tag or a weights file.

A weights file is data, and nothing in it is run: open_clip loads .pt files with `weights_only` and .safetensors as they
are; TorchScript archives, as OpenAI's own releases are, go through `torchscript.read_tensors`.

Weights do not show the activation that they were trained with, and the wrong one gives wrong results without an error
(open_clip issue 771). OpenAI's archives imply QuickGELU; a tuned CLIP of ours names its activation in the file; any
other file is refused for a model that exists with both activations, until the user says which it is.
"""

import difflib
import hashlib
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.clip import torchscript, torchvision_guard
from pipeline.clip.preprocessing import agreed_or_default, agreed_preprocessing, stated_preprocessing
from pipeline.clip.tokenizers import load_tokenizer
from pipeline.errors import BadInput

log = logging.getLogger(__name__)
SHAPES_CLIP = "shapes-clip"
ACTIVATION = "activation"  # key in the metadata of a .safetensors file; "quickgelu" or "gelu"
_TWIN = "-quickgelu"
_WEIGHT_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".npz")


def build_model(
    name: str,
    pretrained: str | None,
    *,
    quick_gelu: bool | None = None,
    random_seed: int | None = None,
    preprocessing: str | None = None,
    tokenizer_folder: str | None = None,
) -> tuple[Any, Any, str]:
    """Build (model in eval mode, tokenizer, name of the weights for the fingerprint). Raises BadInput."""
    torchvision_guard.ensure()

    if name == SHAPES_CLIP:
        from pipeline.clip import shapes_clip

        shapes_clip.register()
    _require_known_model(name)
    tokenizer = load_tokenizer(name, tokenizer_folder)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="QuickGELU mismatch")  # settled below, by the weights
        if random_seed is not None:
            model, source = _untrained(name, quick_gelu, random_seed), f"random:{random_seed}"
            _preprocess_as(model, agreed_or_default(name))
        elif name == SHAPES_CLIP and pretrained in (None, SHAPES_CLIP):
            model, source = _untrained(name, quick_gelu, 0), SHAPES_CLIP
            model.load_state_dict(shapes_clip.state_dict())
        else:
            model, source = _trained(name, pretrained, quick_gelu, preprocessing)
    _require_activation(name, model, quick_gelu)
    return model.eval().requires_grad_(False), tokenizer, source


def weights_digest(model: Any) -> str:
    """sha256 over names, shapes and values of all weights, independent of the file format."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(memoryview(tensor.detach().contiguous().flatten().view(torch.uint8).numpy()))
    return digest.hexdigest()


def has_quick_gelu(model: Any) -> bool:
    return any(type(module).__name__ == "QuickGELU" for module in model.modules())


def embedding_width(name: str) -> int:
    """The joint space's width of a model, from its configuration: nothing is built. Raises BadInput for no model."""
    torchvision_guard.ensure()
    import open_clip

    from pipeline.clip import shapes_clip

    shapes_clip.register()
    _require_known_model(name)
    return int(open_clip.get_model_config(name)["embed_dim"])


def _require_activation(name: str, model: Any, quick_gelu: bool | None) -> None:
    if quick_gelu is not None and has_quick_gelu(model) != quick_gelu:
        raise BadInput(
            f"these weights are to be used {'with' if quick_gelu else 'without'} QuickGELU, and {name!r} is made "
            f"{'without' if quick_gelu else 'with'} it",
            fix=f"give --model {name.removesuffix(_TWIN)}" if name.endswith(_TWIN) else "leave --quick-gelu out",
        )


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

    with torch.random.fork_rng(devices=[]), _expecting_no_weights():
        torch.manual_seed(seed)
        return open_clip.create_model(
            name, pretrained=None, load_weights=False, pretrained_text=False, force_quick_gelu=bool(quick_gelu)
        )


@contextmanager
def _expecting_no_weights() -> Iterator[None]:
    """open_clip warns of a model without weights on the root logger; here they are wanted so, or loaded right after."""

    def other(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("No pretrained weights loaded for model")

    root = logging.getLogger()
    root.addFilter(other)
    try:
        yield
    finally:
        root.removeFilter(other)


def _trained(name: str, pretrained: str | None, quick_gelu: bool | None, preprocessing: str | None) -> tuple[Any, str]:
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
        return _from_file(name, pretrained, quick_gelu, preprocessing), Path(pretrained).name
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


def _from_file(name: str, path: str, quick_gelu: bool | None, like: str | None) -> Any:
    """Weights from a file, with the preprocessing that it states, or that of the model's published weights."""
    wants = _activation_of_file(name, path) if quick_gelu is None else quick_gelu
    stated = stated_preprocessing(_metadata(path)) if like is None else None
    if stated is None:  # before the weights load: the user may have to be asked
        stated = agreed_preprocessing(name, "openai" if like is None and _is_openais(name, path) else like)
    create = _create_from_archive if torchscript.is_archive(path) else _create
    model = create(name, path, bool(wants))
    _require_activation(name, model, wants)
    _preprocess_as(model, stated)
    return model


def _preprocess_as(model: Any, stated: Mapping[str, Any]) -> None:
    from open_clip.model import set_model_preprocess_cfg

    set_model_preprocess_cfg(model, {**model.visual.preprocess_cfg, **stated})


def _is_openais(name: str, path: str) -> bool:
    """OpenAI's releases alone are TorchScript archives."""
    import open_clip

    return torchscript.is_archive(path) and "openai" in open_clip.list_pretrained_tags_by_model(name)


def _activation_of_file(name: str, path: str) -> bool | None:
    """Whether the weights in a file want QuickGELU, as it tells; None: as the model has it, there is no other choice.

    Raises BadInput where there is a choice and nothing tells.
    """
    import open_clip

    if torchscript.is_archive(path):
        return True
    stated = _metadata(path).get(ACTIVATION)
    if stated is None and name + _TWIN in open_clip.list_models():
        raise BadInput(
            f"{path} does not say whether its weights were trained with QuickGELU, and {name!r} exists both ways",
            fix=f"give --quick-gelu (OpenAI's weights and what was tuned from them; or --model {name}{_TWIN}), or "
            "--no-quick-gelu (most of open_clip's own, such as laion2b)",
        )
    return None if stated is None else stated == "quickgelu"


def _metadata(path: str) -> Mapping[str, str]:
    """What a .safetensors file says about itself. Raises BadInput for one that is broken."""
    from safetensors import SafetensorError, safe_open

    if Path(path).suffix != ".safetensors":
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except SafetensorError as error:
        raise BadInput(f"{path} is no whole .safetensors file ({error})", fix="get the file again") from None


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


def _create_from_archive(name: str, path: str, quick_gelu: bool) -> Any:
    model = _untrained(name, quick_gelu, 0)
    state = {key: value.float() for key, value in torchscript.read_tensors(path, set(model.state_dict())).items()}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise BadInput(
            f"{path} does not hold weights of {name!r} ({reason})", fix="name the model it was made for"
        ) from None
    return model
