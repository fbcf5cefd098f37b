"""The top blocks of today's models: what enters them gives the encoder's embeddings; they train, and nothing below."""

import numpy as np
import pytest
import torch
from modern_models import SMALL, open_clip, register, untrained

from dits_head.clip_top import ClipTop, LowerBlocks
from dits_head.config import HeadConfig
from dits_head.head import RetrievalHead
from dits_head.joint import JointModel
from pipeline.clip.activations import require_cacheable, token_bytes
from pipeline.clip.encoder import load_encoder
from pipeline.clip.text import encode_sentences
from pipeline.clip.whole_clip import WholeClip
from pipeline.errors import BadInput

SMALL = sorted(SMALL.keys() - {"small-sig2-words"})
SENTENCES = ["a dog", "a man in a red coat explains how an engine works", "two cats", "a very large blue bird"]
REAL = ["PE-Core-T-16-384", "PE-Core-B-16", "ViT-B-16-SigLIP2", "MobileCLIP2-B", "ViT-B-32"]


def frames_for(encoder, count=3):
    return np.random.default_rng(0).integers(0, 256, (count, *encoder.image_size, 3), dtype=np.uint8)


def same(found, expected):
    """Cosine and the largest difference relative to the largest value; float16 keeps 11 bits of the activations."""
    assert torch.nn.functional.cosine_similarity(found, expected).min() >= 0.9999
    assert (found - expected).abs().max() <= 2e-3 * expected.abs().max()


@torch.inference_mode()
def check_equal(encoder, k):
    top = ClipTop.from_open_clip(encoder.model, k).eval()
    embeds, tokens = encoder.embed_frames_caching(frames_for(encoder), k)
    assert tokens.shape[1:] == encoder.activation_shape
    same(top.frame_embeds(torch.from_numpy(tokens).float()), embeds)
    same(encoder.embed_frames(frames_for(encoder)), embeds)
    text_embeds, cached = encode_sentences(encoder, SENTENCES, 3, cache_blocks=k)
    for sentence, expected, activations in zip(SENTENCES, text_embeds, cached, strict=True):
        found = top.text_embeds(torch.from_numpy(activations)[None].float(), torch.tensor([len(activations)]))
        same(found, expected[None])
        same(encoder.model.encode_text(encoder.tokenizer([sentence])), expected[None])  # open_clip, uncut
    sizes = sum(part.nbytes for part in (tokens, *cached))
    assert token_bytes(encoder.model, len(tokens), sum(map(len, cached)), "float16") == sizes


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    made = {}

    def get(name):
        if name not in made:
            made[name] = untrained(register(name, tmp_path_factory.mktemp(name)))
        return made[name]

    return get


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("k", [1, 2, 4])
def test_tokens_through_the_top_blocks_equal_the_encoder(small, name, k):
    check_equal(small(name), k)


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_real_sizes_equal_the_encoder(name, monkeypatch):
    if "SigLIP" in name:
        monkeypatch.setattr(open_clip, "get_tokenizer", lambda _: open_clip.SimpleTokenizer(context_length=64))
    encoder = untrained(name)
    for k in (1, 2, 4):
        check_equal(encoder, k)


@pytest.mark.parametrize("name", SMALL)
@torch.inference_mode()
def test_lower_blocks_lead_from_the_cache_to_the_top(small, name):
    encoder = small(name)
    lower = LowerBlocks.from_open_clip(encoder.model, 4, 1)
    deep, high = (encoder.embed_frames_caching(frames_for(encoder, 1), k)[1] for k in (4, 1))
    same(lower.image(torch.from_numpy(deep).float()).flatten(1), torch.from_numpy(high).float().flatten(1))
    deep, high = (encode_sentences(encoder, SENTENCES[:1], 1, cache_blocks=k)[1][0] for k in (4, 1))
    same(lower.text(torch.from_numpy(deep)[None].float())[0], torch.from_numpy(high).float())


@pytest.mark.parametrize("name", SMALL)
def test_every_unfrozen_parameter_gets_the_whole_models_gradient(small, name):
    """Against backward through all of open_clip's model; with and without checkpointing."""
    encoder = small(name)
    frames = frames_for(encoder, 2)
    _, tokens = encoder.embed_frames_caching(frames, 2)
    _, cached = encode_sentences(encoder, SENTENCES[:1], 1, cache_blocks=2)
    whole = WholeClip(encoder)
    text = encoder.tokenizer(SENTENCES[:1])
    loss = encoder.model.encode_text(text).sin().sum() + whole.frame_embeds(torch.from_numpy(frames)).sin().sum()
    loss.backward()
    try:
        for checkpointing in (False, True):
            top = ClipTop.from_open_clip(encoder.model, 2)
            top.set_gradient_checkpointing(checkpointing)
            texts = top.text_embeds(torch.from_numpy(cached[0])[None].float(), torch.tensor([len(cached[0])]))
            (top.frame_embeds(torch.from_numpy(tokens).float()).sin().sum() + texts.sin().sum()).backward()
            assert {name for name, own in top.named_parameters() if own.grad is None} == set()
            expected = dict(views(encoder.model))
            assert expected.keys() == dict(top.named_parameters()).keys()
            for parameter_name, own in top.named_parameters():
                other = expected[parameter_name].grad
                assert (own.grad - other).abs().max() <= 2e-2 * other.abs().max() + 1e-6, parameter_name
    finally:
        encoder.model.zero_grad(set_to_none=True)
        encoder.model.requires_grad_(False)


