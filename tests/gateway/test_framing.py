"""Message framing: no server reads two requests where the gateway reads one, or the other way round."""

from __future__ import annotations

import asyncio
import itertools
import json
from typing import TYPE_CHECKING, Any

import pytest
from gateway_setup import running_gateway
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from raw_http import (
    CREATE,
    CREATE_BODY,
    HOST_PLACEHOLDER,
    REMOVE,
    build_head,
    build_request,
    encode_chunks,
    parse_responses,
    raw_connection,
)

if TYPE_CHECKING:
    from gateway_setup import GatewaySetup

BODY = json.dumps(CREATE_BODY).encode()


def call_head(key: str, *lines: str, path: str = CREATE, method: str = "POST") -> bytes:
    """Return the head of a call, without headers that frame its body."""
    return build_head(
        f"{method} {path} HTTP/1.1",
        f"Host: {HOST_PLACEHOLDER}",
        f"Authorization: Bearer {key}",
        "Content-Type: application/json",
        *lines,
    )


def smuggled_request(setup: GatewaySetup) -> bytes:
    """Return a complete valid request, to be sent where the gateway must not find one."""
    host = setup.gateway.url.partition("://")[2]
    return build_request(REMOVE, {"relay_token": "hidden"}, key=setup.keys["lender"], host=host)


LENGTH = f"Content-Length: {len(BODY)}"
CHUNKED = "Transfer-Encoding: chunked"
FRAMES = {
    "both lengths": [LENGTH, CHUNKED],
    "both, the other way round": [CHUNKED, LENGTH],
    "both, and a length of nothing": ["Content-Length: 0", CHUNKED],
    "two lengths": [LENGTH, "Content-Length: 0"],
    "two lengths, the longer last": ["Content-Length: 0", LENGTH],
    "twice the same length": [LENGTH, LENGTH],
    "a list of lengths": [f"{LENGTH}, {len(BODY)}"],
    "a list of different lengths": [f"{LENGTH}, 0"],
    "a length with a sign": [f"Content-Length: +{len(BODY)}"],
    "a negative length": [f"Content-Length: -{len(BODY)}"],
    "a length in hex": [f"Content-Length: 0x{len(BODY):x}"],
    "a length with a fraction": [f"{LENGTH}.0"],
    "a length with an underscore": ["Content-Length: 1_0"],
    "a length in other digits": ["Content-Length: \xb2"],
    "an empty length": ["Content-Length:"],
    "a length of 30 digits": ["Content-Length: " + "9" * 30],
    "a length with a word": [f"{LENGTH} bytes"],
    "a length behind a space": ["Content-Length : 0", LENGTH],
    "a folded length": ["Content-Length: 1\r\n 0"],
    "a length behind a NUL": ["Content-Length: \0001"],
    "an unknown coding": ["Transfer-Encoding: xchunked"],
    "chunked is not the last": ["Transfer-Encoding: chunked, identity"],
    "chunked behind another": ["Transfer-Encoding: identity, chunked"],
    "zipped and chunked": ["Transfer-Encoding: gzip, chunked"],
    "chunked twice": ["Transfer-Encoding: chunked, chunked"],
    "chunked in two lines": [CHUNKED, CHUNKED],
    "chunked and identity in two lines": [CHUNKED, "Transfer-Encoding: identity"],
    "identity": ["Transfer-Encoding: identity"],
    "chunked in quotes": ['Transfer-Encoding: "chunked"'],
    "chunked behind a space": ["Transfer-Encoding : chunked"],
    "chunked behind a vertical tab": ["Transfer-Encoding: \x0bchunked"],
    "chunked behind a NUL": ["Transfer-Encoding: chunked\0"],
    "chunked in a folded line": ["Transfer-Encoding:\r\n chunked"],
    "chunked by another name": ["Transfer_Encoding: chunked", LENGTH, "Content-Length: 0"],
    "a line without a colon": ["Transfer-Encoding chunked", LENGTH],
    "a line that is folded": ["X-Folded: one", " two", LENGTH],
    "a first line that is folded": [" X-Folded: one", LENGTH],
    "a name that is empty": [": nothing", LENGTH],
    "a name with a space": ["X Name: one", LENGTH],
    "a name in brackets": ["X(Name): one", LENGTH],
    "a NUL in a name": ["X-N\0me: one", LENGTH],
    "a NUL in a value": ["X-Name: o\0e", LENGTH],
    "a bare CR in a value": ["X-Name: one\rContent-Length: 0", LENGTH],
    "a bare LF in a value": ["X-Name: one\nContent-Length: 0", LENGTH],
    "a bare LF and a key": ["X-Name: one\nPLAID-SECRET: x", LENGTH],
    "an LF before a name": ["\nContent-Length: 0", LENGTH],
}


