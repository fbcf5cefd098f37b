"""Who may ask, and what every answer carries: Host, token, origin, size of the body, headers for browsers.

One ASGI layer around the whole application, so that no route can be forgotten. A page elsewhere on the web can make a
visitor's browser send requests here, so a server on 127.0.0.1 is guarded too: the Host header must be one of ours (a
foreign name that was made to point here is refused), other sites' scripts and pictures are refused by Sec-Fetch-Site,
and their forms by Origin.
"""

import hmac
import ipaddress
import json
import re
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import urlsplit

from pipeline.serve.settings import ServeSettings, is_loopback

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

COOKIE = "dits_token"
OPEN_PATHS = frozenset({"/healthz", "/login", "/static/login.html", "/static/style.css"})  # need no token
_HOST = re.compile(r"(?P<name>[a-z0-9]([a-z0-9.-]{0,252}[a-z0-9])?\.?|\[[0-9a-f:.]{2,45}\])(:\d{1,5})?")
_FORM_OVERHEAD = 64 << 10  # multipart boundaries and headers around an upload
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; media-src 'self'; "
        "connect-src 'self'; manifest-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",  # "no-referrer" would make the login form's Origin "null"
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}


class BodyTooLarge(Exception):
    """A request's body is larger than the server takes."""


class Gate:
    """The ASGI layer around the application."""

    def __init__(self, app: App, settings: ServeSettings) -> None:
        self._app, self._settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        send = _with_headers(send)
        headers = _headers(scope)
        refusal = refused(scope["method"], scope["path"], headers, self._settings)
        limit = self._settings.max_upload_bytes + _FORM_OVERHEAD
        if refusal is None and _declared_length(headers) > limit:
            refusal = 413, f"the request's body is larger than {limit} bytes"
        if refusal is not None:
            if refusal[0] == 401 and scope["method"] == "GET" and "text/html" in headers.get("accept", ""):
                await _redirect(send, "/static/login.html")
            else:
                await _refuse(send, *refusal)
            return
        await self._app(scope, _bounded(receive, limit), send)


def refused(method: str, path: str, headers: dict[str, str], settings: ServeSettings) -> tuple[int, str] | None:
    """Status and reason if a request must not reach the application.

    Args:
        method, path: of the request.
        headers: by lower-case name; "host" must be there.
        settings: who may ask.
    """
    if not is_our_host(headers.get("host", ""), settings):
        return 400, "unknown Host header; name it with --allow-host if it is this server's"
    if headers.get("sec-fetch-site") == "cross-site" and headers.get("sec-fetch-mode") != "navigate":
        return 403, "requests of other sites' pages are refused"
    if method not in ("GET", "HEAD"):
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != headers["host"].lower():
            return 403, "requests of other sites' pages are refused"
    if settings.token is not None and path not in OPEN_PATHS and not has_token(headers, settings.token):
        return 401, "the server's token is needed: Authorization: Bearer TOKEN"
    return None


def is_our_host(value: str, settings: ServeSettings) -> bool:
    """Whether a Host header names this server. An address cannot be made to point elsewhere, so beyond this machine
    every address is taken, and only names must be known."""
    match = _HOST.fullmatch(value.lower())
    if match is None:
        return False
    name = match["name"].removesuffix(".")
    if name in settings.allowed_hosts or name == "localhost":
        return True
    try:
        address = ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return name == settings.host.lower()
    return address.is_loopback or not is_loopback(settings.host)


def has_token(headers: dict[str, str], token: str) -> bool:
    """Whether a request shows the token, as a bearer or in the page's cookie. Compared in constant time."""
    scheme, _, bearer = headers.get("authorization", "").partition(" ")
    given = [bearer.strip()] if scheme.lower() == "bearer" else []
    try:
        cookies = SimpleCookie(headers.get("cookie", ""))
    except CookieError:
        cookies = SimpleCookie()
    if COOKIE in cookies:
        given.append(cookies[COOKIE].value)
    return any(same_token(value, token) for value in given)


def same_token(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode(errors="replace"), token.encode())


def _headers(scope: Scope) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}


def _declared_length(headers: dict[str, str]) -> int:
    length = headers.get("content-length", "0")
    return int(length) if length.isascii() and length.isdigit() else 0


def _bounded(receive: Receive, limit: int) -> Receive:
    """`receive` that counts the body, whatever its Content-Length said."""
    received = 0

    async def bounded() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > limit:
            raise BodyTooLarge
        return message

    return bounded


def _with_headers(send: Send) -> Send:
    async def with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            there = {name.lower() for name, _ in message.get("headers", [])}
            added = [(k.encode(), v.encode()) for k, v in HEADERS.items() if k.encode() not in there]
            message = {**message, "headers": [*message.get("headers", []), *added]}
        await send(message)

    return with_headers


async def _refuse(send: Send, status: int, reason: str) -> None:
    body = json.dumps({"error": reason}).encode()
    # The connection ends: the rest of a refused request's body must not be read.
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _redirect(send: Send, location: str) -> None:
    headers = [(b"location", location.encode()), (b"content-length", b"0"), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": 303, "headers": headers})
    await send({"type": "http.response.body", "body": b""})
