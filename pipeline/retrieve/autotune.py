"""Autotuning: the index type and search parameters that reach a recall within a memory and a latency, by measurement.

Every type that may fit is built on all vectors, or on those of a sample of the videos where there are more than SAMPLE.
Its search parameter is raised until one half of the held-out queries reaches the recall; the other half gives the
operating point that is shown. Exact search (Flat) always takes part. A type chosen on a sample is then built and tuned
on all vectors: where it misses there, the next best is tried, so what is returned was always measured at full size.
Figures hold for this machine and as many threads as FAISS uses; the decision rests on ratios within one run.

    tuned = autotune(vectors, owners, Requirements(recall=0.99, memory_bytes=2_000_000_000), queries)
    print(tuned.table()); tuned.spec
"""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import BadInput, UserError
from pipeline.retrieve.exact_search import exact_search
from pipeline.retrieve.index import IndexSpec, VectorIndex, build, building_bytes, fitting_block, memory_bytes
from pipeline.retrieve.updates import mean_recall

log = logging.getLogger(__name__)
SAMPLE = 200_000  # vectors that all types are tried on
LEAST_BUILD = 256_000_000  # bytes that building may take whatever the need says
_ONE_BY_ONE = 100  # queries timed alone
_LEAST_TIMED = 0.2  # seconds: shorter measurements are repeated


@dataclass(frozen=True)
class Requirements:
    """What an index must reach."""

    recall: float = 0.95
    """Least recall@k against exact search, 0 to 1."""
    memory_bytes: int | None = None
    """Most bytes of the index, and of building it (`index.building_bytes`) where they are LEAST_BUILD or more."""
    latency_ms: float | None = None
    """Most milliseconds for a query sent alone; where given, latency decides instead of throughput."""
    k: int = 10
    """Videos a query."""

    def __post_init__(self) -> None:
        if not 0 < self.recall <= 1 or self.k < 1:
            raise BadInput("--recall must lie above 0 and at most at 1", got=self.recall)


@dataclass(frozen=True)
class Candidate:
    """An index type to try."""

    factory: str
    settings: tuple[dict[str, float], ...]
    """Search parameters to try, the cheapest first."""
    vector_bytes: float
    """Estimated bytes a vector."""


@dataclass(frozen=True)
class OperatingPoint:
    """A tuned index, measured on queries that it was not tuned on."""

    spec: IndexSpec
    recall: float
    bytes: int
    latency_ms: float
    """Of one query sent alone."""
    queries_per_second: float
    """In batches."""
    build_seconds: float
    misses: str
    """Which requirements it misses; empty if none."""


@dataclass(frozen=True)
class Tuned:
    """The chosen spec, and every operating point: those that meet the requirements first, the best of them ahead."""

    spec: IndexSpec
    points: list[OperatingPoint]

    def table(self) -> str:
        """The operating points as text, the chosen one marked with an arrow."""
        heads = ("type", "search", "recall", "MB", "ms/query", "queries/s", "build s")
        lines = ["   {:<31} {:<23} {:>6} {:>7} {:>9} {:>10} {:>8}".format(*heads)]
        for point in self.points:
            mark = "->" if point.spec == self.spec else "  "
            setting = " ".join(f"{name}={value:g}" for name, value in point.spec.search.items())
            figures = f"{point.recall:6.3f} {point.bytes / 1e6:7.1f} {point.latency_ms:9.2f}"
            figures += f" {point.queries_per_second:10.0f} {point.build_seconds:8.1f}"
            lines.append(f"{mark} {point.spec.factory:<31} {setting:<23} {figures}  {point.misses}".rstrip())
        return "\n".join(lines)


