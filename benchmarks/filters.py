"""Recall and time of a filtered search, inside each index and one by one, by how much the filter leaves.

    python benchmarks/filters.py                     100,000 vectors of width 512, 50 queries, k = 50
    python benchmarks/filters.py --vectors 20000 --types Flat HNSW32

Each index is searched with the parameters that it has, and with efSearch or nprobe divided by the share that is left.
Two filters of each size: "random" leaves any videos, "far" leaves the share of them that is least like the query (what
graph search finds hardest). Recall@50 against exact search over what is left; milliseconds a query, one at a time.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.retrieve.exact_search import exact_search, normalised
from pipeline.retrieve.index import IndexSpec, build
from pipeline.retrieve.updates import mean_recall

SHARES = (0.5, 0.1, 0.05, 0.02, 0.005, 0.0005)
TYPES = {"Flat": {}, "HNSW32": {"efSearch": 128}, "IVF1024,Flat": {"nprobe": 32}}
K = 50


def corpus(vectors: int, dim: int, queries: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors around 200 centres, as float16, and queries near some of them."""
    generator = np.random.default_rng(0)
    centres = generator.standard_normal((200, dim), np.float32)
    held = centres[generator.integers(0, 200, vectors)] + 1.5 * generator.standard_normal((vectors, dim), np.float32)
    asked = held[generator.choice(vectors, queries)] + generator.standard_normal((queries, dim), np.float32)
    return normalised(held).astype(np.float16), normalised(asked)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=50)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--types", nargs="+", default=list(TYPES), choices=list(TYPES))
    arguments = parser.parse_args()
    held, asked = corpus(arguments.vectors, arguments.dim, arguments.queries)
    owners = np.arange(len(held))
    indexes = {name: build(held, IndexSpec(name, TYPES[name])) for name in arguments.types}
    similarity = asked @ held.astype(np.float32).T
    generator = np.random.default_rng(1)
    columns = [f"{name}{how} recall, ms" for name in indexes for how in ("", " deeper")]
    print("left | filter | " + " | ".join([*columns, "one by one ms"]))
    for share in SHARES:
        count = max(1, int(share * len(held)))
        for kind in ("random", "far"):
            found: dict[tuple[str, bool], tuple[list[float], float]]
            found = {(name, scaled): ([], 0.0) for name in indexes for scaled in (False, True)}
            exact_seconds = 0.0
            for query, row in zip(asked[:, None], similarity, strict=True):
                chosen = (
                    generator.choice(len(held), count, replace=False) if kind == "random" else row.argsort()[:count]
                )
                only = np.zeros(len(held), bool)
                only[chosen] = True
                k = min(K, count)
                start = time.perf_counter()
                truth = exact_search(held, np.where(only, owners, -1), query, k)[1]
                exact_seconds += time.perf_counter() - start
                for name, scaled in found:
                    start = time.perf_counter()
                    rows = indexes[name].search(query, k, only=only, effort=1 / share if scaled else 1.0)[1]
                    seconds = found[name, scaled][1] + time.perf_counter() - start
                    found[name, scaled] = ([*found[name, scaled][0], mean_recall(rows, truth)], seconds)
            cells = [f"{np.mean(r):.3f}, {1000 * s / len(asked):.1f}" for r, s in found.values()]
            print(f"{100 * share:g} % | {kind} | " + " | ".join([*cells, f"{1000 * exact_seconds / len(asked):.1f}"]))


if __name__ == "__main__":
    main()
