"""How the cost of a command grows with the corpus, and against another version of this code.

    python benchmarks/scale.py --data /scratch                           10^4, 10^5 and 10^6 clips
    git worktree add /scratch/before COMMIT
    python benchmarks/scale.py --data /scratch --code /scratch/before    the same with the code of that commit

Synthetic stores (4 frames of width 64, one caption a clip, shards of 256 clips and 16384 captions) are written straight
in the on-disk format, and indexes of width 128 are built once: every step reads what another version reads. Each
step runs in a process of its own, which states its seconds and its peak resident memory; imports are not counted.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

CODE = Path(os.environ.get("SCALE_CODE", Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(CODE))

FRAMES, DIM, SHARD, TEXT_SHARD, INDEX_DIM = 4, 64, 256, 16384, 128
NEW = 1000  # videos added to an index
STEPS = ("first open", "open", "nothing to extract", "cold search", "add to HNSW32", "add to IVF1024,SQ8")


def settings() -> Any:
    from pipeline.extract.settings import ExtractSettings

    return ExtractSettings(model="synthetic", num_frames=FRAMES, workers=1)


def encoder_settings() -> dict[str, Any]:
    return {"model": "synthetic", "embed_dim": DIM, "dtype": "float16"}


def clip_id(number: int) -> str:
    return f"folder{number // 1000:04d}/clip{number:07d}.mp4"


def make_store(folder: Path, clips: int) -> None:
    """Shards and markers as `FeatureStore.write_videos` leaves them, without fsync."""
    import h5py

    from pipeline.stores.features import FeatureStore
    from pipeline.stores.manifest import Manifest, VideoEntry, write_manifest

    fingerprint = {**encoder_settings(), **settings().fingerprint_part()}
    FeatureStore.create(folder / "store", fingerprint, media_root="/media")
    generator = np.random.default_rng(0)

    def shard(name: str, columns: dict[str, Any], about: dict[str, Any]) -> None:
        path = folder / "store" / name
        described: dict[str, Any] = {}
        with h5py.File(path, "w") as file:
            for key, column in columns.items():
                if isinstance(column, list):
                    file.create_dataset(key, data=column, dtype=h5py.string_dtype("utf-8"))
                    described[key] = {"kind": "string"}
                else:
                    file.create_dataset(key, data=column)
                    described[key] = {"kind": "array", "dtype": str(column.dtype), "shape": list(column.shape[1:])}
        rows = len(next(iter(columns.values())))
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        marker = {"rows": rows, "bytes": path.stat().st_size, "sha256": digest, "columns": described, **about}
        path.with_suffix(".json").write_text(json.dumps(marker))

    for number, start in enumerate(range(0, clips, SHARD)):
        ids = [clip_id(i) for i in range(start, min(start + SHARD, clips))]
        counts = {"inputs": len(ids), "done": len(ids), "failed": 0, "skipped": 0}
        columns = {
            "video_id": ids,
            "path": ids,
            "split": ["corpus"] * len(ids),
            "frame_embeds": generator.standard_normal((len(ids), FRAMES, DIM)).astype(np.float16),
            "frame_mask": np.ones((len(ids), FRAMES), bool),
            "frame_pts": np.tile(np.arange(FRAMES, dtype=np.float64), (len(ids), 1)),
        }
        shard(f"videos-{number:05d}.h5", columns, {"failures": [], "skipped": [], "counts": counts})
    for number, start in enumerate(range(0, clips, TEXT_SHARD)):
        ids = [clip_id(i) for i in range(start, min(start + TEXT_SHARD, clips))]
        columns = {
            "caption_id": [f"{name}#0" for name in ids],
            "video_id": ids,
            "split": ["corpus"] * len(ids),
            "caption": [f"what is to be seen in {name}" for name in ids],
            "text_embeds": generator.standard_normal((len(ids), DIM)).astype(np.float16),
        }
        shard(f"texts-{number:05d}.h5", columns, {})
    names = map(clip_id, range(clips))
    entries = tuple(VideoEntry(name, name, "corpus", (f"what is to be seen in {name}",)) for name in names)
    write_manifest(Manifest("synthetic", "/media", entries), folder / "manifest.parquet")


def head() -> Any:
    import torch

    from dits_head.config import HeadConfig
    from dits_head.head import build_head

    torch.manual_seed(0)
    return build_head(HeadConfig(head="xpool", dim=DIM)).eval()


def clustered(count: int, dim: int, seed: int = 0) -> np.ndarray:
    """Vectors around 1000 centres, (count, dim) float32."""
    centres = np.random.default_rng(0).standard_normal((1000, dim), np.float32)
    generator = np.random.default_rng(seed)
    return centres[generator.integers(0, 1000, count)] + 0.7 * generator.standard_normal((count, dim), np.float32)


def make_index(folder: Path, clips: int, factory: str) -> None:
    from pipeline.retrieve.index import IndexSpec
    from pipeline.retrieve.scorer import head_fingerprint
    from pipeline.retrieve.updates import Provenance, build_index
    from pipeline.stores.features import FeatureStore
    from pipeline.stores.generations import GenerationStore

    of_store = factory == "Flat"
    vectors = clustered(clips, DIM if of_store else INDEX_DIM)
    search = {"nprobe": 64.0} if "IVF" in factory else {"efSearch": 256.0} if "HNSW" in factory else {}
    store = FeatureStore.open(folder / "store")
    provenance = Provenance(head_fingerprint(head()) if of_store else "head", store.settings)
    ids = [clip_id(i) for i in range(clips)]
    paths = [f"/media/{name}" for name in ids]
    place = GenerationStore(folder / f"index-{factory}")
    build_index(place, ids, paths, vectors, spec=IndexSpec(factory, search), provenance=provenance)


# -- steps: each prints what it counted, so that nothing is skipped unseen


def step_open(folder: Path, clips: int) -> str:
    from pipeline.stores.features import FeatureStore

    store = FeatureStore.open(folder / "store")
    covered, videos, failures = store.covered(), store.videos(mmap=True), store.failures()
    assert len(covered) == len(videos) == clips
    return f"{len(videos)} videos, {len(failures)} failures"


def step_nothing(folder: Path, clips: int) -> str:
    from pipeline.extract.driver import extract
    from pipeline.frame_size import FrameSize
    from pipeline.stores.manifest import read_manifest, write_manifest

    manifest = read_manifest(folder / "manifest.parquet")
    stand_in: Any = SimpleNamespace(settings=encoder_settings(), frame_size=FrameSize(32, 32), dim=DIM)
    report = extract(manifest, folder / "store", settings(), encoder=stand_in)
    write_manifest(manifest, folder / "manifest.parquet")
    assert (report.inputs, report.done, report.new_videos, report.new_captions) == (clips, clips, 0, 0)
    return f"{report.done} done"


def step_search(folder: Path, clips: int) -> str:
    from pipeline.retrieve.search import Searcher
    from pipeline.stores.generations import GenerationStore

    searcher = Searcher(GenerationStore(folder / "index-Flat"), folder / "store", head())
    hits = searcher.search(clustered(1, DIM, seed=1), top=10)
    searcher.close()
    assert len(hits[0]) == 10
    return f"{len(hits[0])} hits"


def step_add(folder: Path, clips: int, factory: str) -> str:
    from pipeline.retrieve.updates import Provenance, update_index
    from pipeline.stores.features import FeatureStore
    from pipeline.stores.generations import GenerationStore

    place = GenerationStore(folder / f"index-{factory}")
    before = place.current()
    provenance = Provenance("head", FeatureStore.open(folder / "store").settings)
    names = [f"new/clip{i}.mp4" for i in range(NEW)]
    result = update_index(
        place,
        add_ids=names,
        add_paths=names,
        pool=lambda ids: clustered(len(ids), INDEX_DIM, seed=2),
        provenance=provenance,
    )
    with place.lock():
        place.switch(str(before))  # the next run adds to the same index again
    shutil.rmtree(place.root / result.generation)
    assert (result.added, result.total) == (NEW, clips + NEW)
    return result.how


def run_step(step: str, folder: Path, clips: int) -> None:
    import faiss  # noqa: F401  # imports are not what is measured
    import torch

    import pipeline.extract.driver
    import pipeline.retrieve.search
    import pipeline.retrieve.updates  # noqa: F401

    torch.set_num_threads(2)
    actions: dict[str, Any] = {
        "open": lambda: step_open(folder, clips),
        "nothing to extract": lambda: step_nothing(folder, clips),
        "cold search": lambda: step_search(folder, clips),
    }
    if step == "first open":
        shutil.rmtree(folder / "store" / "catalogue", ignore_errors=True)
    action = actions.get("open" if step == "first open" else step)
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started, worked = time.perf_counter(), time.process_time()
    said = action() if action else step_add(folder, clips, step.removeprefix("add to "))
    seconds, cpu = time.perf_counter() - started, time.process_time() - worked
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"seconds": seconds, "cpu": cpu, "mb": peak / 1024, "base": base / 1024, "said": said}))


def in_process(arguments: list[str], code: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "SCALE_CODE": str(code)})
    if ran.returncode:
        return {"said": (ran.stderr.strip().splitlines() or ["failed"])[-1]}
    result: dict[str, Any] = json.loads(ran.stdout.strip().splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="Where the stores are made, and kept")
    parser.add_argument("--code", type=Path, default=CODE, help="Root of the code to measure")
    parser.add_argument("--sizes", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--steps", nargs="*", default=STEPS)
    parser.add_argument("--make", help=argparse.SUPPRESS)
    parser.add_argument("--step", help=argparse.SUPPRESS)
    args = parser.parse_args()
    for clips in args.sizes:
        folder = args.data / f"scale-{clips}"
        if args.make == "store":
            make_store(folder, clips)
        elif args.make:
            make_index(folder, clips, args.make)
        elif args.step:
            run_step(args.step, folder, clips)
        else:
            measure(args, folder, clips)


def measure(args: argparse.Namespace, folder: Path, clips: int) -> None:
    def made(what: str, mark: Path) -> None:
        if not mark.exists():
            subprocess.run(
                [sys.executable, __file__, "--data", args.data, "--sizes", str(clips), "--make", what], check=True
            )

    made("store", folder / "manifest.parquet")
    for step in args.steps:
        if step.startswith("add to ") or step == "cold search":
            factory = "Flat" if step == "cold search" else step.removeprefix("add to ")
            made(factory, folder / f"index-{factory}" / "CURRENT")
        found = in_process(["--data", str(args.data), "--sizes", str(clips), "--step", step], args.code)
        figures = "{seconds:9.2f} s {cpu:9.2f} s of CPU {mb:7.0f} MB ({base:.0f} before)" if "cpu" in found else "-"
        print(f"{clips:>9} {step:<20} {figures.format(**found)}  {found['said']}", flush=True)


if __name__ == "__main__":
    main()
