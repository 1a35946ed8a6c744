"""Request checks and security headers for the web page (plain ASGI).

Any site open in a visitor's browser can make it send requests to this server: cross-origin, or by
DNS rebinding, under the site's host name after pointing that name at this address. Both are refused
here, before the web framework stores or runs anything.
"""

from __future__ import annotations

import errno
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

# gradio's page has an inline script and compiles functions at run time.
PAGE_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "media-src 'self' data: blob:; worker-src 'self' blob:; object-src 'none'; base-uri 'self'; "
    "form-action 'self'; frame-ancestors 'none'"
)
# an uploaded file opened directly must not run scripts
FILE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; sandbox"
_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
_FILES = "/gradio_api/file"
# endpoints of gradio that the page does not use: video conversion, source editing and a proxy
_CLOSED = re.compile(r"/gradio_api/(process_recording|(undo-)?vibe|proxy=)")
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^\[\]:@/\\?#\s]+)(:\d+)?", re.IGNORECASE)
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class ServedHosts:
    """The host names under which the page is served.

    By default these are loopback names on a loopback address; on any other address also IP
    addresses, which DNS rebinding cannot use, and this machine's name.

    Args:
        address: address the server listens on, such as ``127.0.0.1`` or ``0.0.0.0``.
        names: further host names, such as that of a reverse proxy.

    Raises:
        ValueError: a name is not a valid host name.
    """

    def __init__(self, address: str, names: Sequence[str] = ()) -> None:
        for name in names:
            if host_name(name) is None:
                raise ValueError(
                    f"expected a host name such as demo.example.org as --allowed-host, got {name!r}"
                )
        own = address.strip("[]").lower()
        self.named = frozenset(filter(None, map(host_name, names)))
        self._local = own in _LOOPBACK or (_is_ip(own) and ipaddress.ip_address(own).is_loopback)
        self._known = {*_LOOPBACK, own, *self.named}
        if not self._local:
            self._known.add(socket.gethostname().lower())

    def __contains__(self, host: str) -> bool:
        name = host_name(host)
        return name is not None and (name in self._known or (not self._local and _is_ip(name)))

    def is_same_site(self, origin: str, host: str) -> bool:
        """Return whether a request comes from the page itself.

        Args:
            origin: the request's Origin header.
            host: the request's Host header.
        """
        scheme, _, own = origin.lower().partition("://")
        # behind a proxy, Host may differ from the name in the browser
        return scheme in ("http", "https") and (own == host.lower() or host_name(own) in self.named)


class Gate:
    """ASGI middleware that refuses foreign and oversized requests and adds security headers.

    Args:
        app: the wrapped application.
        hosts: host names under which it is served.
        max_bytes: maximum size of a request body.
    """

    def __init__(self, app: App, hosts: ServedHosts, max_bytes: int) -> None:
        self.app, self.hosts, self.max_bytes = app, hosts, max_bytes

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Handle one request; see the ASGI specification."""
        if scope["type"] != "http":  # lifespan events; gradio uses no websockets
            await self.app(scope, receive, send)
            return
        policy = FILE_POLICY if scope["path"].startswith(_FILES) else PAGE_POLICY
        added = [*_HEADERS, (b"content-security-policy", policy.encode())]

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                names = {name for name, _ in added}
                own = [pair for pair in message.get("headers", ()) if pair[0].lower() not in names]
                message = {**message, "headers": [*own, *added]}
            await send(message)

        refusal = self._refusal(scope)
        if refusal is None:
            await self.app(scope, receive, send_guarded)
            return
        status, reason = refusal
        if status == 413:
            await self._discard_body(receive)
        kind = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
        await send_guarded({"type": "http.response.start", "status": status, "headers": kind})
        await send_guarded({"type": "http.response.body", "body": f"{reason}\n".encode()})

    async def _discard_body(self, receive: Receive) -> None:
        """Read an oversized body to the end, so that the browser shows the response."""
        size, more = 0, True
        while more and size < 10 * self.max_bytes:
            message = await receive()
            size += len(message.get("body", b""))
            more = message.get("more_body", False)

    def _refusal(self, scope: Message) -> tuple[int, str] | None:
        """Return status and reason if a request is refused, otherwise None."""
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        host, origin = headers.get(b"host", ""), headers.get(b"origin")
        if host not in self.hosts:
            return 403, (
                f"expected a request for the host of this page, got {host[:100]!r}: if this is the "
                "page's name, start it with --allowed-host NAME"
            )
        if origin is not None and not self.hosts.is_same_site(origin, host):
            return 403, f"expected a request from this page, got one from {origin[:100]!r}"
        if _CLOSED.match(scope["path"]):
            return 404, "not found on this page"
        if scope["method"] in ("GET", "HEAD", "OPTIONS"):
            return None
        length = headers.get(b"content-length", "")
        if b"transfer-encoding" in headers or not length.isdecimal():
            return 411, "expected a request with its Content-Length"
        if len(length) > 15 or int(length) > self.max_bytes:
            return 413, f"expected at most {self.max_bytes} bytes, got {length:.15}"
        return None


def require_free_address(address: str, port: int) -> None:
    """Check that a server can listen on an address and a port.

    Raises:
        ValueError: the address is invalid or in use.
    """
    try:
        if not address.strip():
            raise OSError(errno.EINVAL, "the host is empty")
        if port > 65535:
            raise OSError(errno.EINVAL, "ports end at 65535")
        family, kind, _, _, place = socket.getaddrinfo(
            address.strip("[]"), port, type=socket.SOCK_STREAM
        )[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(
            f"expected a free --port {port} on --host {address}: {reason}. Choose another one"
        ) from None


def host_name(host: str) -> str | None:
    """Return the name of a Host header without its port, in lower case; None if it is malformed."""
    match = _HOST.fullmatch(host)
    return None if match is None else match[1].strip("[]").rstrip(".").lower() or None


def _is_ip(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
