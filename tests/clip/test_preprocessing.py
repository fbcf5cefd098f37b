"""Preprocessing and context by the model: what the published weights agree on, and open_clip's own transform."""

import json

import numpy as np
import pytest
import torch
from modern_models import open_clip, register, untrained
from PIL import Image
from safetensors.torch import save_file
from standins import write_video

from pipeline.clip.encoder import frame_size, load_encoder, to_pixels
from pipeline.clip.loading import build_model
from pipeline.clip.preprocessing import agreed_preprocessing
from pipeline.errors import BadInput
from pipeline.video.decode_pyav import FrameRequest, decode_clip
from pipeline.video.frames import fit

HALF = (0.5, 0.5, 0.5)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
FAMILIES = ["ViT-B-32", "PE-Core-T-16-384", "ViT-B-16-SigLIP2", "MobileCLIP2-B", "MobileCLIP2-S0", "ViT-H-14"]


@pytest.mark.parametrize(
    ("model", "mean", "std", "interpolation", "mode"),
    [
        ("ViT-B-32", CLIP_MEAN, (0.26862954, 0.26130258, 0.27577711), "bicubic", "shortest"),
        ("PE-Core-B-16", HALF, HALF, "bilinear", "squash"),
        ("ViT-B-16-SigLIP2", HALF, HALF, "bicubic", "squash"),
        ("MobileCLIP2-B", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "bilinear", "shortest"),
    ],
)
def test_the_published_weights_agree(model, mean, std, interpolation, mode):
    agreed = agreed_preprocessing(model)
    assert agreed == {"mean": mean, "std": std, "interpolation": interpolation, "resize_mode": mode}


def test_where_they_differ_the_user_is_asked_in_one_line():
    with pytest.raises(BadInput, match=r"'ViT-L-14' differ in it.*laion2b_s32b_b82k: \(0.5.*--preprocessing") as asked:
        agreed_preprocessing("ViT-L-14")
    assert "\n" not in str(asked.value)
    assert agreed_preprocessing("ViT-L-14", "laion2b_s32b_b82k")["mean"] == HALF
    assert agreed_preprocessing("ViT-L-14", "openai")["mean"] == CLIP_MEAN
    with pytest.raises(BadInput, match="no published weights 'meta'"):
        agreed_preprocessing("ViT-L-14", "meta")
    assert agreed_preprocessing("ViT-S-32-alt") == {}


def test_a_weights_file_takes_it_or_states_its_own(monkeypatch, tmp_path):
    """A model whose published weights differ: refused until the tag is said; a tuned file of ours says it itself."""
    name = register("small-mobileclip2-b", tmp_path)
    model = untrained(name).model
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    save_file(state, tmp_path / "silent.safetensors")
    own = {"preprocessing": json.dumps({"mean": HALF, "std": HALF, "resize_mode": "squash"})}
    save_file(state, tmp_path / "stating.safetensors", metadata=own)
    tags = {"one": {"mean": HALF, "resize_mode": "squash"}, "other": {"mean": CLIP_MEAN, "resize_mode": "squash"}}
    monkeypatch.setattr(open_clip, "list_pretrained_tags_by_model", lambda _: list(tags))
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda _, tag: tags[tag])

    def settings(file, **given):
        encoder = load_encoder(name, str(tmp_path / file), device="cpu", precision="float32", **given)
        return encoder.settings["preprocessing"]

    with pytest.raises(BadInput, match="differ in it"):
        settings("silent.safetensors")
    assert settings("silent.safetensors", preprocessing="other")["mean"] == pytest.approx(CLIP_MEAN)
    stated = settings("stating.safetensors")
    assert (stated["mean"], stated["resize"]) == (list(HALF), "squash")


@pytest.mark.parametrize("model", FAMILIES)
def test_pixels_are_those_of_open_clips_own_transform(model, tmp_path):
    """Frames of a clip as we resize, crop and normalise them, against open_clip's transform on the decoded pictures."""
    config = open_clip.get_model_config(model)
    cfg = {**open_clip.transform.PreprocessCfg().__dict__, "size": config["vision_cfg"].get("image_size", 224)}
    cfg |= agreed_preprocessing(model, "laion2b_s32b_b79k" if model == "ViT-H-14" else None)
    transform = open_clip.transform.image_transform_v2(open_clip.transform.PreprocessCfg(**cfg), is_train=False)
    path = tmp_path / "clip.mp4"
    write_video(path, seed="1")
    size = frame_size(cfg)
    native = decode_clip(str(path), FrameRequest(4, whole(path))).frames
    theirs = torch.stack([transform(Image.fromarray(frame)) for frame in native])
    mean, std = (torch.tensor(cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    ours = to_pixels(torch.from_numpy(np.stack([fit(frame, size) for frame in native])), mean, std)
    levels = ((ours - theirs) * std * 255).abs()
    assert levels.max() <= 1.01  # grey levels: rounding
    assert (levels > 0.5).float().mean() <= 2e-3
    np.testing.assert_array_equal(decode_clip(str(path), FrameRequest(4, size)).frames, [fit(f, size) for f in native])


def whole(path):
    """The clip's own size, so that nothing is resized."""
    import av

    from pipeline.frame_size import FrameSize

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return FrameSize(stream.height, stream.width)


@pytest.mark.parametrize(("model", "context"), [("PE-Core-B-16", 32), ("PE-Core-bigG-14-448", 72), ("ViT-B-32", 77)])
def test_the_context_is_the_models(model, context):
    assert open_clip.get_tokenizer(model).context_length == context
    assert open_clip.get_model_config(model)["text_cfg"].get("context_length", 77) == context


def test_untrained_weights_take_what_is_agreed_too():
    model, tokenizer, _ = build_model("PE-Core-T-16-384", None, random_seed=0)
    assert model.visual.preprocess_cfg["resize_mode"] == "squash"
    assert model.visual.preprocess_cfg["size"] == (384, 384)
    assert tokenizer.context_length == 32
