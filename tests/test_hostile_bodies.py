"""Responses that are built to cost time or memory cost no more than their length justifies."""

from __future__ import annotations

import asyncio
import json
import re
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest
from servers import read_request, serving
from support import OWNER, QUICK

from plaid_relay_async import (
    InvalidRequestError,
    PlaidRelayError,
    ReadTimeoutError,
    RelayClient,
    ResponseDecodeError,
    codec,
    error_codes,
    models,
)
from plaid_relay_async.redaction import Hidden
from plaid_relay_async.simulator import report_bytes

MEBIBYTE = 2**20
CREATE = models.RelayCreateRequest(["report-token"], "partner")
GET = models.RelayGetRequest("relay-token")
SECRET = Hidden("secret-of-the-owner")


def filled(unit: bytes, *, size: int, before: bytes = b"", after: bytes = b"") -> bytes:
    """Repeat the unit until the body has about this size."""
    return before + unit * (size // len(unit)) + after


def error_with_message(unit: bytes, size: int = MEBIBYTE) -> bytes:
    """Return an error of Plaid's with a message of this size."""
    return filled(unit, size=size, before=b'{"error_code": "X", "error_message": "', after=b'"}')


SUCCESSES = {
    "empty objects": filled(b"{},", size=MEBIBYTE, before=b'{"warnings": [', after=b"{}]}"),
    "empty objects, 50 KiB": filled(b"{},", size=50 * 1024, before=b'{"warnings": [', after=b"{}]}"),
    "wrong scalars": filled(
        b"0,", size=100 * 1024, before=b'{"request_id": "q", "warnings": [', after=b"0]}"
    ),
    "unclosed string": filled(b"a", size=8 * MEBIBYTE, before=b'{"request_id": "'),
    "unclosed token": filled(b"a", size=MEBIBYTE, before=b'{"relay_token": "'),
    "unclosed escapes": filled(b"\\a", size=MEBIBYTE, before=b'{"request_id": "'),
    "spaces before a colon": filled(b" ", size=MEBIBYTE, before=b'{"request_id"'),
    "names without values": filled(b'"request_id":', size=MEBIBYTE),
    "empty values": filled(b'"request_id": "",', size=MEBIBYTE),
    "escaped quotes": filled(b'"request_id": "\\', size=MEBIBYTE),
    "open lists": filled(b"[", size=MEBIBYTE),
    "one long number": filled(b"1", size=MEBIBYTE, before=b'{"x": ', after=b"}"),
    "one long fraction": filled(b"1", size=MEBIBYTE, before=b'{"x": 1.', after=b"}"),
}
ERRORS = {
    "almost tokens": error_with_message(b"a-"),
    "almost tokens, in words": error_with_message(b"a-sandbox "),
    "one long token": error_with_message(b"a-sandbox-"),
    "hyphens": error_with_message(b"-"),
    "one long word": error_with_message(b"a"),
    "a code of capitals": filled(b"A_", size=MEBIBYTE, before=b'{"error_code": "', after=b'"}'),
    "a code of a token": filled(b"TOKEN", size=MEBIBYTE, before=b'{"error_code": "INVALID_', after=b'"}'),
}


def cost(endpoint: codec.Endpoint, request: object, status: int, body: bytes) -> tuple[float, float]:
    """Read the response; return the seconds of CPU time, and the peak memory as a multiple of the body."""

    def read() -> None:
        with pytest.raises(PlaidRelayError) as caught:
            codec.read_response(endpoint, codec.RawResponse(status, {}, bytearray(body)), request, SECRET)
        if isinstance(caught.value, InvalidRequestError):
            error_codes.is_token_not_found(caught.value)

    before = time.process_time()
    read()
    seconds = time.process_time() - before
    tracemalloc.start()
    try:
        read()
        return seconds, tracemalloc.get_traced_memory()[1] / max(len(body), MEBIBYTE)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", SUCCESSES)
@pytest.mark.parametrize("endpoint", [codec.RELAY_GET, codec.RELAY_CREATE], ids=["get", "create"])
def test_a_success_that_cannot_be_decoded_is_explained_in_linear_time(endpoint, name):
    """The explanation stops at the first error, and no pattern backtracks."""
    request = GET if endpoint is codec.RELAY_GET else CREATE
    seconds, memory = cost(endpoint, request, 200, SUCCESSES[name])
    assert seconds < 5
    assert memory < 150


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_is_read_in_linear_time(name):
    """Redacting an error's message takes time proportional to its length."""
    seconds, memory = cost(codec.RELAY_CREATE, CREATE, 400, ERRORS[name])
    assert seconds < 5
    assert memory < 150


def test_the_first_error_is_reported():
    """Of many errors the message has the path of the first, and no other."""
    body = b'{"request_id": "q", "warnings": [{}, {}, 5], "report": 6}'
    with pytest.raises(ResponseDecodeError) as caught:
        codec.read_response(codec.RELAY_GET, codec.RawResponse(200, {}, bytearray(body)), GET, SECRET)
    assert re.fullmatch(r"\$\.(report|warnings\[0\]\.\w+)", caught.value.path)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("see access-sandbox-12ab-cd, or not", "see [hidden], or not"),
        ("a-production-1", "[hidden]"),
        ("credit--relay-development-x_y", "[hidden]"),
        ("the sandbox-mode, in-sandbox mode", "the sandbox-mode, in-sandbox mode"),
        ("X_access-sandbox-1", "[hidden]"),
    ],
)
def test_text_with_the_form_of_a_token_is_redacted(text, shown):
    """Text with the form of Plaid's tokens is redacted in an error's message, and the rest is kept."""
    body = bytearray(json.dumps({"error_code": "X", "error_message": text}).encode())
    with pytest.raises(InvalidRequestError) as caught:
        codec.read_response(codec.RELAY_CREATE, codec.RawResponse(400, {}, body), CREATE, SECRET)
    assert caught.value.error_message == shown


