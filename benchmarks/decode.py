"""Twelve frames at 224 x 224 from a clip, by several decoders: milliseconds a clip, and whether the frames agree.

    python benchmarks/decode.py [--rounds 3] [--only h264]

Clips are made on the fly (640 x 360, 10 s and 60 s: H.264 with groups of 250 and of 30, HEVC, VP9). Every decoder runs
on one thread, takes the same frame numbers, and resizes with the same code; the decoders take turns, round by round,
and the fastest round counts. Milliseconds are of processor time, children included: on one core that is what a clock
shows, and it does not change when other programs share the machine. `ffmpeg` is the plain way: one process, `select`
by number, raw frames through a pipe. torchcodec (0.13 beside a CPU build of torch) takes part if it can be imported.
Prints a markdown table.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.frame_size import FrameSize
from pipeline.video.decode_ffmpeg import executable
from pipeline.video.decode_pyav import FrameRequest, decode_clip
from pipeline.video.frames import fit
from pipeline.video.sampling import middle_indices

SIZE, FRAMES, RATE = FrameSize(224, 224), 12, 30
WIDTH, HEIGHT = 640, 360
CODECS = {
    "h264, group 250": ["-c:v", "libx264", "-preset", "medium", "-g", "250"],
    "h264, group 30": ["-c:v", "libx264", "-preset", "medium", "-g", "30"],
    "h264, no B, group 250": ["-c:v", "libx264", "-preset", "medium", "-g", "250", "-bf", "0"],
    "hevc": ["-c:v", "libx265", "-preset", "veryfast", "-x265-params", "log-level=none"],
    "vp9": ["-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8", "-b:v", "600k"],
}
SCENE = f"testsrc2=s={WIDTH}x{HEIGHT}:r={RATE},noise=alls=8:allf=t"  # moving shapes under fresh grain


def processor_seconds() -> float:
    """Of this process and of the children that it has waited for."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(who.ru_utime + who.ru_stime for who in usage)


def make(path: Path, seconds: int, options: list[str]) -> None:
    source = ["-f", "lavfi", "-i", SCENE, "-t", str(seconds), "-pix_fmt", "yuv420p"]
    subprocess.run([executable(), "-nostdin", "-loglevel", "error", "-y", *source, *options, str(path)], check=True)


def selective(path: Path, _: int) -> np.ndarray:
    return decode_clip(str(path), FrameRequest(FRAMES, SIZE)).frames


def pyav_in_sequence(path: Path, count: int) -> np.ndarray:
    """Decode from the start, keep the wanted frames, stop after the last one."""
    wanted, kept = middle_indices(count, FRAMES), []
    with av.open(str(path)) as container:
        stream: Any = container.streams.video[0]
        stream.thread_type, stream.codec_context.thread_count = "NONE", 1
        for number, frame in enumerate(container.decode(stream)):
            if number in wanted:
                kept.append(fit(frame.to_ndarray(format="rgb24", threads=1), SIZE))
            if number == wanted[-1]:
                break
    return np.stack(kept)


def ffmpeg_pipe(path: Path, count: int) -> np.ndarray:
    choice = "+".join(f"eq(n\\,{number})" for number in middle_indices(count, FRAMES))
    command = [executable(), "-nostdin", "-loglevel", "error", "-threads", "1", "-i", str(path)]
    command += ["-vf", f"select={choice},scale=flags=bilinear,format=rgb24", "-frames:v", str(FRAMES)]
    command += ["-fps_mode", "passthrough", "-f", "rawvideo", "-"]
    raw = subprocess.run(command, check=True, capture_output=True).stdout
    return np.stack([fit(frame, SIZE) for frame in np.frombuffer(raw, np.uint8).reshape(-1, HEIGHT, WIDTH, 3)])


def torchcodec_at_indices(path: Path, count: int) -> np.ndarray:
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(str(path), dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact")
    batch = decoder.get_frames_at(middle_indices(count, FRAMES)).data.numpy()
    return np.stack([fit(frame, SIZE) for frame in batch])


def decoders() -> dict[str, Callable[[Path, int], np.ndarray]]:
    found: dict[str, Callable[[Path, int], np.ndarray]] = {
        "selective": selective,
        "PyAV in sequence": pyav_in_sequence,
        "ffmpeg pipe": ffmpeg_pipe,
    }
    try:
        import torch
        from torchcodec.decoders import VideoDecoder  # noqa: F401

        torch.set_num_threads(1)
        found["torchcodec"] = torchcodec_at_indices
    except (ImportError, RuntimeError, OSError) as error:
        print(f"torchcodec is left out: {str(error).splitlines()[0]}", file=sys.stderr)
    return found


def measure(path: Path, count: int, rounds: int) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Milliseconds of the fastest round, and the frames, by decoder."""
    best: dict[str, float] = {}
    frames: dict[str, np.ndarray] = {}
    contestants = decoders()
    for _ in range(rounds):
        for name, decode in contestants.items():
            started = processor_seconds()
            frames[name] = decode(path, count)
            best[name] = min(best.get(name, float("inf")), 1e3 * (processor_seconds() - started))
    return best, frames


def row(name: str, seconds: int, best: dict[str, float], frames: dict[str, np.ndarray]) -> str:
    reference = frames["PyAV in sequence"].astype(int)
    difference = {other: int(np.abs(array - reference).max()) for other, array in frames.items()}
    ours = best["selective"]
    times = [f"{best[column]:.0f}" if column in best else "" for column in ("selective", *OTHERS)]
    ratios = [f"{ours / best[column]:.2f}" if column in best else "" for column in ("PyAV in sequence", "torchcodec")]
    differences = [f"{difference[column]}" if column in difference else "" for column in ("selective", "torchcodec")]
    return "| " + " | ".join([name, f"{seconds} s", *times, *ratios, *differences]) + " |"


OTHERS = ("PyAV in sequence", "ffmpeg pipe", "torchcodec")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, nargs="+", default=[10, 60])
    parser.add_argument("--only", default="", help="codecs whose name begins so")
    arguments = parser.parse_args()
    head = ["clip", "length", "selective", *OTHERS, "/ sequence", "/ torchcodec", "max diff", "max diff torchcodec"]
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    with tempfile.TemporaryDirectory() as folder:
        for seconds in arguments.seconds:
            for name, options in CODECS.items():
                if name.startswith(arguments.only):
                    path = Path(folder) / f"clip.{'webm' if name == 'vp9' else 'mp4'}"
                    make(path, seconds, options)
                    print(row(name, seconds, *measure(path, seconds * RATE, arguments.rounds)), flush=True)


if __name__ == "__main__":
    main()
