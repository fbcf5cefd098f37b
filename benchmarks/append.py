"""From which size does appending to an index pay against building it anew from its kept vectors?

    python benchmarks/append.py                              10^3 to 3x10^5 vectors of width 128, 1 % of them new
    python benchmarks/append.py --sizes 1000000 --dim 512 --types HNSW32

Appending reads the index, adds the new vectors and writes it; a rebuild trains where the type trains, adds all vectors
and writes. What both share (verification, hashing, writing the vectors) is timed beside them, as `rest`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.retrieve.exact_search import normalised
from pipeline.retrieve.index import IndexSpec, build, read
from pipeline.retrieve.updates import Policy, verify
from pipeline.stores.integrity import sha256_file
from pipeline.stores.rows import build_rows

TYPES = ("Flat", "HNSW32", "IVF,SQ8")


def vectors_of(count: int, dim: int, seed: int = 0) -> np.ndarray:
    """Unit vectors around 1000 centres, float16 as a generation keeps them."""
    generator = np.random.default_rng(seed)
    centres = generator.standard_normal((1000, dim), np.float32)
    points = centres[generator.integers(0, 1000, count)] + 0.7 * generator.standard_normal((count, dim), np.float32)
    return normalised(points).astype(np.float16)


def measure(factory: str, count: int, dim: int) -> None:
    lists = 2 ** round(np.log2(4 * count**0.5))
    while lists * 40 > count:
        lists //= 2
    factory = factory.replace("IVF,", f"IVF{lists},")
    search = {"nprobe": 32.0} if "IVF" in factory else {"efSearch": 128.0} if "HNSW" in factory else {}
    spec, vectors, old = IndexSpec(factory, search), vectors_of(count, dim), count - count // 100
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build(vectors[:old], spec).write(folder)

        def append() -> None:
            index = read(folder, np.arange(old), spec, mmap=False)
            index.add(vectors[old:], np.arange(count)).write(folder)

        appended = timed(append)
        rebuilt = timed(lambda: build(vectors, spec).write(folder))
        names = [f"v{i}" for i in range(count)]

        def rest() -> None:
            rows = build_rows(names, names, vectors)
            np.save(folder / "vectors.npy", rows.vectors)
            verify(folder, rows, spec, Policy(min_recall=0.0))
            for path in folder.iterdir():
                sha256_file(path)

        others = timed(rest)
    print(
        f"{factory:<14}{count:>9}{dim:>5}  append {appended:7.2f} s  rebuild {rebuilt:7.2f} s  rest {others:6.2f} s",
        flush=True,
    )


def timed(action: Callable[[], Any]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="*", default=[1_000, 10_000, 100_000, 300_000])
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--types", nargs="*", default=TYPES)
    args = parser.parse_args()
    print(f"{faiss.omp_get_max_threads()} threads")
    for count in args.sizes:
        for factory in args.types:
            measure(factory, count, args.dim)


if __name__ == "__main__":
    main()
