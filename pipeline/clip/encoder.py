"""Load any open_clip model as an encoder of frames and captions, and describe it for the store's fingerprint.

Frames arrive as uint8 and are normalised on the device. Captions: each distinct sentence is encoded once, in batches of
similar length cut to their longest member (text.py). Embeddings leave as the model gives them, not normalised.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.clip.batch_size import fastest_batch
from pipeline.device import FittingParts, resolve_device
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
        self._encode_image = model.encode_image
        self._fitting = FittingParts()
        self._convolutional = is_convolutional(model)
        if self._convolutional:
            model.visual.to(memory_format=torch.channels_last)
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
    def context_length(self) -> int | None:
        return getattr(self.tokenizer, "context_length", None)

    def count_cut(self, sentences: Sequence[str]) -> int | None:
        """How many sentences are longer than the context; None where the tokenizer does not tell."""
        from pipeline.clip.tokenizers import count_cut

        return count_cut(self.tokenizer, sentences)

    @property
    def dim(self) -> int:
        return int(self.settings["embed_dim"])

    def embed_frames(self, frames: "np.ndarray | torch.Tensor") -> "torch.Tensor":
        """(N, H, W, 3) uint8 RGB of the encoder's size -> (N, D) float32 on the CPU."""
        import torch

        return torch.cat(self._fitting(self._embed, torch.as_tensor(frames)) or [torch.zeros(0, self.dim)])

    def _embed(self, frames: "torch.Tensor") -> "torch.Tensor":
        import torch

        with torch.inference_mode():
            pixels = to_pixels(frames.to(self.device, non_blocking=True), self._mean, self._std).to(self.dtype)
            if self._convolutional:
                pixels = pixels.contiguous(memory_format=torch.channels_last)
            return self._encode_image(pixels).float().cpu()

    def compile(self) -> None:
        """Compile the image tower (`torch.compile`): the first batch takes minutes, and so does the first of another
        size; later ones take less time.

        Raises:
            BadInput: there is no C++ compiler, which torch needs on a CPU.
        """
        import torch

        if self.device.type == "cpu":
            _require_cpp_compiler()
        self._encode_image = torch.compile(self.model.encode_image)

    def fastest_batch(self) -> int:
        """The batch size that encodes most frames a second on this device and fits its memory."""
        import torch

        def encode(count: int) -> None:
            self._embed(torch.zeros((count, *self.image_size, 3), dtype=torch.uint8))

        return fastest_batch(encode)

    def embed_frames_caching(
        self, frames: "np.ndarray | torch.Tensor", blocks: int
    ) -> "tuple[torch.Tensor, np.ndarray]":
        """Embed frames and return the inputs of the top `blocks` blocks too: (N, L, W) float16."""
        import torch

        from dits_head.towers import image_tower
        from pipeline.clip.activations import entering

        tower = image_tower(self.model)

        def embed(part: "torch.Tensor") -> "tuple[torch.Tensor, np.ndarray]":
            with entering(tower, blocks) as captured:
                embeds = self._embed(part)
            return embeds, captured.parts[0].to(torch.float16).cpu().numpy()

        embeds, entered = zip(*self._fitting(embed, torch.as_tensor(frames)), strict=True)
        return torch.cat(embeds), np.concatenate(entered)

    def embed_texts(
        self, sentences: Sequence[str], *, batch_size: int = 256, long_captions: str = "cut"
    ) -> "torch.Tensor":
        """Embed N sentences -> (N, D) float32 on the CPU; duplicates are encoded once.

        `long_captions`: "cut" after the context's tokens, as CLIP does, or "windows" over all of them, averaged.
        """
        from pipeline.clip.text import embed_sentences

        return embed_sentences(self, sentences, batch_size, long_captions)


def _require_cpp_compiler() -> None:
    """Raises BadInput unless one of the compilers that torch would call is there."""
    import shutil

    from torch._inductor import config

    names = [name for name in config.cpp.cxx if name]
    if not any(map(shutil.which, names)):
        raise BadInput(
            "--compile needs a C++ compiler on a CPU",
            expected=" or ".join(names),
            got="none on the PATH",
            fix="install one (Debian: g++), name it in $CXX, or leave --compile out",
        )


def is_convolutional(model: Any) -> bool:
    """Whether the image tower is one of convolutions, which run faster with channels last; a stem is not enough."""
    import torch

    convolutions = sum(isinstance(module, torch.nn.Conv2d) for module in model.visual.modules())
    return convolutions > 16


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
    preprocessing: str | None = None,
    tokenizer: str | None = None,
) -> Encoder:
    """Load an encoder for inference.

    `model`: a name from open_clip.list_models(), or "shapes-clip" (its weights come with the package).
    `pretrained`: an open_clip tag, or a weights file (open_clip's .safetensors or .pt, OpenAI's .pt). `precision`:
    "auto" takes float16 on a GPU and bfloat16 on a CPU that computes in it, provided that its embeddings agree with
    float32's (PARITY), else float32. `quick_gelu` says the activation where neither weights nor model do.
    `preprocessing`: the tag whose preprocessing a weights file follows, where the model's published weights differ.
    `tokenizer`: a folder with the model's tokenizer; the weights file's own folder is looked into as well.
    `random_seed` makes untrained weights, for tests and speed measurements only; the fingerprint says so. Raises
    BadInput naming what there is to choose from.
    """
    from pipeline.clip.loading import build_model, has_quick_gelu, weights_digest
    from pipeline.clip.tokenizers import folder_for, tokenizer_digest

    device = str(resolve_device(device))
    folder = folder_for(model, tokenizer, pretrained)
    clip, words, source = build_model(
        model,
        pretrained,
        quick_gelu=quick_gelu,
        random_seed=random_seed,
        preprocessing=preprocessing,
        tokenizer_folder=folder,
    )
    settings: dict[str, Any] = {
        "model": model,
        "pretrained": source,
        "weights_sha256": weights_digest(clip),
        "activation": "quickgelu" if has_quick_gelu(clip) else "gelu",
        "preprocessing": _describe_preprocessing(clip.visual.preprocess_cfg),
    }
    if folder is not None:
        settings["tokenizer_sha256"] = tokenizer_digest(folder)
    clip, name = _cast(clip, device, precision)
    import torch

    dtype = getattr(torch, name)
    encoder = Encoder(clip, words, dtype=dtype, device=device, settings=settings)
    probe = encoder.embed_frames(np.zeros((1, *encoder.image_size, 3), np.uint8))
    settings |= {"dtype": name, "embed_dim": int(probe.shape[1])}
    return encoder


def _describe_preprocessing(preprocess: Any) -> dict[str, Any]:
    return {
        **frame_size(preprocess).describe(),
        "mean": [round(float(value), 8) for value in preprocess["mean"]],
        "std": [round(float(value), 8) for value in preprocess["std"]],
    }


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
