"""The built-in backbone: an ordinary open_clip model, small on disk, that reads its own words better than synonyms."""

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from pipeline.clip import shapes_clip, torchvision_guard
from pipeline.datasets import shapes_world as world
from pipeline.datasets.shapes_drawing import render

torchvision_guard.ensure()
import open_clip  # noqa: E402  (needs the guard)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return shapes_clip.write_checkpoint(tmp_path_factory.mktemp("weights") / "shapes-clip.safetensors")


@pytest.fixture(scope="module")
def model_and_transform(checkpoint):
    """As any open_clip model is made: by name and weights file."""
    shapes_clip.register()
    model, _, transform = open_clip.create_model_and_transforms(shapes_clip.MODEL_NAME, pretrained=str(checkpoint))
    return model.eval(), transform


@pytest.fixture(scope="module")
def videos(model_and_transform):
    """Features of 60 test clips, pooled from 4 frames a scene and normalised: (60, D)."""
    model, transform = model_and_transform
    pooled = []
    with torch.inference_mode():
        for index in range(60):
            scenes = world.make_clip(0, "test", index).scenes
            frames = [transform(Image.fromarray(render(s, t))) for s in scenes for t in (0.1, 0.4, 0.7, 1.0)]
            pooled.append(F.normalize(model.encode_image(torch.stack(frames)), dim=-1).mean(dim=0))
    return F.normalize(torch.stack(pooled), dim=-1)


def zero_shot(model, videos):
    """Share of the clips' captions that find their clip first."""
    captions = [caption for index in range(60) for caption in world.clip_captions(0, "test", index)]
    with torch.inference_mode():
        texts = model.encode_text(open_clip.get_tokenizer(shapes_clip.MODEL_NAME)(captions))
    found = (texts @ videos.T).argmax(dim=1)
    return (found == torch.arange(60).repeat_interleave(4)).float().mean().item()


def test_weights_are_an_ordinary_open_clip_checkpoint(model_and_transform):
    model, _ = model_and_transform
    assert isinstance(model, open_clip.CLIP)
    loaded, ours = model.state_dict(), shapes_clip.state_dict()
    assert loaded.keys() == ours.keys()
    assert all(torch.equal(loaded[name], value) for name, value in ours.items())


def test_towers_are_deep_enough_to_train_their_top_and_heads_divide_the_width(model_and_transform):
    model, _ = model_and_transform
    assert len(model.visual.transformer.resblocks) >= 4
    assert len(model.transformer.resblocks) >= 4
    assert model.visual.output_dim % 16 == 0


def test_registering_twice_adds_one_model():
    shapes_clip.register()
    shapes_clip.register()
    assert open_clip.list_models().count(shapes_clip.MODEL_NAME) == 1


def test_the_package_stays_small():
    assert shapes_clip.WEIGHTS_PATH.stat().st_size < 8e6


def test_every_token_of_the_data_set_has_a_row_and_every_caption_fits():
    tokenizer = open_clip.get_tokenizer(shapes_clip.MODEL_NAME)
    tokens = tokenizer([caption for index in range(1000) for caption in world.clip_captions(0, "train", index)])
    assert (tokens[:, -1] == 0).all()
    norms = shapes_clip.state_dict()["token_embedding.weight"].norm(dim=-1)
    assert (norms[tokens.unique()] > 0).all()
    assert (norms > 0).sum() < 500


def test_compact_form_gives_back_what_it_keeps():
    full = shapes_clip.state_dict()
    kept = (full["token_embedding.weight"].norm(dim=-1) > 0).nonzero()[:, 0]
    again = shapes_clip.expand(shapes_clip.compact(full, kept))
    assert all(torch.equal(again[name], value) for name, value in full.items())


def test_zero_shot_is_far_above_chance_and_leaves_room(model_and_transform, videos):
    assert 0.3 < zero_shot(model_and_transform[0], videos) < 0.95  # chance is 0.017


def test_it_reads_the_words_that_it_was_taught_better_than_their_synonyms(model_and_transform, videos, monkeypatch):
    shares = []
    for share in (0.0, 1.0):
        monkeypatch.setattr(world, "OWN_WORD_SHARE", share)
        shares.append(zero_shot(model_and_transform[0], videos))
    synonyms, own = shares
    assert own > synonyms + 0.1
