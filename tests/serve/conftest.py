"""A server over a few real files of different codecs."""

from pathlib import Path
from typing import Any

import pytest
from clip_maker import make_clip
from serve.double import Clip, Double
from starlette.testclient import TestClient

from pipeline.serve.app import create_app
from pipeline.serve.settings import ServeSettings

HOSTILE = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """H.264 in MP4 (plays), H.264 in Matroska (remuxed), MPEG-4 in AVI (transcoded), no video at all."""
    root = tmp_path_factory.mktemp("videos")
    make_clip(root / "plays.mp4", frames=100)
    make_clip(root / "plays too.mp4", frames=60, first=200)
    make_clip(root / "remux.mkv", frames=60)
    make_clip(root / "transcode.avi", frames=60, codec="mpeg4")
    (root / "broken.mp4").write_bytes(b"not a video" * 100)
    (root / "secret.txt").write_text("secret")
    return root


@pytest.fixture
def clips(folder) -> list[Clip]:
    return [
        Clip("plays.mp4", str(folder / "plays.mp4"), "a red ring moves", 2.0, (255, 0, 0), {"camera": "left"}),
        Clip("plays.mp4#t=1,3", str(folder / "plays.mp4"), "a red ring stops", 1.5, (200, 0, 0), {"camera": "left"}),
        Clip("deep/plays too.mp4", str(folder / "plays too.mp4"), "a blue star", 1.0, (0, 0, 255), {"camera": "right"}),
        Clip("remux.mkv", str(folder / "remux.mkv"), "a green square turns", 1.0, (0, 255, 0), {"camera": "right"}),
        Clip("transcode.avi#t=0.5,1.5", str(folder / "transcode.avi"), "a grey cat sleeps", 1.0, (99, 99, 99)),
        Clip("broken.mp4", str(folder / "broken.mp4"), "something broken"),
        Clip("gone.mp4", str(folder / "gone.mp4"), "something gone"),
        Clip("far.mp4", "s3://bucket/far.mp4", "something far"),
        Clip(f"{HOSTILE}.mp4", str(folder / "plays.mp4"), f"hostile {HOSTILE}", 1.0, (9, 9, 9), {"note": HOSTILE}),
    ]  # fmt: skip


@pytest.fixture
def double(clips) -> Double:
    return Double(clips)


@pytest.fixture
def settings(tmp_path) -> ServeSettings:
    return ServeSettings(cache_dir=tmp_path / "films")


@pytest.fixture
def client(double, settings) -> Any:
    with TestClient(create_app(double, settings), base_url="http://127.0.0.1:8000") as client:
        yield client
