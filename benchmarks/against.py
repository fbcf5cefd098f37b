"""Training steps and exact scoring of this checkout against another one's, in turns: has a change cost something?

    git worktree add /tmp/before COMMIT
    python benchmarks/against.py /tmp/before

A process for each checkout works on the same random features with one thread; they take turns, so that whatever else
the machine does hits both. The figure is the median over the turns of the other's processor time over ours (above 1:
this checkout is faster), with the quartiles. `train_step.py` and `score.py` of each checkout say what a turn is.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
CHILD = """
import argparse, sys, time
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from benchmarks import score, train_step

args = argparse.Namespace(dim=512, dropout=0.0, dropout_per="pair", device="cpu", bfloat16=False)
features = train_step.Features(500, 20, 12, 512)

def training(head, size, count):
    step = train_step.make(head, "ours", args)
    batches = [features.batch(size, "cpu") for _ in range(count)]
    return lambda: [step(batch) for batch in batches]

def scoring():
    work = score.ours(1000, 1000)
    next(work)
    began = time.process_time()
    next(work)
    return time.process_time() - began

steps = {"xpool 32": ("xpool", 32, 4), "xpool 128": ("xpool", 128, 1), "dits 32": ("dits", 32, 1)}
works = {name: training(*what) for name, what in steps.items()}
print("ready", flush=True)
for line in sys.stdin:
    if line.strip() == "score":
        print(scoring(), flush=True)
        continue
    began = time.process_time()
    works[line.strip()]()
    print(time.process_time() - began, flush=True)
"""
WORKS = {
    "xpool 32": "4 training steps of X-Pool, batch 32",
    "xpool 128": "1 training step of X-Pool, batch 128",
    "dits 32": "1 training step of DITS, batch 32",
    "score": "1,000 texts x 1,000 videos scored, X-Pool",
}


class Checkout:
    """A process that works with the code of one checkout."""

    def __init__(self, root: Path) -> None:
        command = [sys.executable, "-c", CHILD, str(root)]
        self._process = subprocess.Popen(
            command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        assert self._read() == "ready", root

    def seconds(self, work: str) -> float:
        assert self._process.stdin
        self._process.stdin.write(work + "\n")
        return float(self._read())

    def _read(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline().strip()

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="a checkout of another commit")
    parser.add_argument("--turns", type=int, default=15)
    args = parser.parse_args()
    ours, theirs = Checkout(HERE), Checkout(args.other.resolve())
    print("| work | other / ours, processor time | quartiles | ours, s |\n| --- | ---: | --- | ---: |")
    for work, name in WORKS.items():
        ratios, mine = [], []
        for turn in range(args.turns + 1):
            first, second = (ours, theirs) if turn % 2 else (theirs, ours)
            took = {first: first.seconds(work), second: second.seconds(work)}
            if turn:  # the first one warms up
                ratios.append(took[theirs] / took[ours])
                mine.append(took[ours])
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(f"| {name} | {middle:.2f} | {low:.2f} to {high:.2f} | {statistics.median(mine):.2f} |", flush=True)
    ours.close()
    theirs.close()


if __name__ == "__main__":
    main()