def views(model):
    from dits_head.clip_top import _views

    for tower, view in zip(("image", "text"), _views(model, 2), strict=True):
        yield from ((f"{tower}.{name}", parameter) for name, parameter in view.named_parameters())


@pytest.mark.parametrize("name", ["small-pe", "small-sig2", "small-mobileclip2-b"])
def test_training_lowers_the_loss_and_moves_the_top_alone(small, name, tmp_path):
    encoder = small(name)
    before = {key: value.clone() for key, value in encoder.model.state_dict().items()}
    torch.manual_seed(0)
    top = ClipTop.from_open_clip(encoder.model, 1).train()
    head = RetrievalHead(HeadConfig(head="mean-pool", dim=encoder.dim))
    joint = JointModel(head, top)
    _, tokens = encoder.embed_frames_caching(frames_for(encoder, 4), 1)
    _, cached = encode_sentences(encoder, SENTENCES, 4, cache_blocks=1)
    lengths = torch.tensor([len(one) for one in cached])
    texts = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(one).float() for one in cached], batch_first=True)
    batch = (texts, lengths, torch.from_numpy(tokens).float()[:, None], torch.ones(4, 1, dtype=torch.bool))
    optimizer = torch.optim.AdamW(joint.parameters(), lr=1e-3)
    losses = []
    for _ in range(6):
        loss, _ = joint.training_loss(*batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < losses[0] - 0.01
    # written back: the model gives what the top gives, and nothing below the top has moved
    tuned = load_encoder(name, device="cpu", precision="float32", random_seed=0)
    tuned.model.load_state_dict(before)
    top.eval().write_back(tuned.model)
    with torch.inference_mode():
        same(tuned.embed_frames(frames_for(encoder, 4)), top.frame_embeds(batch[2])[:, 0])
        same(tuned.embed_texts(SENTENCES), top.text_embeds(texts, lengths))
    trained = {parameter_name for parameter_name, _ in trained_names(tuned.model)}
    moved = {key for key, value in tuned.model.state_dict().items() if not torch.equal(value, before[key])}
    assert moved <= trained
    assert len(moved) > 0.8 * len(trained)


def trained_names(model):
    from dits_head.clip_top import _views

    tops = {id(parameter) for view in _views(model, 1) for parameter in view.parameters()}
    return [(name, parameter) for name, parameter in model.named_parameters() if id(parameter) in tops]


@pytest.mark.parametrize(("name", "depth"), [("small-pe", 4), ("small-sig2", 4), ("small-clipa", 4)])
def test_levels_of_the_whole_model(small, name, depth):
    """Layer-wise rates see the blocks of timm's towers; what stands on top is in no level, the rest in the lowest."""
    encoder = small(name)
    whole = WholeClip(encoder)
    try:
        levels = whole.levels()
        assert len(levels) == depth + 1
        leveled = {id(parameter) for level in levels for parameter in level.parameters()}
        on_top = {
            key for key, value in encoder.model.named_parameters() if value.requires_grad and id(value) not in leveled
        }
        assert on_top
        assert {key for key, _ in trained_names(encoder.model) if "blocks" not in key} - on_top == set()
        assert not any("embed" in key.split(".")[-1] and "pool" not in key for key in on_top)
    finally:
        encoder.model.requires_grad_(False)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("MobileCLIP2-S0", r"FastVit.*only the last \(2 attention blocks, stages\[3\]\) could be"),
        ("convnext_tiny", "ConvNeXt.*convolutions to the last"),
        ("RN50", "ModifiedResNet"),
        ("coca_ViT-B-32", "CoCa"),
    ],
)
def test_other_towers_are_refused_with_the_reason(name, reason):
    with torch.device("meta"):  # what a tower is shows without its weights
        model = open_clip.create_model(name, pretrained=None, load_weights=False, device="meta")
    with pytest.raises(BadInput, match=reason) as refused:
        require_cacheable(model, name, 1)
    assert "\n" not in str(refused.value).split("Fix:")[0].strip()


def test_more_blocks_than_the_shallower_tower_has_are_refused(small):
    with pytest.raises(BadInput, match="the image tower of small-pe has 4 blocks"):
        require_cacheable(small("small-pe").model, "small-pe", 5)
