"""How many frames to encode at once: it grows until the memory or the rate stops.

It is the size to start with; a batch that does not fit later on is halved (`pipeline.device.FittingParts`).
"""

import time
from collections.abc import Callable, Sequence

SIZES = tuple(2**power for power in range(3, 12))  # 8 to 2048
GAIN = 1.05  # a larger batch must be so much faster to be worth its memory


def fastest_batch(
    encode: Callable[[int], None], sizes: Sequence[int] = SIZES, clock: Callable[[], float] = time.perf_counter
) -> int:
    """The batch size that encodes most rows a second, to within GAIN.

    Args:
        encode: encodes a batch of so many rows and waits for it; raises torch.OutOfMemoryError where it does not fit.
        sizes: candidates, ascending; growing stops at the first that does not fit or brings less than GAIN.
        clock: seconds.

    Returns:
        The best of them, and the smallest where not even that one fits.
    """
    import torch

    best, rate = sizes[0], 0.0
    for size in sizes:
        try:
            encode(size)  # warms up
            started = clock()
            encode(size)
            found = size / max(clock() - started, 1e-9)
        except torch.OutOfMemoryError:
            break
        if found < GAIN * rate:
            break
        best, rate = size, found
    return best
