"""Index choice by need: the type and parameters that reach a recall within a memory and a latency, by measurement.

Every type that may fit is built on all vectors; its search parameter is raised until half of the held-out queries
reach the recall, and the other half gives the figures that are shown. Exact Flat is always in the race. Figures hold
for this machine and as many threads as FAISS uses; what decides is the ratio within one run.

    choice = choose(vectors, owners, Need(recall=0.99, memory_bytes=2_000_000_000), queries)
    print(choice.table()); choice.spec
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import BadInput, UserError
from pipeline.retrieve.exact_search import exact_search
from pipeline.retrieve.index import IndexSpec, VectorIndex, build, memory_bytes
from pipeline.retrieve.updates import mean_recall

log = logging.getLogger(__name__)
_ONE_BY_ONE = 100  # queries timed alone
_LEAST_TIMED = 0.2  # seconds: shorter measurements are repeated


@dataclass(frozen=True)
class Need:
    """What is asked: recall@k against exact search (0 to 1), bytes of the index, milliseconds of one query alone."""

    recall: float = 0.95
    memory_bytes: int | None = None
    latency_ms: float | None = None
    k: int = 10

    def __post_init__(self) -> None:
        if not 0 < self.recall <= 1 or self.k < 1:
            raise BadInput("--recall must lie above 0 and at most at 1", got=self.recall)


@dataclass(frozen=True)
class Candidate:
    """A type, the search settings to try (cheapest first), and its size by arithmetic, in bytes a vector."""

    factory: str
    settings: tuple[dict[str, float], ...]
    vector_bytes: float


@dataclass(frozen=True)
class Row:
    """One line of the trade-off: measured on queries that were not tuned on. ``why``: what it misses, or nothing."""

    spec: IndexSpec
    recall: float
    bytes: int
    latency_ms: float
    queries_per_second: float
    build_seconds: float
    why: str

    def to_dict(self) -> dict[str, Any]:
        return vars(self) | {"spec": self.spec.to_dict()}


@dataclass(frozen=True)
class Choice:
    """The chosen spec, and all that was measured (best throughput first, what fits before what does not)."""

    spec: IndexSpec
    rows: list[Row]

    def table(self) -> str:
        return trade_off(self.rows, self.spec)


def choose(
    vectors: NDArray[Any],
    owners: NDArray[np.int64],
    need: Need,
    queries: NDArray[Any] | None = None,
    *,
    gpu: bool = False,
    seed: int = 24,
) -> Choice:
    """The fastest fitting index over vectors (R, D) of videos ``owners`` (R,): by single-query latency if that was
    asked for, by throughput in batches otherwise. ``queries`` (Q, D): held out, aligned texts; stand-ins near the
    vectors where left out.

    Raises UserError, with the closest misses, when nothing fits.
    """
    queries = stand_in_queries(vectors, seed=seed) if queries is None else queries
    if len(queries) < 2:
        raise BadInput("choosing an index needs held-out queries", expected="at least 2", got=len(queries))
    order = np.random.default_rng(seed).permutation(len(queries))[:2000]
    tuning, shown = queries[order[::2]], queries[order[1::2]]
    truths = [exact_search(vectors, owners, q, need.k)[1] for q in (tuning, shown)]
    rows = []
    for candidate in candidates(*vectors.shape):
        size = candidate.vector_bytes * len(vectors)
        if need.memory_bytes is not None and size > 1.1 * need.memory_bytes:
            log.info(f"{candidate.factory}: about {size / 1e6:.0f} MB, over the limit: not built")
            continue
        log.info(f"{candidate.factory}: building and tuning")
        rows.append(_measure(candidate, vectors, owners, need, (tuning, shown), truths, gpu=gpu))
    return _pick(rows, need)


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


def trade_off(rows: list[Row], chosen: IndexSpec | None = None) -> str:
    """The trade-off as text; the chosen line is marked with an arrow."""
    heads = ("type", "search", "recall", "MB", "ms/query", "queries/s", "build s")
    lines = ["   {:<31} {:<23} {:>6} {:>7} {:>9} {:>10} {:>8}".format(*heads)]
    for row in rows:
        mark = "->" if row.spec == chosen else "  "
        setting = " ".join(f"{name}={value:g}" for name, value in row.spec.search.items())
        figures = f"{row.recall:6.3f} {row.bytes / 1e6:7.1f} {row.latency_ms:9.2f} {row.queries_per_second:10.0f}"
        line = f"{mark} {row.spec.factory:<31} {setting:<23} {figures} {row.build_seconds:8.1f}  {row.why}"
        lines.append(line.rstrip())
    return "\n".join(lines)


def _measure(
    candidate: Candidate,
    vectors: NDArray[Any],
    owners: NDArray[np.int64],
    need: Need,
    queries: tuple[NDArray[Any], NDArray[Any]],
    truths: list[NDArray[np.int64]],
    *,
    gpu: bool,
) -> Row:
    """Build, raise the search setting until the tuning queries reach the recall, then measure on the other queries."""
    start = time.perf_counter()
    gpu = gpu and not candidate.factory.startswith(("HNSW",)) and "RaBitQ" not in candidate.factory
    index = build(vectors, IndexSpec(candidate.factory), owners, gpu=gpu)
    seconds = time.perf_counter() - start
    for setting in candidate.settings:
        index = VectorIndex(index.index, owners, IndexSpec(candidate.factory, setting))
        if mean_recall(index.search(queries[0], need.k)[1], truths[0]) >= need.recall:
            break
    recall = mean_recall(index.search(queries[1], need.k)[1], truths[1])
    alone = [query[None] for query in queries[1][:_ONE_BY_ONE]]
    latency = 1000 * _seconds(lambda: [index.search(query, need.k) for query in alone]) / len(alone)
    throughput = len(queries[1]) / _seconds(lambda: index.search(queries[1], need.k))
    size = memory_bytes(index)
    return Row(index.spec, recall, size, latency, throughput, seconds, _missed(need, recall, size, latency))


def _missed(need: Need, recall: float, size: int, latency: float) -> str:
    misses = []
    if recall < need.recall:
        misses.append(f"recall < {need.recall:g}")
    if need.memory_bytes is not None and size > need.memory_bytes:
        misses.append(f"over {need.memory_bytes / 1e6:.0f} MB")
    if need.latency_ms is not None and latency > need.latency_ms:
        misses.append(f"slower than {need.latency_ms:g} ms")
    return ", ".join(misses)


def _pick(rows: list[Row], need: Need) -> Choice:
    if not rows:
        raise UserError("no index type fits in memory", expected=f"{(need.memory_bytes or 0) / 1e6:.0f} MB or less")
    by_latency = need.latency_ms is not None
    rows = sorted(rows, key=lambda r: (bool(r.why), r.latency_ms if by_latency else -r.queries_per_second))
    if rows[0].why:
        closest = "; ".join(
            f"{r.spec.factory}: recall {r.recall:.3f}, {r.bytes / 1e6:.0f} MB, {r.latency_ms:.1f} ms ({r.why})"
            for r in rows
        )
        fix = "ask for less recall, or allow more memory or time"
        raise UserError("no index type fits the need", got=closest, fix=fix)
    return Choice(rows[0].spec, rows)


def _seconds(action: Callable[[], Any]) -> float:
    """Seconds a run of ``action``, the fastest of as many as fill the least time."""
    best, spent = math.inf, 0.0
    while spent < _LEAST_TIMED:
        start = time.perf_counter()
        action()
        once = time.perf_counter() - start
        best, spent = min(best, once), spent + once
    return best
