"""Other backbones than the smallest CLIP, from a local weights file to figures; the weights are untrained.

The large ones are slow; a small model of SigLIP's make (timm image tower, attention pooling, text read without causal
mask at its last token) stands for its family in every run. SigLIP's own tokenizer is a download: where it is needed,
a tokenizer of the same shape stands in for it.
"""

import json
import zlib
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from standins import caption, write_video

from pipeline.clip import torchvision_guard
from pipeline.clip.encoder import load_encoder
from pipeline.clip.stored import embed_queries
from pipeline.errors import BadInput
from pipeline.evaluate.evaluation import Options
from pipeline.evaluate.run import evaluate_chosen
from pipeline.extract.corpus import extract_manifest
from pipeline.extract.settings import ExtractSettings
from pipeline.resolve import resolve_head, resolve_store
from pipeline.stores.manifest import Manifest, VideoEntry
from pipeline.workspace import Workspace

torchvision_guard.ensure()
import open_clip  # noqa: E402

SMALL_SIGLIP = {
    "embed_dim": 192,
    "init_logit_bias": -10,
    "custom_text": True,
    "vision_cfg": {"image_size": 224, "timm_model_name": "vit_tiny_patch16_224", "timm_pool": "map",
                   "timm_proj": "none"},
    "text_cfg": {"context_length": 64, "vocab_size": 32000, "hf_tokenizer_name": "timm/ViT-B-16-SigLIP", "width": 192,
                 "heads": 3, "layers": 2, "no_causal_mask": True, "proj_bias": True, "pool_type": "last"},
}  # fmt: skip


class Words:
    """Texts to (N, 64) ids below 32,000, padded with 1: what a model of SigLIP's family gets from its tokenizer."""

    context_length = 64

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        rows = torch.ones(len(texts), 64, dtype=torch.long)
        for row, text in zip(rows, texts, strict=True):
            ids = [2 + zlib.crc32(word.encode()) % 31998 for word in text.split()][:64]
            row[: len(ids)] = torch.tensor(ids, dtype=torch.long)
        return rows


@pytest.fixture
def small_siglip(tmp_path) -> str:
    path = tmp_path / "test-small-siglip.json"
    path.write_text(json.dumps(SMALL_SIGLIP))
    open_clip.add_model_config(path)
    return path.stem


def end_to_end(
    folder: Path, model: str, *, quick_gelu: bool | None, dim: int, preprocessing: str | None = None
) -> None:
    """Untrained weights to a file, and from there extract, evaluate and embed a query."""
    weights = folder / "weights.safetensors"
    made = load_encoder(model, random_seed=0, device="cpu", precision="float32", quick_gelu=quick_gelu)
    save_file({name: tensor.contiguous() for name, tensor in made.model.state_dict().items()}, weights)
    digest = made.settings["weights_sha256"]
    del made
    for number in range(3):
        write_video(folder / f"{number}.mp4", seed=str(number))
    entries = tuple(VideoEntry(str(n), f"{n}.mp4", "test", (caption(str(n)),)) for n in range(3))
    workspace = Workspace(folder / "workspace")
    settings = ExtractSettings(
        model,
        str(weights),
        quick_gelu=quick_gelu,
        preprocessing=preprocessing,
        num_frames=2,
        workers=1,
        device="cpu",
        precision="float32",
    )
    report = extract_manifest(workspace, Manifest("own", str(folder), entries), settings)
    assert (report.inputs, report.done) == (3, 3)
    chosen = resolve_store(workspace)
    assert (chosen.store.dim, chosen.store.settings["weights_sha256"]) == (dim, digest)
    assert chosen.store.settings["activation"] == ("quickgelu" if quick_gelu else "gelu")
    head = resolve_head(workspace, chosen)
    evaluation, _ = evaluate_chosen(workspace, chosen, head, Options())
    assert evaluation.metrics["t2v"]["gallery"] == 3
    texts = chosen.store.texts()
    torch.testing.assert_close(
        torch.from_numpy(embed_queries(chosen.store, texts.captions)), torch.from_numpy(texts.text_embeds)
    )


def test_a_small_model_of_siglips_make(small_siglip, tmp_path, monkeypatch):
    monkeypatch.setattr(open_clip, "get_tokenizer", lambda name: Words())
    end_to_end(tmp_path, small_siglip, quick_gelu=None, dim=192)
    encoder = load_encoder(small_siglip, random_seed=0, device="cpu", precision="float32")
    with pytest.raises(BadInput, match="does not tell how many tokens"):
        encoder.embed_texts(["a dog"], long_captions="windows")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "quick_gelu", "dim"), [("ViT-B-16", True, 512), ("ViT-B-16", False, 512), ("ViT-L-14", True, 768)]
)
def test_clips_larger_backbones(model, quick_gelu, dim, tmp_path):
    end_to_end(tmp_path, model, quick_gelu=quick_gelu, dim=dim, preprocessing="openai")


@pytest.mark.slow
def test_siglip_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(open_clip, "get_tokenizer", lambda name: Words())
    end_to_end(tmp_path, "ViT-B-16-SigLIP", quick_gelu=None, dim=768)
