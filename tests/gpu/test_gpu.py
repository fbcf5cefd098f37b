"""Each stage on a GPU against the CPU. `make test-gpu` runs the GPU's half; the CPU's half keeps the tests alive."""

import numpy as np
import pytest
import torch

from dits_head.config import HeadConfig
from dits_head.head import build_head
from dits_head.inference import align_texts, pool_videos

HEADS = ("mean-pool", "xpool", "mlp", "dits")
CPU = torch.device("cpu")
needs_two = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")


@pytest.fixture(params=["cpu", "cuda"])
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU of CUDA here")
    return torch.device(request.param)


def head_of(name, device, dim=64):
    torch.manual_seed(0)
    head = build_head(HeadConfig(head=name, dim=dim))
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape))
    return head.to(device).eval()


def case(videos=150, texts=200, dim=64):
    generator = torch.Generator().manual_seed(1)
    frames = torch.randn(videos, 6, dim, generator=generator)
    text = frames[torch.arange(texts) % videos, :2].mean(1) + torch.randn(texts, dim, generator=generator)
    mask = torch.rand(videos, 6, generator=generator) > 0.2
    mask[:, 0] = True
    return text, frames, mask


@pytest.mark.parametrize("name", HEADS)
def test_scores_and_ranks_are_those_of_the_cpu(device, name):
    text, frames, mask = case()
    expected = head_of(name, CPU).score(text, frames, mask)
    found = head_of(name, device).score(text.to(device), frames.to(device), mask.to(device)).cpu()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    own = torch.arange(len(text)) % len(frames)

    def ranks(sims):
        return (sims > sims[torch.arange(len(text)), own][:, None]).sum(1)

    assert (ranks(found) != ranks(expected)).float().mean() <= 0.01


@pytest.mark.parametrize("name", HEADS)
def test_aligned_texts_and_pooled_videos_are_those_of_the_cpu(device, name):
    text, frames, mask = (x.numpy() for x in case())

    class Videos:
        frame_embeds, frame_mask = frames, mask

    for function, given in ((align_texts, text), (pool_videos, Videos)):
        expected, found = (function(head_of(name, where), given) for where in (CPU, device))
        np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def losses(device, name, steps=20, seed=0, precision="float32"):
    """The loss curve of a few steps without noise, dropout or shuffling, and the weights at the end."""
    pytest.importorskip("lightning_fabric")
    from pipeline.train.batches import BatchSource, PairData, epoch_batches
    from pipeline.train.loop import parameter_groups
    from pipeline.train.precision import products

    text, frames, mask = (x.numpy() for x in case())
    own, sentence = np.arange(len(text)) % len(frames), np.arange(len(text))
    source = BatchSource(PairData(text, frames.astype(np.float16), mask, own, sentence), device, free_bytes=1 << 40)
    torch.manual_seed(seed)
    still = {"noise_train": False} if name == "dits" else {}
    head = build_head(HeadConfig(head=name, dim=64, **still)).to(device).train()
    optimizer = torch.optim.AdamW(parameter_groups(head, 0.2), lr=1e-3, fused=True)
    curve = []
    for batch in source.batches([b for epoch in range(steps) for b in epoch_batches(len(text), 100, 1, epoch)][:steps]):
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"), products(precision, device):
            loss, _ = head.training_loss(**batch)
        optimizer.zero_grad(set_to_none=True)
        with products(precision, device):
            loss.backward()
        optimizer.step()
        curve.append(loss.item())
    return curve, head.state_dict()


@pytest.mark.parametrize("name", ["xpool", "mlp", "dits"])
def test_the_loss_curve_is_that_of_the_cpu(device, name):
    expected, _ = losses(CPU, name)
    found, _ = losses(device, name)
    np.testing.assert_allclose(found, expected, rtol=2e-3)
    assert found[-1] < found[0]


@pytest.mark.parametrize("name", ["xpool", "mlp", "dits"])
@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
def test_the_loss_curve_in_a_faster_precision_is_that_of_float32(device, name, precision):
    if precision == "tf32" and device.type == "cpu":
        pytest.skip("TF32 is a GPU's")
    expected, _ = losses(CPU, name)
    found, _ = losses(device, name, precision=precision)
    np.testing.assert_allclose(found, expected, rtol=2e-2, atol=1e-2 * expected[0])  # the curve falls to a fiftieth


def test_an_index_on_the_gpu_finds_what_the_cpu_finds():
    pytest.importorskip("faiss")
    from pipeline.retrieve.index import IndexSpec, build, gpu_count
    from pipeline.retrieve.updates import mean_recall

    if gpu_count() == 0:
        pytest.skip("no GPU that FAISS can use")
    vectors = np.random.default_rng(0).standard_normal((20_000, 64)).astype(np.float16)
    for factory, search in (("Flat", {}), ("IVF64,Flat", {"nprobe": 16}), ("IVF64,SQ8", {"nprobe": 16})):
        cpu, gpu = (build(vectors, IndexSpec(factory, search), gpu=where) for where in (None, 0))
        expected = cpu.search(vectors[:100], 10)[1]
        assert gpu.keep_on_gpu(0)
        assert mean_recall(gpu.search(vectors[:100], 10)[1], expected) >= 0.97


def test_two_runs_end_with_the_same_weights(device):
    (first, weights), (second, same) = losses(device, "dits"), losses(device, "dits")
    assert first == second
    assert [name for name in weights if not torch.equal(weights[name], same[name])] == []


def test_embeddings_are_those_of_the_cpu(device):
    pytest.importorskip("open_clip")
    from pipeline.clip.encoder import load_encoder

    frames = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
    captions = ["a small red circle", "a star"]
    full = load_encoder("shapes-clip", device="cpu", precision="float32")
    there = load_encoder("shapes-clip", device=str(device))
    for expected, found in (
        (full.embed_frames(frames), there.embed_frames(frames)),
        (full.embed_texts(captions), there.embed_texts(captions)),
    ):
        agreement = torch.nn.functional.cosine_similarity(expected.float().cpu(), found.float().cpu())
        assert agreement.min() >= 0.999


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU of CUDA here")
def test_scoring_goes_on_when_the_gpu_runs_out_of_memory():
    pytest.importorskip("pyarrow")
    from pipeline.retrieve.scorer import Scorer
    from pipeline.stores.features import VideoFeatures

    text, frames, mask = case(videos=20_000, texts=8)
    names = [str(n) for n in range(len(frames))]
    videos = VideoFeatures(
        names, names, ["test"] * len(names), frames.half().numpy(), mask.numpy(), np.zeros(mask.shape)
    )
    expected = Scorer(head_of("xpool", CPU), videos).full(text.numpy())
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 150e6) / total)
    try:
        scorer = Scorer(head_of("xpool", torch.device("cuda")), videos, memory_limit=10**12)
        assert scorer.block < len(names)
        np.testing.assert_allclose(scorer.full(text.numpy()), expected, atol=1e-5)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@needs_two
def test_training_on_two_gpus_equals_one(tmp_path):
    """As `tests/train/test_devices.py` has it for two processes on a CPU."""
    pytest.importorskip("lightning_fabric")
    import json
    import subprocess
    import sys
    from pathlib import Path

    script = Path(__file__).parents[1] / "devices_script.py"
    losses = {}
    for devices in (1, 2):
        place = tmp_path / str(devices)
        subprocess.run([sys.executable, script, place, str(devices), "mlp", "cuda"], check=True, timeout=120)
        losses[devices] = json.loads((place / "losses.json").read_text())
    np.testing.assert_allclose(losses[1], losses[2], rtol=1e-4)
