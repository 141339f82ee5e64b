"""Upstreams that misbehave: redirects, truncated and invalid responses, unexpected bytes and headers."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import json
import logging
import tracemalloc

import aiohttp
import pytest
from gateway_setup import running_gateway
from processes import wait_until_async
from raw_http import (
    CREATE,
    CREATE_BODY,
    GET,
    PDF,
    build_head,
    build_request,
    build_response,
    parse_responses,
    raw_connection,
)
from recorder import Recorder

from plaid_relay_async import Timeouts

CREATED = json.dumps({"relay_token": "credit-relay-sandbox-mine", "request_id": "r"}).encode()
STRAY = build_response(200, b'{"relay_token": "credit-relay-sandbox-of-another", "request_id": "stray"}')
SHORT_TIMEOUT = {"timeouts": Timeouts(connect=1, read=0.4, slow_read=0.4)}


@pytest.mark.parametrize("status", [300, 301, 302, 303, 305, 307, 308])
@pytest.mark.parametrize(
    "where", ["http://127.0.0.1:PORT/credit/relay/create", "//127.0.0.1:PORT/", "/item/remove"]
)
async def test_no_redirect_is_followed(setup, status, where):
    """The credentials go only to the upstream, and the caller doesn't get the Location."""
    async with Recorder() as elsewhere:
        location = where.replace("PORT", str(elsewhere.port))
        setup.upstream.respond = lambda _: [
            build_response(status, b"", f"Location: {location}", "Refresh: 0; url=x")
        ]
        response = await setup.call()
        assert response.status == status
        assert "Location" not in response.headers
        assert "Refresh" not in response.headers
        assert not elsewhere.attempts
    setup.assert_upstream_requests(count=1)


TRUNCATED = {
    "a length": lambda body: [build_response(200, body + b" " * 50)[:-50]],
    "a length, in two packets": lambda body: [build_response(200, body + b" " * 50)[:-60], body[-10:]],
    "a chunk": lambda body: [build_head("HTTP/1.1 200 OK", "Transfer-Encoding: chunked") + b"ff\r\n" + body],
    "no last chunk": lambda body: [
        build_head("HTTP/1.1 200 OK", "Transfer-Encoding: chunked") + b"%x\r\n%s\r\n" % (len(body), body)
    ],
    "gzip": lambda body: [
        build_response(200, gzip.compress(body * 30, mtime=0), "Content-Encoding: gzip")[:-20],
    ],
}


@pytest.mark.parametrize("says", TRUNCATED.values(), ids=TRUNCATED)
@pytest.mark.parametrize("then", ["close", "reset", "stall"])
@pytest.mark.parametrize("path", [CREATE, GET, PDF])
async def test_a_truncated_response_is_visibly_truncated(says, then, path):
    """What arrived is forwarded, and the caller's connection ends before the end of the framing."""
    async with running_gateway(**SHORT_TIMEOUT) as setup:
        setup.upstream.respond, setup.upstream.ending, setup.upstream.pause = (
            lambda _: says(CREATED),
            then,
            0.02,
        )
        responses = await setup.exchange(
            build_request(path, {"relay_token": "x"}, key=setup.keys["lender"], close=False)
        )
        assert len(responses) == 1
        if responses[0].status == 200:
            assert not responses[0].complete
            assert responses[0].body.startswith(b'{"relay_token"') or then == "reset" or "gzip" in str(says)
        else:  # none of it was forwarded
            assert (responses[0].status, responses[0].error_code) in {
                (502, "UPSTREAM_LOST"),
                (504, "UPSTREAM_TIMEOUT"),
            }


async def test_a_truncated_response_ends_in_a_reset_for_http_1_0():
    """In HTTP/1.0 the end of the connection is the end of a response, so only a reset shows a truncation."""
    async with running_gateway(**SHORT_TIMEOUT) as setup, raw_connection(setup.gateway.url) as connection:
        setup.upstream.respond, setup.upstream.ending = lambda _: TRUNCATED["a chunk"](CREATED), "close"
        request_bytes = build_request(GET, {"relay_token": "x"}, key=setup.keys["lender"]).replace(
            b"HTTP/1.1", b"HTTP/1.0"
        )
        await connection.send(request_bytes)
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(connection.reader.read(), 60)


