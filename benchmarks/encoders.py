"""Today's encoders on this machine: variants of computing, preprocessing on real frames, what padding does to a text.

    python benchmarks/encoders.py variants --models ViT-B-32,PE-Core-T-16-384,MobileCLIP2-S0
    python benchmarks/encoders.py pixels --videos FOLDER
    python benchmarks/encoders.py padding --models ViT-B-32,PE-Core-T-16-384,ViT-B-16-SigLIP
    python benchmarks/encoders.py efficiency --videos FOLDER --models ViT-B-32,PE-Core-T-16-384

`variants`: frames a second of the bare image tower, in float32, untrained; the variants take turns in one run, and each
is given as a ratio to plain eager computing: attention written out instead of fused (SDPA), channels last,
torch.compile (its compilation by the wall clock beside it). One thread, and its own processor time: what else runs on
the machine does not count. `efficiency`: a whole extraction over decoding alone and the bare model alone on the same
frames, by turns, on all cores: by the wall clock, and by the processor time of all processes; medians. `pixels`: our
frames against open_clip's own transform on decoded pictures. `padding`: the cosine between a text's embedding with its
padding and without, by family.
"""

import argparse
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel

from pipeline.clip import torchvision_guard
from pipeline.clip.encoder import frame_size, load_encoder, to_pixels
from pipeline.clip.preprocessing import agreed_preprocessing
from pipeline.extract.driver import extract
from pipeline.extract.settings import ExtractSettings
from pipeline.frame_size import FrameSize
from pipeline.stores.manifest import Manifest, VideoEntry
from pipeline.video.decode_pyav import FrameRequest, decode_clip
from pipeline.video.frames import fit
from pipeline.video.job import Job
from pipeline.video.limits import DecodeFailure
from pipeline.video.pool import Decoded, DecodePool, available_cores

torchvision_guard.ensure()
import open_clip  # noqa: E402

SUFFIXES = (".mp4", ".webm", ".mkv", ".avi", ".mov")
FAMILIES = ("ViT-B-32", "PE-Core-T-16-384", "PE-Core-L-14-336", "ViT-B-16-SigLIP2", "MobileCLIP2-B", "MobileCLIP2-S0")


def variants(name: str, batch: int, rounds: int, compiled: bool) -> None:
    """Print the rate of each variant and its ratio to eager."""
    torch.set_num_threads(1)
    encoder = load_encoder(name, device="cpu", precision="float32", random_seed=0)
    encode: Callable[[Any], Any] = encoder.model.encode_image
    pixels = torch.randn(batch, 3, *encoder.image_size)
    encoder.model.visual.to(memory_format=torch.contiguous_format)
    ways: dict[str, tuple[Callable[[Any], Any], Any, Any]] = {
        "eager": (encode, nullcontext, torch.contiguous_format),
        "attention written out": (encode, lambda: sdpa_kernel(SDPBackend.MATH), torch.contiguous_format),
        "channels last": (encode, nullcontext, torch.channels_last),
    }
    if compiled:
        ways["torch.compile"] = (torch.compile(encode), nullcontext, torch.contiguous_format)
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    with torch.inference_mode():
        for turn in range(rounds + 1):
            for way, (run, context, layout) in ways.items():
                encoder.model.visual.to(memory_format=layout)
                given = pixels.contiguous(memory_format=layout)
                started, at = time.process_time(), time.perf_counter()
                with context():
                    run(given)
                spent = time.process_time() - started
                if turn:
                    seconds[way].append(spent)
                elif way == "torch.compile":
                    compiling = time.perf_counter() - at  # the compiler runs in processes of its own
                    print(f"{name}: compiled in {compiling:.0f} s", flush=True)
    for way, turns in seconds.items():
        ratios = [eager / own for eager, own in zip(seconds["eager"], turns, strict=True)]
        print(f"{name:18} {way:22} {batch / statistics.median(turns):7.2f} frames/s, {statistics.median(ratios):.2f} x")


