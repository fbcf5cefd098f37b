"""Figures of the server in Prometheus' text form."""

import time
from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """The counters of one application. Routes are labelled by their pattern, so that ids make no new series."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "dits_requests_total", "Requests answered", ["route", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "dits_request_seconds", "Time to the end of the answer", ["route"], buckets=_SECONDS, registry=self.registry
        )
        self._in_flight = Gauge("dits_requests_in_flight", "Requests being answered", registry=self.registry)
        self.batches = Histogram(
            "dits_query_batch_size", "Sentences searched together", buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=self.registry,
        )  # fmt: skip
        self.generation = Gauge("dits_index_generation", "Number of the live index generation", registry=self.registry)
        self.videos = Gauge("dits_index_videos", "Videos and clips in the index", registry=self.registry)
        self.refresh_errors = Counter(
            "dits_refresh_errors_total", "Failed moves to a newer index generation", registry=self.registry
        )

    def watch(self, name: str, help_text: str, value: Callable[[], float]) -> None:
        """A figure that is read when it is asked for."""
        Gauge(name, help_text, registry=self.registry).set_function(value)

    def text(self) -> bytes:
        return generate_latest(self.registry)

    def middleware(self, app: Any) -> Any:
        """The ASGI layer that counts."""

        async def counted(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            status = 500
            started = time.perf_counter()

            async def noted(message: Any) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = message["status"]
                await send(message)

            self._in_flight.inc()
            try:
                await app(scope, receive, noted)
            finally:
                self._in_flight.dec()
                route = getattr(scope.get("route"), "path", "other")
                self._requests.labels(route, str(status)).inc()
                self._seconds.labels(route).observe(time.perf_counter() - started)

        return counted
