"""Long files as clips: cost of one pass against one sequential decode, memory, and whether `search` finds the moment.

    python benchmarks/long_video.py [--minutes 60] [--videos FOLDER] [--skip-search] [--skip-scenes]
    python benchmarks/long_video.py --films FILE... [--decode-only]

Makes a film of as many distinct scenes of a minute as --minutes says (the shapes world, 320 x 320) and, with --videos,
three films of real clips, put together and repeated to a sixth of that length (640 x 360), all at 25 frames a second.
For each, in a process of its own and in processor seconds, which change little when other programs share the machine:

    bare         every frame decoded by PyAV on one thread, none of them used
    sequential   the same, and the frames that the clips need turned to RGB and resized, as it must be done anyway
    one pass     all windows of 10 s by `decode_clips`: 12 frames of each at 224 x 224, handed over one by one
    each alone   `decode_clip` for every n-th window, times n: what a list of windows cost before

then `extract --split every:10` whole, with its peak memory; and for the film of scenes one query a scene, worded as its
first frame: is the best hit's window inside the scene?
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

ROOT = Path(__file__).resolve().parents[1]
SIDE, RATE, SCENE_SECONDS, LOOP_SECONDS, WINDOW = 320, 25, 60, 10, 10.0
ALONE = 6  # windows that are decoded alone

_BARE = """
import sys, av
with av.open(sys.argv[1]) as container:
    stream = container.streams.video[0]
    stream.thread_type, stream.codec_context.thread_count = "NONE", 1
    count = sum(1 for _ in container.decode(stream))
"""
_SEQUENTIAL = """
import sys, av
from pipeline.frame_size import FrameSize
from pipeline.video.frames import fit
every, size, count = int(sys.argv[2]), FrameSize(224, 224), 0
with av.open(sys.argv[1]) as container:
    stream = container.streams.video[0]
    stream.thread_type, stream.codec_context.thread_count = "NONE", 1
    for number, frame in enumerate(container.decode(stream)):
        if number % every == every // 2:
            count += len(fit(frame.to_ndarray(format="rgb24"), size))
