"""Batching, kept vectors, refusal when too much waits; each against what one plain search gives."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest
from serve.double import Double

from pipeline.errors import BadInput
from pipeline.retrieve.search import Wanted
from pipeline.serve.queries import Overloaded, Queries, Query, VectorCache


def run(double, work, **changes):
    """Run `work(queries)` with queries that are started."""
    options = {"window": 0.01, "max_batch": 8, "max_waiting": 100, "vectors": 16} | changes

    async def whole():
        queries = Queries(double, **options)
        queries.start()
        try:
            return await work(queries)
        finally:
            await queries.stop()

    return asyncio.run(whole())


def test_batched_answers_are_those_of_single_searches(double):
    asked = [Query(f"a {word} thing moves", Wanted(top, where=where, merge=merge, per_file=per_file), against)
             for word in ("red", "blue", "red") for top in (1, 3) for where in (None, "camera = 'left'")
             for merge, per_file in ((False, None), (True, 1)) for against in ((), ("red ring", "star"))]  # fmt: skip
    plain = Double(list(double.clips.values()))

    def alone(query):
        weights = np.array([[1, *[-0.5 / len(query.against) for _ in query.against]]])
        return plain.search_vectors(plain.embed([query.text, *query.against]), weights, query.wanted)[0]

    expected = [alone(query) for query in asked]
    assert len({tuple(hit.video_id for hit in hits) for hits in expected}) > 8

    async def work(queries):
        return await asyncio.gather(*(queries.sentence(query) for query in asked))

    for found, hits in zip(run(double, work, max_batch=64), expected, strict=True):
        assert [replace(hit, score=0) for hit in found] == [replace(hit, score=0) for hit in hits]
        assert [hit.score for hit in found] == pytest.approx([hit.score for hit in hits], abs=1e-6)
    assert max(double.searched) > 1
    assert sum(double.searched) == len(asked)


def test_each_sentence_is_embedded_once(double):
    async def work(queries):
        for _ in range(3):
            await asyncio.gather(*(queries.sentence(Query(text, Wanted(2))) for text in ("a", "b", "a")))
        return queries.vectors

    vectors = run(double, work)
    assert [text for batch in double.embedded for text in batch] == ["a", "b"]
    assert (vectors.hits, vectors.misses) == (4, 2)  # twice in a batch counts once


def test_the_sentences_used_longest_ago_are_forgotten():
    embedded = []

    def embed(texts):
        embedded.extend(texts)
        return np.array([[float(ord(text))] for text in texts])

    cache = VectorCache(embed, 2)
    for texts, new in ((["a", "b"], ["a", "b"]), (["a"], []), (["c"], ["c"]), (["a"], []), (["b"], ["b"])):
        embedded.clear()
        assert cache.of(texts)[:, 0].tolist() == [ord(text) for text in texts]
        assert embedded == new
    assert cache.of(["x", "y", "z"])[:, 0].tolist() == [ord("x"), ord("y"), ord("z")]  # more than it keeps


def test_a_bad_filter_fails_only_its_own_queries(double):
    async def work(queries):
        good, bad = Query("a red ring", Wanted(1)), Query("a red ring", Wanted(1, where="nonsense"))
        return await asyncio.gather(*(queries.sentence(q) for q in (good, bad, good)), return_exceptions=True)

    first, error, last = run(double, work)
    assert first == last
    assert first[0].path.endswith("plays.mp4")
    assert isinstance(error, BadInput)


def test_too_many_waiting_queries_are_refused(double):
    double.seconds = 0.05

    async def work(queries):
        asked = [queries.sentence(Query(str(i), Wanted(1))) for i in range(40)]
        return await asyncio.gather(*asked, return_exceptions=True)

    answers = run(double, work, max_waiting=10, max_batch=4)
    refused = [answer for answer in answers if isinstance(answer, Overloaded)]
    assert len(refused) == 30
    assert all(isinstance(answer, list) for answer in answers[:10])


def test_clients_that_leave_do_not_stop_the_others(double):
    async def work(queries):
        leaves = asyncio.create_task(queries.sentence(Query("a", Wanted(1))))
        stays = asyncio.create_task(queries.sentence(Query("b", Wanted(1))))
        await asyncio.sleep(0)
        leaves.cancel()
        assert len(await stays) == 1
        with pytest.raises(asyncio.CancelledError):
            await leaves
        return await queries.run(lambda: 7)

    assert run(double, work) == 7
