"""The API's answers, and the media routes on real files."""

import io
from dataclasses import replace
from urllib.parse import quote

import av
import numpy as np
from clip_maker import read_number
from PIL import Image
from starlette.testclient import TestClient

from pipeline.serve.app import create_app
from pipeline.serve.settings import ServeSettings


def get(client, url, status=200):
    answer = client.get(url)
    assert answer.status_code == status, answer.text
    return answer


def frames_of(data: bytes) -> list[int]:
    """The numbers that the frames of a film carry."""
    with av.open(io.BytesIO(data), "r") as container:
        return [read_number(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]


def picture(colour) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (640, 480), colour).save(buffer, "PNG")
    return buffer.getvalue()


def test_unlike_merged_and_limited(client, clips, double):
    """Two clips that touch, of a file that holds a third: `merge` joins them, `per_file` leaves one of three."""
    touching = replace(clips[1], video_id="plays.mp4#t=3,4", caption="a red ring rests")
    double.clips[touching.video_id] = touching

    def ids(query):
        return [hit["video_id"] for hit in get(client, f"/api/search?q=a+red+ring{query}").json()["hits"]]

    assert ids("")[0] == "plays.mp4"
    assert ids("&not=moves&not=rests")[0] == "plays.mp4#t=1,3"
    assert len(ids("")) == 10
    assert len(ids("&merge=true")) == 9
    assert sum(name.startswith("plays.mp4") for name in ids("&per_file=1")) == 1
    hit = get(client, "/api/search?q=a+red+ring+stops&merge=true&top=2").json()["hits"][0]
    assert (hit["start"], hit["end"]) == (1.0, 4.0)
    assert len(get(client, "/api/similar?id=remux.mkv&merge=true&per_file=1").json()["hits"]) == 6
    sent = {"image": ("a.png", picture((255, 0, 0)), "image/png")}
    found = client.post("/api/search/image?per_file=1&merge=true", files=sent).json()
    assert len(found["hits"]) == 7
    for wrong in ("&per_file=0", "&merge=perhaps", "&not=", "&not=a" * 9):
        get(client, f"/api/search?q=a{wrong}", 422)
    get(client, "/api/search?q=a&not=%20", 400)


def test_search_answers_with_hits_and_links(client):
    answer = get(client, "/api/search?q=a+red+ring&top=2").json()
    assert answer["query"] == "a red ring"
    assert answer["generation"] == "gen-000001"
    first, second = answer["hits"]
    assert {first["video_id"], second["video_id"]} == {"plays.mp4", "plays.mp4#t=1,3"}
    clip = next(hit for hit in answer["hits"] if hit["start"] is not None)
    assert (clip["start"], clip["end"], clip["moment"]) == (1.0, 3.0, 1.5)
    assert get(client, clip["thumbnail"]).headers["content-type"] == "image/jpeg"
    assert get(client, clip["clip"]).json()["video_id"] == "plays.mp4#t=1,3"


def test_no_path_of_the_server_is_told(client, folder):
    for url in ["/api/search?q=a", "/api/similar?id=plays.mp4", "/api/info", "/openapi.json", "/metrics"]:
        assert str(folder) not in get(client, url).text
    for clip in ("plays.mp4", "broken.mp4", "gone.mp4", "far.mp4"):
        assert str(folder) not in get(client, f"/api/clips/{clip}").text


def test_filters(client):
    answer = get(client, "/api/search?q=a&where=camera+%3D+'right'").json()
    assert {hit["video_id"] for hit in answer["hits"]} == {"deep/plays too.mp4", "remux.mkv"}
    assert "cannot be read" in get(client, "/api/search?q=a&where=nonsense", 400).json()["error"]


def test_similar_leaves_the_clip_out(client):
    answer = get(client, "/api/similar?id=plays.mp4").json()
    assert answer["hits"][0]["video_id"] == "plays.mp4#t=1,3"
    assert "plays.mp4" not in {hit["video_id"] for hit in answer["hits"]}
    get(client, "/api/similar?id=unknown", 404)


def test_search_by_picture(client):
    answer = client.post("/api/search/image?top=1", files={"image": ("x.png", picture((0, 0, 250)))})
    assert [hit["video_id"] for hit in answer.json()["hits"]] == ["deep/plays too.mp4"]
    answer = client.post("/api/search/image", files={"other": ("x.png", b"")})
    assert answer.status_code == 400


def test_parameters_are_bounded(client):
    for url in ("/api/search", "/api/search?q=", "/api/search?q=+", "/api/search?q=a&top=0", "/api/search?q=a&top=201",
                f"/api/search?q={'a' * 1001}", "/thumbnail/plays.mp4?t=-1", "/thumbnail/plays.mp4?t=nan",
                "/thumbnail/plays.mp4?t=inf", "/thumbnail/plays.mp4?width=9999"):  # fmt: skip
        answer = client.get(url)
        assert answer.status_code in (400, 422), url
        assert answer.json()["error"]


def test_clip_says_how_it_is_played(client):
    how = {clip: get(client, f"/api/clips/{quote(clip, safe='')}").json() for clip in
           ("plays.mp4", "remux.mkv", "transcode.avi#t=0.5,1.5", "broken.mp4", "gone.mp4", "far.mp4")}  # fmt: skip
    assert how["plays.mp4"]["media"]["how"] == "original"
    assert how["plays.mp4"]["metadata"] == {"camera": "left"}
    assert how["plays.mp4"]["captions"] == ["a red ring moves"]
    assert how["remux.mkv"]["media"]["how"] == "remuxed"
    assert how["transcode.avi#t=0.5,1.5"]["media"] | {"url": ""} == {
        "url": "", "media_type": "video/mp4", "how": "transcoded", "offset": 0.5,
    }  # fmt: skip
    for clip, reason in (("broken.mp4", "CannotOpen"), ("gone.mp4", "gone"), ("far.mp4", "not on this machine")):
        assert how[clip]["media"] is None
        assert reason in how[clip]["problem"]