@pytest.mark.parametrize("lines", FRAMES.values(), ids=FRAMES)
@pytest.mark.parametrize("length", ["by length", "by chunks"])
async def test_ambiguous_framing_is_rejected(setup, lines, length):
    """It gets one 4xx response and the end of the connection; neither it nor what follows is forwarded."""
    key = setup.keys["lender"]
    body = BODY if length == "by length" else encode_chunks(BODY)
    responses = await setup.exchange(call_head(key, *lines), body, smuggled_request(setup))
    assert len(responses) == 1
    assert 400 <= responses[0].status < 500 or responses[0].status == 501
    setup.assert_upstream_requests()


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\r\n", b"\n\r"])
@pytest.mark.parametrize("everywhere", [False, True])
async def test_lines_must_end_with_cr_lf(setup, end, everywhere):
    """A head in which one line or each line ends otherwise isn't accepted."""
    key = setup.keys["lender"]
    received = build_request(key=key)
    received = received.replace(b"\r\n", end) if everywhere else received.replace(b"\r\n", end, 1)
    async with raw_connection(setup.gateway.url) as connection:
        await connection.send(received, smuggled_request(setup))
        # If lines end in CR only, the parser may wait for the end of the head.
        try:
            received = await connection.read_to_end(1.0)
        except TimeoutError:
            received = b"HTTP/1.1 400 "
    assert received.startswith((b"HTTP/1.1 400 ", b"HTTP/1.0 400 ")) or not received
    setup.assert_upstream_requests()


SIZE = b"%x" % len(BODY)
CHUNKS = {
    "a size with a sign": b"+%s\r\n%s\r\n0\r\n\r\n" % (SIZE, BODY),
    "a negative size": b"-%s\r\n%s\r\n0\r\n\r\n" % (SIZE, BODY),
    "a size with a prefix": b"0x%s\r\n%s\r\n0\r\n\r\n" % (SIZE, BODY),
    "a size with an underscore": b"0_%s\r\n%s\r\n0\r\n\r\n" % (SIZE, BODY),
    "a size behind a space": b" %s\r\n%s\r\n0\r\n\r\n" % (SIZE, BODY),
    "no size": b"\r\n%s\r\n0\r\n\r\n" % BODY,
    "a size that is no number": b"zz\r\n%s\r\n0\r\n\r\n" % BODY,
    "a size that runs over 64 bits": b"1%016x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY),
    "a size that ends with LF": b"%s\n%s\r\n0\r\n\r\n" % (SIZE, BODY),
    "a size that ends with CR": b"%s\r%s\r\n0\r\n\r\n" % (SIZE, BODY),
    "an extension with LF in it": b"%s;x\n\r\n%s\r\n0\r\n\r\n" % (SIZE, BODY),
    "an extension with CR in it": b"%s;x\ry\r\n%s\r\n0\r\n\r\n" % (SIZE, BODY),
    "an extension with NUL in it": b"%s;x\0y\r\n%s\r\n0\r\n\r\n" % (SIZE, BODY),
    "a chunk that is longer than its size": b"%s\r\n%sxx\r\n0\r\n\r\n" % (SIZE, BODY),
    "a chunk without its end": b"%s\r\n%s0\r\n\r\n" % (SIZE, BODY),
    "a chunk that ends with LF": b"%s\r\n%s\n0\r\n\r\n" % (SIZE, BODY),
    "the last chunk ends with LF": b"%s\r\n%s\r\n0\n\n" % (SIZE, BODY),
}


@pytest.mark.parametrize("chunks", CHUNKS.values(), ids=CHUNKS)
async def test_invalid_chunks_are_rejected(setup, chunks):
    """A body with invalid chunks isn't accepted, and what follows it isn't read as a request."""
    key = setup.keys["lender"]
    responses = await setup.exchange(call_head(key, CHUNKED), chunks, smuggled_request(setup))
    assert [each.status for each in responses] in ([400], [])
    setup.assert_upstream_requests()