def autotune(
    vectors: NDArray[Any],
    owners: NDArray[np.int64],
    requirements: Requirements,
    queries: NDArray[Any] | None = None,
    *,
    gpu: int | None = None,
    seed: int = 24,
    sample: int = SAMPLE,
) -> Tuned:
    """Find the fastest index that meets the requirements.

    Args:
        vectors: (R, D), in memory or mapped.
        owners: (R,) the video of each vector.
        requirements: recall, memory and latency to keep to.
        queries: (Q, D) held-out aligned texts; stand-ins near the vectors where left out.
        gpu: build on this GPU the types that faiss-gpu has.
        seed: of the split of the queries, of the stand-ins and of the sample of videos.
        sample: vectors that every type is tried on; a type is built on all R only once it is the best there.

    Raises:
        UserError: no type meets the requirements; the message holds what each one missed.
    """
    queries = stand_in_queries(vectors, seed=seed) if queries is None else queries
    if len(queries) < 2:
        raise BadInput("choosing an index needs held-out queries", expected="at least 2", got=len(queries))
    order = np.random.default_rng(seed).permutation(len(queries))[:2000]
    tuning, shown = queries[order[::2]], queries[order[1::2]]
    block = fitting_block(requirements.memory_bytes or LEAST_BUILD, vectors.shape[1])

    def tried(some: Sequence[Candidate], vectors: NDArray[Any], owners: NDArray[np.int64]) -> Iterator[OperatingPoint]:
        truths = [exact_search(vectors, owners, q, requirements.k, block=block)[1] for q in (tuning, shown)]
        for candidate in some:
            log.info(f"{candidate.factory}: building and tuning on {len(vectors)} vectors")
            yield _measure(candidate, vectors, owners, requirements, (tuning, shown), truths, gpu=gpu, block=block)

    fitting = [c for c in candidates(*vectors.shape) if not _too_large(c, vectors.shape, requirements, block)]
    if len(vectors) <= sample:
        return _pick(list(tried(fitting, vectors, owners)), requirements)
    rows, small_owners = _sampled(owners, sample, seed)
    full = {_family(candidate.factory): candidate for candidate in fitting}
    small = [c for c in candidates(len(rows), vectors.shape[1]) if _family(c.factory) in full]
    points = _in_order(list(tried(small, np.asarray(vectors[rows]), small_owners)), requirements)
    chosen = [full[_family(point.spec.factory)] for point in points if not point.misses]
    at_full_size = []
    for point in tried(chosen, vectors, owners):
        at_full_size.append(point)
        if not point.misses:
            break
    return _pick(at_full_size or points, requirements)


