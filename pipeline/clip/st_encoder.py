"""Image-text models of `sentence-transformers` as encoders: `--model st:NAME`, or `st:FOLDER` for a saved one.

Each frame is embedded as an image of its own, as CLIP's are, also by models that take videos. Captions are embedded as
queries and frames as documents: models with prompts of their own for the two get them.
"""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.clip import torchvision_guard
from pipeline.clip.loading import weights_digest
from pipeline.clip.long_captions import average_windows, text_windows
from pipeline.clip.protocol import ST_PREFIX
from pipeline.device import FittingParts
from pipeline.errors import BadInput
from pipeline.frame_size import FrameSize

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)
DYNAMIC = 448  # pixels a side for models that take pictures of any size


class SentenceTransformersEncoder:
    """`pipeline.clip.protocol.Embedder` around a SentenceTransformer."""

    def __init__(self, model: Any, settings: dict[str, Any], size: FrameSize):
        self.model, self.settings, self.frame_size = model, settings, size
        self._fitting = FittingParts()

    @property
    def dim(self) -> int:
        return int(self.settings["embed_dim"])

    @property
    def image_size(self) -> tuple[int, int]:
        return self.frame_size.height, self.frame_size.width

    @property
    def context_length(self) -> int | None:
        return self.model.max_seq_length

    def embed_frames(self, frames: "np.ndarray | torch.Tensor") -> "torch.Tensor":
        """(N, H, W, 3) uint8 RGB of the encoder's size -> (N, D) float32 on the CPU."""
        import torch
        from PIL import Image

        def embed(part: "torch.Tensor") -> "torch.Tensor":
            images = [Image.fromarray(frame) for frame in part.numpy()]
            found = self.model.encode_document(
                images, batch_size=len(images), convert_to_tensor=True, show_progress_bar=False
            )
            return found.float().cpu()

        return torch.cat(self._fitting(embed, torch.as_tensor(frames)) or [torch.zeros(0, self.dim)])

    def embed_texts(
        self, sentences: Sequence[str], *, batch_size: int = 256, long_captions: str = "cut"
    ) -> "torch.Tensor":
        """N sentences -> (N, D) float32 on the CPU; duplicates are encoded once."""
        import torch

        distinct = list(dict.fromkeys(sentences))
        if not distinct:
            return torch.zeros(0, self.dim)
        context = self.context_length
        if long_captions == "windows" and context:
            pieces = [text_windows(sentence, self.token_lengths, context) for sentence in distinct]
            embeds = self._embed_queries([piece for of in pieces for piece in of], batch_size)
            embeds = torch.from_numpy(average_windows(embeds.numpy(), np.cumsum([0, *map(len, pieces)])))
        else:
            embeds = self._embed_queries(distinct, batch_size)
        row_of = {sentence: row for row, sentence in enumerate(distinct)}
        return embeds[[row_of[sentence] for sentence in sentences]]

    def _embed_queries(self, texts: Sequence[str], batch_size: int) -> "torch.Tensor":
        how = {"batch_size": batch_size, "convert_to_tensor": True, "show_progress_bar": False}
        return self.model.encode_query(list(texts), **how).float().cpu()

    def token_lengths(self, texts: Sequence[str]) -> list[int]:
        return [len(row) for row in self.model.tokenizer(list(texts), truncation=False, padding=False)["input_ids"]]

    def count_cut(self, sentences: Sequence[str]) -> int | None:
        context = self.context_length
        return sum(length > context for length in self.token_lengths(sentences)) if context and sentences else 0


def load_st_encoder(
    model: str,
    pretrained: str | None = None,
    *,
    device: str = "auto",
    precision: str = "auto",
    quick_gelu: bool | None = None,
    preprocessing: str | None = None,
    tokenizer: str | None = None,
) -> SentenceTransformersEncoder:
    """Load "st:NAME|FOLDER". Precision "auto" is float32. Raises BadInput for what is no image-text model."""
    if pretrained or quick_gelu or preprocessing or tokenizer:
        raise BadInput(
            f"{model} brings its weights, preprocessing and tokenizer along",
            fix="leave --pretrained, --quick-gelu, --preprocessing and --tokenizer out",
        )
    torchvision_guard.ensure()
    import torch

    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise BadInput(f"{model} needs sentence-transformers", fix="`pip install 'dits-retrieval[st]'`") from error
    try:
        loaded = SentenceTransformer(model.removeprefix(ST_PREFIX), device=None if device == "auto" else device)
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise BadInput(f"{model} cannot be loaded ({type(error).__name__}: {reason})", fix="check the name") from error
    if not {"text", "image"} <= set(loaded.modalities):
        raise BadInput(
            f"{model} embeds {', '.join(map(str, loaded.modalities))}", expected="a model of texts and images"
        )
    dtype = torch.float32 if precision == "auto" else getattr(torch, precision)
    loaded = loaded.to(dtype).eval().requires_grad_(False)
    size = _frame_size(loaded, model)
    processor = getattr(loaded[0].processor, "image_processor", loaded[0].processor)
    settings = {
        "model": model,
        "pretrained": "sentence-transformers",
        "weights_sha256": weights_digest(loaded),
        "activation": "own",
        "preprocessing": {**size.describe(), "processor": type(processor).__name__},
        "dtype": str(dtype).removeprefix("torch."),
        "embed_dim": int(loaded.get_embedding_dimension() or 0),
    }
    return SentenceTransformersEncoder(loaded, settings, size)


def _frame_size(model: Any, name: str) -> FrameSize:
    """The frames that the model's image processor leaves as they are: resized and cropped as it would do itself."""
    processor = getattr(model[0].processor, "image_processor", model[0].processor)
    size, crop = (dict(getattr(processor, key, None) or {}) for key in ("size", "crop_size"))
    resample = "bilinear" if getattr(processor, "resample", None) == 2 else "bicubic"
    if getattr(processor, "do_center_crop", False) and "height" in crop:
        return FrameSize(crop["height"], crop["width"], "shortest", resample)
    if "height" in size:
        return FrameSize(size["height"], size["width"], "squash", resample)
    log.info(f"{name} takes pictures of any size: frames of {DYNAMIC} x {DYNAMIC} pixels, cropped")
    return FrameSize(DYNAMIC, DYNAMIC, "shortest", resample)
