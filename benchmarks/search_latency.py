"""What a search costs as the corpus grows, cold and warm, and what the shortlist's scores cost.

    python benchmarks/search_latency.py                            1,000 and 100,000 videos of 4 x 512
    python benchmarks/search_latency.py --videos 1000 100000 1000000

Cold: one process that opens a synthetic workspace (real store, head and index; the encoder is left out, as it costs the
same whatever the corpus) and answers one query, as `search` does; median of --repeat, and the process's peak memory.
Warm: one query in an open searcher, against the same query with its text padded to 32 rows and its shortlist prepared
as video blocks, which is what every search did before; in turn, in one process.
"""

from __future__ import annotations

import argparse
import json
import resource
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
    """A store of random frames, written shard by shard, and an index of their means."""
    generator = np.random.default_rng(0)
    store, vectors, ids = FeatureStore.create(folder / "features", SETTINGS), [], []
    for start in range(0, videos, SHARD):
        count = min(SHARD, videos - start)
        frames = generator.standard_normal((count, FRAMES, DIM), np.float32)
        names = [f"folder/video-{i:07d}.mp4" for i in range(start, start + count)]
        mask, times = np.ones((count, FRAMES), bool), np.tile(np.arange(FRAMES) * 1.0, (count, 1))
        videos_of_shard = VideoFeatures(names, names, ["corpus"] * count, frames.astype(np.float16), mask, times)
        store.write_videos(videos_of_shard, inputs=names)
        vectors.append(frames.mean(1).astype(np.float16))
        ids += names
    spec = IndexSpec(index_type(videos), {"nprobe": 8}, on_disk=True)
    build_index(
        GenerationStore(folder / "index"), ids, ids, np.concatenate(vectors), spec=spec,
        provenance=Provenance(head_fingerprint(head()), SETTINGS), policy=Policy(min_recall=0.0, sample=10),
    )  # fmt: skip
    searcher(folder).close()  # the catalogue and its lookup, as `index` leaves them


def searcher(folder: Path) -> Searcher:
    return Searcher(GenerationStore(folder / "index"), folder / "features", head())


def query(seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((1, DIM)).astype(np.float32)


def cold(folder: Path) -> None:
    """In a process of its own: seconds to open and to answer, and peak memory."""
    start = time.perf_counter()
    opened = searcher(folder)
    middle = time.perf_counter()
    opened.search(query())
    seconds = {"open": middle - start, "answer": time.perf_counter() - middle}
    print(json.dumps(seconds | {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))


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
    parser.add_argument("--folder", type=Path, help="where the corpora are made; removed at the end")
    parser.add_argument("--cold", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.cold:
        cold(arguments.cold)
        return
    root = Path(tempfile.mkdtemp(dir=arguments.folder))
    try:
        print("videos | index | whole process s | open ms | first answer ms | peak MB | warm before ms | warm now ms")
        for videos in arguments.videos:
            folder = root / str(videos)
            make(folder, videos)
            runs = []
            for _ in range(arguments.repeat):
                start = time.perf_counter()
                command = [sys.executable, __file__, "--cold", str(folder)]
                out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                # FAISS says on stdout where it found the lists
                runs.append(json.loads(out.splitlines()[-1]) | {"whole": time.perf_counter() - start})
            middle = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
            before, now = warm(folder, arguments.repeat)
            print(
                f"{videos} | {index_type(videos)} | {middle['whole']:.2f} | {1000 * middle['open']:.0f} | "
                f"{1000 * middle['answer']:.0f} | {middle['peak'] / 1e6:.0f} | {before:.0f} | {now:.0f}",
                flush=True,
            )
            shutil.rmtree(folder)
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
