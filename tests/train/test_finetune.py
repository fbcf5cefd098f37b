"""CLIP's top blocks from the cache: the same embeddings, a tuned run end to end, a file that open_clip loads alone."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dits_head.clip_top import ClipTop, LowerBlocks
from dits_head.config import HeadConfig
from pipeline.clip.activations import to_int8
from pipeline.clip.encoder import load_encoder
from pipeline.clip.text import encode_sentences
from pipeline.datasets.manifests import dataset_manifest
from pipeline.errors import BadInput, FingerprintMismatch
from pipeline.evaluate.metrics import retrieval_metrics
from pipeline.extract.corpus import extract_manifest
from pipeline.extract.settings import ExtractSettings
from pipeline.resolve import resolve_head, resolve_store
from pipeline.stores.features import FeatureStore
from pipeline.train.cached_inputs import CachedInputs
from pipeline.train.finetune import FinetuneTask, TuneSettings, export_clip, remember_tuned
from pipeline.train.joint_batches import embed_texts, embed_videos
from pipeline.train.loop import TrainSettings
from pipeline.train.run import RunOptions, train_head
from pipeline.workspace import Workspace

CPU = torch.device("cpu")
SENTENCES = ["a small red circle", "a large white bar on a plum background and a green ring at the top left", "a star"]


SAMPLE = pytest.param("ViT-B-32", marks=[pytest.mark.slow, pytest.mark.slow_sample])
LARGE = [SAMPLE, *(pytest.param(name, marks=pytest.mark.slow) for name in ("ViT-B-32-quickgelu", "ViT-B-16"))]


@pytest.mark.parametrize("model", ["shapes-clip", *LARGE])
@pytest.mark.parametrize("k", [1, 2, 4])
@torch.inference_mode()
def test_tokens_through_the_top_blocks_equal_the_encoder(model, k):
    seed = None if model == "shapes-clip" else 0
    encoder = load_encoder(model, device="cpu", precision="float32", random_seed=seed)
    top = ClipTop.from_open_clip(encoder.model, k).eval()
    frames = np.random.default_rng(0).integers(0, 256, (3, *encoder.image_size, 3), dtype=np.uint8)
    embeds, tokens = encoder.embed_frames_caching(frames, k)
    same(top.frame_embeds(torch.from_numpy(tokens).float()), embeds)
    text_embeds, text_tokens = encode_sentences(encoder, SENTENCES, 2, cache_blocks=k)
    for sentence, expected, cached in zip(SENTENCES, text_embeds, text_tokens, strict=True):
        found = top.text_embeds(torch.from_numpy(cached)[None].float(), torch.tensor([len(cached)]))
        same(found, expected[None])
        same(encoder.embed_texts([sentence]), expected[None])


def same(found, expected):
    scale = max(1.0, float(expected.abs().max()))  # float16 keeps 11 bits of a value, not of the unit
    assert (found - expected).abs().max() <= 2e-3 * scale
    assert torch.nn.functional.cosine_similarity(found, expected).min() >= 0.9999


def test_int8_tokens_are_close():
    tokens = np.random.default_rng(0).standard_normal((5, 7, 64)).astype(np.float32)
    values, scale = to_int8(tokens)
    restored = values * scale[..., None].astype(np.float32)
    assert values.dtype == np.int8
    assert np.abs(restored - tokens).max() <= np.abs(tokens).max() / 127


@pytest.fixture(scope="module")
def extracted(tmp_path_factory):
    """shapes, small, with what enters the top two blocks."""
    workspace = Workspace(tmp_path_factory.mktemp("tune"))
    manifest = dataset_manifest(workspace, "shapes", None, None, None, {"train": 110, "val": 20, "test": 20})
    extract_manifest(workspace, manifest, ExtractSettings(cache_blocks=2, precision="float32"), progress=False)
    return workspace


@pytest.mark.parametrize(
    ("token_dtype", "k", "keep_bytes"),
    [("float16", 2, 0), ("float16", 1, 0), ("float16", 1, 1 << 30), ("int8", 2, 0), ("int8", 1, 1 << 30)],
)
def test_the_cache_gives_the_stored_embeddings(extracted, tmp_path, token_dtype, k, keep_bytes):
    """Of the two blocks cached, both or only the upper one may train; kept in memory or read each time."""
    workspace = extracted
    if token_dtype == "int8":
        workspace = Workspace(tmp_path)
        manifest = dataset_manifest(workspace, "shapes", None, None, None, {"train": 4, "val": 2, "test": 2})
        settings = ExtractSettings(cache_blocks=2, precision="float32", token_dtype="int8")
        extract_manifest(workspace, manifest, settings, progress=False)
    chosen = resolve_store(workspace)
    encoder = load_encoder("shapes-clip", device="cpu", precision="float32")
    videos, texts = chosen.store.videos("test"), chosen.store.texts("test")
    lower = LowerBlocks.from_open_clip(encoder.model, 2, k)
    assert len(lower) == 2 - k
    cache = CachedInputs(chosen.store, videos, texts, lower, keep_bytes)
    top = ClipTop.from_open_clip(encoder.model, k)
    frames, embeds = embed_all(top, cache, videos, texts)
    least = {"float16": 0.9999, "int8": 0.999}[token_dtype]
    assert cosines(frames, videos.frame_embeds).min() >= least
    assert cosines(embeds, texts.text_embeds).min() >= least


def embed_all(towers, inputs, videos, texts):
    rows = np.arange(len(videos)), np.arange(len(texts))
    return embed_videos(towers, inputs, rows[0], CPU), embed_texts(towers, inputs, rows[1], CPU)


def cosines(a, b):
    return torch.nn.functional.cosine_similarity(torch.from_numpy(a).float(), torch.from_numpy(b).float(), dim=-1)


def test_a_tuned_run_moves_clip_and_everything_follows(extracted, tmp_path):
    chosen = resolve_store(extracted, "shapes", "shapes-clip")
    config = HeadConfig(head="xpool", dim=chosen.store.dim)
    settings = TrainSettings(lr=1e-3, epochs=1, batch_size=32)
    what = (extracted, chosen, config, settings)
    with pytest.raises(BadInput, match="--cache-blocks 3"):
        train_head(*what, FinetuneTask(TuneSettings(3)), retrieval_metrics)
    task, options = FinetuneTask(TuneSettings(2, clip_lr=1e-3)), RunOptions("tuned")
    result = train_head(*what, task, retrieval_metrics, options)
    assert result["run"] == "tuned"
    again = train_head(*what, task, retrieval_metrics, options)
    assert again == result  # finished runs are returned, not trained anew
    remember_tuned(extracted, chosen, "tuned")
    tuned = resolve_store(extracted)
    assert tuned.encoder == "shapes-clip+tuned"
    assert resolve_head(extracted, tuned).run == "tuned"
    with pytest.raises(FingerprintMismatch, match="weights_sha256"):
        resolve_head(extracted, chosen, "tuned")

    # what the cache gave equals what the exported file gives, loaded by open_clip alone, on the decoded clips
    out = tmp_path / "clip.safetensors"
    export_clip(extracted, tuned, "tuned", out)
    import open_clip

    model = open_clip.create_model("shapes-clip", pretrained=str(out)).eval()
    tokens = open_clip.get_tokenizer("shapes-clip")(tuned.store.texts("test").captions)
    with torch.inference_mode():
        alone = model.encode_text(tokens).numpy()
    assert cosines(alone, tuned.store.texts("test").text_embeds).min() >= 0.9999
    assert cosines(alone, chosen.store.texts("test").text_embeds).min() < 0.9999  # CLIP has moved
    manifest = dataset_manifest(extracted, "shapes", None, None, None, {"train": 110, "val": 20, "test": 20})
    settings = ExtractSettings(pretrained=str(out), precision="float32")
    again = extract_manifest(Workspace(tmp_path), manifest.split("test"), settings, progress=False)
    decoded = FeatureStore.open(Path(again.store)).videos()
    assert decoded.video_ids == tuned.store.videos("test").video_ids
    assert cosines(decoded.frame_embeds, tuned.store.videos("test").frame_embeds).min() >= 0.999


def test_models_that_cannot_be_cached_are_refused_by_what_they_are(tmp_path):
    from pipeline.clip.activations import require_cacheable

    encoder = load_encoder("RN50", device="cpu", precision="float32", random_seed=0)
    with pytest.raises(BadInput, match="ModifiedResNet"):
        require_cacheable(encoder.model, "RN50", 1)
