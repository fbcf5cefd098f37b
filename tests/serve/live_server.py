"""The application under its real server, in a thread of this process, on a free port."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pipeline.serve.app import create_app
from pipeline.serve.server import make_server
from pipeline.serve.settings import ServeSettings


@contextmanager
def serving(backend: Any, settings: ServeSettings) -> Iterator[int]:
    """Yields the port."""
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    server = make_server(create_app(backend, settings), settings)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            thread.join(0.01)
        yield listening.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(30)
        listening.close()
    assert not thread.is_alive()


def request(port: int, text: str, *, timeout: float = 30.0) -> bytes:
    """Send bytes as they are, and read to the end of the connection, or to where the server cuts it off."""
    parts = []
    with (
        socket.create_connection(("127.0.0.1", port), timeout=timeout) as connection,
        contextlib.suppress(ConnectionResetError, BrokenPipeError),
    ):
        connection.sendall(text.encode("latin-1"))
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)