async def test_valid_chunks_are_accepted(setup):
    """Chunks of any size, with or without an extension, are forwarded as one body with a length."""
    key = setup.keys["lender"]
    for body in (
        encode_chunks(BODY),
        encode_chunks(*(bytes([each]) for each in BODY)),
        b"%s;name=value\r\n%s\r\n0\r\n\r\n" % (SIZE.upper(), BODY),
        b"000%s\r\n%s\r\n000\r\n\r\n" % (SIZE, BODY),
    ):
        response = await setup.exchange_one(
            call_head(key, "Transfer-Encoding: Chunked", "Connection: close"), body
        )
        assert response.status == 200
        assert setup.upstream.body() == CREATE_BODY
        assert dict(setup.upstream.fields())["content-length"]
    setup.assert_upstream_requests(count=4)


async def test_trailers_are_not_headers(setup):
    """A field after the last chunk neither authenticates a call nor is forwarded."""
    trailers = f"PLAID-SECRET: {setup.keys['lender']}\r\nAuthorization: Bearer x\r\nPlaid-Version: 1\r\n\r\n".encode()
    body = encode_chunks(BODY)[:-2] + trailers
    responses = await setup.exchange(
        call_head("x", CHUNKED, "Connection: close", "Trailer: PLAID-SECRET"), body
    )
    assert [each.status for each in responses] in ([401], [400])
    setup.assert_upstream_requests()
    responses = await setup.exchange(call_head(setup.keys["lender"], CHUNKED, "Connection: close"), body)
    assert [each.status for each in responses] in ([200], [400])
    for number, _ in enumerate(setup.upstream.requests):
        assert dict(setup.upstream.fields(number)).get("plaid-version") != "1"


REFUSALS = {
    "no key": lambda key: call_head("x"),
    "another method": lambda key: call_head(key, method="GET"),
    "HEAD": lambda key: call_head(key, method="HEAD"),
    "another path": lambda key: call_head(key, path="/elsewhere"),
    "an operation not served": lambda key: call_head(key, path="/item/remove"),
    "the page": lambda key: call_head(key, path="/", method="GET"),
    "health": lambda key: call_head(key, path="/healthz", method="GET"),
    "another kind": lambda key: call_head(key).replace(b"application/json", b"text/plain"),
    "an encoding": lambda key: call_head(key, "Content-Encoding: gzip"),
    "another's Origin": lambda key: call_head(key, "Origin: https://evil.example"),
    "another's Host": lambda key: call_head(key).replace(HOST_PLACEHOLDER.encode(), b"evil.example"),
    "two keys": lambda key: call_head(key, "Authorization: Bearer x"),
    "no JSON": call_head,
}


@pytest.mark.parametrize("refused", REFUSALS.values(), ids=REFUSALS)
async def test_the_body_of_a_rejected_request_is_not_a_request(setup, refused):
    """A valid request in the body of a rejected one is never executed."""
    ways = itertools.product(["length", "chunks", "expect"], [1, 2])
    for received in await asyncio.gather(*(_responses_to_smuggling(setup, refused, *way) for way in ways)):
        assert b"relay_token" not in received
    setup.assert_upstream_requests()


async def _responses_to_smuggling(setup, refused, framing, pieces) -> bytes:
    """Return the responses to a valid request in the body of a rejected one."""
    key = setup.keys["lender"]
    inner = smuggled_request(setup)
    frame = CHUNKED if framing == "chunks" else f"Content-Length: {len(inner)}"
    lines = [frame, *(["Expect: 100-continue"] if framing == "expect" else [])]
    opening = refused(key)[:-2] + build_head(*lines)
    body = encode_chunks(inner) if framing == "chunks" else inner
    sent = [opening, body] if pieces == 2 else [opening + body]
    async with raw_connection(setup.gateway.url) as connection:
        await connection.send(*sent, pause=0.02)
        try:
            return await connection.read_to_end(0.3)
        except TimeoutError:
            return b""


async def test_a_request_within_the_content_length_is_the_body(setup):
    """Bytes within Content-Length are the body, whatever they contain."""
    key = setup.keys["lender"]
    response = await setup.exchange_one(build_request(CREATE, smuggled_request(setup), key=key))
    assert (response.status, response.error_code) == (400, "INVALID_BODY")
    setup.assert_upstream_requests()


async def test_pipelined_requests_get_responses_in_order(setup):
    """Two valid requests in one packet are executed once each."""
    key = setup.keys["lender"]
    first = build_request(CREATE, CREATE_BODY | {"secondary_client_id": "a"}, key=key, close=False)
    responses = await setup.exchange(
        first + build_request(CREATE, CREATE_BODY | {"secondary_client_id": "b"}, key=key)
    )
    assert [each.status for each in responses] == [200, 200]
    assert [setup.upstream.body(n)["secondary_client_id"] for n in (0, 1)] == ["a", "b"]
    tokens = [each.json["relay_token"] for each in responses]
    assert tokens == ["credit-relay-sandbox-1", "credit-relay-sandbox-2"]