TRAILING = {
    "a stray answer behind the length": build_response(200, CREATED) + STRAY,
    "bytes behind the length": build_response(200, CREATED)
    + b'{"relay_token": "credit-relay-sandbox-of-another"}',
    "a length of nothing": build_response(200, b"") + CREATED,
    "a stray answer behind the chunks": build_head("HTTP/1.1 200 OK", "Transfer-Encoding: chunked")
    + b"%x\r\n%s\r\n0\r\n\r\n" % (len(CREATED), CREATED)
    + STRAY,
    "a body where there is none": build_head("HTTP/1.1 204 No Content") + STRAY,
    "a body behind 304": build_head("HTTP/1.1 304 Not Modified", "Content-Length: 5") + STRAY,
}


@pytest.mark.parametrize("received", TRAILING.values(), ids=TRAILING)
@pytest.mark.parametrize(("later", "delay"), [(0.0, 0.0), (0.05, 0.1)])
async def test_bytes_after_a_response_reach_no_caller(setup, received, later, delay):
    """Unexpected bytes are never the response to the next caller, in the same packet or in a later one."""
    cut = received.find(b"HTTP", 5)
    pieces = [received[:cut], received[cut:]] if later and cut > 0 else [received]
    setup.upstream.respond, setup.upstream.pause = lambda _: pieces, later
    async with raw_connection(setup.gateway.url) as first, raw_connection(setup.gateway.url) as second:
        await first.send(build_request(key=setup.keys["lender"], close=False))
        one = parse_responses(
            (await read_available(first)) or b"HTTP/1.1 502 x\r\nContent-Length: 0\r\n\r\n"
        )[0]
        assert b"of-another" not in one.body
        setup.upstream.respond, setup.upstream.pause = setup.upstream.creation_response, 0.0
        await asyncio.sleep(delay + (later and 0.15))
        for connection in (first, second, second):
            await connection.send(build_request(key=setup.keys["lender"], close=False))
            available = await read_available(connection)
            assert b"of-another" not in available
            # A request that couldn't be sent on such a connection gets UPSTREAM_UNREACHABLE.
            for response in parse_responses(available):
                assert response.status == 200 or response.error_code == "UPSTREAM_UNREACHABLE"


async def read_available(connection) -> bytes:
    """Return what arrives until nothing arrives for a while."""
    received = bytearray()
    try:
        while piece := await asyncio.wait_for(connection.reader.read(2**16), 0.15):
            received += piece
    except (TimeoutError, ConnectionError):
        pass
    return bytes(received)


async def test_bytes_on_an_idle_connection_are_not_a_response(setup):
    """A connection on which the upstream sends unexpected bytes isn't used again."""
    setup.upstream.respond, setup.upstream.pause = (
        lambda received: [*setup.upstream.creation_response(received), STRAY],
        0.1,
    )
    assert (await setup.call()).json["relay_token"].endswith("-1")
    await asyncio.sleep(0.3)
    setup.upstream.respond = setup.upstream.creation_response
    for _ in range(3):
        assert (await setup.call()).json["request_id"] != "stray"