def test_media_is_the_file_with_ranges(client, folder):
    whole = (folder / "plays.mp4").read_bytes()
    answer = get(client, "/media/plays.mp4")
    assert answer.content == whole
    assert answer.headers["content-type"] == "video/mp4"
    assert answer.headers["accept-ranges"] == "bytes"
    size = len(whole)
    for header, start, end in (("bytes=0-0", 0, 1), ("bytes=10-19", 10, 20), ("bytes=-5", size - 5, size),
                               (f"bytes={size - 3}-", size - 3, size), ("bytes=5-99999999", 5, size)):  # fmt: skip
        part = client.get("/media/plays.mp4", headers={"range": header})
        assert part.status_code == 206, header
        assert part.content == whole[start:end]
        assert part.headers["content-range"] == f"bytes {start}-{end - 1}/{size}"
    head = client.head("/media/plays.mp4")
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(size))
    old = client.get("/media/plays.mp4", headers={"range": "bytes=0-1", "if-range": '"another"'})
    assert old.status_code == 200


def test_ranges_that_are_none_are_refused(client):
    for header in (
        "bytes=0-1,5-6",
        "bytes=99999999-",
        "lines=1-2",
        "bytes=a-b",
        "bytes=-",
        "bytes=5-2",
        "bytes=0-" + "9" * 30,
    ):
        answer = client.get("/media/plays.mp4", headers={"range": header})
        assert answer.status_code in (400, 416), header
        assert len(answer.content) < 300


def test_remuxed_film_has_the_same_frames(client):
    assert frames_of(get(client, "/media/remux.mkv").content) == list(range(60))


def test_transcoded_film_is_the_clip(client):
    film = get(client, f"/media/{quote('transcode.avi#t=0.5,1.5', safe='')}").content
    frames = frames_of(film)
    assert len(frames) == 25  # one second at 25 a second
    assert frames[0] in (12, 13)  # 0.5 s


def test_converted_films_are_kept(client, settings):
    first = get(client, "/media/remux.mkv")
    kept = list(settings.cache_dir.iterdir())
    assert len(kept) == 1
    changed = kept[0].stat().st_ino
    part = client.get("/media/remux.mkv", headers={"range": "bytes=0-9"})
    assert part.content == first.content[:10]
    assert [path.stat().st_ino for path in settings.cache_dir.iterdir()] == [changed]


def test_thumbnail_shows_the_frame_at_the_time(client):
    for seconds, expected in ((0, 0), (1.0, 25), (2.0, 50), (99, 75)):
        data = get(client, f"/thumbnail/plays.mp4?t={seconds}&width=160").content
        number = read_number(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
        if seconds < 99:
            assert number == expected
    for clip in ("broken.mp4", "gone.mp4", "far.mp4"):
        assert client.get(f"/thumbnail/{clip}").status_code in (404, 422)


def test_health_metrics_and_documents(client):
    assert get(client, "/healthz").json() == {"status": "ok"}
    get(client, "/api/search?q=a")
    text = get(client, "/metrics").text
    assert 'dits_requests_total{route="/api/search",status="200"} 1.0' in text
    assert "dits_index_videos 9.0" in text
    assert "dits_index_generation 1.0" in text
    paths = get(client, "/openapi.json").json()["paths"]
    assert {"/api/search", "/api/search/image", "/api/similar", "/api/clips/{video_id}"} <= paths.keys()
    assert get(client, "/docs").headers["content-type"].startswith("text/html")


def test_the_page_needs_nothing_from_elsewhere(client):
    for name in ("/", "/docs", "/static/app.js", "/static/docs.js", "/static/style.css", "/static/theme.js"):
        text = get(client, name).text.replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in text
        assert "https://" not in text
        assert "innerHTML" not in text
        assert "insertAdjacentHTML" not in text


def test_index_generations_are_followed(double, tmp_path):
    settings = ServeSettings(cache_dir=tmp_path, refresh_seconds=0.01)
    with TestClient(create_app(double, settings), base_url="http://localhost") as client:
        assert client.get("/api/info").json()["generation"] == "gen-000001"
        double.next_generation = "gen-000002"
        answers = (client.get("/api/search?q=a").json()["generation"] for _ in range(500))
        assert "gen-000002" in answers
        assert "dits_index_generation 2.0" in client.get("/metrics").text


def test_a_failed_refresh_is_counted_and_the_old_generation_answers(double, tmp_path):
    def fails():
        raise OSError("no disk")

    double.refresh = fails
    settings = ServeSettings(cache_dir=tmp_path, refresh_seconds=0.001)
    with TestClient(create_app(double, settings), base_url="http://localhost") as client:
        text = ""
        while "dits_refresh_errors_total 0.0" in (text or "dits_refresh_errors_total 0.0"):
            text = client.get("/metrics").text
        assert client.get("/api/search?q=a").status_code == 200


def test_an_internal_error_tells_clients_nothing(double, settings):
    def fails(*_):
        raise RuntimeError("/secret/path")

    double.search_vectors = fails
    app = create_app(double, settings)
    with TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as client:
        answer = client.get("/api/search?q=a")
        assert answer.status_code == 500
        assert "secret" not in answer.text
        assert client.get("/healthz").status_code == 200
