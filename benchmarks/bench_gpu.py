"""Every stage on one device in one table: rates, peak memory, and the fraction of what the device can do.

    python benchmarks/bench_gpu.py --out bench-gpu.md               # `make bench-gpu`: under ten minutes on one H100
    python benchmarks/bench_gpu.py --device cpu --tiny              # a dry run: does every line still work?

Needs no network and no data; what is missing (open_clip, FAISS, PyAV) leaves its lines out, and the table says so. The
limits are measured in the same run: memory bandwidth by a large copy, peak FLOP/s by a large matrix product in the
line's own precision. A line's FLOPs are counted by torch on one call; "of peak" is FLOPs over seconds over that peak.
"""

from __future__ import annotations

import argparse
import importlib.util
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dits_head.config import HeadConfig
from dits_head.head import RetrievalHead, build_head

PAIRS, EPOCHS, BATCH = 180_000, 5, 32  # the paper's recipe for MSR-VTT 1k-A
FRAMES, DIM = 12, 512


@dataclass(frozen=True)
class Line:
    """One row of the table."""

    stage: str
    what: str
    rate: str
    peak_mb: float | None = None
    of_peak: float | None = None


class Device:
    """A device, its measured limits, and timing that waits for it."""

    def __init__(self, name: str, tiny: bool) -> None:
        self.device, self.tiny = torch.device(name), tiny
        self.cuda = self.device.type == "cuda"
        self.dim = 32 if tiny else DIM
        size = 256 if tiny else 8192
        self.peak = {dtype: self._matmul(size, dtype) for dtype in self.dtypes}
        self.bandwidth = self._copy(1 << (20 if tiny else 30))

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        return (torch.float32, torch.bfloat16) if self.tiny or not self.cuda else (
            torch.float32, torch.bfloat16, torch.float16
        )  # fmt: skip

    def seconds(self, work: Callable[[], object], repeats: int = 10) -> float:
        """Seconds of one call: the mean of `repeats` after a first, the device waited for."""
        if self.tiny:
            repeats = 1
        work()
        self.wait()
        began = time.perf_counter()
        for _ in range(repeats):
            work()
        self.wait()
        return (time.perf_counter() - began) / repeats

    def wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize(self.device)

    @contextmanager
    def peak_memory(self) -> Iterator[Callable[[], float | None]]:
        """Gives a function that tells the peak MB allocated since; None on a CPU."""
        if self.cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
        yield lambda: torch.cuda.max_memory_allocated(self.device) / 1e6 if self.cuda else None

    def _matmul(self, size: int, dtype: torch.dtype) -> float:
        left = torch.randn(size, size, device=self.device, dtype=dtype)
        return 2 * size**3 / self.seconds(lambda: left @ left)

    def _copy(self, count: int) -> float:
        source = torch.zeros(count, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        return 2 * count / self.seconds(lambda: target.copy_(source))

    def of_peak(self, work: Callable[[], object], seconds: float, dtype: torch.dtype) -> float:
        """The fraction of the device's own matrix products' rate at which `work` runs."""
        with FlopCounterMode(display=False) as counter:
            work()
        return counter.get_total_flops() / seconds / self.peak[dtype]


def encoding(device: Device) -> Iterator[Line]:
    """Stage 1: uint8 frames on the host to embeddings, by model and precision."""
    from pipeline.clip.encoder import load_encoder

    models = ["shapes-clip"] if device.tiny else ["ViT-B-32", "ViT-B-16", "ViT-L-14"]
    for model in models:
        for dtype in device.dtypes:
            name = str(dtype).removeprefix("torch.")
            seed = None if model == "shapes-clip" else 0
            encoder = load_encoder(model, device=str(device.device), precision=name, random_seed=seed)
            frames = torch.randint(0, 256, (8 if device.tiny else 512, *encoder.image_size, 3), dtype=torch.uint8)
            if device.cuda:
                frames = frames.pin_memory()
            with device.peak_memory() as peak:
                seconds = device.seconds(partial(encoder.embed_frames, frames))
                part = device.of_peak(partial(encoder.embed_frames, frames), seconds, dtype)
                yield Line(
                    "encode",
                    f"{model}, {name}, batch {len(frames)}",
                    f"{len(frames) / seconds:,.0f} frames/s",
                    peak(),
                    part,
                )


def decoding(device: Device) -> Iterator[Line]:
    """Stage 1: clips of the built-in data set to frames, on the CPU's cores."""
    from pipeline.datasets.manifests import dataset_manifest
    from pipeline.extract.corpus import extract_manifest
    from pipeline.extract.settings import ExtractSettings
    from pipeline.workspace import Workspace

    clips = 4 if device.tiny else 400
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(Path(folder))
        manifest = dataset_manifest(workspace, "shapes", None, None, None, {"train": clips, "val": 2, "test": 2})
        began = time.perf_counter()
        extract_manifest(workspace, manifest, ExtractSettings(device=str(device.device)))
        seconds = time.perf_counter() - began
    yield Line("extract", f"{clips + 4} clips of `shapes`, whole stage", f"{(clips + 4) / seconds:,.1f} clips/s")


def random_features(
    videos: int, texts: int, dim: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    frames = torch.randn(videos, FRAMES, dim, generator=generator)
    text = frames[torch.arange(texts) % videos, :3].mean(1) + torch.randn(texts, dim, generator=generator)
    return text.to(device), frames.to(device), torch.ones(videos, FRAMES, dtype=torch.bool, device=device)


def training(device: Device) -> Iterator[Line]:
    """Stage 2: steps of a head alone through the batches and the step of `train-head`, and the recipe's time."""
    from pipeline.train.batches import BatchSource, PairData, epoch_batches
    from pipeline.train.loop import parameter_groups
    from pipeline.train.precision import products

    videos = 64 if device.tiny else 9000
    text, frames, mask = (x.numpy() for x in random_features(videos, 20 * videos, device.dim, torch.device("cpu")))
    own = torch.arange(len(text)).numpy() % videos
    data = PairData(text, frames.astype("float16"), mask, own, torch.arange(len(text)).numpy())
    for name in ("xpool", "mlp", "dits"):
        for batch, precision in product(
            (BATCH,) if device.tiny else (BATCH, 256, 1024),
            ("float32", "tf32", "bfloat16") if device.cuda else ("float32", "bfloat16"),
        ):
            torch.manual_seed(0)
            head = build_head(HeadConfig(head=name, dim=device.dim)).to(device.device).train()
            optimizer = torch.optim.AdamW(parameter_groups(head, 0.2), lr=3e-5, fused=True)
            source = BatchSource(data, device.device, free_bytes=1 << 40)
            stream = source.batches(epoch_batches(len(data), batch, 24, 0))

            def step(
                head: RetrievalHead = head, optimizer: Any = optimizer, stream: Any = stream, precision: str = precision
            ) -> None:
                with torch.autocast(device.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
                    loss, _ = head.training_loss(**next(stream))
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
                optimizer.step()

            with device.peak_memory() as peak, products(precision, device.device):
                seconds = device.seconds(step, repeats=100)
                part = device.of_peak(step, seconds, torch.float32)
                recipe = seconds * EPOCHS * PAIRS / batch
                rate = f"{seconds * 1e3:.2f} ms/step; {EPOCHS} x {PAIRS:,} pairs: {recipe:,.0f} s"
                yield Line("train a head", f"{name}, {precision}, batch {batch}", rate, peak(), part)


def joint(device: Device) -> Iterator[Line]:
    """Stage 2: steps of a head with CLIP's top blocks, from cached activations."""
    from dits_head.clip_top import ClipTop
    from dits_head.joint import JointModel
    from pipeline.clip.encoder import load_encoder

    model = "shapes-clip" if device.tiny else "ViT-B-32"
    encoder = load_encoder(model, device="cpu", precision="float32", random_seed=None if device.tiny else 0)
    batch = 4 if device.tiny else BATCH
    frames = torch.zeros(batch * FRAMES, *encoder.image_size, 3, dtype=torch.uint8).numpy()
    for k in (1,) if device.tiny else (1, 4):
        _, tokens = encoder.embed_frames_caching(frames, k)
        towers = ClipTop.from_open_clip(encoder.model, k)
        width = int(encoder.model.ln_final.weight.shape[0])
        head = build_head(HeadConfig(head="xpool", dim=encoder.settings["embed_dim"]))
        module = JointModel(head, towers).to(device.device).train()
        given = {
            "text_inputs": torch.randn(batch, 16, width, device=device.device),
            "text_lengths": torch.full((batch,), 16, device=device.device),
            "frame_inputs": torch.from_numpy(tokens).float().unflatten(0, (batch, FRAMES)).to(device.device),
            "frame_mask": torch.ones(batch, FRAMES, dtype=torch.bool, device=device.device),
        }
        optimizer = torch.optim.AdamW(module.parameters(), lr=1e-5, fused=True)

        def step(module: Any = module, given: Any = given, optimizer: Any = optimizer) -> None:
            with torch.autocast(device.device.type, torch.bfloat16):
                loss, _ = module.training_loss(**given)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

        with device.peak_memory() as peak:
            seconds = device.seconds(step)
            part = device.of_peak(step, seconds, torch.bfloat16)
            yield Line(
                "train jointly",
                f"{model}, top {k}, batch {batch}, bfloat16",
                f"{seconds * 1e3:.1f} ms/step",
                peak(),
                part,
            )


@torch.inference_mode()
def scoring(device: Device) -> Iterator[Line]:
    """Stage 3: exact scores of all texts with all videos, and how many ranks half-precision products change."""
    count = 64 if device.tiny else 10_000
    text, frames, mask = random_features(count, count, device.dim, device.device)
    head = build_head(HeadConfig(head="xpool", dim=device.dim)).to(device.device).eval().requires_grad_(False)
    own = torch.arange(count, device=device.device)
    ranks = {}
    for precision in ("highest", "high"):
        torch.set_float32_matmul_precision(precision)

        def score() -> torch.Tensor:
            return head.score(text, frames, mask)

        with device.peak_memory() as peak:
            seconds = device.seconds(score, repeats=1)
            part = device.of_peak(score, seconds, torch.float32)
            sims = score()
            ranks[precision] = (sims > sims[own, own][:, None]).sum(1)
            differ = int((ranks[precision] != ranks["highest"]).sum())
            name = "float32" if precision == "highest" else "TF32 products"
            rate = (
                f"{seconds:.2f} s; {count**2 / seconds:,.0f} pairs/s; {differ} of {count} ranks differ from float32's"
            )
            yield Line("score", f"{count:,} x {count:,} x {FRAMES} x {device.dim}, {name}", rate, peak(), part)
    torch.set_float32_matmul_precision("highest")


def indexing(device: Device) -> Iterator[Line]:
    """Stage 3: FAISS build and search, on the GPU where this FAISS has one."""
    import faiss
    import numpy as np

    count, width = 2_000 if device.tiny else 1_000_000, device.dim
    vectors = np.random.default_rng(0).standard_normal((count, width)).astype(np.float32)
    faiss.normalize_L2(vectors)
    on_gpu = device.cuda and hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0
    for factory in ("Flat", "IVF16,Flat" if device.tiny else "IVF4096,Flat"):
        index = faiss.index_factory(width, factory, faiss.METRIC_INNER_PRODUCT)
        began = time.perf_counter()
        if on_gpu:
            index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), device.device.index or 0, index)
        index.train(vectors[: 50 * 4096])
        index.add(vectors)
        built = time.perf_counter() - began
        queries = vectors[:1000]
        seconds = device.seconds(partial(index.search, queries, 10), repeats=3)
        place = "GPU" if on_gpu else "CPU"
        yield Line(
            "index", f"{factory}, {count:,} x {width}, {place}", f"build {built:.1f} s; {1000 / seconds:,.0f} queries/s"
        )


PARTS: dict[str, tuple[Callable[[Device], Iterator[Line]], tuple[str, ...]]] = {
    "encode": (encoding, ("open_clip",)),
    "extract": (decoding, ("open_clip", "av", "pyarrow", "h5py")),
    "train": (training, ("lightning_fabric",)),
    "joint": (joint, ("open_clip",)),
    "score": (scoring, ()),
    "index": (indexing, ("faiss",)),
}


def table(device: Device, lines: list[Line], left_out: list[str]) -> str:
    name = torch.cuda.get_device_name(device.device) if device.cuda else f"CPU ({platform.machine()})"
    peaks = ", ".join(f"{str(k).removeprefix('torch.')} {v / 1e12:.2f}" for k, v in device.peak.items())
    rows = [
        f"| {line.stage} | {line.what} | {line.rate} | {'' if line.peak_mb is None else f'{line.peak_mb:,.0f}'} | "
        f"{'' if line.of_peak is None else f'{100 * line.of_peak:.1f} %'} |"
        for line in lines
    ]
    missing = [f"Left out: {reason}." for reason in left_out]
    return "\n".join(
        [
            f"Device: {name}; torch {torch.__version__}. Measured limits: matrix products (TFLOP/s) {peaks}; "
            f"memory {device.bandwidth / 1e9:,.0f} GB/s.",
            "",
            "| stage | what | rate | peak MB | of peak FLOP/s |",
            "| --- | --- | --- | ---: | ---: |",
            *rows,
            "",
            *missing,
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="sizes for a dry run")
    parser.add_argument("--only", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--out", type=Path, help="write the table here too")
    args = parser.parse_args()
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit("no GPU here: give --device cpu --tiny for a dry run")
    if args.tiny:
        torch.set_num_threads(1)
    if importlib.util.find_spec("torchvision"):
        from pipeline.clip.torchvision_guard import ensure

        ensure()
    device, lines, left_out = Device(args.device, args.tiny), [], []
    for name in args.only.split(","):
        part, needs = PARTS[name]
        if missing := [module for module in needs if importlib.util.find_spec(module) is None]:
            left_out.append(f"{name}, for want of {', '.join(missing)}")
            continue
        for line in part(device):
            lines.append(line)
            print(f"{line.stage}: {line.what}: {line.rate}", file=sys.stderr, flush=True)
    text = table(device, lines, left_out)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