INVALID = {
    "headers without an end": lambda: itertools.chain(
        [b"HTTP/1.1 200 OK\r\n"], itertools.repeat(b"X-More: and more\r\n" * 200, 5_000)
    ),
    "one header without an end": lambda: itertools.chain(
        [b"HTTP/1.1 200 OK\r\nX-More: "], itertools.repeat(b"a" * 4096, 5_000)
    ),
    "a status line without an end": lambda: itertools.chain(
        [b"HTTP/1.1 200 "], itertools.repeat(b"a" * 4096, 5_000)
    ),
    "not HTTP": lambda: [b"220 mail.example ESMTP\r\n"],
    "HTTP/2": lambda: [b"\x00\x00\x12\x04\x00\x00\x00\x00\x00" + bytes(18)],
    "two lengths": lambda: [
        build_head("HTTP/1.1 200 OK", "Content-Length: 5", "Content-Length: 6") + b"123456"
    ],
    "both lengths": lambda: [
        build_head("HTTP/1.1 200 OK", "Content-Length: 5", "Transfer-Encoding: chunked")
        + b"5\r\n12345\r\n0\r\n\r\n"
    ],
    "a negative length": lambda: [build_head("HTTP/1.1 200 OK", "Content-Length: -5") + b"12345"],
    "a length that is none": lambda: [build_head("HTTP/1.1 200 OK", "Content-Length: five") + b"12345"],
    "101": lambda: [build_head("HTTP/1.1 101 Switching Protocols", "Upgrade: h2c", "Connection: Upgrade")],
    "100 without an end": lambda: itertools.repeat(b"HTTP/1.1 100 Continue\r\n\r\n" * 50, 5_000),
    "103 without an end": lambda: itertools.repeat(
        b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" * 50, 5_000
    ),
    "nothing": list,
    "a NUL in a header": lambda: [build_response(200, CREATED, "X: a\0b")],
    "a header that is folded": lambda: [build_response(200, CREATED, "Content-Type: a/b;\r\n x=1")],
}


@pytest.mark.parametrize("says", INVALID.values(), ids=INVALID)
async def test_an_invalid_response_is_lost(says):
    """A response that can't be parsed is in doubt, never a failure or a success."""
    async with running_gateway(**SHORT_TIMEOUT) as setup:
        setup.upstream.respond, setup.upstream.ending = lambda _: says(), "close"
        responses = await setup.exchange(build_request(key=setup.keys["lender"]))
        assert len(responses) <= 1
        for response in responses:
            fields = (response.status, response.error_code)
            assert fields in {(502, "UPSTREAM_LOST"), (504, "UPSTREAM_TIMEOUT")} or response.body in {
                CREATED,
                b"12345",
            }


