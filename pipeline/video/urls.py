"""Which URLs may be opened: over http(s) only public addresses, and no redirects, unless the user allows others.

A list may come from anyone. What it names must not make this machine ask its own services or its neighbours, so every
address is checked where a socket is opened for it: after the name was looked up, whatever led there.
"""

import ipaddress
import socket
from typing import Any

from pipeline.errors import BadInput

FIX = "name the file's own public URL, or give --allow-private if you trust where it comes from"


class RefusedUrl(BadInput):
    """A private or loopback address, or a redirect."""


def fsspec_options(url: str, allow_private: bool) -> dict[str, Any]:
    """What to give fsspec beside a URL, so that it refuses redirects and addresses that are not public."""
    guarded = not allow_private and url.lower().startswith(("http://", "https://"))
    return {"get_client": _public_client} if guarded else {}


def refusal(error: BaseException | None) -> RefusedUrl | None:
    """The refusal that led to an error: fsspec and aiohttp wrap what was raised while they connect."""
    while error is not None and not isinstance(error, RefusedUrl):
        error = error.__cause__ or error.__context__
    return error


def is_public(address: str) -> bool:
    """
    >>> [is_public(address) for address in ("8.8.8.8", "127.0.0.1", "10.0.0.1", "169.254.169.254", "::ffff:127.0.0.1")]
    [True, False, False, False, False]
    """
    parsed = ipaddress.ip_address(address)
    return (getattr(parsed, "ipv4_mapped", None) or parsed).is_global


async def _public_client(**options: Any) -> Any:
    import aiohttp

    redirects = aiohttp.TraceConfig()
    redirects.on_request_redirect.append(_refuse_redirect)
    connector = aiohttp.TCPConnector(socket_factory=_public_socket)
    return aiohttp.ClientSession(connector=connector, trace_configs=[redirects], **options)


def _public_socket(info: tuple[Any, ...]) -> socket.socket:
    family, kind, protocol, _, address = info
    if not is_public(address[0]):
        raise RefusedUrl("a private or loopback address", got=f"{address[0]} port {address[1]}", fix=FIX)
    return socket.socket(family, kind, protocol)


async def _refuse_redirect(session: Any, context: Any, request: Any) -> None:
    raise RefusedUrl(f"{request.url} redirects", got=request.response.headers.get("Location", "no target"), fix=FIX)
