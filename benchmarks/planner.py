"""What `plan` says against what is measured: bytes and files of a feature store; bytes, memory, build time of indexes.

    python benchmarks/planner.py --data /scratch                      10^4, 10^5 and 10^6 clips, one vector a clip
    python benchmarks/planner.py --data /scratch --sizes 1000000 --only HNSW32

Synthetic stores of `benchmarks/scale.py` (4 frames of width 64, shards of 256 clips), clustered vectors of width 128.
Each index is built in a process of its own from a mapped file, so that its anonymous memory is the index's and the
building's. Rows are those of docs/results/scale.md: planned, measured, and measured / planned.
"""

import argparse
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
from scale import DIM, FRAMES, INDEX_DIM, SHARD, clustered, make_store

from pipeline.planner import MeasuredRates, feature_bytes, index_choices, plan_extraction

PARTS = ("store", "Flat", "HNSW32", "IVF,SQ8", "IVF,PQ")
# Hours are not compared here: any rates do.
RATES = MeasuredRates(1, 1, 1.0, 1, 1.0, 1, "cpu", "synthetic")


def row(clips: int, what: str, planned: float, measured: float, unit: str, scale: float = 1.0) -> None:
    print(
        f"| {clips:,} | {what} | {planned / scale:,.2f} {unit} | {measured / scale:,.2f} {unit} "
        f"| {measured / planned:.2f} |",
        flush=True,
    )


def compare_store(folder: Path, clips: int) -> None:
    if not (folder / "manifest.parquet").exists():
        make_store(folder, clips)
    store = folder / "store"
    shards = sorted(store.glob("videos-*.h5"))
    plan = plan_extraction(clips, FRAMES, DIM, RATES, devices=1, cores=1, rows_per_shard=SHARD)
    row(clips, "shards of videos", plan.shards, len(shards), "files")
    bytes_ = sum(path.stat().st_size for path in shards)
    row(clips, f"features, {FRAMES} x {DIM} float16", feature_bytes(clips, FRAMES, DIM), bytes_, "MB", 1e6)


def anonymous() -> int:
    """Bytes of anonymous memory that are resident now."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise OSError("this system does not say RssAnon")


def build_one(vectors: Path, factory: str) -> None:
    import faiss

    from pipeline.retrieve.index import IndexSpec, build

    faiss.omp_set_num_threads(2)
    mapped = np.load(vectors, mmap_mode="r")
    build(np.array(mapped[:100]), IndexSpec("Flat"))  # what the first use of the library takes is not the index's
    peak, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            peak[0] = max(peak[0], anonymous())

    before = anonymous()
    watching = threading.Thread(target=watch)
    watching.start()
    started = time.perf_counter()
    index = build(mapped, IndexSpec(factory))
    seconds = time.perf_counter() - started
    peak[0] = max(peak[0], anonymous())
    done.set()
    watching.join()
    index.write(vectors.parent)
    print(json.dumps({"seconds": seconds, "peak": peak[0] - before}))


def load_one(path: Path) -> None:
    import faiss

    before = anonymous()
    index = faiss.read_index(str(path))
    print(json.dumps({"held": anonymous() - before, "vectors": index.ntotal}))


def in_process(folder: Path, step: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--data", str(folder), "--step", step]
    ran = subprocess.run(command, capture_output=True, text=True)
    if ran.returncode:
        raise SystemExit(f"{step} ended with {ran.returncode}: {ran.stderr}")
    found: dict[str, float] = json.loads(ran.stdout.splitlines()[-1])
    return found


def compare_index(folder: Path, clips: int, kind: str) -> None:
    from pipeline.retrieve.index import IndexSpec, building_bytes

    family, _, code = kind.partition(",")
    choice = next(
        each for each in index_choices(clips, INDEX_DIM) if each.factory.startswith(family) and code in each.factory
    )
    vectors = folder / "vectors.npy"
    if not vectors.exists():
        np.save(vectors, clustered(clips, INDEX_DIM).astype(np.float16))
    found = {**in_process(folder, choice.factory), **in_process(folder, "load")}
    written = folder / "index.faiss"
    found["bytes"] = written.stat().st_size
    written.unlink()
    name = choice.factory
    row(clips, f"{name}: file", choice.bytes, found["bytes"], "MB", 1e6)
    row(clips, f"{name}: memory once loaded", choice.bytes, found["held"], "MB", 1e6)
    row(
        clips,
        f"{name}: most while building",
        building_bytes(IndexSpec(name), clips, INDEX_DIM),
        found["peak"],
        "MB",
        1e6,
    )
    row(clips, f"{name}: build", choice.build_hours * 3600, found["seconds"], "s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="Where stores and vectors are made, and kept")
    parser.add_argument("--sizes", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--only", nargs="*", default=PARTS, choices=PARTS)
    parser.add_argument("--step", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        load_one(args.data / "index.faiss") if args.step == "load" else build_one(args.data / "vectors.npy", args.step)
        return
    print("| clips | what | planned | measured | ratio |\n| ---: | --- | ---: | ---: | ---: |")
    for clips in args.sizes:
        folder = args.data / f"scale-{clips}"
        folder.mkdir(parents=True, exist_ok=True)
        for part in args.only:
            if part == "store":
                compare_store(folder, clips)
            else:
                compare_index(folder, clips, part)


if __name__ == "__main__":
    main()