@pytest.mark.parametrize(
    "prelude", [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n"]
)
async def test_interim_responses_are_ignored(setup, prelude):
    """They concern only the upstream and the gateway."""
    setup.upstream.respond = lambda _: [prelude + build_response(200, CREATED)]
    response = await setup.call()
    assert (response.status, response.body) == (200, CREATED)


OTHER_HEADERS = [
    "Set-Cookie: session=x; HttpOnly",
    "Set-Cookie2: x",
    "Connection: X-Secret",
    "X-Secret: x",
    "Keep-Alive: timeout=5",
    "Proxy-Authenticate: Basic",
    "WWW-Authenticate: Basic realm=x",
    "Upgrade: h2c",
    'Alt-Svc: h3=":443"',
    "Trailer: X",
    "Server: nginx",
    "X-Powered-By: x",
    "Access-Control-Allow-Origin: *",
    "Access-Control-Allow-Credentials: true",
    "Strict-Transport-Security: max-age=1",
    "Content-Security-Policy: default-src *",
    "Link: <x>; rel=preload",
    "Clear-Site-Data: *",
    "Location: /x",
    "Via: 1.1 x",
    "PLAID-SECRET: canary-upstream-of-the-owner",
    "Cache-Control: public, max-age=99999",
    "Content-Location: /x",
    "Content-Range: bytes 0-1/2",
    "X-Accel-Redirect: /etc/passwd",
    "X-Sendfile: /etc/passwd",
]
FORWARDED_HEADERS = {
    "Retry-After": "7",
    "Date": "Tue, 24 Nov 2026 12:00:00 GMT",
    "Plaid-Request-ID": "abc",
    "X-Request-ID": "def",
    "Content-Disposition": "attachment",
}


@pytest.mark.parametrize("status", [200, 400, 429, 500])
async def test_other_headers_of_the_upstream_are_not_forwarded(setup, status):
    """The headers that a caller needs are forwarded unchanged."""
    setup.upstream.respond = lambda _: [
        build_response(status, CREATED, *OTHER_HEADERS, *(f"{k}: {v}" for k, v in FORWARDED_HEADERS.items()))
    ]
    response = await setup.call()
    assert (response.status, response.body) == (status, CREATED)
    assert {name: response.headers.get_all(name) for name in FORWARDED_HEADERS} == {
        k: [v] for k, v in FORWARDED_HEADERS.items()
    }
    names = {name.lower() for name in response.headers}
    expected = {
        "content-type",
        "content-length",
        "connection",
        "cache-control",
        "x-content-type-options",
        "server",
    }
    assert names <= expected | {name.lower() for name in FORWARDED_HEADERS}
    assert response.headers["Cache-Control"] == "no-store"
    assert "nginx" not in (response.headers["Server"] or "")


@pytest.mark.parametrize("code", [b"\r\nX-Injected: 1", b"\nX-Injected: 1", b"\x00", b"\xff"])
async def test_no_upstream_header_splits_the_response(setup, code):
    """A value that would end its line isn't forwarded."""
    raw = build_response(400, b"{}", "Plaid-Request-ID: abcMARK").replace(b"MARK", code)
    setup.upstream.respond = lambda _: [raw]
    (response,) = await setup.exchange(build_request(key=setup.keys["lender"]))
    assert "X-Injected" not in response.headers


@pytest.mark.parametrize("status", [200, 400, 500])
@pytest.mark.parametrize("size", [3, 100_000])
async def test_a_quoted_secret_is_masked(setup, caplog, status, size):
    """If an upstream quotes the credentials, neither the caller nor a log gets them, in whatever pieces they arrive."""
    caplog.set_level(logging.DEBUG)

    def quoting(received):
        quoted = " ".join(received.decode("latin-1").split()).replace('"', "'")
        fields = {
            "error_type": "API_ERROR",
            "error_code": quoted,
            "error_message": quoted,
            "request_id": quoted,
        }
        content = build_response(
            status, json.dumps(fields).encode(), f"Plaid-Request-ID: {quoted}", f"Retry-After: {quoted}"
        )
        return [content[n : n + size] for n in range(0, len(content), size)]

    setup.upstream.respond = quoting
    response = await setup.call()
    assert response.complete
    assert response.json["error_message"].startswith("POST /credit/relay/create")
    assert "canary-upstream-of-the-owner" in setup.upstream.requests[0].decode()
    assert "canary" not in str(response.headers)
    assert b"canary" not in response.body
    assert "canary" not in caplog.text


async def test_the_body_of_a_response_is_unchanged(setup):
    """This holds for any bytes, in any pieces."""
    body = bytes(range(256)) * 999
    nearly = b"canary-upstream-of-the-own" * 99
    for says in (
        [build_response(200, nearly)],
        [build_response(200, body)],
        [build_response(200, body)[:100], build_response(200, body)[100:]],
        [
            build_head("HTTP/1.1 200 OK", "Transfer-Encoding: chunked"),
            b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body),
        ],
        [build_response(200, gzip.compress(body), "Content-Encoding: gzip")],
    ):
        setup.upstream.respond = lambda _, says=says: says
        response = await setup.call(PDF)
        assert (response.status, response.complete) == (200, True)
        compressed = response.headers["Content-Encoding"] == "gzip"
        assert (gzip.decompress(response.body) if compressed else response.body) in {body, nearly}


async def test_a_gzip_bomb_of_the_upstream_is_limited(setup):
    """300 MB in a few hundred kB neither fill the memory nor block the gateway for long."""
    bomb = gzip.compress(b" " * (300 * 2**20), compresslevel=9)
    setup.upstream.respond = lambda received: (
        [build_response(200, bomb, "Content-Encoding: gzip")]
        if b"/get" in received
        else setup.upstream.creation_response(received)
    )
    tracemalloc.start()
    try:
        async with raw_connection(setup.gateway.url) as connection:
            await connection.send(build_request(GET, {"relay_token": "x"}, key=setup.keys["lender"]))
            for _ in range(3):
                assert (await setup.call()).status == 200
            while await connection.reader.read(2**20):
                pass
        # aiohttp before 3.14 decompresses in larger chunks.
        most = 40 if tuple(map(int, aiohttp.__version__.split(".")[:2])) >= (3, 14) else 100
        assert tracemalloc.get_traced_memory()[1] < most * 2**20
    finally:
        tracemalloc.stop()