async def test_each_request_on_a_connection_needs_a_key(setup):
    """A key counts only for its own request."""
    key = setup.keys["lender"]
    responses = await setup.exchange(build_request(key=key, close=False) + build_request(CREATE))
    assert [each.status for each in responses] == [200, 401]
    setup.assert_upstream_requests(count=1)


REPEATED = {
    "Host": f"Host: {HOST_PLACEHOLDER}",
    "Authorization": "Authorization: Bearer KEY",
    "PLAID-SECRET": "PLAID-SECRET: KEY",
    "PLAID-CLIENT-ID": "PLAID-CLIENT-ID: me",
    "Plaid-Version": "Plaid-Version: 2020-09-14",
    "Content-Type": "Content-Type: application/json",
    "Content-Encoding": "Content-Encoding: identity",
    "Origin": f"Origin: http://{HOST_PLACEHOLDER}",
}


@pytest.mark.parametrize("name", REPEATED)
@pytest.mark.parametrize("change", [str, str.upper, str.lower])
async def test_a_repeated_header_that_matters_is_rejected(setup, name, change):
    """Servers may use the first or the last one, so even equal ones are rejected."""
    key = setup.keys["lender"]
    again = REPEATED[name].replace("KEY", key)
    again = change(again.partition(":")[0]) + ":" + again.partition(":")[2]
    default_headers = {"Host", "Content-Type", "Authorization"}
    more = [again] if name in default_headers else [again, REPEATED[name].replace("KEY", key)]
    response = await setup.exchange_one(build_request(CREATE, CREATE_BODY, *more, key=key))
    assert response.status == 400
    assert response.error_code in {"INVALID_HEADERS", "INVALID_HTTP"}
    setup.assert_upstream_requests()


