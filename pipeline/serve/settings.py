"""Settings of the server, with the bounds that keep one client from starving the others."""

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import BadInput

MIN_TOKEN = 16  # characters


@dataclass(frozen=True)
class ServeSettings:
    """Where to listen, who may ask, and how much of everything. Raises BadInput for what would be unsafe."""

    cache_dir: Path
    """Films that were made playable."""
    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = None
    """What clients must show; needed beyond this machine."""
    allowed_hosts: frozenset[str] = field(default_factory=frozenset)
    """Names in the Host header beside this machine's own (a reverse proxy's)."""
    max_upload_bytes: int = 16 << 20
    max_upload_pixels: int = 50_000_000
    media_cache_bytes: int = 4 << 30
    thumbnail_cache_bytes: int = 64 << 20
    query_vectors: int = 4096
    """Sentences whose vectors are kept."""
    batch_window: float = 0.004
    """Seconds that a query waits for others to be embedded with it."""
    max_batch: int = 64
    max_waiting: int = 512
    """Searches that may wait; more are refused with 503."""
    request_seconds: float = 60.0
    """For a client to send a whole request."""
    stall_seconds: float = 60.0
    """For a client to take any of what is sent to it."""
    max_connections: int = 512
    """Open connections; beyond them the one that has waited longest on its client is closed."""
    transcode_seconds: float = 180.0
    refresh_seconds: float = 2.0
    """Between looks for a newer index generation."""

    def __post_init__(self) -> None:
        if self.token is not None and (len(self.token) < MIN_TOKEN or not self.token.isascii() or " " in self.token):
            raise BadInput(
                "the token is too weak to guard the server",
                expected=f"at least {MIN_TOKEN} ASCII characters without spaces",
                got=f"{len(self.token)}",
                fix='make one: python -c "import secrets; print(secrets.token_urlsafe())"',
            )
        if not is_loopback(self.host) and self.token is None:
            raise BadInput(
                f"--host {self.host} lets other machines in",
                expected="a token that they must show",
                got="none",
                fix="set $DITS_TOKEN or give --token, or leave --host at 127.0.0.1",
            )


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is reached from this machine only.

    >>> [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "::", "example.org")]
    [True, True, True, False, False, False]
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
