"""What hostile clients and hostile data try: nothing leaks, nothing dies."""

import io
import itertools
import struct
import zlib

import pytest
from PIL import Image
from serve.conftest import HOSTILE
from starlette.testclient import TestClient

from pipeline.serve.app import create_app
from pipeline.serve.settings import ServeSettings

TRAVERSALS = [
    "../secret.txt", "..%2fsecret.txt", "%2e%2e/secret.txt", "%2e%2e%2fsecret.txt", "..%5csecret.txt", "....//secret",
    "/etc/passwd", "//etc/passwd", "%2fetc%2fpasswd", "file:///etc/passwd", "plays.mp4/../secret.txt", "plays.mp4%00.x",
    "..%252fsecret.txt", "%c0%ae%c0%ae/secret.txt", "secret.txt", "plays.mp4#t=../../secret", "plays.mp4%23t%3D0,1",
    "s3://bucket/key", "http://127.0.0.1/", "concat:/etc/passwd", "~/.ssh/id_rsa", "|cat /etc/passwd", "$(id)",
    "a" * 5000,
]  # fmt: skip


def test_no_parameter_reaches_the_file_system(client, folder):
    """Every parameter of every route, with every traversal: the file beside the videos is never sent."""
    routes = ["/media/{}", "/thumbnail/{}", "/thumbnail/plays.mp4?t={}", "/thumbnail/plays.mp4?width={}",
              "/api/clips/{}", "/api/similar?id={}", "/api/similar?id=plays.mp4&where={}", "/api/search?q=a&where={}",
              "/api/search?q=a&top={}", "/static/{}", "/docs/{}", "/{}"]  # fmt: skip
    for route, text in itertools.product(routes, [*TRAVERSALS, str(folder / "secret.txt"), str(folder / "plays.mp4")]):
        encoded = text.replace("#", "%23").replace(" ", "%20")
        answer = client.get(route.format(encoded))
        assert answer.status_code in (400, 404, 405, 422), (route, text, answer.status_code)
        assert "root:" not in answer.text
        assert answer.text != "secret"
    for text in TRAVERSALS:
        answer = client.get("/api/search", params={"q": text[:1000], "not": text[:1000]})  # sentences
        assert answer.status_code == 200
        answer = client.post("/api/search/image", files={"image": (text, b"x")})
        assert answer.status_code == 400


def test_large_uploads_are_refused(double, tmp_path):
    settings = ServeSettings(cache_dir=tmp_path, max_upload_bytes=100_000)
    with TestClient(create_app(double, settings), base_url="http://localhost") as client:

        def stream(size):
            yield from (b"x" * 10_000 for _ in range(size // 10_000))

        declared = client.post("/api/search/image", files={"image": ("x.png", b"x" * 200_000)})
        assert declared.status_code == 413
        chunked = client.post("/api/search/image", content=stream(10_000_000))  # no Content-Length
        assert chunked.status_code in (400, 413)
        head = b'--b\r\ncontent-disposition: form-data; name="image"; filename="x"\r\n\r\n'
        form = client.post("/api/search/image", content=itertools.chain([head], stream(10_000_000)),
                           headers={"content-type": "multipart/form-data; boundary=b"})  # fmt: skip
        assert form.status_code == 413
        between = client.post("/api/search/image", files={"image": ("x.png", b"x" * 100_001)})
        assert between.status_code == 413
        lies = client.post("/api/search/image", content=b"x" * 200_000, headers={"content-length": "5"})
        assert lies.status_code >= 400
        many = client.post("/api/search/image", files=[("image", (f"{i}.png", b"x")) for i in range(500)])
        assert many.status_code == 400
        assert client.get("/healthz").status_code == 200


def bomb(width, height) -> bytes:
    """A PNG of a few kilobytes whose header promises width x height, filled with zeros."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\0" * min(height * (1 + 3 * width), 20 << 20), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_decompression_bombs_are_refused_by_their_header(client):
    text = zlib.compress(b"A" * (40 << 20), 9)  # a text chunk that unpacks to 40 MiB
    kind = b"zTXt"
    body = b"k\0\0" + text
    chunk = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    small = io.BytesIO()
    Image.new("RGB", (8, 8)).save(small, "PNG")
    with_text = small.getvalue()[:33] + chunk + small.getvalue()[33:]
    for data in (bomb(30_000, 30_000), bomb(2**31 - 1, 2**31 - 1), bomb(60_000, 1000), with_text):
        answer = client.post("/api/search/image", files={"image": ("x.png", data)})
        assert answer.status_code == 400
        assert "error" in answer.json()


@pytest.mark.parametrize(
    "data", [b"", b"\x89PNG\r\n\x1a\n", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"<svg onload='x'/>", b"GIF89a"]
)
def test_files_that_are_no_pictures_are_refused(client, data):
    answer = client.post("/api/search/image", files={"image": ("x.png", data)})
    assert answer.status_code == 400


def test_hostile_names_travel_as_data(client):
    """Answers are JSON with nosniff; no page of ours is made of them on the server."""
    answer = client.get("/api/search", params={"q": f"hostile {HOSTILE}"})
    assert answer.headers["content-type"] == "application/json"
    hit = answer.json()["hits"][0]
    assert hit["video_id"] == f"{HOSTILE}.mp4"
    assert client.get(hit["thumbnail"]).status_code == 200
    clip = client.get(hit["clip"])
    assert clip.json()["captions"] == [f"hostile {HOSTILE}"]
    assert client.get(clip.json()["media"]["url"]).status_code == 200
    page = client.get("/", params={"q": HOSTILE}).text
    assert HOSTILE not in page


def test_special_files_are_not_opened(double, tmp_path):
    """A pipe would block for ever, a device never ends."""
    import os

    os.mkfifo(tmp_path / "pipe.mp4")
    first = next(iter(double.clips.values()))
    for number, path in enumerate([tmp_path / "pipe.mp4", "/dev/zero", tmp_path, "/proc/self/mem", "\0"]):
        double.clips[f"odd{number}"] = type(first)(f"odd{number}", str(path), "odd")
    with TestClient(create_app(double, ServeSettings(cache_dir=tmp_path / "c")), base_url="http://localhost") as client:
        for number in range(5):
            for url in (f"/media/odd{number}", f"/thumbnail/odd{number}"):
                assert client.get(url).status_code in (404, 422)
            assert client.get(f"/api/clips/odd{number}").json()["media"] is None


def test_a_playlist_among_the_videos_opens_nothing_else(double, folder, tmp_path):
    first = next(iter(double.clips.values()))
    playlist = tmp_path / "list.mp4"
    playlist.write_text(f"#EXTM3U\n#EXTINF:1,\nfile://{folder}/plays.mp4\n")
    concat = tmp_path / "concat.mp4"
    concat.write_text(f"ffconcat version 1.0\nfile {folder}/plays.mp4\n")
    for path in (playlist, concat):
        double.clips[path.name] = type(first)(path.name, str(path), "odd")
    with TestClient(create_app(double, ServeSettings(cache_dir=tmp_path / "c")), base_url="http://localhost") as client:
        for path in (playlist, concat):
            assert client.get(f"/media/{path.name}").status_code == 422
            assert client.get(f"/thumbnail/{path.name}").status_code == 422


def test_methods_that_are_not_there(client):
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        for url in ("/media/plays.mp4", "/api/search?q=a", "/", "/api/clips/plays.mp4"):
            assert client.request(method, url).status_code == 405
