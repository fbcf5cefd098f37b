"""Training steps per second of X-Pool and DITS, against the same heads written plainly, in one run.

    python benchmarks/train_step.py                   # MSR-VTT's size: 9,000 videos x 12 x 512, 180,000 captions
    python benchmarks/train_step.py --videos 500 --batches 32 --repeats 3

A step is: gather the batch from memory, loss, backward, clip, AdamW. Plain and ours take turns, so that whatever else
the machine does hits both; the ratio is the median over the turns. Memory is the growth of a fresh process' peak while
it takes one step. Before anything is timed, both must compute the same loss.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.plain_head import PlainHead
from dits_head.config import HeadConfig
from dits_head.head import RetrievalHead, build_head

HEADS = ("xpool", "dits")
Batch = tuple[Tensor, Tensor, Tensor]  # text, frames, mask


class Features:
    """A random feature set in memory; videos' captions are close to their frames, so that the loss is no nonsense."""

    def __init__(self, videos: int, captions: int, frames: int, dim: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.frames = torch.randn(videos, frames, dim, generator=generator, dtype=torch.float32).half()
        self.texts = torch.randn(videos * captions, dim, generator=generator).half()
        self.mask = torch.ones(videos, frames, dtype=torch.bool)
        self.captions, self.generator = captions, generator

    def batch(self, size: int, device: str) -> Batch:
        rows = torch.randint(len(self.texts), (size,), generator=self.generator)
        videos = rows // self.captions
        text = self.texts[rows].float() + self.frames[videos].mean(1)
        return text.to(device), self.frames[videos].to(device), self.mask[videos].to(device)


def make(head: str, form: str, args: argparse.Namespace) -> Callable[[Batch], float]:
    """A function that takes one training step; form: plain, ours, or compiled (ours, by torch.compile)."""
    plain = form == "plain"
    # So that both compute the same loss: no noise, and steps in the paper's unit.
    still: dict[str, Any] = {"noise_train": False, "relative": False} if head == "dits" else {}
    config = HeadConfig(head=head, dim=args.dim, dropout=args.dropout, dropout_per=args.dropout_per, **still)
    torch.manual_seed(0)
    ours = opened(build_head(config))
    model: Any = PlainHead(config) if plain else ours
    if plain:
        model.load(ours.state_dict())
    model.to(args.device)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.2, fused=not plain)
    training_loss = torch.compile(model.training_loss) if form == "compiled" else model.training_loss

    def step(batch: Batch) -> float:
        text, frames, mask = batch
        with torch.autocast(args.device, torch.bfloat16, enabled=args.bfloat16):
            loss = training_loss(text, frames) if plain else training_loss(text, frames, mask)[0]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return step


def opened(head: RetrievalHead) -> RetrievalHead:
    """Open the network's gates, which start shut, so that the comparison of losses sees every layer."""
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            if "adaLN" in name or ".final." in name:
                parameter.normal_(std=0.02)
    return head


def measure(head: str, size: int, features: Features, args: argparse.Namespace) -> dict[str, float]:
    forms = ("plain", "ours", "compiled") if args.compile else ("plain", "ours")
    steps = {form: make(head, form, args) for form in forms}
    seconds: dict[str, list[float]] = {form: [] for form in forms}
    batch = features.batch(size, args.device)
    losses = {name: step(batch) for name, step in steps.items()}
    apart = max(losses.values()) - min(losses.values())
    if not args.dropout and not args.bfloat16 and apart > 1e-3 * abs(losses["plain"]):
        raise SystemExit(f"{head}, batch {size}: the forms disagree on the loss: {losses}")
    for _ in range(args.repeats if size < 256 else 1):
        for name, step in steps.items():
            begin = time.perf_counter()
            step(features.batch(size, args.device))
            seconds[name].append(time.perf_counter() - begin)
    times_as_fast = {
        f"{form} times": statistics.median(plain / other for plain, other in zip(seconds["plain"], of, strict=True))
        for form, of in seconds.items()
    }
    return {form: statistics.median(values) for form, values in seconds.items()} | times_as_fast


def peak_of_one_step(head: str, form: str, size: int, args: argparse.Namespace) -> float:
    """MiB by which a fresh process' peak grows over a first step (weights are there; gradients and Adam's are not)."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_grow, (head, form, size, args))


def _grow(head: str, form: str, size: int, args: argparse.Namespace) -> float:
    torch.set_num_threads(args.threads)
    features = Features(2 * size, 1, args.frames, args.dim)
    step, batch = make(head, form, args), features.batch(size, args.device)
    if args.device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(batch)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    before = _peak_resident()
    step(batch)
    return (_peak_resident() - before) / 2**10


def _peak_resident() -> int:
    """KiB; VmHWM belongs to this process alone, while getrusage's ru_maxrss begins with its parent's."""
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=9000)
    parser.add_argument("--captions", type=int, default=20, help="a video")
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 128, 512])
    parser.add_argument("--repeats", type=int, default=7, help="turns at a batch below 256; one above")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--dropout-per", choices=("pair", "video"), default="pair")
    parser.add_argument("--bfloat16", action="store_true", help="both under autocast")
    parser.add_argument("--compile", action="store_true", help="also ours by torch.compile; needs a C++ compiler")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    features = Features(args.videos, args.captions, args.frames, args.dim)
    print(f"{args.threads} threads, {args.device}, dim {args.dim}, dropout {args.dropout} per {args.dropout_per}\n")
    faster = ["ours", "compiled"] if args.compile else ["ours"]
    titles = ["head", "batch", "plain steps/s"]
    titles += [title for form in faster for title in (f"{form} steps/s", "ratio to plain")] + ["plain MiB", "ours MiB"]
    print(f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}")
    for head in HEADS:
        for size in args.batches:
            result = measure(head, size, features, args)
            cells = [head, str(size), f"{1 / result['plain']:.2f}"]
            cells += [cell for form in faster for cell in (f"{1 / result[form]:.2f}", f"{result[f'{form} times']:.2f}")]
            cells += [f"{peak_of_one_step(head, form, size, args):.0f}" for form in ("plain", "ours")]
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