def pixels_of_real_frames(folder: Path, count: int) -> None:
    """Print, for each family, how far our frames are from open_clip's transform, in grey levels of 255."""
    frames: list[np.ndarray] = []
    for path in sorted(folder.rglob("*.mp4")):
        try:
            frames.extend(decode_clip(str(path), FrameRequest(2, _own_size(path))).frames)
        except DecodeFailure as failure:
            print(f"left out: {path.name} ({failure.kind})")
        if len(frames) >= count:
            break
    frames = frames[:count]
    print(f"{len(frames)} frames of {sorted({frame.shape[:2] for frame in frames})}")
    for name in FAMILIES:
        config = open_clip.get_model_config(name)
        cfg = {**open_clip.transform.PreprocessCfg().__dict__, "size": config["vision_cfg"].get("image_size", 224)}
        cfg |= agreed_preprocessing(name)
        transform = open_clip.transform.image_transform_v2(open_clip.transform.PreprocessCfg(**cfg), is_train=False)
        theirs = torch.stack([transform(Image.fromarray(frame)) for frame in frames])
        mean, std = (torch.tensor(cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
        ours = to_pixels(torch.from_numpy(np.stack([fit(frame, frame_size(cfg)) for frame in frames])), mean, std)
        levels = ((ours - theirs) * std * 255).abs()
        print(
            f"{name:18} {cfg['size']} px {cfg['resize_mode']}, {cfg['interpolation']}: largest difference "
            f"{levels.max():.2f} grey levels, {(levels > 0.5).float().mean():.1e} of the values differ"
        )


def _own_size(path: Path) -> FrameSize:
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return FrameSize(stream.height, stream.width)


def padding(names: Sequence[str]) -> None:
    """Print the cosine between embeddings with and without padding, for texts of 4 and 20 tokens, untrained."""
    for name in names:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = open_clip.create_model(name, pretrained=None, load_weights=False).eval()
        text = getattr(model, "text", model)
        context = text.positional_embedding.shape[0]
        for length in (4, 20):
            tokens = torch.ones(1, context, dtype=torch.long) if "SigLIP" in name else torch.zeros(1, context).long()
            tokens[0, :length] = torch.arange(100, 100 + length)
            tokens[0, length - 1] = 1 if "SigLIP" in name else 49407
            with torch.inference_mode():
                whole = model.encode_text(tokens)
                short = _cut(text, tokens[:, :length])
            cosine = torch.nn.functional.cosine_similarity(whole, short).item()
            print(f"{name:18} {length:2} of {context} tokens: cosine with and without padding {cosine:.6f}")


def _cut(text: Any, tokens: torch.Tensor) -> torch.Tensor:
    from pipeline.clip.text import cuttable_tower, encode_cut

    return encode_cut(text, tokens) if cuttable_tower(text) is not None else text(tokens)


def efficiency(name: str, folder: Path, clips: int, num_frames: int, rounds: int, batch: int) -> None:
    """Print what decoding alone, the bare model alone and a whole extraction of the same clips take, by turns."""
    torch.set_num_threads(available_cores())
    encoder = load_encoder(name, device="cpu", precision="float32", random_seed=0)
    paths = sorted(path for path in folder.rglob("*") if path.suffix in SUFFIXES)[:clips]
    entries = tuple(VideoEntry(path.name, str(path.relative_to(folder)), "test", ()) for path in paths)
    settings = ExtractSettings(model=name, num_frames=num_frames, batch_size=batch)
    manifest = Manifest("clips", str(folder), entries)
    jobs = [Job(row, manifest.resolve(entry)) for row, entry in enumerate(entries)]
    frames: list[np.ndarray] = []

    def decode() -> None:
        frames.clear()
        with DecodePool(jobs, settings.decoding(encoder.frame_size), settings.worker_count) as pool:
            frames.extend(frame for _, result in pool if isinstance(result, Decoded) for frame in result.frames)

    def encode() -> None:
        for first in range(0, len(frames), settings.batch_size):
            encoder.embed_frames(np.stack(frames[first : first + settings.batch_size]))

    def whole() -> None:
        with tempfile.TemporaryDirectory() as temporary:
            extract(manifest, Path(temporary) / "store", settings, encoder=encoder)

    encoder.embed_frames(np.zeros((settings.batch_size, *encoder.image_size, 3), np.uint8))  # warms up
    turns = [[_seconds(part) for part in (decode, encode, whole)] for _ in range(rounds)]
    print(f"{name}: {len(frames)} frames of {len(entries)} clips, {rounds} turns")
    for clock, what in enumerate(("wall clock", "processor")):
        rows = np.array([[part[clock] for part in turn] for turn in turns])
        decoding, encoding, both = np.median(rows, axis=0)
        sums, models = (np.median(rows[:, 2] / of) for of in (rows[:, 0] + rows[:, 1], rows[:, 1]))
        print(
            f"  {what:10} decode {decoding:6.1f} s, model {encoding:6.1f} s, whole extraction {both:6.1f} s = "
            f"{sums:.2f} x their sum, {models:.2f} x the bare model"
        )


def _seconds(work: Callable[[], None]) -> tuple[float, float]:
    """Wall clock; user and system time of this process and of the children that it waited for."""

    def used() -> float:
        own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime

    started, before = time.perf_counter(), used()
    work()
    return time.perf_counter() - started, used() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("variants", "pixels", "padding", "efficiency"))
    parser.add_argument("--models", default="ViT-B-32,PE-Core-T-16-384,MobileCLIP2-S0")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--videos", type=Path, help="a folder of videos")
    parser.add_argument("--clips", type=int, default=64, help="of `efficiency`, at most")
    parser.add_argument("--turns", type=int, default=3, help="of `efficiency`")
    parser.add_argument("--frames", type=int, default=50)
    given = parser.parse_args()
    if given.what == "variants":
        for name in given.models.split(","):
            variants(name, given.batch, given.rounds, not given.no_compile)
    elif given.what == "pixels":
        if given.videos is None:
            parser.error("pixels needs --videos FOLDER")
        pixels_of_real_frames(given.videos, given.frames)
    elif given.what == "efficiency":
        if given.videos is None:
            parser.error("efficiency needs --videos FOLDER")
        for name in given.models.split(","):
            efficiency(name, given.videos, given.clips, 8, given.turns, given.batch)
    else:
        padding(given.models.split(","))


if __name__ == "__main__":
    main()
