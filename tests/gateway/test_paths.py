"""Paths and methods: an operation is one to the byte, or none at all."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from raw_http import CREATE, CREATE_BODY, HOST_PLACEHOLDER, build_head, build_request, raw_connection

TRICKS = [
    "//credit/relay/create",
    "/credit//relay/create",
    "/credit/relay//create",
    "/credit/relay/create/",
    "/credit/relay/create//",
    "/./credit/relay/create",
    "/credit/./relay/create",
    "/credit/relay/get/../create",
    "/x/../credit/relay/create",
    "/../credit/relay/create",
    "/console/../credit/relay/create",
    "/credit/relay/create/.",
    "/credit/relay/create/..",
    "/credit/relay/%2e%2e/relay/create",
    "/credit/relay/%2E%2E/%2E%2E/item/remove",
    "/credit/relay/get/%2e%2e/create",
    "/credit%2frelay%2fcreate",
    "/credit%2Frelay/create",
    "/%63redit/relay/create",
    "/credit/relay/creat%65",
    "/credit/relay/create%00",
    "/credit/relay/create%20",
    "/credit/relay/create%0d%0aPLAID-SECRET:%20x",
    "/credit/relay/create%3f",
    "/credit/relay/create%23",
    "/credit/relay/create%252f",
    "/credit/relay/create?",
    "/credit/relay/create?x=1",
    "/credit/relay/create?secret=x",
    "/credit/relay/create#",
    "/credit/relay/create#x",
    "/credit/relay/create;",
    "/credit/relay/create;x=1",
    "/credit/relay;/create",
    "/credit\\relay\\create",
    "/credit/relay\\..\\..\\item/remove",
    "/Credit/Relay/Create",
    "/CREDIT/RELAY/CREATE",
    "/credit/relay/create.json",
    "/credit/relay/create\xa0",
    "/credit/relay/cr\xe9ate",
    "/console/../../etc/passwd",
    "/console/%2e%2e/%2e%2e/keys.py",
    "/console/..%2f..%2fkeys.py",
    "/console//etc/passwd",
    "/console/",
    "credit/relay/create",
    "*",
    "http://@here@//credit/relay/create",
    "http://@here@/credit/relay/create?x=1",
    "http://@here@/credit/relay/create#x",
    "http://@here@?/credit/relay/create",
    "http://@here@#/credit/relay/create",
    "http:///credit/relay/create",
    "http:/@here@/credit/relay/create",
    "ftp://@here@/credit/relay/create",
    "http://evil.example/credit/relay/create",
    "https://evil.example/credit/relay/create",
    "http://evil.example#@@here@/credit/relay/create",
    "http://evil.example\\@@here@/credit/relay/create",
    "http://@here@,evil.example/credit/relay/create",
    "http://169.254.169.254/latest/meta-data",
    "http://user:pass@@here@/credit/relay/create",
    "//evil.example/credit/relay/create",
    "@here@/credit/relay/create",
    "file:///etc/passwd",
    "?",
    "#",
]


@pytest.mark.parametrize("path", TRICKS)
async def test_a_path_is_an_operation_to_the_byte_or_not_at_all(held, path):
    """Whatever another server might read as an operation is not found here, or isn't HTTP."""
    answers = await held.ask(build_request(path, key=held.keys["lender"]))
    assert [each.status for each in answers] in ([404], [400], [405], [421])
    assert answers[0].code in {"NOT_FOUND", "METHOD_NOT_ALLOWED", "HOST_NOT_ALLOWED", "INVALID_HTTP"}
    held.assert_upstream_requests()


@pytest.mark.parametrize("scheme", ["http", "https", "HTTP"])
@pytest.mark.parametrize("host", [HOST_PLACEHOLDER, "evil.example"])
async def test_a_target_in_absolute_form_is_accepted(held, scheme, host):
    """Whatever the Host beside it: RFC 9112 3.2.2 has the host taken from the target."""
    answer = await held.one(
        build_request(f"{scheme}://{HOST_PLACEHOLDER}{CREATE}", key=held.keys["lender"], host=host)
    )
    assert answer.status == 200
    assert held.upstream.requests[0].startswith(f"POST {CREATE} HTTP/1.1\r\n".encode())
    held.assert_upstream_requests(count=1)


