"""Load any open_clip model as an encoder of frames and captions, and describe it for the store's fingerprint.

Frames arrive as uint8 and are normalised on the device. Captions: each distinct sentence is encoded once, in batches of
similar length cut to their longest member (text.py). Embeddings leave as the model gives them, not normalised.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import BadInput
from pipeline.frame_size import FrameSize

if TYPE_CHECKING:
    import torch


PRECISIONS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
PARITY = 0.999  # the least cosine between a frame's embeddings in half and in full precision


class Encoder:
    """A loaded model. `settings` is the encoder's part of a store's fingerprint."""

    def __init__(self, model: Any, tokenizer: Any, *, dtype: "torch.dtype", device: str, settings: dict[str, Any]):
        import torch

        self.model, self.tokenizer, self.dtype, self.device = model, tokenizer, dtype, torch.device(device)
        self.settings = settings
        self.frame_size = frame_size(model.visual.preprocess_cfg)
        self._mean, self._std = (value.to(self.device) for value in channel_statistics(model))

    @property
    def image_size(self) -> tuple[int, int]:
        return self.frame_size.height, self.frame_size.width

    @property
    def activation_shape(self) -> tuple[int, int]:
        """(tokens, width) of what enters a block of the image tower. Raises Uncacheable."""
        from dits_head.towers import image_tower

        tower = image_tower(self.model)
        return tower.tokens, tower.width

    @property
    def dim(self) -> int:
        return int(self.settings["embed_dim"])

    def embed_frames(self, frames: "np.ndarray | torch.Tensor") -> "torch.Tensor":
        """(N, H, W, 3) uint8 RGB of the encoder's size -> (N, D) float32 on the CPU."""
        import torch

        with torch.inference_mode():
            pixels = to_pixels(torch.as_tensor(frames).to(self.device, non_blocking=True), self._mean, self._std)
            return self.model.encode_image(pixels.to(self.dtype)).float().cpu()

    def embed_frames_caching(
        self, frames: "np.ndarray | torch.Tensor", blocks: int
    ) -> "tuple[torch.Tensor, np.ndarray]":
        """Embed frames and return the inputs of the top `blocks` blocks too: (N, L, W) float16."""
        import torch

        from dits_head.towers import image_tower
        from pipeline.clip.activations import entering

        with entering(image_tower(self.model), blocks) as captured:
            embeds = self.embed_frames(frames)
        return embeds, captured.parts[0].to(torch.float16).cpu().numpy()

    def embed_texts(
        self, sentences: Sequence[str], *, batch_size: int = 256, long_captions: str = "cut"
    ) -> "torch.Tensor":
        """Embed N sentences -> (N, D) float32 on the CPU; duplicates are encoded once.

        `long_captions`: "cut" after the context's tokens, as CLIP does, or "windows" over all of them, averaged.
        """
        from pipeline.clip.text import embed_sentences

        return embed_sentences(self, sentences, batch_size, long_captions)