@pytest.mark.parametrize(("status", "call"), [(500, "get"), (200, "key"), (400, "create")])
async def test_only_a_report_may_be_long(status, call):
    """Only a report may be longer than 1 MiB: errors and other responses aren't read further."""
    sent = 0

    async def endless(reader, writer):
        nonlocal sent
        await read_request(reader)
        writer.write(b"HTTP/1.1 %d X\r\nContent-Length: 99999999\r\n\r\n{" % status)
        while True:
            writer.write(b" " * 65536)
            sent += 65536
            await writer.drain()
            await asyncio.sleep(0)

    async with serving(endless) as (url, _), RelayClient(OWNER, base_url=url, retry=QUICK) as client:
        calls = {
            "get": lambda: client.relay.get("t", retry=once),
            "key": lambda: client.webhook_verification_key.get("k", retry=once),
            "create": lambda: client.relay.create(["t"], "p", retry=once),
        }
        once = type(QUICK)(attempts=1)
        with pytest.raises(PlaidRelayError) as caught:
            await calls[call]()
    assert caught.value.sent
    assert sent < 16 * MEBIBYTE


async def test_a_timeout_is_kept_while_a_report_is_decoded():
    """A call whose response waits for a thread in which it is decoded ends when its time is up."""
    body, release = report_bytes(3_000), Event()

    async def handle(reader, writer):
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        await writer.drain()

    with ThreadPoolExecutor(max_workers=1) as executor:
        executor.submit(release.wait)
        asyncio.get_running_loop().set_default_executor(executor)
        try:
            async with serving(handle) as (url, _), RelayClient(OWNER, base_url=url) as client:
                with pytest.raises(ReadTimeoutError, match="while it was decoded") as caught:
                    await client.asset_report.get("t", timeout=2)
        finally:
            release.set()
    assert (caught.value.sent, caught.value.attempts) == (True, 1)


async def test_a_long_report_that_stalls_is_a_timeout():
    """The error of a long report whose rest didn't arrive in time is the same as that of a short one."""
    body = report_bytes(3_000)

    async def handle(reader, writer):
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body) + 1, body))
        await writer.drain()
        await reader.read()

    async with serving(handle) as (url, _), RelayClient(OWNER, base_url=url) as client:
        with pytest.raises(ReadTimeoutError, match="time ran out") as caught:
            await client.asset_report.get("t", timeout=3)
    assert caught.value.sent
