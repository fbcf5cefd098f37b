"""The real server: clients that wait for ever, and requests that no well-behaved client sends."""

import resource
import socket

import httpx
import pytest
from serve.live_server import request, serving
from serve.test_attacks import TRAVERSALS

from pipeline.serve.server import Stalled
from pipeline.serve.settings import ServeSettings

HEAD = "GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n"
UPLOAD = "POST /api/search/image HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n\r\nslow"


def open_slow(port: int, count: int) -> list[socket.socket]:
    """Clients that send nothing, half a request, half a body, or do not read what they asked for."""
    kinds = ["", HEAD, UPLOAD, "GET /media/large HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"]
    clients = []
    for number in range(count):
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", port))
        client.sendall(kinds[number % len(kinds)].encode())
        client.settimeout(30)
        clients.append(client)
    return clients


def is_ended(client: socket.socket) -> bool:
    """Whether the server ends the connection; reads what was on its way."""
    try:
        while client.recv(1 << 20):
            pass
    except ConnectionResetError:
        return True
    return True  # a timeout raises


def endure(double, folder, tmp_path, count: int, max_connections: int) -> None:
    large = tmp_path / "large.mp4"
    large.write_bytes((folder / "plays.mp4").read_bytes() + bytes(8 << 20))
    first = next(iter(double.clips.values()))
    double.clips["large"] = type(first)("large", str(large), "large")
    settings = ServeSettings(
        cache_dir=tmp_path / "films", request_seconds=2, stall_seconds=2, max_connections=max_connections
    )
    with serving(double, settings) as port:
        clients = []
        for _ in range(4):  # in waves, so that good clients come before, between and after
            clients += open_slow(port, count // 4)
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as good:
                assert good.get("/api/search?q=a+red+ring").json()["hits"]
                assert good.get("/media/plays.mp4").status_code == 200
        assert all(is_ended(client) for client in clients)
        for client in clients:
            client.close()
        text = httpx.get(f"http://127.0.0.1:{port}/metrics").text
        assert "dits_requests_in_flight 1.0" in text  # this one: nothing hangs


def test_slow_clients_do_not_keep_others_out(double, folder, tmp_path):
    endure(double, folder, tmp_path, 100, 40)


@pytest.mark.slow
def test_a_thousand_slow_clients(double, folder, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    try:
        endure(double, folder, tmp_path, 1000, 400)
        endure(double, folder, tmp_path, 1000, 4000)  # all of them at once: deadlines alone
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_one_that_waits_longest_makes_room():
    class Connection:
        def __init__(self):
            self.aborted = False
            self.transport = self

        def abort(self):
            self.aborted = True

    stalled, connections = Stalled(3), [Connection() for _ in range(5)]
    for number, connection in enumerate(connections, 1):
        stalled.add(connection)
        if number == 1:
            stalled.discard(connection)  # is being served
        stalled.make_room(number - stalled.dropped)
    assert [c.aborted for c in connections] == [False, True, True, False, False]


def test_requests_as_no_client_library_sends_them(double, folder, tmp_path):
    with serving(double, ServeSettings(cache_dir=tmp_path)) as port:
        end = "Host: 127.0.0.1\r\nConnection: close\r\n\r\n"
        for text in TRAVERSALS:
            target = text.replace(" ", "%20")
            for route in ("/media/{}", "/thumbnail/{}", "/static/{}", "/api/clips/{}", "/{}"):
                answer = request(port, f"GET {route.format(target)} HTTP/1.1\r\n{end}")
                assert answer.split()[1] in (b"400", b"404", b"422"), (route, text, answer[:80])
                assert b"secret\r" not in answer
                assert b"root:" not in answer
        bad = [
            "GET / HTTP/1.1\r\n\r\n",  # no Host
            "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil.example\r\n\r\n",
            "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
            "GET http://evil.example/ HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n",
            "POST /api/search/image HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -5\r\n\r\n",
            "POST /api/search/image HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n"
            "Connection: close\r\n\r\n0\r\n\r\n",
            f"POST /api/search/image HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {10**15}\r\n\r\n",
        ]
        for text in bad:
            answer = request(port, text)
            assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 413", b"HTTP/1.1 404")), (text[:60], answer[:60])
        for text in (f"GET /{'a' * 2_000_000} HTTP/1.1\r\n{end}", f"GET / HTTP/1.1\r\nX: {'a' * 2_000_000}\r\n{end}"):
            assert not request(port, text).startswith(b"HTTP/1.1 200")  # 400, or cut off
        assert b"server: uvicorn" not in request(port, f"GET /healthz HTTP/1.1\r\n{end}")
