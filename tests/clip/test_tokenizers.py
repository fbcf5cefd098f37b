"""Tokenizers from a local folder, captions cut and counted, windows with every tokenizer, the text shortcut."""

import numpy as np
import pytest
import torch
from modern_models import open_clip, register, save_tokenizer, save_weights, untrained

from pipeline.clip.encoder import load_encoder
from pipeline.clip.long_captions import text_windows
from pipeline.clip.text import cuttable_tower
from pipeline.clip.tokenizers import count_cut, token_lengths
from pipeline.errors import BadInput

LONG = " ".join(["a small red circle moves left of the large blue square and the dog"] * 8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tokenizer(tmp_path_factory.mktemp("words"))


@pytest.fixture(scope="module")
def words(folder, tmp_path_factory):
    """A small SigLIP 2 with that tokenizer."""
    return untrained(register("small-sig2-words", tmp_path_factory.mktemp("model")), tokenizer=str(folder))


def test_a_folder_of_its_own_or_that_of_the_weights(folder, words, tmp_path):
    weights = save_weights(words, tmp_path / "weights.safetensors")
    with pytest.raises(BadInput, match=r"tokenizer of 'small-sig2-words' cannot be had.*--tokenizer FOLDER"):
        load_encoder("small-sig2-words", str(weights), device="cpu")
    given = load_encoder("small-sig2-words", str(weights), device="cpu", precision="float32", tokenizer=str(folder))
    save_tokenizer(tmp_path)
    beside = load_encoder("small-sig2-words", str(weights), device="cpu", precision="float32")
    assert given.settings["tokenizer_sha256"] == beside.settings["tokenizer_sha256"]
    torch.testing.assert_close(given.embed_texts(["a dog"]), beside.embed_texts(["a dog"]))
    with pytest.raises(BadInput, match=r"no tokenizer in .*expected tokenizer_config.json"):
        load_encoder("small-sig2-words", str(weights), device="cpu", tokenizer=str(tmp_path / "nowhere"))
    assert "tokenizer_sha256" not in load_encoder("shapes-clip", device="cpu", precision="float32").settings


def test_captions_that_are_cut_are_counted(words, tmp_path):
    """Against tokenising with a context that holds everything."""
    texts = ["a dog", LONG, "the red cat " * 21 + "dog", "the red cat " * 10 + "bird", ""]
    for tokenizer in (words.tokenizer, open_clip.get_tokenizer("PE-Core-B-16"), open_clip.get_tokenizer("ViT-B-32")):
        whole = tokenizer(texts, context_length=400)
        pad = 0
        lengths = [int((row != pad).sum()) for row in whole]
        assert token_lengths(tokenizer, texts) == lengths
        assert count_cut(tokenizer, texts) == sum(length > tokenizer.context_length for length in lengths)
    assert count_cut(open_clip.get_tokenizer("PE-Core-B-16"), texts) == 3
    assert count_cut(object_with_context(), texts) is None


def object_with_context():
    class Silent:
        context_length = 4

    return Silent()


def test_text_windows_lose_nothing_and_fit():
    def lengths(texts):
        return [2 + len(text) for text in texts]  # a token a character, and two marks

    assert text_windows("short", lengths, 10) == ["short"]
    text = "one two three four five six seven"
    pieces = text_windows(text, lengths, 12)
    assert " ".join(pieces) == text
    assert max(lengths(pieces)) <= 12
    assert pieces == ["one", "two three", "four five", "six seven"]  # in three, "five six seven" would not fit
    assert "".join(text_windows("a" * 25, lengths, 12)) == "a" * 25
    with pytest.raises(ValueError, match="holds no character"):
        text_windows("abc", lengths, 2)


def test_windows_with_a_tokenizer_of_its_own(words):
    """A caption that fits is as without windows; a long one is the mean direction of its pieces, of mean length."""
    cut, windowed = (words.embed_texts(["a red dog", LONG], long_captions=rule) for rule in ("cut", "windows"))
    torch.testing.assert_close(cut[0], windowed[0])
    assert torch.nn.functional.cosine_similarity(cut[1], windowed[1], dim=0) < 0.99999
    pieces = text_windows(LONG, lambda texts: token_lengths(words.tokenizer, texts), 64)
    assert len(pieces) == 2
    assert " ".join(pieces) == LONG
    each = words.embed_texts(pieces).numpy()
    lengths = np.linalg.norm(each, axis=1, keepdims=True)
    mean = (each / lengths).mean(axis=0)
    expected = mean / np.linalg.norm(mean) * lengths.mean()
    np.testing.assert_allclose(windowed[1].numpy(), expected, rtol=1e-4, atol=1e-6)


def test_padding_matters_to_siglip_and_so_nothing_is_cut(words):
    """The shortcut would give another embedding: its tower attends to the padding and reads the last position."""
    assert cuttable_tower(words.model) is None
    tokens = words.tokenizer(["a red dog"])
    assert tokens.shape == (1, 64)
    with torch.inference_mode():
        exact = words.model.encode_text(tokens)
        cut = words.model.encode_text(tokens[:, :4])
    torch.testing.assert_close(words.embed_texts(["a red dog"]), exact)
    assert torch.nn.functional.cosine_similarity(exact, cut).item() < 0.999


def test_a_causal_tower_is_cut_exactly(tmp_path):
    encoder = untrained(register("small-pe", tmp_path))
    assert cuttable_tower(encoder.model) is not None
    texts = ["a dog", LONG, "the red cat in a blue coat"]
    with torch.inference_mode():
        expected = encoder.model.encode_text(encoder.tokenizer(texts))
    torch.testing.assert_close(encoder.embed_texts(texts), expected, rtol=1e-4, atol=1e-5)
