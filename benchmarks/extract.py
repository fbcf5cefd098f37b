"""Stage 1 whole: does the slower part bound it, how does it compare with clip-video-encode's way, is memory flat?

    python benchmarks/extract.py [--clips 24] [--model ViT-B-32] [--memory 200 2000] [--clip-video-encode DIR]

Untrained weights (speed does not depend on them), generated H.264 clips of 10 s at 640 x 360. "one after the other" is
the plain way: decode a clip in sequence, prepare its frames one by one with open_clip's PIL transform, encode that
clip's frames in float32, next clip. --clip-video-encode runs that program itself, on the same clips and weights and as
many frames of each, from a folder of its own, because its pins do not agree with current libraries:

    pip install --no-deps --target DIR clip-video-encode==1.3.0 video2numpy==2.3.0 ffmpeg-python webdataset==1.0.2 \\
        braceexpand fire termcolor youtube_dl opencv-python-headless

Loading the model is left out of everybody's time. --memory extracts that many tiny clips with a small encoder and
prints the driver's peak memory for each count.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.decode import CODECS, RATE, make
from pipeline.clip.encoder import Encoder, load_encoder
from pipeline.extract.benchmark import benchmark
from pipeline.extract.settings import ExtractSettings
from pipeline.stores.manifest import Manifest, VideoEntry
from pipeline.video.sampling import middle_indices

FRAMES = 12

_MEMORY_RUN = """
import resource, sys
from pathlib import Path
from pipeline.extract.driver import extract
from pipeline.clip.encoder import load_encoder
from pipeline.extract.settings import ExtractSettings
from pipeline.stores.manifest import Manifest, VideoEntry
clip, store, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
entries = tuple(VideoEntry(str(number), clip, "corpus", (f"caption {number % 50}",)) for number in range(count))
encoder = load_encoder("ViT-S-32-alt", random_seed=0, device="cpu")
extract(Manifest("memory", "/", entries), store, ExtractSettings(num_frames=4), encoder=encoder)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""

_CLIP_VIDEO_ENCODE = """
import sys, time
from pipeline.clip import torchvision_guard
torchvision_guard.ensure()
import open_clip
model, weights, every, out, *clips = sys.argv[1:]
loaded = open_clip.create_model_and_transforms(model, pretrained=weights)
open_clip.create_model_and_transforms = lambda *args, **kwargs: loaded
from clip_video_encode import clip_video_encode
began = time.perf_counter()
clip_video_encode(clips, out, take_every_nth=int(every), frame_workers=2, frame_memory_size=0.5,
                  oc_model_name=model, pretrained=weights)
print("seconds", time.perf_counter() - began)
"""


def one_after_the_other(paths: list[Path], encoder: Encoder, seconds: int) -> float:
    """Seconds for all clips, decoding and encoding in turn."""
    import open_clip  # after the encoder's loading has made torchvision importable

    transform: Any = open_clip.image_transform(encoder.image_size, is_train=False)
    wanted = set(middle_indices(seconds * RATE, FRAMES))
    started = time.perf_counter()
    for path in paths:
        with av.open(str(path)) as container:
            frames = [
                transform(Image.fromarray(frame.to_ndarray(format="rgb24")))
                for number, frame in enumerate(container.decode(video=0))
                if number in wanted
            ]
        with torch.inference_mode():
            encoder.model.encode_image(torch.stack(frames).to(encoder.dtype))
    return time.perf_counter() - started


def clip_video_encode(paths: list[Path], encoder: Encoder, installed: Path, seconds: int, folder: Path) -> float:
    """Seconds that clip-video-encode takes for all clips; its embeddings must be as many as ours."""
    weights, out = folder / "weights.pt", folder / "clip-video-encode"
    torch.save(encoder.model.state_dict(), weights)
    out.mkdir()
    root = str(Path(__file__).resolve().parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, str(installed)])}
    every = str(seconds * RATE // FRAMES)
    command = [sys.executable, "-c", _CLIP_VIDEO_ENCODE, str(encoder.settings["model"]), str(weights), every, str(out)]
    said = subprocess.run([*command, *map(str, paths)], env=environment, check=True, stdout=subprocess.PIPE, text=True)
    rows = sum(len(np.load(path)) for path in out.glob("*.npy"))
    assert rows == FRAMES * len(paths), f"clip-video-encode made {rows} embeddings of {FRAMES * len(paths)}"
    return float(said.stdout.split()[-1])


def peak_memory(folder: Path, counts: list[int]) -> None:
    clip = folder / "tiny.mp4"
    make(clip, 1, ["-vf", "scale=128:96", "-c:v", "libx264"])
    for count in counts:
        command = [sys.executable, "-c", _MEMORY_RUN, str(clip), str(folder / f"memory{count}"), str(count)]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
        megabytes = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.strip()
        print(f"{count} clips: peak memory of the driver {megabytes} MB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--clip-video-encode", type=Path)
    parser.add_argument("--memory", type=int, nargs="*", default=[])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.memory:
            peak_memory(folder, arguments.memory)
        if not arguments.clips:
            return
        original = folder / "0.mp4"
        make(original, arguments.seconds, CODECS["h264, group 250"])
        paths = [original]
        for number in range(1, arguments.clips):
            paths.append(folder / f"{number}.mp4")
            os.link(original, paths[-1])
        encoder = load_encoder(arguments.model, random_seed=0, precision=arguments.precision)
        entries = tuple(VideoEntry(path.name, path.name, "corpus") for path in paths)
        settings = ExtractSettings(num_frames=FRAMES)
        rates = benchmark(Manifest("benchmark", name, entries), settings, clips=len(paths), encoder=encoder)
        plain_encoder = load_encoder(arguments.model, random_seed=0, precision="float32")
        plain = one_after_the_other(paths, plain_encoder, arguments.seconds)
        print(f"{arguments.model}, {encoder.settings['dtype']}, {encoder.device}, {len(paths)} clips\n{rates}")
        print(f"one after the other, float32: {FRAMES * len(paths) / plain:.1f} frames/s")
        print(f"ours is {plain / rates.whole_seconds:.2f} times as fast")
        if arguments.clip_video_encode:
            theirs = clip_video_encode(paths, plain_encoder, arguments.clip_video_encode, arguments.seconds, Path(name))
            print(f"clip-video-encode: {FRAMES * len(paths) / theirs:.1f} frames/s")
            print(f"ours is {theirs / rates.whole_seconds:.2f} times as fast")


if __name__ == "__main__":
    main()
