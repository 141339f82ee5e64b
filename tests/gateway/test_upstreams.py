"""Upstreams that lie, lead away, say too much or too little."""

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

MADE = json.dumps({"relay_token": "credit-relay-sandbox-mine", "request_id": "r"}).encode()
STRAY = build_response(200, b'{"relay_token": "credit-relay-sandbox-of-another", "request_id": "stray"}')
HASTY = {"timeouts": Timeouts(connect=1, read=0.4, slow_read=0.4)}


@pytest.mark.parametrize("status", [300, 301, 302, 303, 305, 307, 308])
@pytest.mark.parametrize(
    "where", ["http://127.0.0.1:PORT/credit/relay/create", "//127.0.0.1:PORT/", "/item/remove"]
)
async def test_no_redirect_is_followed(held, status, where):
    """The credentials go nowhere but to the upstream, and its Location goes to nobody."""
    async with Recorder() as elsewhere:
        location = where.replace("PORT", str(elsewhere.port))
        held.upstream.says = lambda _: [
            build_response(status, b"", f"Location: {location}", "Refresh: 0; url=x")
        ]
        answer = await held.call()
        assert answer.status == status
        assert "Location" not in answer.headers
        assert "Refresh" not in answer.headers
        assert not elsewhere.attempts
    held.assert_upstream_requests(count=1)