@pytest.mark.parametrize("expect", ["100-continue", "100-Continue"])
async def test_expect_100_continue_is_answered(setup, expect):
    """The gateway responds to Expect, and doesn't forward it."""
    async with raw_connection(setup.gateway.url) as connection:
        request_bytes = build_request(CREATE, CREATE_BODY, f"Expect: {expect}", key=setup.keys["lender"])
        opening, _, body = request_bytes.partition(b"\r\n\r\n")
        await connection.send(opening + b"\r\n\r\n")
        assert (await connection.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
        await connection.send(body)
        assert (await connection.read_response()).status == 200
    assert "expect" not in dict(setup.upstream.fields())


async def test_expect_is_ignored_in_http_1_0(setup):
    """RFC 9110 10.1.1: HTTP/1.0 has no interim responses, so the expectation is ignored."""
    request_bytes = build_request(CREATE, CREATE_BODY, "Expect: 100-continue", key=setup.keys["lender"])
    async with raw_connection(setup.gateway.url) as connection:
        await connection.send(request_bytes.replace(b" HTTP/1.1\r\n", b" HTTP/1.0\r\n"))
        assert [each.status for each in parse_responses(await connection.read_to_end())] == [200]
    assert "expect" not in dict(setup.upstream.fields())


async def test_another_expectation_is_rejected(setup):
    """An expectation that can't be met is neither ignored nor forwarded."""
    response = await setup.exchange_one(
        build_request(CREATE, CREATE_BODY, "Expect: more", key=setup.keys["lender"])
    )
    assert 400 <= response.status < 500
    setup.assert_upstream_requests()


@pytest.mark.parametrize(
    "hop", ["Connection: PLAID-SECRET, close", "Connection: Host, close", "Connection: Authorization, close"]
)
async def test_connection_removes_no_header_of_the_gateway(setup, hop):
    """A proxy drops the headers that Connection names; a caller can't make it drop the gateway's."""
    response = await setup.exchange_one(
        build_request(CREATE, CREATE_BODY, hop, key=setup.keys["lender"], close=False)
    )
    assert response.status == 200
    assert dict(setup.upstream.fields())["plaid-secret"] == "canary-upstream-of-the-owner"


OTHER_HEADERS = [
    "Keep-Alive: timeout=99",
    "Proxy-Authorization: Basic x",
    "Proxy-Connection: keep-alive",
    "TE: trailers",
    "Trailer: X",
    "Cookie: a=b",
    "X-Forwarded-For: 10.0.0.1",
    "X-Forwarded-Host: evil.example",
    "Forwarded: for=10.0.0.1",
    "Via: 1.1 evil",
    "Referer: https://evil.example/?secret",
    "X-Original-URL: /item/remove",
    "X-Rewrite-URL: /item/remove",
    "X-Http-Method-Override: DELETE",
    "PLAID-CLIENT-APP: x",
    "Plaid-New-ACH-Enabled: true",
    "X-API-Key: x",
    "Range: bytes=0-1",
    "If-None-Match: x",
    "Max-Forwards: 0",
    "Content-Language: en",
    "Content-Location: /elsewhere",
    "Content-MD5: x",
]


async def test_other_headers_of_a_caller_are_not_forwarded(setup):
    """Only Accept, Plaid-Version and User-Agent are forwarded; a creation asks for an uncompressed response."""
    forwarded = ["Accept: text/x", "Plaid-Version: 2020-09-14", "User-Agent: tests/1"]
    assert (
        await setup.exchange_one(
            build_request(
                CREATE,
                CREATE_BODY,
                *OTHER_HEADERS,
                *forwarded,
                "Accept-Encoding: br",
                key=setup.keys["lender"],
            )
        )
    ).status == 200
    fields = dict(setup.upstream.fields())
    assert {fields[line.partition(":")[0].lower()] for line in forwarded} == {
        "text/x",
        "2020-09-14",
        "tests/1",
    }
    assert fields["accept-encoding"] == "identity"
    expected = {"host", "content-type", "content-length", "connection", "plaid-client-id", "plaid-secret"}
    expected |= {"accept", "accept-encoding", "plaid-version", "user-agent"}
    assert set(fields) <= expected
    assert fields["content-type"] == "application/json"
    assert fields["host"] == f"127.0.0.1:{setup.upstream.port}"


PIECES = [
    b"\r\n",
    b"\n",
    b"\r",
    b"\0",
    b" ",
    b"\t",
    b":",
    b",",
    b";",
    b"\r\n\r\n",
    b"0\r\n\r\n",
    b"Content-Length: 0\r\n",
    b"Content-Length: 5\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: x\r\n",
    b"Host: evil.example\r\n",
    b"PLAID-SECRET: x\r\n",
    b"Authorization: Bearer x\r\n",
    b"POST /credit/relay/remove HTTP/1.1\r\n",
    b"/../",
    b"%2e",
    b"HTTP/1.0",
    b"\xff\xfe",
    b'"secondary_client_id": "p3", ',
    b'{"a": ',
    b"}",
]
EDITS = st.lists(
    st.tuples(st.floats(0, 1), st.integers(0, 6), st.sampled_from(PIECES) | st.binary(max_size=4)),
    min_size=1,
    max_size=4,
)


async def test_a_modified_request_does_no_harm():
    """Whatever edits are made to a valid request: only valid calls for the key's partners are forwarded, and others are served."""

    @settings(max_examples=400, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(EDITS, st.booleans())
    def collect_examples(edits, in_chunks):
        examples.append((edits, in_chunks))

    examples: list[Any] = []
    collect_examples()
    async with running_gateway(caller_timeout=0.3, connections=500) as setup:
        host = setup.gateway.url.partition("://")[2]
        key = setup.keys["bound"]

        def modify(edits, in_chunks) -> bytes:
            received = bytearray(build_request(key=key, host=host) + smuggled_request(setup))
            if in_chunks:
                start_of_it = call_head(key, CHUNKED).replace(HOST_PLACEHOLDER.encode(), host.encode())
                received = bytearray(start_of_it + encode_chunks(BODY) + build_request(key=key, host=host))
            for place, length, piece in edits:
                at = int(place * len(received))
                received[at : at + length] = piece
            return bytes(received)

        # All at the same time, because many end only when their connection has been idle for long enough.
        sent = [modify(*each) for each in examples]
        exchanges = (setup.exchange(each, seconds=60) for each in sent)
        for data, result in zip(sent, await asyncio.gather(*exchanges, return_exceptions=True), strict=True):
            # The rejection of the next request may truncate a response; a crashed gateway would show below.
            # An incomplete head that arrived with a request has the timeout of an idle connection.
            assert not isinstance(result, TimeoutError) or b"Connection: close\r\n\r\n" not in data
        for number in range(len(setup.upstream.requests)):
            if setup.upstream.requests[number].startswith(b"POST /credit/relay/create "):
                assert setup.upstream.body(number).get("secondary_client_id") in {"p1", "p2"}