def _sampled(owners: NDArray[np.int64], count: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The rows of about `count` vectors, all those of some of the videos, and the owners of these, numbered anew."""
    videos = np.unique(owners[owners >= 0])
    chosen = np.random.default_rng(seed).choice(videos, max(1, count * len(videos) // len(owners)), replace=False)
    rows = np.flatnonzero(np.isin(owners, chosen))
    return rows, np.unique(owners[rows], return_inverse=True)[1].astype(np.int64)


def _family(factory: str) -> str:
    """A factory string without the number of its lists, which depends on how many vectors there are."""
    return re.sub(r"IVF\d+", "IVF", factory)


def _too_large(candidate: Candidate, shape: tuple[int, ...], requirements: Requirements, block: int) -> bool:
    count, dim = shape
    if requirements.memory_bytes is None:
        return False
    size = candidate.vector_bytes * count
    building = building_bytes(IndexSpec(candidate.factory, block=block), count, dim)
    if size <= 1.1 * requirements.memory_bytes and building <= max(requirements.memory_bytes, LEAST_BUILD):
        return False
    sizes = f"about {size / 1e6:.0f} MB, over the limit (to build: {building / 1e6:.0f} MB)"
    log.info(f"{candidate.factory}: {sizes}: not built")
    return True


def candidates(count: int, dim: int) -> Iterator[Candidate]:
    """Types worth trying on R vectors of width D. Inverted lists: the power of two next to 4 sqrt(R), 40 vectors a
    list."""
    yield Candidate("Flat", ({},), 4 * dim)
    depths: tuple[float, ...] = (16, 32, 64, 128, 256, 512, 1024)
    for links in (16, 32):
        settings = tuple({"efSearch": depth} for depth in depths)
        yield Candidate(f"HNSW{links}", settings, 4 * dim + 8.5 * links + 8)
    lists = 2 ** round(math.log2(4 * math.sqrt(count)))
    while lists > 4 and lists * 40 > count:
        lists //= 2
    if lists * 40 > count:
        return
    probes = [p for p in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048) if p < lists] + [lists]
    yield Candidate(f"IVF{lists},SQ8", tuple({"nprobe": p} for p in probes), dim + 8)
    refined = tuple({"nprobe": p, "k_factor_rf": r} for r in (4, 16) for p in probes)
    if dim % 8 == 0:
        yield Candidate(f"IVF{lists},PQ{dim // 8},Refine(SQ8)", refined, dim // 8 + dim + 8)
    yield Candidate(f"IVF{lists},RaBitQ,Refine(SQ8)", refined, dim // 8 + 8 + dim + 8)
    yield Candidate(f"IVF{lists},RaBitQ4", tuple({"nprobe": p} for p in probes), dim // 2 + 24)


def stand_in_queries(vectors: NDArray[Any], count: int = 400, *, seed: int = 24) -> NDArray[np.float32]:
    """Queries for a corpus without captions: some of its vectors, moved in a random direction by half their length."""
    generator = np.random.default_rng(seed)
    rows = np.sort(generator.choice(len(vectors), min(count, len(vectors)), replace=False))
    base = np.asarray(vectors[rows], np.float32)
    noise = generator.standard_normal(base.shape).astype(np.float32)
    lengths = np.linalg.norm(base, axis=1, keepdims=True) / np.linalg.norm(noise, axis=1, keepdims=True)
    return base + 0.5 * lengths * noise


def _measure(
    candidate: Candidate,
    vectors: NDArray[Any],
    owners: NDArray[np.int64],
    requirements: Requirements,
    queries: tuple[NDArray[Any], NDArray[Any]],
    truths: list[NDArray[np.int64]],
    *,
    gpu: int | None,
    block: int,
) -> OperatingPoint:
    """Build, raise the search setting until the tuning queries reach the recall, then measure on the other queries."""
    start = time.perf_counter()
    if candidate.factory.startswith("HNSW") or "RaBitQ" in candidate.factory:  # no GPU has them
        gpu = None
    index = build(vectors, IndexSpec(candidate.factory, block=block), owners, gpu=gpu)
    seconds = time.perf_counter() - start
    for setting in candidate.settings:
        index = VectorIndex(index.index, owners, IndexSpec(candidate.factory, setting, block=block))
        if mean_recall(index.search(queries[0], requirements.k)[1], truths[0]) >= requirements.recall:
            break
    recall = mean_recall(index.search(queries[1], requirements.k)[1], truths[1])
    alone = [query[None] for query in queries[1][:_ONE_BY_ONE]]
    latency = 1000 * _seconds(lambda: [index.search(query, requirements.k) for query in alone]) / len(alone)
    throughput = len(queries[1]) / _seconds(lambda: index.search(queries[1], requirements.k))
    size = memory_bytes(index)
    return OperatingPoint(
        index.spec, recall, size, latency, throughput, seconds, _missed(requirements, recall, size, latency)
    )


def _missed(requirements: Requirements, recall: float, size: int, latency: float) -> str:
    misses = []
    if recall < requirements.recall:
        misses.append(f"recall < {requirements.recall:g}")
    if requirements.memory_bytes is not None and size > requirements.memory_bytes:
        misses.append(f"over {requirements.memory_bytes / 1e6:.0f} MB")
    if requirements.latency_ms is not None and latency > requirements.latency_ms:
        misses.append(f"slower than {requirements.latency_ms:g} ms")
    return ", ".join(misses)


def _pick(points: list[OperatingPoint], requirements: Requirements) -> Tuned:
    if not points:
        raise UserError(
            "no index type fits in memory", expected=f"{(requirements.memory_bytes or 0) / 1e6:.0f} MB or less"
        )
    points = _in_order(points, requirements)
    if points[0].misses:
        closest = "; ".join(
            f"{r.spec.factory}: recall {r.recall:.3f}, {r.bytes / 1e6:.0f} MB, {r.latency_ms:.1f} ms ({r.misses})"
            for r in points
        )
        fix = "ask for less recall, or allow more memory or time"
        raise UserError("no index type fits the need", got=closest, fix=fix)
    return Tuned(points[0].spec, points)


def _in_order(points: list[OperatingPoint], requirements: Requirements) -> list[OperatingPoint]:
    """Those that meet the requirements first, the fastest ahead."""
    by_latency = requirements.latency_ms is not None
    return sorted(points, key=lambda r: (bool(r.misses), r.latency_ms if by_latency else -r.queries_per_second))


def _seconds(action: Callable[[], Any]) -> float:
    """Seconds a run of ``action``, the fastest of as many as fill the least time."""
    best, spent = math.inf, 0.0
    while spent < _LEAST_TIMED:
        start = time.perf_counter()
        action()
        once = time.perf_counter() - start
        best, spent = min(best, once), spent + once
    return best
