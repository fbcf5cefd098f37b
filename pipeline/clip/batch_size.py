"""How many frames to encode at once: what fits the memory, and what is fastest.

A batch that does not fit is halved and goes on, and no later one is larger; a run never ends for memory that a smaller
batch would not have needed. `fastest_batch` looks for the size to start with: it grows until the memory or the rate
stops.
"""

import logging
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from pipeline.errors import UserError

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

Part = TypeVar("Part")
SIZES = tuple(2**power for power in range(3, 12))  # 8 to 2048
GAIN = 1.05  # a larger batch must be so much faster to be worth its memory


class Halving:
    """Applies a function to a batch in the largest parts that have fitted the memory so far."""

    def __init__(self) -> None:
        self.limit: int | None = None

    def __call__(self, embed: "Callable[[torch.Tensor], Part]", batch: "torch.Tensor") -> list[Part]:
        """The results of all parts of `batch` (N, ...), in order. Raises UserError where one row does not fit."""
        import torch

        parts: list[Part] = []
        first = 0
        while first < len(batch):
            size = min(self.limit or len(batch), len(batch) - first)
            try:
                parts.append(embed(batch[first : first + size]))
            except torch.OutOfMemoryError as error:
                self._halve(size, error)
                continue
            first += size
        return parts

    def _halve(self, size: int, error: BaseException) -> None:
        import torch

        if size == 1:
            raise UserError(
                f"one frame does not fit into the memory of the device ({str(error).splitlines()[0]})",
                fix="give --device cpu, or a smaller --model",
            ) from error
        self.limit = size // 2
        log.warning(f"a batch of {size} does not fit into the memory: going on with {self.limit}")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


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
