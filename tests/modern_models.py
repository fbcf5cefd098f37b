"""Small models of today's makes, for tests: open_clip's configurations with towers of the same kind, but smaller."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from pipeline.clip import torchvision_guard
from pipeline.clip.encoder import Encoder, load_encoder

torchvision_guard.ensure()
import open_clip  # noqa: E402
from timm.models import register_model  # noqa: E402
from timm.models.eva import Eva  # noqa: E402
from timm.models.vision_transformer import VisionTransformer  # noqa: E402

SHAPE = {"img_size": 64, "patch_size": 16, "embed_dim": 96, "depth": 4, "num_heads": 4}


@register_model
def small_pe_vit(pretrained=False, **given):
    """timm's vit_pe_core_tiny_patch16_384, smaller."""
    given.pop("pretrained_cfg", None), given.pop("pretrained_cfg_overlay", None), given.pop("cache_dir", None)
    return Eva(
        attn_type="rope",
        use_pre_transformer_norm=True,
        use_rot_pos_emb=True,
        ref_feat_shape=(4, 4),
        rope_grid_offset=1.0,
        rope_grid_indexing="xy",
        attn_pool_num_heads=8,
        attn_pool_mlp_ratio=4.0,
        **{**SHAPE, **given},
    )


@register_model
def small_eva02_vit(pretrained=False, **given):
    """timm's eva02_base_patch16_clip_224, smaller."""
    given.pop("pretrained_cfg", None), given.pop("pretrained_cfg_overlay", None), given.pop("cache_dir", None)
    return Eva(
        qkv_fused=False,
        mlp_ratio=2.6667,
        swiglu_mlp=True,
        scale_mlp=True,
        scale_attn_inner=True,
        use_rot_pos_emb=True,
        ref_feat_shape=(4, 4),
        **{**SHAPE, **given},
    )


@register_model
def small_vit(pretrained=False, **given):
    """timm's vit_base_patch16_siglip_224 (pooling by attention) and vit_base_mci_224 (class token), smaller."""
    given.pop("pretrained_cfg", None), given.pop("pretrained_cfg_overlay", None), given.pop("cache_dir", None)
    return VisionTransformer(class_token=given.get("global_pool") != "map", **{**SHAPE, **given})


# name: open_clip's configuration, what is changed of its image tower, what of its text tower
SMALL: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "small-pe": ("PE-Core-T-16-384", {"timm_model_name": "small_pe_vit", "image_size": 64}, {}),
    "small-sig2": ("ViT-B-16-SigLIP2", {"timm_model_name": "small_vit", "image_size": 64}, {"vocab_size": 49408}),
    "small-sig2-words": (  # with a tokenizer of `transformers`, as SigLIP 2 has
        "ViT-B-16-SigLIP2",
        {"timm_model_name": "small_vit", "image_size": 64},
        {"vocab_size": 512, "hf_tokenizer_name": "no/such/tokenizer"},
    ),
    "small-mobileclip2-b": ("MobileCLIP2-B", {"timm_model_name": "small_vit", "image_size": 64}, {}),
    "small-mobileclip2-l": ("MobileCLIP2-L-14", {"timm_model_name": "small_vit", "image_size": 64}, {}),
    "small-eva02": ("EVA02-B-16", {"timm_model_name": "small_eva02_vit", "image_size": 64}, {}),
    "small-clipa": (
        "ViT-L-14-CLIPA",
        {"image_size": 56, "layers": 4, "width": 64, "head_width": 16},
        {"vocab_size": 49408},
    ),
}
TEXT = {"width": 64, "heads": 4, "layers": 4}  # of every one


def register(name: str, folder: Path) -> str:
    """Register a small model with open_clip; idempotent."""
    if name not in open_clip.list_models():
        of, vision, text = SMALL[name]
        config = open_clip.get_model_config(of)
        config["vision_cfg"] |= vision
        if not text.get("hf_tokenizer_name"):
            config["text_cfg"].pop("hf_tokenizer_name", None)
            config["text_cfg"].pop("tokenizer_kwargs", None)
        config["text_cfg"] |= TEXT | text
        config["embed_dim"] = 96
        path = folder / f"{name}.json"
        path.write_text(json.dumps(config))
        open_clip.add_model_config(path)
    return name


def save_tokenizer(folder: Path) -> Path:
    """A tokenizer of words in SigLIP's form, made here: no start mark, <eos> at the end, padded with <pad>."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    words = "a the an of in on and dog cat bird man coat engine red large small blue circle square bar star moves left"
    special = ["<pad>", "<eos>", "<unk>"]
    tokenizer.train_from_iterator([words], trainers.WordLevelTrainer(special_tokens=special, show_progress=False))
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    ).save_pretrained(folder)
    return folder


def save_weights(encoder: Encoder, path: Path) -> Path:
    """The encoder's weights as a plain file, which says nothing of itself."""
    save_file({name: tensor.contiguous() for name, tensor in encoder.model.state_dict().items()}, path)
    return path


def untrained(name: str, seed: int = 0, tokenizer: str | None = None) -> Encoder:
    """An encoder with random weights, of which none stays at zero or one, where mistakes would not show."""
    encoder = load_encoder(name, device="cpu", precision="float32", random_seed=seed, tokenizer=tokenizer)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in encoder.model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return encoder
