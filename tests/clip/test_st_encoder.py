"""A model of sentence-transformers as an encoder: a tiny CLIP of `transformers`, made and saved here."""

import numpy as np
import pytest
import torch
from PIL import Image
from standins import caption, write_video
from tiny_st import save_tiny_clip

from pipeline.clip.embedders import load_embedder
from pipeline.clip.stored import embed_queries, encoder_of
from pipeline.errors import BadInput
from pipeline.extract.corpus import extract_manifest
from pipeline.extract.settings import ExtractSettings
from pipeline.resolve import resolve_store
from pipeline.stores.manifest import Manifest, VideoEntry
from pipeline.workspace import Workspace

pytest.importorskip("sentence_transformers")
LONG = "a dog in a red coat runs left the cat runs right the man in blue runs left"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_clip(tmp_path_factory.mktemp("tiny-clip"))


@pytest.fixture(scope="module")
def encoder(folder):
    return load_embedder(f"st:{folder}", device="cpu")


def test_it_embeds_what_transformers_embeds(encoder, folder):
    from transformers import CLIPModel, CLIPProcessor

    assert (encoder.dim, encoder.image_size, encoder.context_length) == (24, (32, 32), 16)
    frames = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    model, processor = CLIPModel.from_pretrained(folder).eval(), CLIPProcessor.from_pretrained(folder)
    with torch.inference_mode():
        images = processor(images=[Image.fromarray(frame) for frame in frames], return_tensors="pt")
        texts = processor(text=["a dog", "the cat runs"], return_tensors="pt", padding=True)
        out = model(**texts, **images)
    same(encoder.embed_frames(frames), out.image_embeds)  # transformers normalises them
    found = encoder.embed_texts(["a dog", "the cat runs", "a dog"])
    same(found[:2], out.text_embeds)
    torch.testing.assert_close(found[0], found[2])
    assert encoder.embed_frames(frames[:0]).shape == (0, 24)


def same(found, expected):
    torch.testing.assert_close(torch.nn.functional.normalize(found), expected, rtol=1e-4, atol=1e-5)


def test_long_captions_are_counted_and_read_in_windows(encoder):
    assert encoder.count_cut(["a dog", LONG]) == 1
    cut, whole = (encoder.embed_texts(["a dog", LONG], long_captions=rule) for rule in ("cut", "windows"))
    torch.testing.assert_close(cut[0], whole[0])
    assert torch.nn.functional.cosine_similarity(cut[1], whole[1], dim=0) < 0.9999


def test_from_videos_to_queries(folder, tmp_path):
    for number in range(3):
        write_video(tmp_path / f"{number}.mp4", seed=str(number))
    entries = tuple(VideoEntry(str(n), f"{n}.mp4", "test", (caption(str(n)),)) for n in range(3))
    workspace = Workspace(tmp_path / "workspace")
    settings = ExtractSettings(f"st:{folder}", num_frames=2, workers=1, device="cpu", batch_size=0)
    report = extract_manifest(workspace, Manifest("own", str(tmp_path), entries), settings)
    assert (report.inputs, report.done) == (3, 3)
    chosen = resolve_store(workspace)
    texts = chosen.store.texts()
    np.testing.assert_allclose(embed_queries(chosen.store, texts.captions), texts.text_embeds, atol=1e-5)
    with pytest.raises(BadInput, match="no CLIP of open_clip's that could be trained"):
        encoder_of(chosen.store)
    with pytest.raises(BadInput, match="--cache-blocks: st:"):
        extract_manifest(
            Workspace(tmp_path / "other"),
            Manifest("own", str(tmp_path), entries),
            ExtractSettings(f"st:{folder}", num_frames=2, workers=1, device="cpu", cache_blocks=1),
        )


def test_what_is_no_such_model_is_refused(tmp_path):
    with pytest.raises(BadInput, match="brings its weights"):
        load_embedder("st:x", "weights.pt")
    with pytest.raises(BadInput, match=r"st:.* cannot be loaded"):
        load_embedder(f"st:{tmp_path}", device="cpu")
