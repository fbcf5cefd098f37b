"""The server over a real workspace: encoder, head, index, reindexing, the command."""

import asyncio
import io
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from command_line import refused, run
from PIL import Image
from starlette.testclient import TestClient

from pipeline import Retriever
from pipeline.resolve import resolve_head, resolve_store
from pipeline.retrieve.corpus import build_corpus_index
from pipeline.retrieve.index import IndexSpec
from pipeline.serve.app import create_app
from pipeline.serve.live import LiveBackend
from pipeline.serve.settings import ServeSettings
from pipeline.stores.metadata import write_metadata
from pipeline.workspace import Workspace

ROOT = Path(__file__).parents[2]


def build(root):
    workspace = Workspace(root)
    chosen = resolve_store(workspace, "shapes")
    return build_corpus_index(workspace, chosen, resolve_head(workspace, chosen), IndexSpec("Flat"))


@pytest.fixture(scope="module")
def workspace(extracted):
    store = resolve_store(Workspace(extracted), "shapes").store
    ids = store.videos().video_ids
    cameras = ("right", "left")
    write_metadata(store.path, {v: {"year": 2018 + i % 4, "camera": cameras[i % 2]} for i, v in enumerate(ids)})
    build(extracted)
    return extracted


@pytest.fixture(scope="module")
def client(workspace, tmp_path_factory):
    backend = LiveBackend.open(workspace)
    settings = ServeSettings(cache_dir=tmp_path_factory.mktemp("films"), refresh_seconds=0.05)
    with TestClient(create_app(backend, settings), base_url="http://127.0.0.1") as client:
        yield client
    backend.close()


def test_answers_are_the_retrievers(client, workspace):
    for sentence in ("a red ring", "a blue star grows", "a red ring"):
        with Retriever.open(workspace) as retriever:
            expected = retriever.search([sentence], top=5)[0]
        answer = client.get("/api/search", params={"q": sentence, "top": 5}).json()
        assert [hit["video_id"] for hit in answer["hits"]] == [hit.video_id for hit in expected]
        assert [hit["score"] for hit in answer["hits"]] == pytest.approx([hit.score for hit in expected], abs=1e-5)
        assert [hit["moment"] for hit in answer["hits"]] == [hit.moment for hit in expected]


def test_unlike_another_sentence(client, workspace):
    with Retriever.open(workspace) as retriever:
        expected = retriever.search(["a red ring"], top=5, against=["a blue star", "a green box"])[0]
        plain = retriever.search(["a red ring"], top=5)[0]
    given = {"q": "a red ring", "top": 5, "not": ["a blue star", "a green box"]}
    answer = client.get("/api/search", params=given).json()
    assert [hit["video_id"] for hit in answer["hits"]] == [hit.video_id for hit in expected]
    assert [hit["score"] for hit in answer["hits"]] == pytest.approx([hit.score for hit in expected], abs=1e-5)
    assert [hit.score for hit in plain] != pytest.approx([hit.score for hit in expected], abs=1e-3)


def test_filters(client, workspace):
    columns = {column["name"]: column["type"] for column in client.get("/api/info").json()["columns"]}
    assert columns == {"year": "int64", "camera": "string"}
    where = "year >= 2020 AND camera = 'left'"
    with Retriever.open(workspace) as retriever:
        expected = [hit.video_id for hit in retriever.search(["a ring"], 50, where)[0]]
    answer = client.get("/api/search", params={"q": "a ring", "top": 50, "where": where}).json()
    assert [hit["video_id"] for hit in answer["hits"]] == expected
    assert 0 < len(expected) < 24
    for hit in answer["hits"]:
        assert client.get(hit["clip"]).json()["metadata"] == {"year": 2021, "camera": "left"}


