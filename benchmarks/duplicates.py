"""Near-duplicate pairs of a whole index: ours, block by block, against FAISS's range search of a flat index.

    python benchmarks/duplicates.py                  20,000 vectors of width 512, one in ten a disturbed copy
    python benchmarks/duplicates.py --vectors 100000 --device cuda

Both are exact and must find the same pairs. FAISS compares each pair twice and keeps all vectors in memory; ours needs
two blocks. Peak memory is that of a process of its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import time
from pathlib import Path

import faiss
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.retrieve.exact_search import normalised
from pipeline.retrieve.near_duplicates import group_duplicates, similar_pairs

DIM, THRESHOLD = 512, 0.95


def corpus(count: int) -> np.ndarray:
    """(V, D) float16: independent directions; the last tenth are the first tenth, disturbed to a cosine around 0.98."""
    generator = np.random.default_rng(0)
    vectors = generator.standard_normal((count, DIM), np.float32)
    tenth = count // 10
    vectors[-tenth:] = vectors[:tenth] + 0.2 * generator.standard_normal((tenth, DIM), np.float32)
    return normalised(vectors).astype(np.float16)


def ours(vectors: np.ndarray, device: str) -> int:
    return sum(len(left) for left, _ in similar_pairs(vectors, None, THRESHOLD, 4096, device))


def flat(vectors: np.ndarray, device: str) -> int:
    index = faiss.IndexFlatIP(DIM)
    index.add(normalised(vectors))
    limits, _, found = index.range_search(normalised(vectors), THRESHOLD - 1e-6)
    counts: np.ndarray = np.diff(limits.astype(np.int64))
    return int((found > np.repeat(np.arange(len(vectors)), counts)).sum())


def measured(name: str, count: int, device: str, answers: multiprocessing.Queue) -> None:
    vectors = corpus(count)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    pairs = {"ours": ours, "FAISS range_search": flat}[name](vectors, device)
    seconds = time.perf_counter() - start
    answers.put((pairs, seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=int, default=20_000)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    print("how | pairs | seconds | MB beside the vectors")
    context = multiprocessing.get_context("spawn")
    for name in ("ours", "FAISS range_search"):
        answers = context.Queue()
        process = context.Process(target=measured, args=(name, arguments.vectors, arguments.device, answers))
        process.start()
        pairs, seconds, megabytes = answers.get()
        process.join()
        print(f"{name} | {pairs} | {seconds:.1f} | {megabytes:.0f}", flush=True)
    groups = group_duplicates(corpus(arguments.vectors), None, THRESHOLD, device=arguments.device)
    print(f"{len(groups)} groups of {len(groups.rows)} videos")


if __name__ == "__main__":
    main()