async def test_the_host_of_a_target_in_absolute_form_is_checked(held):
    """A Host that is the gateway's opens nothing for a target that is somebody else's."""
    for scheme in ("http", "https"):
        answer = await held.one(build_request(f"{scheme}://evil.example{CREATE}", key=held.keys["lender"]))
        assert (answer.status, answer.code) == (421, "HOST_NOT_ALLOWED")
        answer = await held.one(
            build_request(f"{scheme}://evil.example/", b"", method="GET", content_type=None)
        )
        assert (answer.status, answer.code) == (421, "HOST_NOT_ALLOWED")
    held.assert_upstream_requests()


async def test_the_origin_is_compared_with_the_host_of_the_target(held):
    """A page's origin that equals the Host alone is another one."""
    target, key = f"http://{HOST_PLACEHOLDER}{CREATE}", held.keys["lender"]
    answer = await held.one(
        build_request(target, CREATE_BODY, "Origin: http://evil.example", key=key, host="evil.example")
    )
    assert (answer.status, answer.code) == (403, "ORIGIN_NOT_ALLOWED")
    held.assert_upstream_requests()
    answer = await held.one(
        build_request(target, CREATE_BODY, f"Origin: http://{HOST_PLACEHOLDER}", key=key, host="evil.example")
    )
    assert answer.status == 200


async def test_http_1_1_needs_a_host_beside_a_target_in_absolute_form(held):
    """HTTP/1.0 has none."""
    whole = build_request(f"http://{HOST_PLACEHOLDER}{CREATE}", key=held.keys["lender"], host=None)
    answer = await held.one(whole)
    assert answer.code in {"HOST_NOT_ALLOWED", "INVALID_HTTP"}  # releases of aiohttp differ
    held.assert_upstream_requests()
    answer = await held.one(whole.replace(b" HTTP/1.1\r\n", b" HTTP/1.0\r\n"))
    assert answer.status == 200


@pytest.mark.parametrize("path", ["", "/", "/console/settings.json", "/healthz", "/readyz"])
async def test_pages_are_given_for_a_target_in_absolute_form(held, path):
    """The page, its files and the probes, as for a path."""
    answer = await held.one(
        build_request(f"http://{HOST_PLACEHOLDER}{path}", b"", method="GET", content_type=None)
    )
    assert answer.status == 200


@pytest.mark.parametrize("path", ["/%2e%2e/keys.py", "/console/..%2fkeys.py", "/console/%2e%2e/keys.py"])
@pytest.mark.parametrize("start", ["", "/console/x/../..", "/console"])
async def test_no_file_but_the_consoles_is_given(held, start, path):
    """The gateway serves its page, and nothing that lies beside it."""
    answers = await held.ask(build_request(start + path, b"", method="GET", content_type=None))
    assert all(each.status in {400, 404, 403} for each in answers)
    assert not any(b"import" in each.body for each in answers)
    held.assert_upstream_requests()


METHODS = ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "QUERY", "post", "Post"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("override", [False, True])
async def test_an_operation_is_called_by_post_alone(held, method, override):
    """Another method gets a 405 that names the right one, whatever a header says in its place."""
    more = ["X-HTTP-Method-Override: POST", "X-Method-Override: POST"] if override else []
    answers = await held.ask(
        build_request(CREATE, CREATE_BODY, *more, key=held.keys["lender"], method=method)
    )
    held.assert_upstream_requests()
    if method in {"post", "Post"} and answers and answers[0].status == 400:
        return  # methods are case-sensitive, and a parser may know no such one
    assert answers[0].status == 405
    assert answers[0].headers["Allow"] == "POST"
    assert not any(name.lower().startswith("access-control-") for name in answers[0].headers)