def channel_statistics(model: Any) -> "tuple[torch.Tensor, torch.Tensor]":
    """Mean and standard deviation of a model's preprocessing, (1, 3, 1, 1) float32 each."""
    import torch

    mean, std = (torch.tensor(model.visual.preprocess_cfg[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    return mean, std


def to_pixels(frames: "torch.Tensor", mean: "torch.Tensor", std: "torch.Tensor") -> "torch.Tensor":
    """(N, H, W, 3) uint8 RGB -> (N, 3, H, W) float32, normalised."""
    return (frames.permute(0, 3, 1, 2).float().div_(255.0) - mean) / std


def frame_size(preprocess: Any) -> FrameSize:
    """Convert open_clip's preprocessing settings to a FrameSize. Raises BadInput for an unsupported resize mode."""
    size = preprocess["size"]
    height, width = (size, size) if isinstance(size, int) else size
    mode = preprocess.get("resize_mode") or "shortest"
    interpolation = "bilinear" if preprocess.get("interpolation") == "bilinear" else "bicubic"
    if mode not in ("shortest", "squash"):
        raise BadInput("this model's preprocessing is not supported", expected="'shortest' or 'squash'", got=repr(mode))
    return FrameSize(height, width, mode, interpolation)


def load_encoder(
    model: str = "shapes-clip",
    pretrained: str | None = None,
    *,
    device: str = "auto",
    precision: str = "auto",
    quick_gelu: bool | None = None,
    random_seed: int | None = None,
) -> Encoder:
    """Load an encoder for inference.

    `model`: a name from open_clip.list_models(), or "shapes-clip" (its weights come with the package).
    `pretrained`: an open_clip tag, or a weights file (open_clip's .safetensors or .pt, OpenAI's .pt). `precision`:
    "auto" takes float16 on a GPU and bfloat16 on a CPU that computes in it, provided that its embeddings agree with
    float32's (PARITY), else float32. `quick_gelu` says the activation where neither weights nor model do.
    `random_seed` makes untrained weights, for tests and speed measurements only; the fingerprint says so. Raises
    BadInput naming what there is to choose from.
    """
    from pipeline.clip.loading import build_model, has_quick_gelu, weights_digest

    device = _device(device)
    clip, tokenizer, source = build_model(model, pretrained, quick_gelu=quick_gelu, random_seed=random_seed)
    settings: dict[str, Any] = {
        "model": model,
        "pretrained": source,
        "weights_sha256": weights_digest(clip),
        "activation": "quickgelu" if has_quick_gelu(clip) else "gelu",
        "preprocessing": _describe_preprocessing(clip.visual.preprocess_cfg),
    }
    clip, name = _cast(clip, device, precision)
    import torch

    dtype = getattr(torch, name)
    encoder = Encoder(clip, tokenizer, dtype=dtype, device=device, settings=settings)
    probe = encoder.embed_frames(np.zeros((1, *encoder.image_size, 3), np.uint8))
    settings |= {"dtype": name, "embed_dim": int(probe.shape[1])}
    return encoder


def _describe_preprocessing(preprocess: Any) -> dict[str, Any]:
    return {
        **frame_size(preprocess).describe(),
        "mean": [round(float(value), 8) for value in preprocess["mean"]],
        "std": [round(float(value), 8) for value in preprocess["std"]],
    }


def _device(device: str) -> str:
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise BadInput(f"device {device!r} cannot be used ({reason})", fix="give --device cpu, or auto") from None
    return device


def _cast(clip: Any, device: str, precision: str) -> tuple[Any, str]:
    """The model in the precision asked for, and that precision's name."""
    if precision not in ("auto", *PRECISIONS):
        raise BadInput("unknown precision", expected=["auto", *PRECISIONS], got=repr(precision))
    if precision != "auto":
        return _converted(clip, device, precision), precision
    name = _native_half(device)
    if name != "float32":
        half = _converted(clip, device, name)
        if _parity(clip.to(device), half) >= PARITY:
            return half, name
    return clip.to(device), "float32"


def _converted(clip: Any, device: str, name: str) -> Any:
    import copy

    import torch
    from open_clip.model import convert_weights_to_lp

    if name == "float32":
        return clip.to(device)
    dtype = getattr(torch, name)
    clip = copy.deepcopy(clip).to(device)
    if "timm" in type(clip.visual).__name__.lower():
        return clip.to(dtype)
    convert_weights_to_lp(clip, dtype=dtype)
    return clip


def _native_half(device: str) -> str:
    """The half precision that the device computes in faster than in float32, else float32."""
    if device.startswith("cuda"):
        return "float16"
    cpu_flags = Path("/proc/cpuinfo")
    flags = cpu_flags.read_text().split() if cpu_flags.exists() else []
    return "bfloat16" if "avx512_bf16" in flags or "amx_bf16" in flags else "float32"


def _parity(full: Any, half: Any) -> float:
    """The least cosine between both models' embeddings of a few smooth random pictures."""
    import torch

    size = frame_size(full.visual.preprocess_cfg)
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(8, 3, 7, 7, generator=generator)
    pixels = torch.nn.functional.interpolate(coarse, (size.height, size.width), mode="bicubic")
    parameter = next(full.parameters())
    pixels = pixels.to(parameter.device)
    low = next(half.visual.parameters()).dtype
    with torch.inference_mode():
        left, right = full.encode_image(pixels).float(), half.encode_image(pixels.to(low)).float()
    return float(torch.nn.functional.cosine_similarity(left, right).min())