@pytest.mark.parametrize("where", [
    "1=1; DROP TABLE clips", "1=1); COPY clips TO '/tmp/x'; --", "year = (SELECT 1)", "read_text('/etc/passwd') <> ''",
    "EXISTS (SELECT * FROM read_csv('/etc/passwd'))", "getenv('HOME') <> ''", "path LIKE '/%'", "clips.path LIKE '/%'",
    '"PATH" <> \'\'', "TRUE UNION SELECT 1", "pg_read_file('x')", "current_setting('threads') = 1", "year = ", "'",
    "--",
])  # fmt: skip
def test_conditions_that_are_more_than_that_are_refused(client, where):
    answer = client.get("/api/search", params={"q": "a ring", "where": where})
    assert answer.status_code == 400, answer.text
    assert "/tmp" not in answer.json()["error"] or "/tmp" in where


def test_similar_and_picture(client, workspace):
    first = client.get("/api/search?q=a+ring&top=1").json()["hits"][0]
    similar = client.get("/api/similar", params={"id": first["video_id"], "top": 3}).json()["hits"]
    assert len(similar) == 3
    assert first["video_id"] not in [hit["video_id"] for hit in similar]
    frame = client.get(first["thumbnail"]).content
    found = client.post("/api/search/image?top=3", files={"image": ("frame.jpg", frame)}).json()["hits"]
    assert found[0]["video_id"] == first["video_id"]
    assert found[0]["moment"] == pytest.approx(first["moment"], abs=1.0)


def test_captions_and_media_of_a_clip(client):
    hit = client.get("/api/search?q=a+ring&top=1").json()["hits"][0]
    clip = client.get(hit["clip"]).json()
    assert clip["captions"]
    assert clip["media"]["how"] == "original"
    film = client.get(clip["media"]["url"], headers={"range": "bytes=0-99"})
    assert film.status_code == 206
    assert Image.open(io.BytesIO(client.get(hit["thumbnail"]).content)).format == "JPEG"


def test_searches_go_on_while_a_reindex_switches(client, workspace):
    """No request fails, and the new generation answers in the end."""
    before = client.get("/api/info").json()["generation"]

    async def whole():
        building = asyncio.create_task(asyncio.to_thread(build, workspace))
        generations = set()
        while not building.done() or generations <= {before}:
            answer = await asyncio.to_thread(client.get, "/api/search?q=a+ring&top=2")
            assert answer.status_code == 200
            assert len(answer.json()["hits"]) == 2
            generations.add(answer.json()["generation"])
        return generations, (await building).generation

    generations, new = asyncio.run(whole())
    assert generations == {before, new}


def test_what_the_command_refuses(workspace, tmp_path):
    place = ("--workspace", workspace)
    assert "token" in refused("serve", "--host", "0.0.0.0", *place)
    assert "weak" in refused("serve", "--token", "short", *place)
    assert "no index" in refused("serve", "--workspace", tmp_path / "empty", "--port", "59999")
    assert "memory" in refused("serve", "--media-cache", "much", *place)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert "cannot listen" in refused("serve", "--port", taken.getsockname()[1], *place)
    assert "DITS_TOKEN" in run("serve", "--help").output


@pytest.mark.slow
@pytest.mark.slow_sample
def test_the_command_serves_the_page_to_a_browser(workspace, tmp_path):
    """`cli.py serve` in its own process, asked by Chromium; it ends cleanly."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no Chromium: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "cli.py", "serve", "--workspace", str(workspace), "--port", str(port)]
    with open(tmp_path / "log", "w") as log, subprocess.Popen(command, stderr=log, cwd=ROOT) as server:
        try:
            while not answers(port):
                assert server.poll() is None, (tmp_path / "log").read_text()
                time.sleep(0.1)
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
                page = browser.new_page()
                page.goto(f"http://127.0.0.1:{port}/?q=a+red+ring")
                page.locator(".shot").first.click()
                page.wait_for_function("() => document.querySelector('.stage video')?.currentTime > 0")
                browser.close()
        finally:
            server.terminate()
    assert server.returncode in (0, -15)


def answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/healthz").status_code == 200
    except httpx.TransportError:
        return False
