"""Paths and methods: only the exact path of an operation is accepted."""

from __future__ import annotations

import asyncio
import contextlib

import aiohttp
import pytest
from raw_http import CREATE, CREATE_BODY, HOST_PLACEHOLDER, build_head, build_request, raw_connection

OTHER_PATHS = [
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


@pytest.mark.parametrize("path", OTHER_PATHS)
async def test_only_the_exact_path_is_an_operation(setup, path):
    """A path that another server might read as an operation isn't found, or isn't HTTP."""
    responses = await setup.exchange(build_request(path, key=setup.keys["lender"]))
    # aiohttp before 3.14 doesn't answer a target with an invalid port, and the caller's timeout ends the
    # connection.
    is_old = tuple(map(int, aiohttp.__version__.split(".")[:2])) < (3, 14)
    unanswered = is_old and "," in path and not responses
    if not unanswered:
        (response,) = responses
        assert (response.status, response.error_code) in {
            (404, "NOT_FOUND"),
            (400, "INVALID_HTTP"),
            (405, "METHOD_NOT_ALLOWED"),
            (421, "HOST_NOT_ALLOWED"),
        }
    setup.assert_upstream_requests()


@pytest.mark.parametrize("scheme", ["http", "https", "HTTP"])
@pytest.mark.parametrize("host", [HOST_PLACEHOLDER, "evil.example"])
async def test_a_target_in_absolute_form_is_accepted(setup, scheme, host):
    """RFC 9112 3.2.2 takes the host from the target, whatever the Host header beside it."""
    response = await setup.exchange_one(
        build_request(f"{scheme}://{HOST_PLACEHOLDER}{CREATE}", key=setup.keys["lender"], host=host)
    )
    assert response.status == 200
    assert setup.upstream.requests[0].startswith(f"POST {CREATE} HTTP/1.1\r\n".encode())
    setup.assert_upstream_requests(count=1)


async def test_the_host_of_a_target_in_absolute_form_is_checked(setup):
    """A valid Host header doesn't admit a target on another host."""
    for scheme in ("http", "https"):
        response = await setup.exchange_one(
            build_request(f"{scheme}://evil.example{CREATE}", key=setup.keys["lender"])
        )
        assert (response.status, response.error_code) == (421, "HOST_NOT_ALLOWED")
        response = await setup.exchange_one(
            build_request(f"{scheme}://evil.example/", b"", method="GET", content_type=None)
        )
        assert (response.status, response.error_code) == (421, "HOST_NOT_ALLOWED")
    setup.assert_upstream_requests()


async def test_the_origin_is_compared_with_the_host_of_the_target(setup):
    """An origin that equals only the Host header is another origin."""
    target, key = f"http://{HOST_PLACEHOLDER}{CREATE}", setup.keys["lender"]
    response = await setup.exchange_one(
        build_request(target, CREATE_BODY, "Origin: http://evil.example", key=key, host="evil.example")
    )
    assert (response.status, response.error_code) == (403, "ORIGIN_NOT_ALLOWED")
    setup.assert_upstream_requests()
    response = await setup.exchange_one(
        build_request(target, CREATE_BODY, f"Origin: http://{HOST_PLACEHOLDER}", key=key, host="evil.example")
    )
    assert response.status == 200


async def test_http_1_1_needs_a_host_beside_a_target_in_absolute_form(setup):
    """HTTP/1.0 needs none."""
    request_bytes = build_request(f"http://{HOST_PLACEHOLDER}{CREATE}", key=setup.keys["lender"], host=None)
    response = await setup.exchange_one(request_bytes)
    assert response.error_code in {"HOST_NOT_ALLOWED", "INVALID_HTTP"}  # releases of aiohttp differ
    setup.assert_upstream_requests()
    response = await setup.exchange_one(request_bytes.replace(b" HTTP/1.1\r\n", b" HTTP/1.0\r\n"))
    assert response.status == 200


@pytest.mark.parametrize("path", ["", "/", "/console/settings.json", "/healthz", "/readyz"])
async def test_pages_are_served_for_a_target_in_absolute_form(setup, path):
    """The page, its files and the health checks are served as for a path."""
    response = await setup.exchange_one(
        build_request(f"http://{HOST_PLACEHOLDER}{path}", b"", method="GET", content_type=None)
    )
    assert response.status == 200


@pytest.mark.parametrize("path", ["/%2e%2e/keys.py", "/console/..%2fkeys.py", "/console/%2e%2e/keys.py"])
@pytest.mark.parametrize("start", ["", "/console/x/../..", "/console"])
async def test_only_files_of_the_console_are_served(setup, start, path):
    """Path traversal finds no other file."""
    responses = await setup.exchange(build_request(start + path, b"", method="GET", content_type=None))
    assert all(each.status in {400, 404, 403} for each in responses)
    assert not any(b"import" in each.body for each in responses)
    setup.assert_upstream_requests()


METHODS = ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "QUERY", "post", "Post"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("override", [False, True])
async def test_operations_require_post(setup, method, override):
    """Another method gets a 405 with Allow, whatever an override header says."""
    more = ["X-HTTP-Method-Override: POST", "X-Method-Override: POST"] if override else []
    responses = await setup.exchange(
        build_request(CREATE, CREATE_BODY, *more, key=setup.keys["lender"], method=method)
    )
    setup.assert_upstream_requests()
    if method in {"post", "Post"} and responses and responses[0].status == 400:
        return  # methods are case-sensitive, and the parser may reject an unknown one
    assert responses[0].status == 405
    assert responses[0].headers["Allow"] == "POST"
    assert not any(name.lower().startswith("access-control-") for name in responses[0].headers)


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
async def test_unusual_request_lines_are_rejected(setup, start):
    """Tunnels, other versions and broken lines are rejected, and what follows isn't read as a request."""
    inner = build_request(key=setup.keys["lender"])
    lines = (
        f"Host: {HOST_PLACEHOLDER}",
        f"Authorization: Bearer {setup.keys['lender']}",
        "Connection: close",
    )
    more = ("Content-Type: application/json", "Content-Length: 2")
    responses = await setup.exchange(build_head(start, *lines, *more) + b"{}" + inner)
    assert len(responses) <= 1
    assert all(each.status >= 400 for each in responses) or start.startswith("GET /")
    setup.assert_upstream_requests()


@pytest.mark.parametrize(
    "first", [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(300), b"\0" * 64, b"\r\n" * 999]
)
async def test_input_other_than_http_ends_the_connection(setup, first):
    """TLS, NULs and empty lines are not requests."""
    responses = await setup.exchange(first, b"\xff" * 20_000)
    assert all(each.status == 400 for each in responses)
    setup.assert_upstream_requests()


@pytest.mark.parametrize("upgrade", ["h2c", "websocket", "TLS/1.0"])
async def test_upgrades_are_ignored(setup, upgrade):
    """An offer of another protocol is neither accepted nor forwarded."""
    lines = ["Connection: Upgrade, HTTP2-Settings", f"Upgrade: {upgrade}", "HTTP2-Settings: AAMAAABkAAQAAP__"]
    lines += ["Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version: 13"]
    async with raw_connection(setup.gateway.url) as connection:
        await connection.send(
            build_request(CREATE, CREATE_BODY, *lines, key=setup.keys["lender"], close=False)
        )
        # Older releases of aiohttp close the connection if a body follows an offer of WebSockets.
        with contextlib.suppress(asyncio.IncompleteReadError):
            assert (await connection.read_response()).status != 101
    for number, _ in enumerate(setup.upstream.requests):
        assert "upgrade" not in dict(setup.upstream.fields(number))
        assert "http2-settings" not in dict(setup.upstream.fields(number))


async def test_http_1_0_is_supported(setup):
    """The caller gets its response, and the connection is closed."""
    body = b'{"report_tokens": ["r"], "secondary_client_id": "p1"}'
    lines = (
        f"Host: {HOST_PLACEHOLDER}",
        f"Authorization: Bearer {setup.keys['lender']}",
        f"Content-Length: {len(body)}",
    )
    response = await setup.exchange_one(
        build_head(f"POST {CREATE} HTTP/1.0", *lines, "Content-Type: application/json") + body
    )
    assert response.status == 200
    assert len(setup.upstream.requests) == 1
