"""Real open_clip models with untrained weights: what we compute is what open_clip computes."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from pipeline.clip import shapes_clip, torchvision_guard
from pipeline.clip.encoder import Encoder, load_encoder
from pipeline.clip.loading import ACTIVATION, agreed_preprocessing
from pipeline.clip.text import cuttable_tower
from pipeline.errors import BadInput
from pipeline.video.frames import fit

torchvision_guard.ensure()
import open_clip  # noqa: E402

SMALL = "test-small-clip"
CONFIG = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}
TEXT_TOWERS: dict[str, dict] = {
    "": {},
    "-custom": {},
    "-eos": {"pool_type": "eos", "eos_id": 49407},
    "-last": {"pool_type": "last"},
    "-bidirectional": {"no_causal_mask": True},
}
SENTENCES = ["a dog", "a man plays the guitar in front of a crowd of many people", "a dog", "", "zwei Hunde 🐕 spielen"]


@pytest.fixture(scope="module", autouse=True)
def _register(tmp_path_factory):
    folder = tmp_path_factory.mktemp("configs")
    for name, text in TEXT_TOWERS.items():
        config = {**CONFIG, "custom_text": bool(name), "text_cfg": {**CONFIG["text_cfg"], **text}}
        (folder / f"{SMALL}{name}.json").write_text(json.dumps(config))
        open_clip.add_model_config(folder / f"{SMALL}{name}.json")


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return load_encoder(SMALL, random_seed=1, device="cpu", precision="float32")


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)


def test_frames_are_encoded_as_open_clip_does(encoder, frames):
    big = np.random.default_rng(1).integers(0, 256, (48, 64, 3), np.uint8)
    transform = open_clip.image_transform(32, is_train=False)
    with torch.no_grad():
        expected = encoder.model.encode_image(torch.stack([transform(Image.fromarray(big))]))
    ours = encoder.embed_frames(fit(big, encoder.frame_size)[None])
    torch.testing.assert_close(ours, expected, atol=2e-3, rtol=2e-3)  # one grey level here and there
    assert ours.dtype == torch.float32
    assert encoder.embed_frames(frames).shape == (5, encoder.dim)


@pytest.mark.parametrize("variant", TEXT_TOWERS)
def test_cut_texts_equal_uncut_ones(variant):
    encoder = load_encoder(SMALL + variant, random_seed=1, device="cpu", precision="float32")
    assert (cuttable_tower(encoder.model) is not None) == (variant in ("", "-custom", "-eos"))
    with torch.no_grad():
        expected = encoder.model.encode_text(encoder.tokenizer(SENTENCES))
    torch.testing.assert_close(encoder.embed_texts(SENTENCES, batch_size=2), expected, atol=1e-6, rtol=1e-5)


def test_a_sentence_longer_than_the_context_is_cut_as_the_tokenizer_cuts(encoder):
    long = "word " * 200
    with torch.no_grad():
        expected = encoder.model.encode_text(encoder.tokenizer([long]))
    torch.testing.assert_close(encoder.embed_texts([long]), expected, atol=1e-6, rtol=1e-5)


def test_each_distinct_sentence_is_encoded_once_in_short_batches(encoder, monkeypatch):
    shapes = []
    tower = cuttable_tower(encoder.model)
    real = tower.transformer.forward
    monkeypatch.setattr(
        tower.transformer, "forward", lambda x, **kwargs: shapes.append(x.shape[:2]) or real(x, **kwargs)
    )
    embeds = encoder.embed_texts(SENTENCES, batch_size=2)
    assert sum(count for count, _ in shapes) == 4
    assert sum(count * length for count, length in shapes) < 4 * 77 / 3
    assert torch.equal(embeds[0], embeds[2])
    assert encoder.embed_texts([]).shape == (0, encoder.dim)


def test_the_fingerprint_knows_weights_activation_and_preprocessing(encoder):
    other = load_encoder(SMALL, random_seed=2, device="cpu", precision="float32")
    quick = load_encoder(SMALL, random_seed=1, device="cpu", precision="float32", quick_gelu=True)
    assert encoder.settings["weights_sha256"] != other.settings["weights_sha256"]
    assert encoder.settings["weights_sha256"] == quick.settings["weights_sha256"]
    assert (encoder.settings["activation"], quick.settings["activation"]) == ("gelu", "quickgelu")
    assert encoder.settings["preprocessing"]["size"] == [32, 32]
    assert (encoder.settings["dtype"], encoder.settings["embed_dim"]) == ("float32", 32)
    assert encoder.settings["pretrained"] == "random:1"


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".archive.pt"])
def test_weights_files_of_every_form_load_alike(encoder, frames, tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(encoder.model.state_dict(), path)
    elif suffix == ".pt":
        torch.save({"state_dict": encoder.model.state_dict()}, path)
    else:  # OpenAI's form: a TorchScript archive, which implies QuickGELU
        archive = torch.jit.trace_module(
            encoder.model,
            {"encode_image": torch.zeros(1, 3, 32, 32), "encode_text": torch.zeros(1, 77, dtype=torch.long)},
        )
        torch.jit.save(archive, path)
    loaded = load_encoder(SMALL, str(path), device="cpu", precision="float32")
    assert loaded.settings["weights_sha256"] == encoder.settings["weights_sha256"]
    assert loaded.settings["activation"] == ("quickgelu" if "archive" in suffix else "gelu")
    if "archive" not in suffix:
        torch.testing.assert_close(loaded.embed_frames(frames), encoder.embed_frames(frames))


@pytest.fixture(scope="module")
def twins(tmp_path_factory) -> dict[str, str]:
    """Weights of a model that exists with both activations, under both names, as a file of each form."""
    folder = tmp_path_factory.mktemp("twins")
    for name, quick in (("test-twin-clip", False), ("test-twin-clip-quickgelu", True)):
        (folder / f"{name}.json").write_text(json.dumps({**CONFIG, "quick_gelu": quick}))
        open_clip.add_model_config(folder / f"{name}.json")
    model = load_encoder("test-twin-clip-quickgelu", random_seed=3, device="cpu", precision="float32").model
    files = {name: str(folder / name) for name in ("tuned.safetensors", "tuned.pt", "openai.pt", "said.safetensors")}
    save_file(model.state_dict(), files["tuned.safetensors"])
    torch.save({"state_dict": model.state_dict()}, files["tuned.pt"])
    save_file(model.state_dict(), files["said.safetensors"], metadata={ACTIVATION: "quickgelu"})
    sample = {"encode_image": torch.zeros(1, 3, 32, 32), "encode_text": torch.zeros(1, 77, dtype=torch.long)}
    torch.jit.save(torch.jit.trace_module(model, sample), files["openai.pt"])
    return files


@pytest.mark.parametrize("name", ["tuned.safetensors", "tuned.pt"])
def test_weights_that_do_not_tell_their_activation_are_refused_until_it_is_said(twins, name):
    def load(model: str, quick_gelu: bool | None = None) -> str:
        return load_encoder(model, twins[name], device="cpu", precision="float32", quick_gelu=quick_gelu).settings[
            "activation"
        ]

    with pytest.raises(BadInput, match=r"--quick-gelu .*test-twin-clip-quickgelu.*--no-quick-gelu"):
        load("test-twin-clip")
    assert load("test-twin-clip", quick_gelu=True) == "quickgelu"
    assert load("test-twin-clip", quick_gelu=False) == "gelu"
    assert load("test-twin-clip-quickgelu") == "quickgelu"
    with pytest.raises(BadInput, match=r"--model test-twin-clip$"):
        load("test-twin-clip-quickgelu", quick_gelu=False)


@pytest.mark.parametrize("name", ["openai.pt", "said.safetensors"])
@pytest.mark.parametrize("model", ["test-twin-clip", "test-twin-clip-quickgelu"])
def test_weights_that_tell_their_activation_get_it(twins, frames, name, model):
    loaded = load_encoder(model, twins[name], device="cpu", precision="float32")
    right = load_encoder("test-twin-clip-quickgelu", random_seed=3, device="cpu", precision="float32")
    assert loaded.settings["activation"] == "quickgelu"
    torch.testing.assert_close(loaded.embed_frames(frames), right.embed_frames(frames))


def test_weights_that_say_gelu_do_not_enter_a_quickgelu_model(twins, encoder, tmp_path):
    save_file(encoder.model.state_dict(), tmp_path / "gelu.safetensors", metadata={ACTIVATION: "gelu"})
    with pytest.raises(BadInput, match=r"--model test-twin-clip$"):
        load_encoder("test-twin-clip-quickgelu", str(tmp_path / "gelu.safetensors"), device="cpu")
    loaded = load_encoder("test-twin-clip", str(tmp_path / "gelu.safetensors"), device="cpu")
    assert loaded.settings["activation"] == "gelu"


def test_half_a_safetensors_file_is_refused(twins, tmp_path):
    (tmp_path / "half.safetensors").write_bytes(Path(twins["tuned.safetensors"]).read_bytes()[:1000])
    with pytest.raises(BadInput, match=r"no whole .safetensors file"):
        load_encoder("test-twin-clip", str(tmp_path / "half.safetensors"), device="cpu")


def test_loading_weights_does_not_warn_that_there_are_none(caplog):
    load_encoder("shapes-clip", device="cpu", precision="float32")
    assert "No pretrained weights" not in caplog.text
    open_clip.create_model(SMALL)  # whoever asks open_clip for a model without weights is still told
    assert "No pretrained weights" in caplog.text


def test_a_tokenizer_that_cannot_be_had_is_said_so(monkeypatch):
    def offline(name: str) -> None:
        raise OSError("no network")

    monkeypatch.setattr(open_clip, "get_tokenizer", offline)
    with pytest.raises(BadInput, match=r"tokenizer of 'ViT-B-16-SigLIP'.*no network.*transformers.*local-dir"):
        load_encoder("ViT-B-16-SigLIP", random_seed=0, device="cpu")


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    class Trap:
        def __reduce__(self):
            return (print, ("code ran",))

    torch.save({"state_dict": Trap()}, tmp_path / "trap.pt")
    with pytest.raises(BadInput, match="cannot be loaded"):
        load_encoder(SMALL, str(tmp_path / "trap.pt"), device="cpu")


def test_weights_of_another_model_are_refused(tmp_path):
    save_file({"visual.proj": torch.zeros(3, 3)}, tmp_path / "other.safetensors")
    with pytest.raises(BadInput, match=r"other.safetensors.* cannot be loaded into"):
        load_encoder(SMALL, str(tmp_path / "other.safetensors"), device="cpu")


@pytest.mark.parametrize(("model", "pretrained", "message"), [
    ("ViT-B-33", "openai", "ViT-B-32"), ("ViT-B-32", None, "--pretrained.*openai"), ("ViT-B-32", "opnai", "openai"),
    ("ViT-B-32", "missing.safetensors", "no weights file"), ("qqqqqqqqq", None, "list_models"),
])  # fmt: skip
def test_wrong_names_list_what_there_is(model, pretrained, message):
    with pytest.raises(BadInput, match=message):
        load_encoder(model, pretrained, device="cpu")


def test_unusable_devices_and_precisions_are_refused():
    with pytest.raises(BadInput, match="--device cpu"):
        load_encoder(SMALL, random_seed=0, device="cuda:77")
    with pytest.raises(BadInput, match="precision"):
        load_encoder(SMALL, random_seed=0, device="cpu", precision="int4")


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("model", [SMALL, pytest.param("ViT-S-32-alt", marks=pytest.mark.slow)])
def test_half_precision_agrees_with_full(model, precision):
    full = load_encoder(model, random_seed=1, device="cpu", precision="float32")
    half = load_encoder(model, random_seed=1, device="cpu", precision=precision)
    height, width = full.image_size
    noise = torch.rand(4, 3, 7, 7, generator=torch.Generator().manual_seed(0)) * 255
    smooth = torch.nn.functional.interpolate(noise, (height, width), mode="bilinear").byte().permute(0, 2, 3, 1)
    for left, right in [
        (full.embed_frames(smooth), half.embed_frames(smooth)),
        (full.embed_texts(SENTENCES), half.embed_texts(SENTENCES)),
    ]:
        assert torch.nn.functional.cosine_similarity(left, right).min() >= 0.999
    assert half.settings["dtype"] == precision


def test_the_built_in_model_needs_no_weights_named():
    pytest.importorskip("pipeline.clip.shapes_clip")
    from pipeline.clip import shapes_clip

    if not shapes_clip.WEIGHTS_PATH.exists():
        pytest.skip("the built-in weights have not been made yet")
    encoder = load_encoder("shapes-clip", device="cpu")
    assert encoder.settings["pretrained"] == "shapes-clip"
    norm = encoder.embed_texts(["a red circle"]).norm().item()
    assert math.isfinite(norm)
    assert norm > 0


@pytest.mark.parametrize(
    ("name", "mean", "resize_mode"),
    [
        ("ViT-B-16-SigLIP", 0.5, "squash"),
        ("ViT-B-16-SigLIP2", 0.5, "squash"),
        ("MobileCLIP-S1", 0.0, None),
        ("PE-Core-B-16", 0.5, "squash"),
        ("ViT-B-32", 0.48145466, None),
    ],
)
def test_a_weights_file_is_preprocessed_as_all_published_weights_of_its_model(name, mean, resize_mode):
    agreed = agreed_preprocessing(name)
    assert agreed["mean"][0] == mean
    if resize_mode:
        assert agreed["resize_mode"] == resize_mode


def test_preprocessing_that_published_weights_disagree_on_is_asked_for():
    with pytest.raises(BadInput, match="published weights of 'ViT-L-14' differ"):
        agreed_preprocessing("ViT-L-14")
    assert agreed_preprocessing("ViT-L-14", "openai")["mean"][0] == pytest.approx(0.48145466)


def test_the_agreed_preprocessing_reaches_the_encoder(tmp_path, monkeypatch):
    shapes_clip.register()
    weights = shapes_clip.write_checkpoint(tmp_path / "tuned.safetensors")
    monkeypatch.setattr(open_clip, "list_pretrained_tags_by_model", lambda name: ["a", "b"])
    published = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "resize_mode": "squash"}
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda name, tag: published)
    settings = load_encoder("shapes-clip", str(weights), device="cpu").settings["preprocessing"]
    assert (settings["mean"], settings["std"]) == ([0.5] * 3, [0.5] * 3)
