"""Precision and recall of the scene detectors of `extract --split scenes`, within two frames.

    python benchmarks/scene_cuts.py FOLDER [--clips 12] [--films 4] [--seconds 6] [--detectors content]

Films are put together from stretches of the videos in FOLDER (any folder of clips), each of one shot as far as the
light detectors see: a cut is known to be where one stretch ends. They are coded at 320 x 180, 25 frames a second, with
hard cuts only, and with every second join as a dissolve of half a second or a second, or as a fade through black. One
cut found inside such a transition counts, a second one is a false one. The same detectors run on clips of FOLDER as
they are; there no truth is known, and the table says how many cuts each finds and how many of them another one finds
too. Every frame comes from the project's decoder, as in `extract`.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.extract.clips import scene_cuts
from pipeline.fingerprint import source_file
from pipeline.video.decode_ffmpeg import executable
from pipeline.video.decode_pyav import FrameRequest, decode_clip
from pipeline.video.limits import DecodeFailure
from pipeline.video.pool import Decoded
from pipeline.video.scenes import make_detector
from pipeline.video.windows import DETECTORS

RATE, TOLERANCE = 25, 2
KINDS = {  # name -> ffmpeg's xfade transition and its seconds, of every second join
    "hard cuts": ("", 0.0),
    "dissolves of 0.5 s": ("fade", 0.48),
    "dissolves of 1 s": ("fade", 1.0),
    "fades through black, 1 s": ("fadeblack", 1.0),
}


def found_cuts(path: Path, detector: str) -> tuple[list[float], int, float]:
    """Seconds at which scenes begin, frames of the file, processor seconds of the detector."""
    made = make_detector(detector, "cpu")
    clip = decode_clip(str(path), FrameRequest(1_000_000, made.size))
    started = time.process_time()
    pieces = [Decoded(clip.frames, clip.times, "pyav", clip.method, clip.note, 0.0, source_file(path))]
    return scene_cuts(pieces, made), len(clip.frames), time.process_time() - started


def matched(cuts: Sequence[float], truth: Sequence[tuple[float, float]]) -> int:
    """How many of the true transitions (first and last second) have a cut of their own within two frames."""
    left, hits = sorted(cuts), 0
    for first, last in truth:
        slack = TOLERANCE / RATE + 1e-6
        near = next((cut for cut in left if first - slack <= cut <= last + slack), None)
        if near is not None:
            left.remove(near)
            hits += 1
    return hits


def make_film(parts: Sequence[Path], kind: str, path: Path, seconds: float) -> list[tuple[float, float]]:
    """Join stretches of `seconds` each; the transitions, every second one of `kind`."""
    transition, fade = KINDS[kind]
    # every stream in one time base: xfade refuses others
    chain = [f"[{number}:v]settb=1/{RATE},fps={RATE}[i{number}]" for number in range(len(parts))]
    truth, total, label = [], seconds, "[i0]"
    for number in range(1, len(parts)):
        joined = f"[j{number}]"
        if transition and number % 2:
            form = f"xfade=transition={transition}:duration={fade}:offset={total - fade:.3f}"
            chain.append(f"{label}[i{number}]{form}{joined}")
            truth.append((total - fade, total))
            total += seconds - fade
        else:
            chain.append(f"{label}[i{number}]concat=n=2:v=1,settb=1/{RATE},fps={RATE}{joined}")
            truth.append((total, total))
            total += seconds
        label = joined
    inputs = [word for part in parts for word in ("-i", str(part))]
    command = [executable(), "-nostdin", "-loglevel", "error", "-y", *inputs, "-filter_complex", ";".join(chain)]
    command += ["-map", label, "-c:v", "libx264", "-preset", "veryfast", "-threads", "1", str(path)]
    subprocess.run(command, check=True)
    return truth


def stretches(videos: Sequence[Path], seconds: float, folder: Path) -> list[Path]:
    """The first `seconds` of each video, where every light detector sees one shot."""
    fitted = f"scale=320:180:force_original_aspect_ratio=decrease,pad=320:180:-1:-1,setsar=1,fps={RATE},format=yuv420p"
    kept = []
    for number, video in enumerate(videos):
        part = folder / f"part-{number}.mp4"
        command = [executable(), "-nostdin", "-loglevel", "error", "-y", "-i", str(video), "-t", str(seconds), "-an"]
        command += ["-vf", fitted, "-c:v", "libx264", "-preset", "veryfast", "-threads", "1", str(part)]
        if subprocess.run(command, stderr=subprocess.DEVNULL).returncode:
            continue
        try:
            cuts, frames, _ = found_cuts(part, "content")
        except DecodeFailure:
            continue
        if frames == round(seconds * RATE) and not cuts and not found_cuts(part, "adaptive")[0]:
            kept.append(part)
    return kept


def on_films(parts: list[Path], films: int, seconds: float, folder: Path, detectors: Sequence[str]) -> None:
    print(
        "| films | detector | cuts | gradual | precision | recall | of cuts | of gradual | frames/s |"
        + "\n|"
        + "---|" * 9
    )
    for name in KINDS:
        made = []
        for number in range(films):
            rng = Random(f"{name} {number}")
            path = folder / f"{name} {number}.mp4"
            made.append((path, make_film(rng.sample(parts, min(8, len(parts))), name, path, seconds)))
        for detector in detectors:
            hits, true, found, frames, spent = [0, 0], [0, 0], 0, 0, 0.0  # of hard cuts, of gradual transitions
            for path, truth in made:
                cuts, count, cost = found_cuts(path, detector)
                for place, kind in enumerate((False, True)):
                    own = [span for span in truth if (span[0] < span[1]) == kind]
                    hits[place], true[place] = hits[place] + matched(cuts, own), true[place] + len(own)
                found, frames, spent = found + len(cuts), frames + count, spent + cost
            recalls = [f"{h / t:.3f}" if t else "" for h, t in zip([sum(hits), *hits], [sum(true), *true], strict=True)]
            cells = [name, detector, *true, f"{sum(hits) / max(1, found):.3f}", *recalls, f"{frames / spent:.0f}"]
            print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def on_clips(videos: Sequence[Path], detectors: Sequence[str]) -> None:
    print("\n| detector | cuts in real clips | found by another too |\n|---|---|---|")
    per_clip = []
    for video in videos:
        try:
            per_clip.append({detector: found_cuts(video, detector)[0] for detector in detectors})
        except DecodeFailure as failure:
            print(f"{video.name} is left out: {failure.message}", file=sys.stderr)
    for detector in detectors:
        total = shared = 0
        for cuts in per_clip:
            others = sorted(cut for other in detectors if other != detector for cut in cuts[other])
            total += len(cuts[detector])
            shared += sum(any(abs(cut - other) <= TOLERANCE / RATE for other in others) for cut in cuts[detector])
        print(f"| {detector} | {total} | {shared} |")
    print(f"\n{len(per_clip)} clips")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--clips", type=int, default=12, help="real clips that are looked at as they are")
    parser.add_argument("--films", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=6.0, help="of each stretch")
    parser.add_argument("--detectors", nargs="+", choices=DETECTORS, default=list(DETECTORS))
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    videos = [path for path in sorted(arguments.folder.iterdir()) if path.suffix in (".mp4", ".mkv", ".webm", ".avi")]
    with tempfile.TemporaryDirectory() as name:
        parts = stretches(videos, arguments.seconds, Path(name))
        print(f"{len(parts)} stretches of one shot from {len(videos)} clips", file=sys.stderr)
        on_films(parts, arguments.films, arguments.seconds, Path(name), arguments.detectors)
    if arguments.clips:
        on_clips(videos[:: max(1, len(videos) // arguments.clips)], arguments.detectors)


if __name__ == "__main__":
    main()
