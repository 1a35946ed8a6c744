"""Requests that the web page accepts, and the headers of its responses."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from vild.web.gate import (
    FILE_POLICY,
    PAGE_POLICY,
    Gate,
    ServedHosts,
    require_free_address,
)

LOCAL = ServedHosts("127.0.0.1")


async def _app(scope: Any, receive: Any, send: Any) -> None:
    headers = [(b"content-type", b"text/html"), (b"X-Frame-Options", b"ALLOWALL")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"the page"})


def ask(
    hosts: ServedHosts = LOCAL, method: str = "GET", path: str = "/", **headers: str
) -> tuple[int, dict[str, str], str]:
    """Send a request through a gate; return status, headers and body."""
    sent: list[Any] = []
    given = {"host": "127.0.0.1:7860", **headers}
    pairs = [(k.replace("_", "-").encode(), v.encode("latin-1")) for k, v in given.items()]

    async def receive() -> Any:  # an endless body
        return {"type": "http.request", "body": bytes(100), "more_body": True}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "headers": pairs}
    asyncio.run(Gate(_app, hosts, max_bytes=1000)(scope, receive, send))
    names = [name.decode().lower() for name, _ in sent[0]["headers"]]
    assert len(set(names)) == len(names)
    values = [value.decode() for _, value in sent[0]["headers"]]
    return sent[0]["status"], dict(zip(names, values, strict=True)), sent[1]["body"].decode()


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        *(("127.0.0.1:7860", 200), ("localhost", 200), ("LOCALHOST.:1", 200), ("[::1]:7860", 200)),
        *(("evil.example", 403), ("evil.example:7860", 403), ("127.0.0.1.evil.example", 403)),
        *(("10.0.0.7:7860", 403), ("localhost:x", 403), ("a@localhost", 403), ("", 403)),
        *(("[::1", 403), ("localhost/..", 403), (".", 403), ("evil.example#localhost", 403)),
    ],
)
def test_on_a_loopback_address_only_loopback_names_are_served(host: str, expected: int) -> None:
    code, headers, body = ask(host=host, origin=f"http://{host}")
    assert code == expected
    assert code == 200 or body.count("\n") == 1
    assert headers["x-frame-options"] == "DENY"


def test_on_other_addresses_ip_addresses_and_this_machine_are_served_too() -> None:
    hosts = ServedHosts("0.0.0.0", ["demo.example.org"])
    names = ("10.0.0.7:80", "[fe80::1]", "localhost", socket.gethostname(), "demo.example.org")
    for host in names:
        assert ask(hosts, host=host)[0] == 200, host
    assert ask(hosts, host="evil.example")[0] == 403
    assert "demo.example.org" in ServedHosts("127.0.0.1", ["Demo.example.org:443"])


@pytest.mark.parametrize("name", ["", "https://demo.example.org", "a b", "a/b"])
def test_what_is_no_host_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="expected a host name such as"):
        ServedHosts("127.0.0.1", [name])


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        *(("http://127.0.0.1:7860", 200), ("https://127.0.0.1:7860", 200)),
        *(("http://evil.example", 403), ("null", 403), ("http://127.0.0.1:3000", 403)),
        *(("http://localhost:7860", 403), ("file://", 403), ("", 403)),
        ("http://127.0.0.1:7860.evil.example", 403),
    ],
)
def test_requests_of_other_origins_are_refused(origin: str, expected: int) -> None:
    for method in ("GET", "POST"):
        assert ask(method=method, origin=origin, content_length="3")[0] == expected


def test_a_proxy_may_change_the_host() -> None:
    hosts = ServedHosts("127.0.0.1", ["demo.example.org"])
    assert ask(hosts, origin="https://demo.example.org")[0] == 200
    assert ask(hosts, origin="https://evil.example")[0] == 403


def test_responses_have_security_headers() -> None:
    code, headers, body = ask()
    assert (code, body) == (200, "the page")
    assert headers["content-security-policy"] == PAGE_POLICY
    assert "frame-ancestors 'none'" in PAGE_POLICY
    assert headers["x-frame-options"] == "DENY"  # overrides the application's header
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    for path in ("/gradio_api/file=/tmp/a.html", "/gradio_api/file/a.svg"):
        assert ask(path=path)[1]["content-security-policy"] == FILE_POLICY


def test_bodies_are_limited_and_unused_parts_are_closed() -> None:
    assert ask(method="POST", content_length="1000")[0] == 200
    assert ask(method="POST", content_length="1001")[0] == 413
    assert ask(method="POST", content_length="9" * 5000)[0] == 413
    for more in ({}, {"content_length": "-1"}, {"content_length": "1", "transfer_encoding": "a"}):
        assert ask(method="POST", **more)[0] == 411
    for path in ("process_recording", "vibe-edit/", "proxy=http://a"):
        assert ask(path=f"/gradio_api/{path}")[0] == 404


def test_the_address_is_checked() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for address, number in (("127.0.0.1", port), ("192.0.2.1", 0), ("", 0), ("\ud800", 0)):
            with pytest.raises(ValueError, match=f"expected a free --port {number} on --host "):
                require_free_address(address, number)
    with pytest.raises(ValueError, match="expected a free --port 70000 on --host 127"):
        require_free_address("127.0.0.1", 70_000)
    require_free_address("127.0.0.1", port)
    require_free_address("0.0.0.0", port)