@pytest.mark.parametrize(
    "start",
    [
        "CONNECT api.plaid.com:443 HTTP/1.1",
        "CONNECT 127.0.0.1:22 HTTP/1.1",
        f"CONNECT {CREATE} HTTP/1.1",
        "OPTIONS * HTTP/1.1",
        "GET / HTTP/2.0",
        "GET / HTTP/1.2",
        "GET / HTTP/0.9",
        f"POST {CREATE}",
        "PRI * HTTP/2.0",
        f"POST {CREATE} HTTP/9.9",
        f"POST {CREATE} HTTP/1.1 HTTP/1.1",
        f"POST  {CREATE} HTTP/1.1",
        f"POST\t{CREATE}\tHTTP/1.1",
        f" POST {CREATE} HTTP/1.1",
        f"POST {CREATE} http/1.1",
        f"POST {CREATE} HTTP/1.1 ",
        f"POST {CREATE}\x00 HTTP/1.1",
        f"POST {CREATE}\x0b HTTP/1.1",
        f"PO\x00ST {CREATE} HTTP/1.1",
        f"GET {CREATE}\r HTTP/1.1",
        "A" * 20_000,
        "POST /" + "a" * 20_000 + " HTTP/1.1",
    ],
    ids=lambda start: start[:40],
)
async def test_no_strange_request_line_gets_through(held, start):
    """Tunnels, other versions and broken lines are refused, and what comes behind them isn't a request."""
    inner = build_request(key=held.keys["lender"])
    lines = (f"Host: {HOST_PLACEHOLDER}", f"Authorization: Bearer {held.keys['lender']}", "Connection: close")
    more = ("Content-Type: application/json", "Content-Length: 2")
    answers = await held.ask(build_head(start, *lines, *more) + b"{}" + inner)
    assert len(answers) <= 1
    assert all(each.status >= 400 for each in answers) or start.startswith("GET /")
    held.assert_upstream_requests()


@pytest.mark.parametrize(
    "first", [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(300), b"\0" * 64, b"\r\n" * 999]
)
async def test_what_is_not_http_ends_the_connection(held, first):
    """TLS, zeros and empty lines on the port make no request."""
    answers = await held.ask(first, b"\xff" * 20_000)
    assert all(each.status == 400 for each in answers)
    held.assert_upstream_requests()


@pytest.mark.parametrize("upgrade", ["h2c", "websocket", "TLS/1.0"])
async def test_no_upgrade_is_made(held, upgrade):
    """An offer to speak something else is neither taken nor passed on."""
    lines = ["Connection: Upgrade, HTTP2-Settings", f"Upgrade: {upgrade}", "HTTP2-Settings: AAMAAABkAAQAAP__"]
    lines += ["Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version: 13"]
    async with raw_connection(held.gateway.url) as opened:
        await opened.send(build_request(CREATE, CREATE_BODY, *lines, key=held.keys["lender"], close=False))
        # Older releases of aiohttp hang up where the body comes behind an offer of WebSockets.
        with contextlib.suppress(asyncio.IncompleteReadError):
            assert (await opened.read_response()).status != 101
    for number, _ in enumerate(held.upstream.requests):
        assert "upgrade" not in dict(held.upstream.fields(number))
        assert "http2-settings" not in dict(held.upstream.fields(number))


async def test_http_1_0_is_served_and_closed(held):
    """A caller of the last century gets its answer, and then the end."""
    body = b'{"report_tokens": ["r"], "secondary_client_id": "p1"}'
    lines = (
        f"Host: {HOST_PLACEHOLDER}",
        f"Authorization: Bearer {held.keys['lender']}",
        f"Content-Length: {len(body)}",
    )
    answer = await held.one(
        build_head(f"POST {CREATE} HTTP/1.0", *lines, "Content-Type: application/json") + body
    )
    assert answer.status == 200
    assert len(held.upstream.requests) == 1
