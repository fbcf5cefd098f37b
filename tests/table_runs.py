"""Runs of tables in this process, and results of runs by hand."""

from concurrent.futures import Future

import numpy as np

from pipeline.experiments.runs import Tested


class InProcess:
    """Runs at once and in this process what `runs` would give to processes of their own."""

    def __init__(self, *_, **__): ...
    def __enter__(self):
        return self

    def __exit__(self, *_): ...
    def submit(self, function, *arguments):
        future = Future()
        future.set_result(function(*arguments))
        return future


def result(ranks, clusters=(0, 0, 1, 2)):
    """A run whose captions, two of them of video 0, reached these ranks."""
    r1 = 100 * float(np.mean(np.array(ranks) == 1))
    metrics = {"R@1": r1, "R@5": 100.0, "R@10": 100.0, "MdR": 1.0, "MnR": float(np.mean(ranks))}
    return Tested("run", metrics, np.array(ranks), np.array(clusters), 1.0, 2.0, 3.0, 4.0, {})
