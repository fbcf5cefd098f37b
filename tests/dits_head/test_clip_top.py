"""CLIP's top blocks from cached activations, against open_clip's own forward pass."""

import pytest
import torch

from dits_head.clip_top import ClipTop, LowerBlocks, pad_rows, refusal
from pipeline.clip import torchvision_guard

torchvision_guard.ensure()
import open_clip  # noqa: E402
from open_clip.model import CLIP  # noqa: E402

VISION = {"image_size": 32, "patch_size": 8, "width": 64, "layers": 4, "head_width": 16}
TEXT = {"context_length": 20, "vocab_size": 100, "width": 48, "heads": 4, "layers": 4}


def tiny_clip(quick_gelu=False):
    torch.manual_seed(0)
    model = CLIP(32, VISION, TEXT, quick_gelu=quick_gelu).eval()
    with torch.no_grad():  # open_clip starts some of these at zero or one, where mistakes would not show
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def sentences(count=6):
    torch.manual_seed(1)
    lengths = torch.tensor([3, 20, 7, 5, 12, 4])[:count]
    tokens = torch.zeros(count, 20, dtype=torch.long)
    for row, length in enumerate(lengths.tolist()):
        tokens[row, : length - 1] = torch.randint(1, 90, (length - 1,))
        tokens[row, length - 1] = 99  # the highest number marks the end of the text
    return tokens, lengths


def image_activations(model, images, k):
    x = model.visual._embeds(images)
    for block in model.visual.transformer.resblocks[:-k]:
        x = block(x)
    return x


def text_activations(model, tokens, lengths, k):
    x = model.token_embedding(tokens) + model.positional_embedding
    for block in model.transformer.resblocks[:-k]:
        x = block(x, attn_mask=model.attn_mask)
    values = torch.cat([row[:length] for row, length in zip(x, lengths.tolist(), strict=True)])
    return values, torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])


@pytest.mark.parametrize("quick_gelu", [False, True])
@pytest.mark.parametrize("k", [1, 2, 4])
@torch.no_grad()
def test_equals_the_whole_model(k, quick_gelu):
    model = tiny_clip(quick_gelu)
    top = ClipTop.from_open_clip(model, k).eval()
    images = torch.randn(5, 3, 32, 32)
    frames = top.frame_embeds(image_activations(model, images, k))
    torch.testing.assert_close(frames, model.encode_image(images), atol=1e-5, rtol=1e-4)
    tokens, lengths = sentences()
    texts = top.text_embeds(*pad_rows(*text_activations(model, tokens, lengths, k)))
    torch.testing.assert_close(texts, model.encode_text(tokens), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("cached", "k"), [(4, 1), (3, 2), (2, 2)])
@torch.no_grad()
def test_lower_blocks_lead_from_the_cache_to_the_top(cached, k):
    model = tiny_clip()
    lower = LowerBlocks.from_open_clip(model, cached, k)
    assert len(lower) == cached - k
    assert not any(parameter.requires_grad for parameter in lower.parameters())
    images, (tokens, lengths) = torch.randn(3, 3, 32, 32), sentences(3)
    found = lower.image(image_activations(model, images, cached))
    torch.testing.assert_close(found, image_activations(model, images, k), atol=1e-5, rtol=1e-4)
    padded, _ = pad_rows(*text_activations(model, tokens, lengths, cached))
    expected, _ = pad_rows(*text_activations(model, tokens, lengths, k))
    for row, length in enumerate(lengths.tolist()):
        torch.testing.assert_close(lower.text(padded)[row, :length], expected[row, :length], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_gradients_equal_the_whole_model_with_and_without_checkpointing(k):
    model = tiny_clip()
    images, (tokens, lengths) = torch.randn(3, 3, 32, 32), sentences(3)
    (model.encode_image(images).sin().sum() + model.encode_text(tokens).sin().sum()).backward()
    for checkpointing in (False, True):
        top = ClipTop.from_open_clip(model, k)
        top.set_gradient_checkpointing(checkpointing)
        with torch.no_grad():
            frames, (values, offsets) = image_activations(model, images, k), text_activations(model, tokens, lengths, k)
        loss = top.frame_embeds(frames).sin().sum() + top.text_embeds(*pad_rows(values, offsets)).sin().sum()
        loss.backward()
        mine = dict(top.image.blocks[0].named_parameters())
        for name, parameter in model.visual.transformer.resblocks[-k].named_parameters():
            torch.testing.assert_close(mine[name].grad, parameter.grad, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(top.text.projection.grad, model.text_projection.grad, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(top.image.norm.weight.grad, model.visual.ln_post.weight.grad, atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_written_back_weights_make_the_same_model():
    model, other = tiny_clip(), tiny_clip()
    top = ClipTop.from_open_clip(model, 2).eval()
    for parameter in top.parameters():
        parameter.add_(0.02 * torch.randn_like(parameter))
    images, (tokens, lengths) = torch.randn(2, 3, 32, 32), sentences(2)
    expected = top.frame_embeds(image_activations(model, images, 2))
    expected_text = top.text_embeds(*pad_rows(*text_activations(model, tokens, lengths, 2)))
    before = other.encode_image(images)
    top.write_back(other)
    torch.testing.assert_close(other.encode_image(images), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(other.encode_text(tokens), expected_text, atol=1e-5, rtol=1e-4)
    assert (before - expected).abs().max() > 1e-3
    assert torch.equal(model.visual.conv1.weight, other.visual.conv1.weight)


def test_other_towers_are_refused_by_name():
    assert refusal(tiny_clip()) is None
    resnet = open_clip.create_model("RN50", pretrained=None)
    assert "ModifiedResNet" in refusal(resnet)
    with pytest.raises(ValueError, match="ModifiedResNet"):
        ClipTop.from_open_clip(resnet, 1)
    with pytest.raises(ValueError, match="use 1 to 4"):
        ClipTop.from_open_clip(tiny_clip(), 5)


def test_all_of_a_frozen_models_top_trains():
    """An encoder that only encodes is frozen; what is taken out of it to be trained must not stay so."""
    model = tiny_clip().requires_grad_(False)
    top = ClipTop.from_open_clip(model, 2)
    tokens, lengths = sentences()
    values, offsets = text_activations(model, tokens, lengths, 2)
    frames = top.frame_embeds(image_activations(model, torch.randn(5, 3, 32, 32), 2))
    (frames.square().sum() + top.text_embeds(*pad_rows(values, offsets)).square().sum()).backward()
    still = [name for name, parameter in top.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert not still
    assert not any(parameter.requires_grad for parameter in LowerBlocks.from_open_clip(model, 4, 2).parameters())
