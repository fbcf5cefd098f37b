"""Who may ask: Host, token, origin, body; and settings that would be unsafe."""

import pytest
from starlette.testclient import TestClient

from pipeline.errors import BadInput
from pipeline.serve.app import create_app
from pipeline.serve.security import HEADERS, is_our_host, refused
from pipeline.serve.settings import ServeSettings

TOKEN = "correct-horse-battery-staple"


def at(tmp_path, **changes):
    return ServeSettings(cache_dir=tmp_path, **changes)


@pytest.fixture
def guarded(double, tmp_path):
    app = create_app(double, at(tmp_path, host="0.0.0.0", token=TOKEN, allowed_hosts=frozenset({"videos.example"})))
    with TestClient(app, base_url="http://videos.example", follow_redirects=False) as client:
        yield client


def test_a_token_is_needed_beyond_this_machine(tmp_path):
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.org", ""):
        with pytest.raises(BadInput, match="token"):
            at(tmp_path, host=host)
        at(tmp_path, host=host, token=TOKEN)
    for host in ("127.0.0.1", "::1", "localhost", "127.8.8.8"):
        at(tmp_path, host=host)
    for weak in ("", "short", "with a space in the token", "ünïcödé-tökén-tökén"):
        with pytest.raises(BadInput, match="weak"):
            at(tmp_path, token=weak)


def test_hosts(tmp_path):
    local = at(tmp_path)
    for value in ("127.0.0.1", "127.0.0.1:8000", "localhost", "LOCALHOST:80", "[::1]:8000"):
        assert is_our_host(value, local), value
    evil = ["evil.example", "127.0.0.1.evil.example", "", "localhost:", "localhost:99999999", "a b", "local\nhost",
            "192.168.1.5", "8.8.8.8:8000", "[::1", "user@localhost", "localhost/x", "127.0.0.1#", "x" * 99]  # fmt: skip
    for value in evil:
        assert not is_our_host(value, local), value
    beyond = at(tmp_path, host="0.0.0.0", token=TOKEN, allowed_hosts=frozenset({"videos.example"}))
    for value in ("192.168.1.5:8000", "videos.example", "Videos.Example:443", "[2001:db8::1]"):
        assert is_our_host(value, beyond), value
    assert not is_our_host("evil.example", beyond)


def test_unknown_hosts_reach_nothing(client):
    for host in ("evil.example", "evil.example:8000", "127.0.0.1.evil.example"):
        for url in ("/", "/api/search?q=a", "/healthz", "/media/plays.mp4"):
            answer = client.get(url, headers={"host": host})
            assert answer.status_code == 400, url


def test_other_sites_are_refused(client):
    picture = {"image": ("x.png", b"x")}
    for origin in ("http://evil.example", "null", "http://127.0.0.1:8001", "http://127.0.0.1.evil.example:8000"):
        answer = client.post("/api/search/image", files=picture, headers={"origin": origin})
        assert answer.status_code == 403, origin
    own = client.post("/api/search/image", files=picture, headers={"origin": "http://127.0.0.1:8000"})
    assert own.status_code == 400  # no picture: it was read
    cross = {"sec-fetch-site": "cross-site"}
    assert client.get("/thumbnail/plays.mp4", headers=cross | {"sec-fetch-mode": "no-cors"}).status_code == 403
    assert client.get("/", headers=cross | {"sec-fetch-mode": "navigate"}).status_code == 200


def test_every_answer_carries_the_headers(client):
    for url in ("/", "/api/search?q=a", "/api/search", "/nowhere", "/media/plays.mp4", "/media/gone.mp4", "/healthz"):
        answer = client.get(url)
        for name, value in HEADERS.items():
            assert answer.headers[name] == value, (url, name)
    assert client.get("/", headers={"host": "evil.example"}).headers["x-content-type-options"] == "nosniff"
    policy = HEADERS["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_nothing_is_served_without_the_token(guarded):
    for url in ("/", "/api/search?q=a", "/api/info", "/media/plays.mp4", "/thumbnail/plays.mp4", "/metrics", "/docs",
                "/openapi.json", "/static/app.js", "/nowhere", "/api/clips/plays.mp4"):  # fmt: skip
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": TOKEN}, {"cookie": "dits_token=wrong"},
                        {"cookie": "dits_token"}, {"authorization": f"Basic {TOKEN}"}):  # fmt: skip
            assert guarded.get(url, headers=headers).status_code == 401, (url, headers)
        assert guarded.get(f"{url}{'&' if '?' in url else '?'}token={TOKEN}").status_code == 401
    assert guarded.get("/healthz").status_code == 200


def test_the_token_opens_as_a_bearer_and_by_the_login_form(guarded):
    answer = guarded.get("/api/search?q=a", headers={"authorization": f"Bearer {TOKEN}"})
    assert answer.status_code == 200
    page = guarded.get("/", headers={"accept": "text/html"})
    assert (page.status_code, page.headers["location"]) == (303, "/static/login.html")
    assert guarded.get("/static/login.html").status_code == 200
    assert guarded.post("/login", data={"token": "wrong"}).status_code == 401
    assert "dits_token" not in guarded.cookies
    entered = guarded.post("/login", data={"token": TOKEN})
    cookie = entered.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert guarded.get("/api/search?q=a").status_code == 200


def test_refusals_are_the_same_for_every_method(tmp_path):
    settings = at(tmp_path, token=TOKEN)
    for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE"):
        refusal = refused(method, "/api/info", {"host": "localhost"}, settings)
        assert refusal is not None
        assert refusal[0] == 401
