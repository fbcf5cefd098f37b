"""From a local file of random weights to a tuned head, an index and a search, by the command line: PE-Core, SigLIP 2.

The towers are small ones of the same kind (tests/modern_models.py); SigLIP's tokenizer is one of words, made here.
"""

import json

import pytest
import torch
from command_line import run
from modern_models import open_clip, register, save_tokenizer, save_weights, untrained
from safetensors.torch import load_file

QUERY = "a small red circle"


@pytest.mark.parametrize("name", ["small-pe", "small-sig2-words"])
def test_from_weights_to_a_search(name, tmp_path):
    weights = tmp_path / "model" / "weights.safetensors"
    weights.parent.mkdir()
    tokenizer = None
    if name == "small-sig2-words":
        tokenizer = str(save_tokenizer(weights.parent))  # beside the weights, where it is found
    encoder = untrained(register(name, tmp_path), tokenizer=tokenizer)
    save_weights(encoder, weights)
    at = ("--workspace", tmp_path / "workspace")
    data = ("--dataset", "shapes", "--option", "train=24", "--option", "val=4", "--option", "test=8")
    which = ("--model", name, "--pretrained", weights, "--precision", "float32", "--device", "cpu")
    frames = ("--num-frames", 4, "--sampling", "ends", "--cache-blocks", 2, "--workers", 1)
    extracted = json.loads(run("extract", *data, *which, *frames, *at, "--json").stdout)
    assert (extracted["done"], extracted["failed"]) == (36, 0)
    train = ("--head", "xpool", "--train-blocks", 1, "--epochs", 1, "--batch-size", 32, "--run", "tuned")
    trained = json.loads(run("train-head", *train, *at, "--json").stdout)
    assert trained["run"] == "tuned"
    shown = run("evaluate", "--index", *at).stdout
    rows = [line.split() for line in shown.splitlines()]
    assert [row[0] for row in rows if row and row[0] in ("tuned", "zero-shot")][:2] == ["tuned", "zero-shot"]
    metrics = json.loads((tmp_path / "workspace" / "reports" / "shapes" / "tuned" / "metrics.json").read_text())
    plain = json.loads(run("evaluate", "--run", "zero-shot", "--encoder", f"{name}-weights", *at, "--json").stdout)
    assert metrics["zero_shot"] == {direction: plain[direction] for direction in ("t2v", "v2t")}
    assert run("search", QUERY, *at).stdout.count(".mp4") >= 8

    out = tmp_path / "clip.safetensors"
    run("export-clip", "tuned", out, *at)
    alone = open_clip.create_model(name, pretrained=str(out)).eval()
    before, after = load_file(weights), alone.state_dict()
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert moved
    assert not any("blocks.0." in key or "embed" in key for key in moved)
    from pipeline.resolve import resolve_store
    from pipeline.workspace import Workspace

    texts = resolve_store(Workspace(tmp_path / "workspace")).store.texts("test")
    with torch.inference_mode():
        embeds = alone.encode_text(encoder.tokenizer(texts.captions))
    cosines = torch.nn.functional.cosine_similarity(embeds, torch.from_numpy(texts.text_embeds))
    assert cosines.min() >= 0.9999


def test_captions_beyond_the_context_are_said(tmp_path, caplog):
    """PE reads 32 tokens; 2 of 3 captions have more."""
    from pipeline.extract.driver import _say_cut
    from pipeline.extract.settings import ExtractSettings

    encoder = untrained(register("small-pe", tmp_path))
    captions = ["a dog", "a dog and a cat " * 8, "a bird on a red engine " * 9]
    _say_cut(captions, ExtractSettings(model="small-pe"), encoder)
    assert "2 of 3 captions are longer than the 32 tokens that small-pe reads, and are cut" in caplog.text
    caplog.clear()
    _say_cut(captions, ExtractSettings(model="small-pe", long_captions="windows"), encoder)
    assert caplog.text == ""
