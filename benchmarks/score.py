"""Exhaustive exact scoring against evaluation done in X-Pool's way: time and peak memory, each in a process of its own.

    python benchmarks/score.py                  1000 x 1000 x 12 x 512: ours, the rival, and the largest difference
    python benchmarks/score.py --large          10,000 x 10,000 through `evaluate`, under a memory limit of 2 GB

The rival is what X-Pool's trainer does, written plainly: pool every video for every text (texts x videos x width),
regroup the pooled vectors a video at a time, multiply in one batched product. Threads: as OMP_NUM_THREADS says. Peak
memory is the process's high-water mark less what it held before scoring began.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

FRAMES, DIM = 12, 512


def case(texts: int, videos: int, seed: int = 0):
    """Unit-scale random features: (T, D), (V, F, D), and a head whose weights are not the identity."""
    import torch

    from dits_head.config import HeadConfig
    from dits_head.head import build_head

    generator = torch.Generator().manual_seed(seed)
    head = build_head(HeadConfig(head="xpool", dim=DIM)).eval()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    frames = torch.randn(videos, FRAMES, DIM, generator=generator).half()
    own = torch.arange(texts) % videos
    text = frames[own, :3].float().mean(1) + 1.2 * torch.randn(texts, DIM, generator=generator)
    return head, text, frames


def ours(texts: int, videos: int):
    """Through the scorer that `evaluate` uses."""
    from pipeline.evaluate.rank_counts import score_grid
    from pipeline.retrieve.scorer import Scorer

    head, text, frames = case(texts, videos)
    features = video_features(frames.numpy())
    yield "ready"
    yield score_grid(Scorer(head, features), text.numpy(), np.arange(texts) % videos).full()


def rival(texts: int, videos: int):
    """X-Pool's way: every pooled vector exists at once, twice (as pooled, and regrouped by video)."""
    import torch

    head, text, frames = case(texts, videos)
    pooling = head.pooling
    yield "ready"
    with torch.inference_mode():
        values = frames.float()
        query = pooling.query(pooling.norm1(text))  # (T, D)
        normed = pooling.norm1(values)  # (V, F, D)
        logits = pooling.key(normed) @ query.T / DIM**0.5  # (V, F, T)
        weights = logits.softmax(dim=1)
        attention = weights.permute(0, 2, 1) @ pooling.value(normed)  # (V, T, D)
        hidden = pooling.norm2(pooling.out(attention))
        pooled = pooling.norm3(hidden + pooling.linear(hidden))  # (V, T, D)
        del attention, hidden
        pooled = pooled / pooled.norm(dim=-1, keepdim=True)
        by_video = pooled.permute(0, 2, 1).contiguous()  # (V, D, T): regrouped
        unit = (text / text.norm(dim=-1, keepdim=True)).unsqueeze(1)  # (T, 1, D)
        sims = torch.bmm(by_video.permute(2, 0, 1), unit.transpose(1, 2)).squeeze(-1)  # (T, V)
    yield sims.numpy()


def video_features(frames: np.ndarray):
    from pipeline.stores.features import VideoFeatures

    count = len(frames)
    names = [f"v{i}" for i in range(count)]
    mask = np.ones((count, FRAMES), bool)
    return VideoFeatures(names, names, ["test"] * count, frames, mask, np.zeros((count, FRAMES)))


def large(count: int):
    """The whole evaluation of ``count`` x ``count``, with its stated memory and its peak."""
    from pipeline.evaluate.evaluation import Options, evaluate
    from pipeline.stores.features import TextFeatures

    head, text, frames = case(count, count)
    videos = video_features(frames.numpy())
    texts = TextFeatures([f"v{i}#0" for i in range(count)], videos.video_ids, videos.splits, [""] * count, text.numpy())
    yield "ready"
    evaluation = evaluate(head, videos, texts, Options(memory_limit=2_000_000_000, resamples=100))
    yield {"t2v": evaluation.metrics["t2v"], **evaluation.metrics["protocol"]["memory_bytes"]}


def peak() -> int:
    """The process's high-water mark in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run(name: str, out: str, *sizes: int) -> None:
    """In the child: time one way, keep its result, say what it took."""
    ways: dict[str, Any] = {"ours": ours, "rival": rival, "large": large}
    work = ways[name](*sizes)
    next(work)
    before, start = peak(), time.perf_counter()
    result = next(work)
    took = {"seconds": time.perf_counter() - start, "peak_bytes": peak() - before, "process_bytes": peak()}
    if isinstance(result, np.ndarray):
        np.save(out, result)
    else:
        took |= result
    print(json.dumps(took))


def child(name: str, out: Path, *sizes: int) -> dict:
    command = [sys.executable, __file__, "--child", name, str(out), *map(str, sizes)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--videos", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=2, help="runs of ours before and after the rival")
    parser.add_argument("--large", nargs="?", type=int, const=10_000, help="evaluate N x N within 2 GB instead")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        run(args.child[0], args.child[1], *map(int, args.child[2:]))
        return
    with tempfile.TemporaryDirectory() as folder:
        if args.large:
            row = child("large", Path(folder) / "unused", args.large)
            print(f"evaluate {args.large} x {args.large} x {FRAMES} x {DIM}: {row['seconds']:.1f} s")
            print(f"stated {row['needed'] / 1e6:.0f} MB, limit {row['limit'] / 1e6:.0f} MB")
            above, process = row["peak_bytes"] / 1e6, row["process_bytes"] / 1e6
            print(f"peak above the loaded features {above:.0f} MB, process {process:.0f} MB")
            print(f"t2v {row['t2v']}")
            return
        size = (args.texts, args.videos)
        mine = [child("ours", Path(folder) / "ours.npy", *size) for _ in range(args.repeats)]
        slow = child("rival", Path(folder) / "rival.npy", *size)
        mine += [child("ours", Path(folder) / "ours.npy", *size) for _ in range(args.repeats)]
        fast = sorted(mine, key=lambda row: row["seconds"])[len(mine) // 2]
        difference = np.abs(np.load(Path(folder) / "ours.npy") - np.load(Path(folder) / "rival.npy")).max()
    print(f"{args.texts} texts x {args.videos} videos x {FRAMES} x {DIM}")
    for name, row in (("ours", fast), ("X-Pool's way", slow)):
        print(f"{name:<13} {row['seconds']:8.2f} s   peak {row['peak_bytes'] / 1e6:8.0f} MB")
    times, memory = slow["seconds"] / fast["seconds"], slow["peak_bytes"] / fast["peak_bytes"]
    print(f"ratio         {times:8.1f} x        {memory:8.1f} x")
    print(f"largest difference {difference:.1e}")


if __name__ == "__main__":
    main()
