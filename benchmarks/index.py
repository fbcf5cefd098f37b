"""Two-stage search on a large synthetic corpus, and what our index layer costs over calling FAISS directly.

    python benchmarks/index.py                       100,000 videos x 12 x 512, 300 queries
    python benchmarks/index.py --videos 5000 --queries 100 --types Flat

First part: exact scores computed by two-stage search and by exhaustive search, and R@1 of both. Second part: seconds
to build and to search an index of each type, ours and FAISS called directly on the same vectors, in turn.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dits_head.config import HeadConfig
from dits_head.head import build_head
from dits_head.inference import pool_videos
from pipeline.evaluate.index_loss import IndexedGallery, evaluate_index
from pipeline.evaluate.rank_counts import best_videos, score_grid
from pipeline.retrieve.exact_search import normalised
from pipeline.retrieve.index import IndexSpec, build, training_rows
from pipeline.retrieve.scorer import Scorer
from pipeline.stores.features import VideoFeatures

FRAMES, DIM, CLUSTERS = 12, 512, 2000


def corpus(videos: int, queries: int, seed: int = 0) -> tuple[VideoFeatures, np.ndarray, np.ndarray]:
    """Videos around cluster centres, three scenes each; a query is one scene of its video, and noise."""
    generator = np.random.default_rng(seed)
    centres = generator.standard_normal((CLUSTERS, DIM), np.float32)
    frames = np.empty((videos, FRAMES, DIM), np.float16)
    for start in range(0, videos, 10_000):
        count = min(10_000, videos - start)
        centre = centres[generator.integers(0, CLUSTERS, count)]
        scenes = centre[:, None] + 0.8 * generator.standard_normal((count, 3, DIM), np.float32)
        frames[start : start + count] = np.repeat(scenes, FRAMES // 3, axis=1)
        frames[start : start + count] += 0.3 * generator.standard_normal((count, FRAMES, DIM), np.float32)
    own = np.sort(generator.choice(videos, queries, replace=False))
    scene = generator.integers(0, FRAMES, queries)
    texts = frames[own, scene].astype(np.float32) + 3.2 * generator.standard_normal((queries, DIM), np.float32)
    names = [f"v{i}" for i in range(videos)]
    mask = np.ones((videos, FRAMES), bool)
    return VideoFeatures(names, names, ["test"] * videos, frames, mask, np.zeros((videos, FRAMES))), texts, own


def compare_stages(videos: VideoFeatures, texts: np.ndarray, own: np.ndarray, shortlist: int) -> np.ndarray:
    """Prints the comparison; returns the pooled vectors."""
    head = build_head(HeadConfig(head="xpool", dim=DIM, index_vectors=1)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
    vectors, seconds = timed(lambda: pool_videos(head, videos))
    print(f"pooled {len(videos)} videos in {seconds:.0f} s", flush=True)
    scorer = Scorer(head, videos)
    best, exhaustive = timed(lambda: best_videos(score_grid(scorer, texts, own)))
    index = build(normalised(vectors).astype(np.float16), IndexSpec())
    gallery = IndexedGallery(index, np.arange(len(videos)), 0, {})
    found = evaluate_index(scorer, gallery, texts, own, best, shortlist=shortlist)
    exact = 100 * float(np.mean(best == own))
    fewer = len(videos) / found.exact_scores_per_query
    print(f"exhaustive: R@1 {exact:.2f}, {len(videos)} exact scores a query, {len(texts) / exhaustive:.1f} queries/s")
    speed = f"{found.queries_per_second:.1f} queries/s in batches, {found.latency_ms:.0f} ms one by one"
    scores = f"{found.exact_scores_per_query:.0f} exact scores a query ({fewer:.0f} times fewer)"
    print(f"two-stage:  R@1 {found.rerank_r1:.2f}, {scores}, {speed}")
    print(f"loss {exact - found.rerank_r1:.2f} R@1; the exhaustive best is kept: {found.kept}")
    print(f"R@1 by shortlist: {found.rerank}")
    return vectors


def against_faiss(
    vectors: np.ndarray, queries: np.ndarray, factory: str, search: dict[str, float], repeats: int
) -> None:
    """Ours and FAISS itself take turns; medians."""
    held = normalised(vectors).astype(np.float16)

    def direct() -> Any:
        index = faiss.index_factory(DIM, factory, faiss.METRIC_INNER_PRODUCT)
        full = held.astype(np.float32)
        faiss.normalize_L2(full)
        if not index.is_trained:
            index.train(full[: training_rows(factory)])
        index.add(full)
        for name, value in search.items():
            faiss.ParameterSpace().set_index_parameter(index, name, value)
        return index

    builds: list[tuple[float, float]] = []
    searches: list[tuple[float, float]] = []
    for _ in range(repeats):
        mine, ours = timed(lambda: build(held, IndexSpec(factory, search)))
        theirs, plain = timed(direct)
        builds.append((ours, plain))
        for _ in range(3):
            a = timed(lambda mine=mine: mine.search(queries, 50))[1]  # type: ignore[misc]
            b = timed(lambda theirs=theirs: theirs.search(normalised(queries), 50))[1]  # type: ignore[misc]
            searches.append((a, b))
    for what, turns in (("build", builds), ("search", searches)):
        ratio = statistics.median(ours / plain for ours, plain in turns)
        ours, plain = (statistics.median(side) for side in zip(*turns, strict=True))
        print(f"{factory:<14} {what:<6} ours {ours:8.3f} s, FAISS {plain:8.3f} s, ratio {ratio:.2f}")


def timed(action: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    result = action()
    return result, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--shortlist", type=int, default=200)
    parser.add_argument("--types", nargs="*", default=["Flat", "IVF1024,SQ8", "HNSW16"])
    parser.add_argument("--repeats", type=int, default=1)
    args = parser.parse_args()
    videos, texts, own = corpus(args.videos, args.queries)
    vectors = compare_stages(videos, texts, own, args.shortlist)
    del videos
    for factory in args.types:
        search = {"nprobe": 16.0} if "IVF" in factory else {"efSearch": 128.0} if "HNSW" in factory else {}
        against_faiss(vectors, texts, factory, search, args.repeats)


if __name__ == "__main__":
    main()
