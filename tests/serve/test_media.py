"""The caches of films and thumbnails, held to a plain account of what should be there."""

import asyncio
import random
import threading
from collections import OrderedDict

import pytest

from pipeline.serve.media import BytesCache, FilmCache, Media, Source, Workers
from pipeline.serve.queries import Overloaded
from pipeline.video.limits import DecodeFailure


def writes(size):
    return lambda target: target.write_bytes(b"x" * size)


def test_film_cache_keeps_what_was_used_last_within_its_bytes(tmp_path):
    cache, generator = FilmCache(tmp_path, 1000), random.Random(0)
    expected: OrderedDict[str, int] = OrderedDict()
    for _ in range(300):
        key = f"k{generator.randrange(12)}"
        assert cache.has(key) == (key in expected)
        if key in expected:
            expected.move_to_end(key)
        else:
            size = generator.randrange(10, 400)
            cache.add(key, writes(size))
            expected[key] = size
            while sum(expected.values()) > 1000:
                expected.popitem(last=False)
        assert {path.stem: path.stat().st_size for path in tmp_path.iterdir()} == dict(expected)
        assert cache.bytes == sum(expected.values()) <= 1000


def test_a_film_that_is_being_sent_stays(tmp_path):
    cache = FilmCache(tmp_path, 100)
    cache.hold("a")
    cache.add("a", writes(80))
    cache.add("b", writes(80))
    assert cache.path("a").exists()
    cache.release("a")
    assert not (cache.path("a").exists() and cache.path("b").exists())


def test_a_restart_finds_the_films_and_clears_what_was_cut_off(tmp_path):
    FilmCache(tmp_path, 1000).add("a", writes(10))
    (tmp_path / "b.123.part.mp4").write_bytes(b"half")
    cache = FilmCache(tmp_path, 1000)
    assert cache.has("a")
    assert not cache.has("b")
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
    assert not FilmCache(tmp_path, 5).has("a")  # a smaller bound holds at once
    cache.path("a").unlink(missing_ok=True)
    assert not cache.has("a")


def test_a_failed_conversion_leaves_nothing(tmp_path):
    def fails(target):
        target.write_bytes(b"half")
        raise DecodeFailure("decode", "TimeLimit", "too slow")

    cache = FilmCache(tmp_path, 1000)
    with pytest.raises(DecodeFailure):
        cache.add("a", fails)
    assert list(tmp_path.iterdir()) == []
    assert not cache.has("a")


def test_bytes_cache_is_bounded():
    cache = BytesCache(100)
    for key in range(20):
        cache.put(key, b"x" * 30)
        assert cache.get(key) == b"x" * 30
        assert cache.bytes <= 100
    assert [key for key in range(20) if cache.get(key)] == [17, 18, 19]
    cache.put(19, b"y")
    assert cache.bytes == 61
    cache.put("large", b"x" * 200)
    assert cache.bytes == 0


def test_equal_work_is_done_once_and_waiting_is_bounded():
    calls, go = [], threading.Event()

    def work(key):
        go.wait(10)
        calls.append(key)
        return key

    async def whole():
        workers = Workers(1, "test", max_waiting=3)
        tasks = [asyncio.create_task(workers.once(i % 3, lambda i=i: work(i % 3))) for i in range(30)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await workers.once("another", lambda: work("another"))
        go.set()
        answers = await asyncio.gather(*tasks)
        workers.stop()
        return answers

    assert asyncio.run(whole()) == [i % 3 for i in range(30)]
    assert sorted(calls) == [0, 1, 2]


def test_a_film_beyond_the_bound_is_refused_and_a_changed_file_made_anew(folder, tmp_path):
    import shutil

    path = tmp_path / "film.mkv"
    shutil.copy(folder / "remux.mkv", path)
    source = Source("film.mkv", str(path))

    async def whole(max_bytes):
        media = Media(tmp_path / f"c{max_bytes}", max_bytes=max_bytes, thumbnail_bytes=0, transcode_seconds=60)
        try:
            film = await media.playable(source)
            data = film.path.read_bytes()
            film.release()
            return data
        finally:
            media.stop()

    with pytest.raises(DecodeFailure, match="more than"):
        asyncio.run(whole(8000))
    first = asyncio.run(whole(10_000_000))
    shutil.copy(folder / "transcode.avi", path)
    second = asyncio.run(whole(10_000_000))
    assert first != second
