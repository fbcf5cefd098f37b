"""Run the application under uvicorn, with bounds on slow clients.

uvicorn alone waits for ever for a client that opens a connection and sends nothing, a request in drops, or reads no
answer. Here each has a deadline. Above `max_connections` the connection that has waited longest on its client is
closed, so that slow clients displace each other and never those that are served.
"""

import asyncio
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from pipeline.serve.settings import ServeSettings

_MAX_HEADER_BYTES = 32 << 10
_BACKLOG = 1024
_SHUTDOWN_SECONDS = 5


class Stalled:
    """Connections that wait on their client, the one that waits longest first."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._since: dict[Any, None] = {}
        self.dropped = 0

    def add(self, connection: Any) -> None:
        self._since.setdefault(connection)

    def discard(self, connection: Any) -> None:
        self._since.pop(connection, None)

    def make_room(self, connections: int) -> None:
        """Close as many as are open beyond the limit."""
        for connection in list(self._since)[: max(0, connections - self._limit)]:
            self.discard(connection)
            self.dropped += 1
            connection.transport.abort()


def bounded_protocol(settings: ServeSettings) -> type[H11Protocol]:
    """uvicorn's protocol of one connection, with deadlines and a bound on connections."""
    stalled = Stalled(settings.max_connections)

    class BoundedProtocol(H11Protocol):
        _reading: asyncio.TimerHandle | None = None
        _writing: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._expect_request()
            stalled.make_room(len(self.connections))

        def connection_lost(self, exc: Exception | None) -> None:
            self._request_is_whole()
            self.resume_writing()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            self._expect_request()
            super().data_received(data)
            if self.conn.their_state is not h11.IDLE and self.conn.their_state is not h11.SEND_BODY:
                self._request_is_whole()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            stalled.add(self)  # waits for its client's next request; uvicorn's keep-alive timer ends it

        def pause_writing(self) -> None:
            super().pause_writing()
            stalled.add(self)
            if self._writing is None:
                self._writing = self.loop.call_later(settings.stall_seconds, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._writing is not None:
                self._writing.cancel()
                self._writing = None
                stalled.discard(self)

        def _expect_request(self) -> None:
            stalled.add(self)
            if self._reading is None:
                self._reading = self.loop.call_later(settings.request_seconds, self.transport.abort)

        def _request_is_whole(self) -> None:
            stalled.discard(self)
            if self._reading is not None:
                self._reading.cancel()
                self._reading = None

    return BoundedProtocol


def make_server(app: Any, settings: ServeSettings) -> uvicorn.Server:
    """A server that is ready to run: `server.run()`, or `server.serve()` in a running loop."""
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=bounded_protocol(settings),
        ws="none",
        lifespan="on",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=_BACKLOG,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
        h11_max_incomplete_event_size=_MAX_HEADER_BYTES,
    )
    return uvicorn.Server(config)