QUOTED = b'{"relay_token": "t", "x": "canary-upstream-of-the-owner", "request_id": "r"}'


@pytest.mark.parametrize(
    "lines",
    [
        ["Content-Encoding: gzip, gzip"],
        ["Content-Encoding: gzip", "Content-Encoding: gzip"],
        ["Content-Encoding: identity, gzip"],
        ["Content-Encoding: compress"],
        ["Content-Encoding: unknown"],
    ],
)
async def test_a_response_that_cannot_be_decoded_is_not_forwarded(setup, audit, lines):
    """It might quote the secret; the call is in doubt, which the audit log records."""
    setup.upstream.respond = lambda _: [build_response(200, gzip.compress(gzip.compress(QUOTED)), *lines)]
    response = await setup.call()
    assert (response.status, response.error_code) == (502, "UPSTREAM_ENCODING")
    fields = json.loads(audit.records[-1].getMessage())
    assert (fields["status"], fields["error_code"], fields["delivered"]) == (502, "UPSTREAM_ENCODING", True)


@pytest.mark.parametrize("size", [7, 100_000])
async def test_x_gzip_is_gzip(setup, size):
    """The older name of gzip is decoded, and the secret in it is masked."""
    compressed = build_response(200, gzip.compress(QUOTED), "Content-Encoding: x-gzip")
    setup.upstream.respond = lambda _: [compressed[n : n + size] for n in range(0, len(compressed), size)]
    response = await setup.call()
    assert (response.status, response.complete) == (200, True)
    assert response.body == QUOTED.replace(b"canary-upstream-of-the-owner", b"*" * 28)


async def test_an_empty_body_is_complete_with_any_encoding(setup, audit):
    """A 429 without a body is a 429 to the caller, and not a lost response."""
    for encoding in ("x-gzip", "gzip"):
        setup.upstream.respond = lambda _: [build_response(429, b"", f"Content-Encoding: {encoding}")]  # noqa: B023
        response = await setup.call()
        assert (response.status, response.complete, response.body) == (429, True, b"")
        fields = json.loads(audit.records[-1].getMessage())
        assert (fields["error_code"], fields["delivered"]) == (None, True)


@pytest.mark.parametrize(
    "body",
    [gzip.compress(QUOTED)[:-9], gzip.compress(QUOTED) + b"more", b"no gzip"],
    ids=["cut", "more", "none"],
)
async def test_incomplete_x_gzip_is_visibly_truncated(setup, body):
    """A response that can't be decoded to its end isn't complete."""
    setup.upstream.respond = lambda _: [build_response(200, body, "Content-Encoding: x-gzip")]
    response = await setup.call()
    assert (response.status, response.complete) == (200, False)


async def test_a_disconnected_caller_affects_only_its_call():
    """The upstream connection is returned or closed, and nothing of that response reaches another caller."""
    async with running_gateway(**SHORT_TIMEOUT) as setup:
        for n in range(10):
            setup.upstream.respond = lambda received: [b"", *setup.upstream.creation_response(received)]
            setup.upstream.pause = 0.05
            async with raw_connection(setup.gateway.url) as connection:
                await connection.send(
                    build_request(
                        CREATE, CREATE_BODY | {"secondary_client_id": f"gone{n}"}, key=setup.keys["lender"]
                    )
                )
                await wait_until_async(lambda: len(setup.upstream.requests) == n + 1)  # noqa: B023
        await wait_until_async(lambda: not setup.gateway.calls_in_flight)
        tokens = [(await setup.call()).json["relay_token"] for _ in range(5)]
        assert tokens == [f"credit-relay-sandbox-{n}" for n in range(11, 16)]
        setup.assert_upstream_requests(count=15)