SHORT = {
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


@pytest.mark.parametrize("says", SHORT.values(), ids=SHORT)
@pytest.mark.parametrize("then", ["close", "reset", "stall"])
@pytest.mark.parametrize("path", [CREATE, GET, PDF])
async def test_an_answer_that_breaks_off_looks_broken_off(says, then, path):
    """It is passed on as far as it came, and the caller's connection ends without the end of its framing."""
    async with running_gateway(**HASTY) as held:
        held.upstream.says, held.upstream.then, held.upstream.pause = lambda _: says(MADE), then, 0.02
        answers = await held.exchange(
            build_request(path, {"relay_token": "x"}, key=held.keys["lender"], close=False)
        )
        assert len(answers) == 1
        if answers[0].status == 200:
            assert not answers[0].complete
            assert answers[0].body.startswith(b'{"relay_token"') or then == "reset" or "gzip" in str(says)
        else:  # nothing of it had come through
            assert (answers[0].status, answers[0].error_code) in {
                (502, "UPSTREAM_LOST"),
                (504, "UPSTREAM_TIMEOUT"),
            }


async def test_an_answer_that_breaks_off_ends_in_a_reset_for_who_has_no_framing():
    """To a caller of HTTP/1.0 the end of a connection is the end of an answer, so it mustn't look like one."""
    async with running_gateway(**HASTY) as held, raw_connection(held.gateway.url) as opened:
        held.upstream.says, held.upstream.then = lambda _: SHORT["a chunk"](MADE), "close"
        asked = build_request(GET, {"relay_token": "x"}, key=held.keys["lender"]).replace(
            b"HTTP/1.1", b"HTTP/1.0"
        )
        await opened.send(asked)
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(opened.reader.read(), 60)


LONG = {
    "a stray answer behind the length": build_response(200, MADE) + STRAY,
    "bytes behind the length": build_response(200, MADE)
    + b'{"relay_token": "credit-relay-sandbox-of-another"}',
    "a length of nothing": build_response(200, b"") + MADE,
    "a stray answer behind the chunks": build_head("HTTP/1.1 200 OK", "Transfer-Encoding: chunked")
    + b"%x\r\n%s\r\n0\r\n\r\n" % (len(MADE), MADE)
    + STRAY,
    "a body where there is none": build_head("HTTP/1.1 204 No Content") + STRAY,
    "a body behind 304": build_head("HTTP/1.1 304 Not Modified", "Content-Length: 5") + STRAY,
}


@pytest.mark.parametrize("came", LONG.values(), ids=LONG)
@pytest.mark.parametrize(("later", "delay"), [(0.0, 0.0), (0.05, 0.1)])
async def test_what_comes_behind_an_answer_reaches_nobody(held, came, later, delay):
    """Bytes that nobody asked for are never the next caller's answer, in one packet or in a later one."""
    cut = came.find(b"HTTP", 5)
    pieces = [came[:cut], came[cut:]] if later and cut > 0 else [came]
    held.upstream.says, held.upstream.pause = lambda _: pieces, later
    async with raw_connection(held.gateway.url) as first, raw_connection(held.gateway.url) as second:
        await first.send(build_request(key=held.keys["lender"], close=False))
        one = parse_responses((await _some(first)) or b"HTTP/1.1 502 x\r\nContent-Length: 0\r\n\r\n")[0]
        assert b"of-another" not in one.body
        held.upstream.says, held.upstream.pause = held.upstream.created, 0.0
        await asyncio.sleep(delay + (later and 0.15))
        for opened in (first, second, second):
            await opened.send(build_request(key=held.keys["lender"], close=False))
            came_back = await _some(opened)
            assert b"of-another" not in came_back
            for answer in parse_responses(
                came_back
            ):  # what couldn't leave on such a connection is told as not sent
                assert answer.status == 200 or answer.error_code == "UPSTREAM_UNREACHABLE"


async def _some(opened) -> bytes:
    """What comes until nothing more does."""
    came = bytearray()
    try:
        while piece := await asyncio.wait_for(opened.reader.read(2**16), 0.15):
            came += piece
    except (TimeoutError, ConnectionError):
        pass
    return bytes(came)


async def test_what_comes_on_an_idle_connection_is_no_answer(held):
    """An upstream that says something unasked loses the connection: it isn't the answer to the next request."""
    held.upstream.says, held.upstream.pause = lambda came: [*held.upstream.created(came), STRAY], 0.1
    assert (await held.call()).json["relay_token"].endswith("-1")
    await asyncio.sleep(0.3)
    held.upstream.says = held.upstream.created
    for _ in range(3):
        assert (await held.call()).json["request_id"] != "stray"


CUT_UP = {
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
    "a NUL in a header": lambda: [build_response(200, MADE, "X: a\0b")],
    "a header that is folded": lambda: [build_response(200, MADE, "Content-Type: a/b;\r\n x=1")],
}


@pytest.mark.parametrize("says", CUT_UP.values(), ids=CUT_UP)
async def test_an_answer_that_is_no_http_is_lost(says):
    """What can't be read for certain is told as lost, which is unknown, and never as a refusal or a success."""
    async with running_gateway(**HASTY) as held:
        held.upstream.says, held.upstream.then = lambda _: says(), "close"
        answers = await held.exchange(build_request(key=held.keys["lender"]))
        assert len(answers) <= 1
        for answer in answers:
            told = (answer.status, answer.error_code)
            assert told in {(502, "UPSTREAM_LOST"), (504, "UPSTREAM_TIMEOUT")} or answer.body in {
                MADE,
                b"12345",
            }


@pytest.mark.parametrize(
    "prelude", [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n"]
)
async def test_what_comes_before_an_answer_is_passed_over(held, prelude):
    """Interim answers are the upstream's and the gateway's affair."""
    held.upstream.says = lambda _: [prelude + build_response(200, MADE)]
    answer = await held.call()
    assert (answer.status, answer.body) == (200, MADE)


DOWN = [
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
KEPT = {
    "Retry-After": "7",
    "Date": "Tue, 24 Nov 2026 12:00:00 GMT",
    "Plaid-Request-ID": "abc",
    "X-Request-ID": "def",
    "Content-Disposition": "attachment",
}


@pytest.mark.parametrize("status", [200, 400, 429, 500])
async def test_an_upstreams_other_headers_stay_behind(held, status):
    """What a caller needs of an answer's headers comes down as it was; all else doesn't."""
    held.upstream.says = lambda _: [
        build_response(status, MADE, *DOWN, *(f"{k}: {v}" for k, v in KEPT.items()))
    ]
    answer = await held.call()
    assert (answer.status, answer.body) == (status, MADE)
    assert {name: answer.headers.get_all(name) for name in KEPT} == {k: [v] for k, v in KEPT.items()}
    names = {name.lower() for name in answer.headers}
    ours = {
        "content-type",
        "content-length",
        "connection",
        "cache-control",
        "x-content-type-options",
        "server",
    }
    assert names <= ours | {name.lower() for name in KEPT}
    assert answer.headers["Cache-Control"] == "no-store"
    assert "nginx" not in (answer.headers["Server"] or "")


@pytest.mark.parametrize("code", [b"\r\nX-Injected: 1", b"\nX-Injected: 1", b"\x00", b"\xff"])
async def test_no_header_of_the_upstream_splits_the_answer(held, code):
    """A value that would end its line doesn't come down."""
    raw = build_response(400, b"{}", "Plaid-Request-ID: abcMARK").replace(b"MARK", code)
    held.upstream.says = lambda _: [raw]
    (answer,) = await held.ask(build_request(key=held.keys["lender"]))
    assert "X-Injected" not in answer.headers


@pytest.mark.parametrize("status", [200, 400, 500])
@pytest.mark.parametrize("size", [3, 100_000])
async def test_a_quoted_secret_comes_down_to_nobody(held, caplog, status, size):
    """An upstream that quotes the credentials tells them neither to the caller nor to a log, in whatever pieces."""
    caplog.set_level(logging.DEBUG)

    def quoting(came):
        said = " ".join(came.decode("latin-1").split()).replace('"', "'")
        told = {"error_type": "API_ERROR", "error_code": said, "error_message": said, "request_id": said}
        whole = build_response(
            status, json.dumps(told).encode(), f"Plaid-Request-ID: {said}", f"Retry-After: {said}"
        )
        return [whole[n : n + size] for n in range(0, len(whole), size)]

    held.upstream.says = quoting
    answer = await held.call()
    assert answer.whole
    assert answer.json["error_message"].startswith("POST /credit/relay/create")
    assert "canary-upstream-of-the-owner" in held.upstream.requests[0].decode()
    assert "canary" not in str(answer.headers)
    assert b"canary" not in answer.body
    assert "canary" not in caplog.text


async def test_the_bytes_of_an_answer_are_the_upstreams(held):
    """Whatever they are, and in whatever pieces they came."""
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
        held.upstream.says = lambda _, says=says: says
        answer = await held.call(PDF)
        assert (answer.status, answer.whole) == (200, True)
        zipped = answer.headers["Content-Encoding"] == "gzip"
        assert (gzip.decompress(answer.body) if zipped else answer.body) in {body, nearly}


async def test_a_gzip_bomb_of_the_upstreams_is_bounded(held):
    """300 MB in a few hundred KB neither fill the memory nor hold the gateway up for long."""
    bomb = gzip.compress(b" " * (300 * 2**20), compresslevel=9)
    held.upstream.says = lambda came: (
        [build_response(200, bomb, "Content-Encoding: gzip")]
        if b"/get" in came
        else held.upstream.created(came)
    )
    tracemalloc.start()
    try:
        async with raw_connection(held.gateway.url) as opened:
            await opened.send(build_request(GET, {"relay_token": "x"}, key=held.keys["lender"]))
            for _ in range(3):
                assert (await held.call()).status == 200
            while await opened.reader.read(2**20):
                pass
        # aiohttp before 3.14 unzips in larger pieces.
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
async def test_an_answer_that_can_not_be_decoded_is_not_passed_on(held, audit, lines):
    """It could quote the secret; the call may have been carried out, and the audit says that nothing is known."""
    held.upstream.says = lambda _: [build_response(200, gzip.compress(gzip.compress(QUOTED)), *lines)]
    answer = await held.call()
    assert (answer.status, answer.code) == (502, "UPSTREAM_ENCODING")
    told = json.loads(audit.records[-1].getMessage())
    assert (told["status"], told["error_code"], told["delivered"]) == (502, "UPSTREAM_ENCODING", True)


@pytest.mark.parametrize("size", [7, 100_000])
async def test_x_gzip_is_gzip(held, size):
    """The older name of gzip is decoded, and the secret in it redacted."""
    zipped = build_response(200, gzip.compress(QUOTED), "Content-Encoding: x-gzip")
    held.upstream.says = lambda _: [zipped[n : n + size] for n in range(0, len(zipped), size)]
    answer = await held.call()
    assert (answer.status, answer.whole) == (200, True)
    assert answer.body == QUOTED.replace(b"canary-upstream-of-the-owner", b"*" * 28)


async def test_an_empty_body_is_whole_whatever_its_encoding(held, audit):
    """A 429 without a body is a 429 to the caller, and not an answer that was lost."""
    for encoding in ("x-gzip", "gzip"):
        held.upstream.says = lambda _: [build_response(429, b"", f"Content-Encoding: {encoding}")]  # noqa: B023
        answer = await held.call()
        assert (answer.status, answer.whole, answer.body) == (429, True, b"")
        told = json.loads(audit.records[-1].getMessage())
        assert (told["error_code"], told["delivered"]) == (None, True)


@pytest.mark.parametrize(
    "body",
    [gzip.compress(QUOTED)[:-9], gzip.compress(QUOTED) + b"more", b"no gzip"],
    ids=["cut", "more", "none"],
)
async def test_x_gzip_that_is_not_whole_looks_broken_off(held, body):
    """What can't be decoded to its end isn't a whole answer."""
    held.upstream.says = lambda _: [build_response(200, body, "Content-Encoding: x-gzip")]
    answer = await held.call()
    assert (answer.status, answer.whole) == (200, False)


async def test_a_caller_that_leaves_costs_its_call_alone():
    """The upstream's connection comes back, or is closed; nothing of that answer reaches another."""
    async with running_gateway(**HASTY) as held:
        for n in range(10):
            held.upstream.says = lambda came: [b"", *held.upstream.created(came)]
            held.upstream.pause = 0.05
            async with raw_connection(held.gateway.url) as opened:
                await opened.send(
                    build_request(
                        CREATE, CREATE_BODY | {"secondary_client_id": f"gone{n}"}, key=held.keys["lender"]
                    )
                )
                await wait_until_async(lambda: len(held.upstream.requests) == n + 1)  # noqa: B023
        await wait_until_async(lambda: not held.gateway._upstream.in_flight)
        tokens = [(await held.call()).json["relay_token"] for _ in range(5)]
        assert tokens == [f"credit-relay-sandbox-{n}" for n in range(11, 16)]
        held.assert_upstream_requests(count=15)
