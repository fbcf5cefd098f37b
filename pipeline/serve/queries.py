"""Queries of many clients over one retriever: gathered into batches, their vectors kept, never more than can wait.

One thread searches. While it does, arriving queries gather; those that want the same are embedded and searched
together, for a batch of sentences costs little more than one. Clips of one file are merged as far as a query's own
number of hits asks, so that queries that merge or limit them share a batch only with their like. A query that was
embedded before is not embedded again: its vector depends on the sentence and the encoder alone, and outlives index
generations.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

import numpy as np

from pipeline.retrieve.retriever import mixture
from pipeline.retrieve.search import Wanted

T = TypeVar("T")


class Overloaded(Exception):
    """More work waits than the server accepts."""


class Vectors(Protocol):
    """The part of a retriever that sentences need."""

    def embed(self, texts: list[str]) -> np.ndarray:
        """(N, D) float32 of N sentences."""

    def search_vectors(self, vectors: np.ndarray, weights: np.ndarray, wanted: Wanted) -> list[list[Any]]:
        """The best hits of each sum of vectors (N, D), weighted by a row of `weights` (Q, N)."""


class VectorCache:
    """The vectors of the sentences asked last. Used by one thread at a time."""

    def __init__(self, embed: Callable[[list[str]], np.ndarray], size: int) -> None:
        self._embed, self._size = embed, size
        self._kept: OrderedDict[str, np.ndarray] = OrderedDict()
        self.hits = self.misses = 0

    def of(self, texts: Sequence[str]) -> np.ndarray:
        """(N, D): the vectors of N sentences; each distinct new one is embedded once, all of them together."""
        found = {text: self._kept[text] for text in texts if text in self._kept}
        new = [text for text in dict.fromkeys(texts) if text not in found]
        self.hits += len(texts) - len(new)
        self.misses += len(new)
        if new:
            found |= zip(new, self._embed(new), strict=True)
        for text in texts:
            self._kept[text] = found[text]
            self._kept.move_to_end(text)
        while len(self._kept) > self._size:
            self._kept.popitem(last=False)
        return np.stack([found[text] for text in texts])


@dataclass(frozen=True)
class Query:
    """A sentence, the hits that it wants, and sentences that they are to be unlike."""

    text: str
    wanted: Wanted = field(default_factory=Wanted)
    against: tuple[str, ...] = ()


@dataclass
class _Waiting:
    query: Query
    answer: "asyncio.Future[list[Any]]"


class Queries:
    """Searches for the routes: `sentence` batches, `run` does anything else with the retriever in the same thread.

    Args:
        retriever: embeds and searches.
        window: seconds that a batch waits for more queries when the thread is free.
        max_batch: sentences at once.
        max_waiting: sentences that may wait.
        vectors: sentences whose vectors are kept.
        seen: called with the size of each batch.
    """

    def __init__(
        self,
        retriever: Vectors,
        *,
        window: float,
        max_batch: int,
        max_waiting: int,
        vectors: int,
        seen: Callable[[int], object] = lambda size: None,
    ) -> None:
        self._retriever, self._window, self._max_batch, self._max_waiting = retriever, window, max_batch, max_waiting
        self._seen = seen
        self.vectors = VectorCache(retriever.embed, vectors)
        self._waiting: list[_Waiting] = []
        self._others = 0
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="search")
        self._task: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        return len(self._waiting) + self._others

    def start(self) -> None:
        """Begin to answer. Call it in the running loop."""
        self._task = asyncio.create_task(self._batches())

    async def stop(self) -> None:
        """End; what still waits is cancelled."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for waiting in self._waiting:
            waiting.answer.cancel()
        self._thread.shutdown(wait=True, cancel_futures=True)

    async def sentence(self, query: Query) -> list[Any]:
        """The hits of a sentence. Raises what the search raises, and Overloaded."""
        self._require_room()
        waiting = _Waiting(query, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._arrived.set()
        return await waiting.answer

    async def run(self, work: Callable[[], T]) -> T:
        """Call `work` in the thread that searches. Raises what it raises, and Overloaded."""
        self._require_room()
        self._others += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        finally:
            self._others -= 1

    def _require_room(self) -> None:
        if self.waiting >= self._max_waiting:
            raise Overloaded

    async def _batches(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._arrived.wait()
            if len(self._waiting) < self._max_batch:
                await asyncio.sleep(self._window)
            batch = [w for w in self._waiting[: self._max_batch] if not w.answer.done()]  # done: its client has gone
            del self._waiting[: self._max_batch]
            if not self._waiting:
                self._arrived.clear()
            if batch:
                self._seen(len(batch))
                answers = await loop.run_in_executor(self._thread, self._answer, [w.query for w in batch])
                for waiting, answer in zip(batch, answers, strict=True):
                    _settle(waiting.answer, answer)

    def _answer(self, queries: list[Query]) -> "list[list[Any] | Exception]":
        """The hits of each query, or what its search raised: a bad filter fails only the queries that share it."""
        answers: list[list[Any] | Exception] = [[]] * len(queries)
        for like, places in _alike(queries).items():
            try:
                together = [queries[place] for place in places]
                texts = list(dict.fromkeys(text for query in together for text in (query.text, *query.against)))
                wanted = replace(like, top=max(query.wanted.top for query in together))
                found = self._retriever.search_vectors(self.vectors.of(texts), weights_of(together, texts), wanted)
                for place, hits in zip(places, found, strict=True):
                    answers[place] = hits[: queries[place].wanted.top]
            except Exception as error:  # each client gets it, from its route
                for place in places:
                    answers[place] = error
        return answers


def weights_of(queries: Sequence[Query], texts: Sequence[str]) -> np.ndarray:
    """(Q, N): what each of N distinct texts counts in each query.

    >>> weights_of([Query("a"), Query("b", against=("a", "c"))], ["a", "b", "c"]).tolist()
    [[1.0, 0.0, 0.0], [-0.25, 1.0, -0.25]]
    """
    place, weights = {text: number for number, text in enumerate(texts)}, np.zeros((len(queries), len(texts)))
    for row, query in zip(weights, queries, strict=True):
        for text, weight in zip((query.text, *query.against), mixture(1, len(query.against), False)[0], strict=True):
            row[place[text]] += weight
    return weights


def _alike(queries: Iterable[Query]) -> dict[Wanted, list[int]]:
    """The places of the queries that can be searched together; of plain ones, `top` does not matter."""
    places: dict[Wanted, list[int]] = {}
    for place, query in enumerate(queries):
        wanted = query.wanted
        places.setdefault(wanted if wanted.shares_files else replace(wanted, top=1), []).append(place)
    return places


def _settle(future: "asyncio.Future[list[Any]]", answer: "list[Any] | Exception") -> None:
    if future.done():
        return
    if isinstance(answer, Exception):
        future.set_exception(answer)
    else:
        future.set_result(answer)
