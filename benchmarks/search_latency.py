"""What a search costs as the corpus grows, cold and warm, and what the shortlist's scores cost.

    python benchmarks/search_latency.py                            1,000 and 100,000 videos of 4 x 512
    python benchmarks/search_latency.py --videos 1000 100000 1000000
    python benchmarks/search_latency.py --folder DIR --keep        corpora that stay, and are not made twice

Cold: one process that opens a synthetic workspace (real store, head and index; the encoder is left out, as it costs the
same whatever the corpus) and answers one query, as `search` does: median of --repeat processes, the sizes in turn, so
that a change of the machine's load meets all of them. Memory is that of another such process, looked at every few
milliseconds: the peak of its own (anonymous) memory, and of all that is resident, which counts the pages of mapped
files and libraries too: those the system drops when something else needs room.
Warm: one query in an open searcher, against the same query with its text padded to 32 rows and its shortlist prepared
as video blocks, which is what every search did before; in turn, in one process.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dits_head.config import HeadConfig
from dits_head.head import build_head
from pipeline.retrieve.index import IndexSpec
from pipeline.retrieve.scorer import Scorer, head_fingerprint
from pipeline.retrieve.search import Searcher, two_stage
from pipeline.retrieve.updates import Policy, Provenance, build_index
from pipeline.stores.features import FeatureStore, VideoFeatures
from pipeline.stores.generations import GenerationStore

FRAMES, DIM, SHARD = 4, 512, 4096
SETTINGS = {"model": "synthetic", "embed_dim": DIM, "num_frames": FRAMES, "decoder": "none", "dtype": "float16"}


def head():
    torch.manual_seed(0)
    return build_head(HeadConfig(head="dits", dim=DIM, num_frames=FRAMES, index_vectors=1)).eval()


def index_type(videos: int) -> str:
    """An index whose search does not grow with the corpus as Flat's does, and which is built in minutes."""
    return f"IVF{min(1024, max(8, videos // 100))},Flat"


def make(folder: Path, videos: int) -> None:
    """A store of random frames, written shard by shard, and an index of their means; `folder` appears when whole."""
    generator = np.random.default_rng(0)
    made = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(made, ignore_errors=True)
    store, ids = FeatureStore.create(made / "features", SETTINGS), []
    vectors = np.empty((videos, DIM), np.float16)
    for start in range(0, videos, SHARD):
        count = min(SHARD, videos - start)
        frames = generator.standard_normal((count, FRAMES, DIM), np.float32)
        names = [f"folder/video-{i:07d}.mp4" for i in range(start, start + count)]
        mask, times = np.ones((count, FRAMES), bool), np.tile(np.arange(FRAMES) * 1.0, (count, 1))
        videos_of_shard = VideoFeatures(names, names, ["corpus"] * count, frames.astype(np.float16), mask, times)
        store.write_videos(videos_of_shard, inputs=names)
        mean = frames.mean(1)
        vectors[start : start + count] = mean / np.linalg.norm(mean, axis=1, keepdims=True)
        ids += names
    spec = IndexSpec(index_type(videos), {"nprobe": 8}, on_disk=True)
    build_index(
        GenerationStore(made / "index"), ids, ids, vectors, spec=spec,
        provenance=Provenance(head_fingerprint(head()), SETTINGS), policy=Policy(min_recall=0.0, sample=10),
    )  # fmt: skip
    made.rename(folder)
    searcher(folder).close()  # the catalogue and its lookup, as `index` leaves them


def searcher(folder: Path) -> Searcher:
    return Searcher(GenerationStore(folder / "index"), folder / "features", head())


def query(seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((1, DIM)).astype(np.float32)


def cold(folder: Path) -> None:
    """In a process of its own: seconds to open and to answer."""
    start = time.perf_counter()
    opened = searcher(folder)
    middle = time.perf_counter()
    opened.search(query())
    print(json.dumps({"open": middle - start, "answer": time.perf_counter() - middle}))


def cold_run(folder: Path) -> dict[str, float]:
    """Seconds of one cold process, whole, to open and to answer."""
    start = time.perf_counter()
    out = subprocess.run(_command(folder), capture_output=True, text=True, check=True).stdout
    whole = time.perf_counter() - start
    return json.loads(out) | {"whole": whole}


def cold_memory(folder: Path) -> dict[str, int]:
    """Peaks of the memory of one cold process in bytes: its own (anonymous), and all that is resident."""
    peak = {"RssAnon": 0, "VmHWM": 0}
    with subprocess.Popen(_command(folder), stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            said = Path(f"/proc/{process.pid}/status").read_text()
            for name in peak:
                found = re.search(rf"{name}:\s+(\d+) kB", said)
                peak[name] = max(peak[name], 1024 * int(found[1]) if found else 0)
            time.sleep(0.004)
    return peak


def _command(folder: Path) -> list[str]:
    return [sys.executable, __file__, "--cold", str(folder)]


def warm(folder: Path, repeat: int) -> tuple[float, float]:
    """Median milliseconds of a query: as it was, and now."""
    opened = searcher(folder)
    state = opened._open
    videos = FeatureStore.open(folder / "features").videos(mmap=True)
    scorer, rows = Scorer(opened.head, videos), np.arange(len(videos))
    before, now = [], []
    for number in range(repeat + 2):
        text = query(number)
        before.append(_milliseconds(lambda text=text: two_stage(scorer, state.index, rows, text, 50)))
        now.append(_milliseconds(lambda text=text: opened.search(text)))
    return statistics.median(before[2:]), statistics.median(now[2:])


def _milliseconds(action) -> float:
    start = time.perf_counter()
    action()
    return 1000 * (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, nargs="+", default=[1000, 100_000])
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--folder", type=Path, help="where the corpora are made [default: a temporary folder]")
    parser.add_argument("--keep", action="store_true", help="leave them there, for another run")
    parser.add_argument("--make-only", action="store_true", help="make the corpora, with --keep")
    parser.add_argument("--cold", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.cold:
        cold(arguments.cold)
        return
    root = arguments.folder or Path(tempfile.mkdtemp())
    folders = [root / str(videos) for videos in arguments.videos]
    try:
        for folder, videos in zip(folders, arguments.videos, strict=True):
            if not folder.exists():
                make(folder, videos)
        if not arguments.make_only:
            _measure(folders, arguments.repeat)
    finally:
        for folder in [] if arguments.keep else folders:
            shutil.rmtree(folder, ignore_errors=True)


def _measure(folders: list[Path], repeat: int) -> None:
    runs: dict[Path, list[dict[str, float]]] = {folder: [] for folder in folders}
    for number in range(repeat + 1):
        for folder in folders:
            run = cold_run(folder)
            if number:  # the first fills the system's file cache, for each size alike
                runs[folder].append(run)
    first = statistics.median(run["whole"] for run in runs[folders[0]])
    print(
        "videos | index | whole process s | of the first | open ms | first answer ms | own memory MB | resident MB | "
        "warm before ms | warm now ms"
    )
    for folder in folders:
        middle = {name: statistics.median(run[name] for run in runs[folder]) for name in runs[folder][0]}
        memory = cold_memory(folder)
        before, now = warm(folder, repeat)
        print(
            f"{folder.name} | {index_type(int(folder.name))} | {middle['whole']:.2f} | {middle['whole'] / first:.2f} | "
            f"{1000 * middle['open']:.0f} | {1000 * middle['answer']:.0f} | {memory['RssAnon'] / 1e6:.0f} | "
            f"{memory['VmHWM'] / 1e6:.0f} | {before:.0f} | {now:.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