"""
_ONE_PASS = """
import sys, av
from pipeline.frame_size import FrameSize
from pipeline.video.decode_pyav import Clip, FrameRequest, decode_clips
windows = [tuple(map(float, window.split(","))) for window in sys.argv[2:]]
requests = [FrameRequest(12, FrameSize(224, 224), *window) for window in windows]
count = sum(isinstance(result, Clip) for result in decode_clips(sys.argv[1], requests))
assert count == len(windows), count
"""
_IMPORTS = """
import sys, av
from pipeline.video import decode_pyav
count = 0
"""
_REPORT = """
import os, re
used = os.times()
# not getrusage's ru_maxrss, which begins with what the parent had
peak = re.search(r"VmHWM:\s+(\d+) kB", open("/proc/self/status").read())[1]
print(used.user + used.system, int(peak) // 1024)
"""


def measured(code: str, *arguments: str) -> tuple[float, int]:
    """Processor seconds and peak memory in MB of a Python process that runs `code`."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code + _REPORT, *arguments]
    seconds, memory = subprocess.run(
        command, env=environment, check=True, capture_output=True, text=True
    ).stdout.split()
    return float(seconds), int(memory)


def cli(workspace: Path, *arguments: str) -> tuple[Any, float, int]:
    """The JSON that a command prints, its processor seconds and its peak memory in MB (of its largest process)."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, str(ROOT / "cli.py"), *arguments, "--json", "--workspace", str(workspace)]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return json.loads(said.stdout), seconds, after.ru_maxrss // 1024


def film_of_scenes(path: Path, scenes: int) -> list[str]:
    """A file of `scenes` minutes, each of one scene; the queries that describe them.

    A scene is a loop of ten seconds, coded once and copied six times.
    """
    import av

    from pipeline.datasets.shapes_drawing import render
    from pipeline.datasets.shapes_world import make_scene

    rng = Random(15)
    seen: set[frozenset[tuple[str, str]]] = set()
    queries: list[str] = []
    parts: list[Path] = []
    while len(queries) < scenes:
        scene = make_scene(rng, 2, RATE * LOOP_SECONDS)
        looks = frozenset((item.colour, item.shape) for item in scene.objects)
        if looks in seen or len(looks) < 2:
            continue
        seen.add(looks)
        words = [f"a {item.colour} {item.shape}" for item in scene.objects]
        queries.append(f"{' and '.join(words)} on a {scene.background} background")
        part = path.with_name(f"part-{len(parts)}.mp4")
        with av.open(str(part), "w") as container:
            stream: Any = container.add_stream("libx264", rate=RATE, options={"preset": "veryfast", "crf": "20"})
            stream.width, stream.height, stream.pix_fmt = SIDE, SIDE, "yuv420p"
            stream.codec_context.thread_count = 1
            for number in range(scene.num_frames):
                frame = av.VideoFrame.from_ndarray(render(scene, number / (scene.num_frames - 1)), format="rgb24")
                container.mux(stream.encode(frame.reformat(width=SIDE, height=SIDE, format="yuv420p")))
            container.mux(stream.encode())
        parts.append(part)
    concatenate([part for part in parts for _ in range(SCENE_SECONDS // LOOP_SECONDS)], path)
    return queries


def films_of_clips(folder: Path, videos: Path, seconds: float) -> list[Path]:
    """Three files, each of a third of the real clips in turn, until `seconds` are full."""
    from pipeline.video.decode_ffmpeg import executable
    from pipeline.video.limits import Limits
    from pipeline.video.span import span

    fitted = "scale=640:360:force_original_aspect_ratio=decrease,pad=640:360:-1:-1,setsar=1,fps=25,format=yuv420p"
    parts = []
    for number, clip in enumerate(sorted(videos.iterdir())):
        part = folder / f"clip-{number:03d}.mp4"
        command = [
            executable(),
            "-nostdin",
            "-loglevel",
            "error",
            "-y",
            "-i",
            str(clip),
            "-t",
            "30",
            "-an",
            "-vf",
            fitted,
        ]
        command += ["-c:v", "libx264", "-preset", "veryfast", "-threads", "1", "-video_track_timescale", "12800"]
        if subprocess.run([*command, str(part)]).returncode == 0:
            parts.append(part)
    films = []
    for number in range(3):
        own, total = parts[number::3], 0.0
        listed: list[Path] = []
        while total < seconds:
            listed.append(own[len(listed) % len(own)])
            total += span(str(listed[-1]), Limits())
        films.append(folder / f"film-{number}.mp4")
        concatenate(listed, films[-1])
    return films


def concatenate(parts: list[Path], path: Path) -> None:
    from pipeline.video.decode_ffmpeg import executable

    listing = path.with_suffix(".txt")
    listing.write_text("".join(f"file '{part}'\n" for part in parts))
    command = [executable(), "-nostdin", "-loglevel", "error", "-y", "-f", "concat", "-safe", "0", "-i", str(listing)]
    subprocess.run([*command, "-c", "copy", str(path)], check=True)


def row(path: Path, workspace: Path, decode_only: bool = False) -> str:
    from pipeline.video.limits import Limits
    from pipeline.video.span import span
    from pipeline.video.windows import even_windows

    seconds = span(str(path), Limits())
    windows = [f"{start},{end}" for start, end in even_windows(seconds, WINDOW, WINDOW, WINDOW / 2)]
    imports, _ = measured(_IMPORTS, str(path))
    bare = measured(_BARE, str(path))[0] - measured("import av, sys", str(path))[0]
    sequential = measured(_SEQUENTIAL, str(path), str(round(RATE * WINDOW / 12)))[0] - imports
    one_pass, memory = measured(_ONE_PASS, str(path), *windows)
    one_pass -= imports
    decoded = [f"{bare:.1f}", f"{sequential:.1f}", f"{one_pass:.1f}"]
    decoded += [f"{one_pass / bare:.2f}", f"**{one_pass / sequential:.2f}**"]
    about: list[Any] = [path.stem, f"{seconds / 60:.0f} min, {path.stat().st_size / 1e6:.0f} MB", len(windows)]
    _, short_memory = measured(_ONE_PASS, str(path), *windows[: max(1, len(windows) // 6)])
    if decode_only:
        return "| " + " | ".join(map(str, [*about, *decoded, "", f"{memory} ({short_memory})", "", ""])) + " |"
    chosen = windows[:: max(1, len(windows) // ALONE)]
    alone = sum(measured(_ONE_PASS, str(path), window)[0] - imports for window in chosen) * len(windows) / len(chosen)
    folder = path.parent / f"only-{path.stem}"
    folder.mkdir()
    (folder / path.name).symlink_to(path.resolve())
    report, whole, peak = cli(workspace, "extract", "--videos", str(folder), "--split", "every:10")
    assert report["done"] == len(windows) == report["inputs"], report
    cells = [*about, *decoded, f"{alone:.0f}", f"{memory} ({short_memory})", f"{whole:.0f}", peak]
    return "| " + " | ".join(map(str, cells)) + " |"


def moments(workspace: Path, film: Path, queries: list[str]) -> str:
    """Index the film's clips and search for each scene."""
    cli(workspace, "index", "--dataset", f"only-{film.stem}.every-10")
    found = cli(workspace, "search", *queries, "--top", "5")[0]
    ranked = [query["hits"] for query in found["queries"]] if isinstance(found, dict) else found
    inside = [[_in_scene(hit, scene) for hit in hits] for scene, hits in enumerate(ranked)]
    first, five = sum(row[0] for row in inside), sum(any(row) for row in inside)
    return f"{len(queries)} queries: the best hit lies inside its scene for {first}, one of the first five for {five}"


def _in_scene(hit: dict[str, Any], scene: int) -> bool:
    from pipeline.stores.clip_ids import split_clip_id

    _, start, end = split_clip_id(hit["video_id"])
    assert start is not None
    assert end is not None
    times = [start, end] if hit.get("moment") is None else [start, end, hit["moment"]]
    return all(scene * SCENE_SECONDS - 0.2 <= time <= (scene + 1) * SCENE_SECONDS + 0.2 for time in times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=int, default=60)
    parser.add_argument("--videos", type=Path)
    parser.add_argument("--skip-search", action="store_true")
    parser.add_argument("--skip-scenes", action="store_true", help="the films of --videos alone")
    parser.add_argument("--films", type=Path, nargs="*", default=[], help="measure these files and make none")
    parser.add_argument("--decode-only", action="store_true", help="neither each alone nor extract")
    parser.add_argument("--folder", type=Path, help="where the films are made [default: a temporary folder]")
    arguments = parser.parse_args()
    head = [
        "film",
        "length",
        "clips",
        "bare, s",
        "sequential, s",
        "one pass, s",
        "/ bare",
        "/ sequential",
        "each alone, s",
    ]
    head += ["peak MB (of a sixth)", "extract, s", "peak MB"]
    if arguments.videos and not arguments.videos.is_dir():
        sys.exit(f"films of real clips are left out: there is no folder {arguments.videos}")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder, workspace = Path(name), Path(name) / "workspace"
        if arguments.films:
            print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|", flush=True)
            for number, path in enumerate(arguments.films):
                (folder / str(number)).mkdir()
                linked = folder / str(number) / path.name
                linked.symlink_to(path.resolve())
                print(row(linked, workspace, arguments.decode_only), flush=True)
            return
        print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|", flush=True)
        if not arguments.skip_scenes:
            film = folder / "scenes.mp4"
            queries = film_of_scenes(film, arguments.minutes)
            print(row(film, workspace), flush=True)
            if not arguments.skip_search:
                print(moments(workspace, film, queries), file=sys.stderr, flush=True)
        if arguments.videos:
            for path in films_of_clips(folder, arguments.videos, arguments.minutes * 60 / 6):
                print(row(path, workspace), flush=True)


if __name__ == "__main__":
    main()
