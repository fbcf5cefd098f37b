"""Progress of long work on stderr: a bar on a terminal, elsewhere a line every ten seconds."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

log = logging.getLogger(__name__)
INTERVAL = 10.0  # seconds between two lines where stderr is no terminal


@contextmanager
def progress(title: str) -> Iterator[Callable[..., None]]:
    """Give `step(done, total, text="")`, which shows how far the work is wherever `pipeline` logs at INFO."""
    if not log.isEnabledFor(logging.INFO):
        yield lambda done, total, text="": None
    elif sys.stderr.isatty():
        with tqdm(desc=title, file=sys.stderr, dynamic_ncols=True, mininterval=0.5, delay=0.5) as bar:

            def draw(done: int, total: int, text: str = "") -> None:
                bar.total = total
                bar.set_postfix_str(text, refresh=False)
                bar.update(done - bar.n)

            yield draw
    else:
        started = last = time.monotonic()

        def write(done: int, total: int, text: str = "") -> None:
            nonlocal last
            if (now := time.monotonic()) - last >= INTERVAL:
                log.info("%s: %d/%d, %.0f s%s", title, done, total, now - started, f", {text}" if text else "")
                last = now

        yield write
