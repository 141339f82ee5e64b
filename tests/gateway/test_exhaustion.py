"""Callers that exhaust resources: time, memory and connections are limited."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import json
import logging
import os
import resource
import socket
import struct
import termios
import tracemalloc
from urllib.parse import urlsplit

import pytest
from gateway_setup import UPSTREAM_CREDENTIALS, caller_sockets, queued_bytes, running_gateway, tls_contexts
from processes import wait_until_async
from raw_http import (
    CREATE,
    CREATE_BODY,
    GET,
    HOST_PLACEHOLDER,
    build_head,
    build_request,
    build_response,
    exchange,
    raw_connection,
)
from recorder import Recorder
from support import sampled

from plaid_relay_async import Timeouts
from plaid_relay_async.gateway import Gateway, new_key

BODY = json.dumps(CREATE_BODY).encode()
SHORT_TIMEOUT = {"caller_timeout": 0.4}
MEGABYTE = 2**20


def open_request(key: str, *lines: str) -> bytes:
    """Return the head of a call with a key, without its body."""
    more = (
        f"Host: {HOST_PLACEHOLDER}",
        "Content-Type: application/json",
        f"Authorization: Bearer {key}",
        *lines,
    )
    return build_head(f"POST {CREATE} HTTP/1.1", *more)


def allocated_bytes() -> int:
    """Return the bytes that Python has allocated and not freed."""
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


@contextlib.contextmanager
def limited_memory(most: int):
    """Check that at most this many more bytes are allocated at the end, and three times as many in between."""
    tracemalloc.start()
    try:
        before = allocated_bytes()
        tracemalloc.reset_peak()
        yield
        peak = tracemalloc.get_traced_memory()[1] - before
        assert (allocated_bytes() - before, peak) < (most, 3 * most)
        assert peak < 3 * most
    finally:
        tracemalloc.stop()


SLOW = {
    "nothing at all": [],
    "half a request line": [b"POST /cre"],
    "half the head": [b"POST /credit/relay/create HTTP/1.1\r\nHost: x\r\nX-"],
    "a byte at a time": [
        bytes([each]) for each in b"POST /credit/relay/create HTTP/1.1\r\nHost: 127.0.0.1\r\n" * 30
    ],
    "a header at a time": [b"POST /credit/relay/create HTTP/1.1\r\n", *[b"X-M: a\r\n"] * 900],
    "empty lines": [b"\r\n"] * 1000,
}


@pytest.mark.parametrize("pieces", SLOW.values(), ids=SLOW)
async def test_a_slow_head_times_out(pieces):
    """A caller that doesn't send a request in time loses the connection, however much it sends."""
    async with running_gateway(**SHORT_TIMEOUT) as setup:
        started_at = asyncio.get_running_loop().time()
        await setup.exchange(*pieces, pause=0.02, seconds=60)
        assert asyncio.get_running_loop().time() - started_at < 15  # sending everything takes longer
        setup.assert_upstream_requests()


@pytest.mark.parametrize("frame", [f"Content-Length: {len(BODY)}", "Transfer-Encoding: chunked"])
@pytest.mark.parametrize("drips", [False, True])
@pytest.mark.parametrize("place", ["head", "body"])
async def test_a_slow_body_times_out(frame, drips, place):
    """A body that doesn't arrive in time gets a 408, and the connection is closed."""
    async with running_gateway(**SHORT_TIMEOUT) as setup:
        key = setup.keys["lender"]
        start = open_request(key, frame)
        if place == "body":
            start = start.replace(f"Authorization: Bearer {key}\r\n".encode(), b"")
        framed = b"".join(b"1\r\n%c\r\n" % each for each in BODY) if "chunked" in frame else BODY
        pieces = [framed[n : n + 6] for n in range(0, 480, 6)] if drips else [framed[:12]]
        responses = await setup.exchange(start, *pieces, pause=0.05, seconds=60)
        assert [(each.status, each.error_code) for each in responses] == [(408, "BODY_TIMEOUT")]
        setup.assert_upstream_requests()


async def test_a_later_head_times_out_too():
    """The timeout applies to each request of a connection; between requests the connection may be idle."""
    async with running_gateway(**SHORT_TIMEOUT) as setup, raw_connection(setup.gateway.url) as connection:
        await connection.send(build_request(key=setup.keys["lender"], close=False))
        assert (await connection.read_response()).status == 200
        await asyncio.sleep(1)
        await connection.send(build_request(key=setup.keys["lender"], close=False))
        assert (await connection.read_response()).status == 200
        await connection.send(b"POST /cr")
        assert await connection.read_to_end(60) == b""
        setup.assert_upstream_requests(count=2)


@pytest.mark.parametrize("length", [MEGABYTE + 1, 10**9, 2**31, 2**63 - 1])
async def test_a_huge_body_is_rejected_before_it_is_sent(length):
    """Its Content-Length is sufficient; the gateway doesn't wait for the body."""
    async with running_gateway(**SHORT_TIMEOUT) as setup:
        responses = await setup.exchange(
            open_request(setup.keys["lender"], f"Content-Length: {length}"), seconds=60
        )
        assert [(each.status, each.error_code) for each in responses] == [(413, "BODY_TOO_LARGE")]
        setup.assert_upstream_requests()


@pytest.mark.parametrize(
    ("key", "frame"),
    sampled(
        [
            ("a key", "Content-Length: 1000000000"),
            ("a key", "Transfer-Encoding: chunked"),
            ("no key", "Content-Length: 1000000000"),
            ("no key", "Transfer-Encoding: chunked"),
            ("key in the body", "Content-Length: 1000000000"),
            ("key in the body", "Transfer-Encoding: chunked"),
        ],
        step=3,
    ),
)
async def test_an_endless_body_is_cut_off(setup, frame, key):
    """The connection is closed, and memory doesn't grow with what was sent."""
    start = open_request(setup.keys["lender"] if key == "a key" else "x", frame)
    if key == "key in the body":
        start = start.replace(b"Authorization: Bearer x\r\n", b"")
    piece = b" " * 2**16
    chunk = b"%x\r\n%s\r\n" % (len(piece), piece) if "chunked" in frame else piece
    with limited_memory(3 * MEGABYTE):
        async with raw_connection(setup.gateway.url) as connection:
            with contextlib.suppress(ConnectionError):
                connection.writer.write(start.replace(HOST_PLACEHOLDER.encode(), b"127.0.0.1"))
                async with asyncio.timeout(60):
                    while True:
                        connection.writer.write(chunk)
                        await connection.writer.drain()
    setup.assert_upstream_requests()


HEADS = {
    "one long header": itertools.chain(
        [b"POST / HTTP/1.1\r\nX-More: "], itertools.repeat(b"a" * 4096, 20_000)
    ),
    "many headers": itertools.chain(
        [b"POST / HTTP/1.1\r\n"], itertools.repeat(b"X-More: more\r\n" * 300, 20_000)
    ),
    "a long path": itertools.chain([b"POST /"], itertools.repeat(b"a" * 4096, 20_000)),
    "a long method": itertools.repeat(b"A" * 4096, 20_000),
    "empty lines": itertools.repeat(b"\r\n" * 2048, 20_000),
    "a long extension of a chunk": itertools.chain(
        [b"POST /credit/relay/create HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"],
        [b"Transfer-Encoding: chunked\r\n\r\n5;"],
        itertools.repeat(b"x" * 4096, 20_000),
    ),
    "trailers": itertools.chain(
        [b"POST /credit/relay/create HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"],
        [b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n"],
        itertools.repeat(b"X-More: more\r\n" * 300, 20_000),
    ),
}


@pytest.mark.parametrize("name", HEADS)
async def test_an_endless_head_is_cut_off(name):
    """Neither long lines nor many lines fill the memory."""
    async with running_gateway(**SHORT_TIMEOUT) as setup:
        with limited_memory(2 * MEGABYTE):
            async with raw_connection(setup.gateway.url) as connection:
                with contextlib.suppress(ConnectionError, TimeoutError):
                    async with asyncio.timeout(60):
                        for piece in HEADS[name]:
                            connection.writer.write(piece)
                            await connection.writer.drain()
        setup.assert_upstream_requests()


@pytest.mark.parametrize("data", [b"", b"GET /met"])
async def test_the_port_of_metrics_has_limits_too(data):
    """A connection that sends nothing or an incomplete request is closed there, too."""
    async with Gateway([], credentials=UPSTREAM_CREDENTIALS, metrics_port=0, **SHORT_TIMEOUT) as gateway:
        async with raw_connection(gateway.metrics_url) as connection:
            await connection.send(data)
            assert await connection.read_to_end(60) == b""


async def test_idle_connections_do_not_block_callers():
    """Twice the limit of connections send nothing and are closed, and each valid call in between succeeds."""
    count = 1_000 if resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= 4_096 else 300
    async with (
        running_gateway(caller_timeout=2.0, connections=count // 2) as setup,
        contextlib.AsyncExitStack() as stack,
    ):
        idle = [await stack.enter_async_context(raw_connection(setup.gateway.url)) for _ in range(count)]
        for _ in range(5):
            assert (await setup.call()).status == 200
        async with asyncio.timeout(60):
            await asyncio.gather(*(each.read_to_end() for each in idle))
        setup.assert_upstream_requests(count=5)


async def test_used_idle_connections_do_not_block_callers():
    """The same holds for connections that made a valid call, and for those in the middle of a head."""
    async with running_gateway(connections=50) as setup, contextlib.AsyncExitStack() as stack:
        key = setup.keys["lender"]
        for number in range(200):
            each = await stack.enter_async_context(raw_connection(setup.gateway.url))
            if number < 50:
                await each.send(build_request(key=key, close=False))
                assert (await each.read_response()).status == 200
            elif number < 100:
                await each.send(b"POST /cr")
            else:
                await each.send(b"\r\n")
        for _ in range(3):
            assert (await setup.call()).status == 200
        setup.assert_upstream_requests(count=53)


async def test_callers_in_the_middle_of_a_body_do_not_block_others():
    """A connection with an incomplete body is closed for a new one."""
    async with running_gateway(connections=20) as setup, contextlib.AsyncExitStack() as stack:
        key = setup.keys["lender"]
        slow = [await stack.enter_async_context(raw_connection(setup.gateway.url)) for _ in range(40)]
        for each in slow:
            await each.send(open_request(key, "Content-Length: 100"))
        assert (await setup.call()).status == 200
        setup.assert_upstream_requests(count=1)


PAGE = build_request("/console/many-view.js", b"", method="GET", content_type=None, close=False)


def count_sockets(url: str) -> int:
    return len([*caller_sockets(url)])


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])
async def test_callers_that_read_nothing_stay_within_the_limit(secure):
    """They request megabytes of the page and read nothing: closed sockets are freed, and valid calls succeed."""
    client_ssl = None
    options = {"connections": 10, "caller_timeout": 60.0}
    if secure:
        options["ssl"], client_ssl = tls_contexts()
    async with (
        running_gateway(**options, client_ssl=client_ssl) as setup,
        contextlib.AsyncExitStack() as stack,
    ):
        for _ in range(30):
            connection = await stack.enter_async_context(
                raw_connection(setup.gateway.url, limit=1, ssl=client_ssl)
            )
            await connection.send(PAGE * 600)
            assert count_sockets(setup.gateway.url) <= 11  # one may have just been aborted
        assert setup.gateway.open_connections <= 11
        for _ in range(3):
            assert (await setup.call()).status == 200
        assert count_sockets(setup.gateway.url) <= 11


async def test_little_is_queued_for_a_caller_that_reads_nothing():
    """The system queues a few pages for it, not the megabytes that it would accept by default."""
    async with (
        running_gateway(caller_timeout=60.0) as setup,
        raw_connection(setup.gateway.url, limit=1) as connection,
    ):
        await connection.send(PAGE * 600)
        queued, before = 0, -1
        while queued != before or not queued:
            before = queued
            await asyncio.sleep(0.2)
            queued = sum(queued_bytes(each, termios.TIOCOUTQ) for each in caller_sockets(setup.gateway.url))
        assert queued < 200_000


async def test_a_caller_that_does_not_read_the_page_times_out():
    """It has as much time as for a request; then the socket is closed, whatever it hasn't read."""
    async with (
        running_gateway(**SHORT_TIMEOUT) as setup,
        raw_connection(setup.gateway.url, limit=1) as connection,
    ):
        await connection.send(PAGE * 600)
        async with asyncio.timeout(10):
            while not count_sockets(setup.gateway.url):
                await asyncio.sleep(0.01)
            while count_sockets(setup.gateway.url):
                await asyncio.sleep(0.05)
        assert setup.gateway.open_connections == 0


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])
async def test_closing_the_gateway_closes_all_sockets(secure):
    """This includes callers that read nothing, send nothing, or don't complete the TLS handshake."""
    options, client_ssl = {"drain": 0.1, "caller_timeout": 60.0}, None
    if secure:
        options["ssl"], client_ssl = tls_contexts()
    record, _ = new_key("unknown")
    async with contextlib.AsyncExitStack() as stack:
        async with Gateway([record], credentials=UPSTREAM_CREDENTIALS, **options) as gateway:
            for number in range(6):
                context = client_ssl if number % 2 else None
                connection = await stack.enter_async_context(
                    raw_connection(gateway.url, limit=1, ssl=context)
                )
                await connection.send(PAGE * 600 if context is client_ssl else b"")
            async with asyncio.timeout(10):
                while count_sockets(gateway.url) < 6:
                    await asyncio.sleep(0.01)
            url = gateway.url
        assert count_sockets(url) == 0


async def test_calls_in_flight_are_not_evicted():
    """While every connection has a call in flight, a further caller waits and is served afterwards."""
    async with running_gateway(connections=5) as setup:
        setup.upstream.respond, setup.upstream.pause = (
            lambda received: [b"", *setup.upstream.creation_response(received)],
            0.5,
        )
        calls = [asyncio.ensure_future(setup.call()) for _ in range(5)]
        await wait_until_async(lambda: len(setup.upstream.requests) == 5)
        further = asyncio.ensure_future(setup.call())
        assert [each.status for each in await asyncio.gather(*calls, further)] == [200] * 6
        setup.assert_upstream_requests(count=6)


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])
async def test_a_burst_of_new_callers_is_served(secure):
    """Many times the limit of callers connect at the same time: each waits for a connection, and none is cut off."""
    server_ssl, client_ssl = tls_contexts() if secure else (None, None)
    async with running_gateway(connections=3, ssl=server_ssl, client_ssl=client_ssl) as setup:
        responses = await asyncio.gather(*(setup.call() for _ in range(40)))
        assert [each.status for each in responses] == [200] * 40
        setup.assert_upstream_requests(count=40)


async def test_a_request_that_has_arrived_is_not_cut_off():
    """An idle connection isn't closed for a new caller once bytes of a request have arrived in its socket."""
    async with running_gateway(connections=1) as setup, raw_connection(setup.gateway.url) as idle:
        await idle.send(build_request(key=setup.keys["lender"], close=False))
        assert (await idle.read_response()).status == 200
        await asyncio.sleep(1.2)  # it may be closed now
        with socket.socket() as caller:
            caller.setblocking(False)
            place = urlsplit(setup.gateway.url)
            caller.connect_ex((place.hostname, place.port))
            await asyncio.sleep(0)
            # The event loop has polled its sockets in this iteration, and accepts the caller in the next one.
            idle.writer.write(
                build_request(key=setup.keys["lender"], close=False).replace(
                    HOST_PLACEHOLDER.encode(), b"127.0.0.1"
                )
            )
            assert (await idle.read_response()).status == 200
        setup.assert_upstream_requests(count=2)


async def test_nothing_is_sent_for_a_caller_that_disconnected_in_the_queue():
    """Its request and the end of its connection were waiting in the system's queue."""
    async with running_gateway(connections=1) as setup:
        setup.upstream.respond, setup.upstream.pause = (
            lambda received: [b"", *setup.upstream.creation_response(received)],
            0.5,
        )
        first = asyncio.ensure_future(setup.call())
        await wait_until_async(lambda: setup.upstream.requests)
        for _ in range(2):  # one is accepted and waits; the other stays in the system's queue
            async with raw_connection(setup.gateway.url) as connection:
                connection.writer.write(
                    build_request(key=setup.keys["lender"]).replace(HOST_PLACEHOLDER.encode(), b"127.0.0.1")
                )
                connection.writer.write_eof()
        assert (await first).status == 200
        assert (await setup.call()).status == 200
        setup.assert_upstream_requests(count=2)


@pytest.mark.parametrize("count", [1, 2, 3, 50])
@pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])
async def test_nothing_is_sent_for_a_caller_that_has_closed_its_side(secure, count, caplog):
    """Requests that arrive together with the end of their connection are dropped, and nothing is logged."""
    caplog.set_level(logging.INFO)
    server_ssl, client_ssl = tls_contexts() if secure else (None, None)
    async with running_gateway(ssl=server_ssl, client_ssl=client_ssl) as setup:
        request = build_request(key=setup.keys["lender"], host="127.0.0.1", close=False)
        for _ in range(10):
            async with raw_connection(setup.gateway.url, ssl=client_ssl) as connection:
                # The gateway shares this event loop, so both are in its socket before it reads either.
                connection.writer.write(request * count)
                connection.writer.get_extra_info("socket").shutdown(socket.SHUT_WR)
                assert await connection.read_to_end() == b""
        await wait_until_async(lambda: not setup.gateway.open_connections)
        setup.assert_upstream_requests()
        assert not caplog.messages


@pytest.mark.parametrize("count", [1, 50])
@pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])
async def test_requests_behind_the_end_of_a_connection_are_dropped(secure, count, caplog):
    """If a caller closes its side during a call, the response isn't delivered, and queued calls are dropped.

    While many calls are queued, aiohttp doesn't read the end of the connection.
    """
    caplog.set_level(logging.INFO)
    server_ssl, client_ssl = tls_contexts() if secure else (None, None)
    async with running_gateway(ssl=server_ssl, client_ssl=client_ssl) as setup:
        setup.upstream.respond, setup.upstream.pause = (
            lambda received: [b"", *setup.upstream.creation_response(received)],
            1.5,
        )
        async with raw_connection(setup.gateway.url, ssl=client_ssl) as connection:
            await connection.send(build_request(key=setup.keys["lender"], close=False) * count)
            await wait_until_async(lambda: setup.upstream.requests)
            connection.writer.get_extra_info("socket").shutdown(socket.SHUT_WR)
            assert await connection.read_to_end() == b""
            await wait_until_async(lambda: caplog.messages and not setup.gateway.open_connections)
        setup.assert_upstream_requests(count=1)
        (line,) = map(json.loads, caplog.messages)
        assert (line["status"], line["delivered"]) == (200, False)


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])
async def test_no_connection_is_evicted_for_a_disconnected_caller(secure, reset):
    """A full gateway keeps an idle connection if the new caller has closed or reset its connection."""
    server_ssl, client_ssl = tls_contexts() if secure else (None, None)
    async with (
        running_gateway(connections=1, ssl=server_ssl, client_ssl=client_ssl) as setup,
        raw_connection(setup.gateway.url, ssl=client_ssl) as idle,
    ):
        await idle.send(build_request(key=setup.keys["lender"], close=False))
        assert (await idle.read_response()).status == 200
        await asyncio.sleep(1.2)  # it may be closed now
        place = urlsplit(setup.gateway.url)
        for _ in range(3):
            with socket.socket() as caller:
                if reset:
                    caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                caller.setblocking(False)
                caller.connect_ex((place.hostname, place.port))
        await asyncio.sleep(0.2)
        await idle.send(build_request(key=setup.keys["lender"], close=False))
        assert (await idle.read_response()).status == 200
        setup.assert_upstream_requests(count=2)


async def test_closing_the_gateway_closes_waiting_callers():
    """A full gateway that closes executes nothing for callers that it hasn't served."""
    async with Recorder() as upstream, contextlib.AsyncExitStack() as stack:
        upstream.respond, upstream.pause = lambda received: [b"", *upstream.creation_response(received)], 60.0
        record, key = new_key("lender")
        options = {
            "upstream": upstream.url,
            "credentials": UPSTREAM_CREDENTIALS,
            "connections": 1,
            "drain": 0.1,
        }
        async with Gateway([record], **options) as gateway:
            callers = [await stack.enter_async_context(raw_connection(gateway.url)) for _ in range(3)]
            await callers[0].send(build_request(key=key))
            await wait_until_async(lambda: upstream.requests)
            for each in callers[1:]:
                await each.send(build_request(key=key))
        assert [await each.read_to_end() for each in callers] == [b""] * 3
        assert len(upstream.requests) == 1


async def test_a_process_out_of_descriptors_accepts_later(caplog):
    """Callers wait until the process can open files again, and a line in the log says why."""
    async with running_gateway() as setup:
        caller = socket.socket()
        before, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        with caller:
            caller.setblocking(False)
            await setup.call()
            await wait_until_async(lambda: not setup.gateway.open_connections)
            await asyncio.sleep(0.1)  # until both ends are closed, so that no lower number becomes free
            free = os.dup(caller.fileno())
            os.close(free)
            resource.setrlimit(resource.RLIMIT_NOFILE, (free, most))
            try:
                place = urlsplit(setup.gateway.url)
                caller.connect_ex((place.hostname, place.port))
                await wait_until_async(
                    lambda: "no connection can be accepted: Too many open files" in caplog.text
                )
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (before, most))
            assert (await setup.call()).status == 200
        setup.assert_upstream_requests(count=2)


@pytest.mark.parametrize("frame", ["Content-Length: 100", "Transfer-Encoding: chunked"])
async def test_a_caller_that_disconnects_in_its_body_leaves_nothing_behind(setup, caplog, frame):
    """It isn't logged as an error, and nothing is forwarded."""
    for _ in range(5):
        async with raw_connection(setup.gateway.url) as connection:
            await connection.send(open_request(setup.keys["lender"], frame) + b"1\r\n{")
            await asyncio.sleep(0.02)
    async with asyncio.timeout(60):
        while setup.gateway.open_connections:
            await asyncio.sleep(0.01)
    setup.assert_upstream_requests()
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_calls_beyond_the_upstream_connections_wait_or_get_a_429():
    """Many concurrent calls share the upstream connections; each gets a response, and none waits forever."""
    async with running_gateway(upstream_connections=3, caller_timeout=3) as setup:

        def slowly(received):
            yield b""
            yield from setup.upstream.creation_response(received)

        setup.upstream.respond, setup.upstream.pause = slowly, 1.0
        responses = await asyncio.gather(*(setup.call() for _ in range(30)))
        counts = {status: [each.status for each in responses].count(status) for status in (200, 429)}
        assert counts[200] + counts[429] == 30
        assert counts[200] >= 3
        assert all(
            each.error_code == "BUSY" and each.headers["Retry-After"]
            for each in responses
            if each.status == 429
        )
        assert len(setup.upstream.requests) == counts[200]
        assert setup.upstream.connections <= 3


async def test_nothing_is_sent_for_a_caller_that_disconnected_while_waiting(audit):
    """A caller that disconnects while its call waits for an upstream connection couldn't receive the token."""
    async with running_gateway(upstream_connections=1) as setup:
        setup.upstream.respond, setup.upstream.pause = (
            lambda received: [b"", *setup.upstream.creation_response(received)],
            2.0,
        )
        first = asyncio.ensure_future(setup.call())
        await wait_until_async(lambda: setup.upstream.requests)
        async with raw_connection(setup.gateway.url) as connection:
            await connection.send(build_request(key=setup.keys["lender"]))
            await asyncio.sleep(0.2)  # it waits for the upstream connection
        assert (await first).status == 200

        def lines():
            return [json.loads(each.getMessage()) for each in audit.records if each.name.endswith("audit")]

        await wait_until_async(lambda: len(lines()) == 2)
        setup.assert_upstream_requests(count=1)
        assert [(each["error_code"], each["delivered"]) for each in lines()] == [
            (None, True),
            ("CALLER_GONE", False),
        ]


async def test_a_slow_reader_of_a_long_response_uses_little_memory():
    """The gateway buffers little of 60 MB for a caller that doesn't read, and serves the others."""
    async with running_gateway(caller_timeout=1.0) as setup:
        long = (
            build_response(200, b"")[:-4].replace(
                b"Content-Length: 0", b"Content-Length: %d" % (60 * MEGABYTE)
            )
            + b"\r\n\r\n"
        )

        def says(received):
            if b"/credit/relay/get" not in received:
                return setup.upstream.creation_response(received)
            return itertools.chain([long], itertools.repeat(b" " * 2**16, 60 * 16))

        setup.upstream.respond = says
        with limited_memory(8 * MEGABYTE):
            async with contextlib.AsyncExitStack() as stack:
                for _ in range(10):
                    connection = await stack.enter_async_context(
                        raw_connection(setup.gateway.url, limit=2**10)
                    )
                    await connection.send(build_request(GET, {"relay_token": "x"}, key=setup.keys["lender"]))
                await asyncio.sleep(0.3)
                for _ in range(3):
                    assert (await setup.call()).status == 200
                async with asyncio.timeout(60):  # then those time out, and their memory is freed
                    while setup.gateway.calls_in_flight or setup.gateway.open_connections:
                        await asyncio.sleep(0.05)


async def test_an_endless_response_is_not_buffered():
    """The gateway reads it to the limit of responses, also after the caller has disconnected."""
    async with running_gateway(caller_timeout=1.0) as setup:
        chunk = b"10000\r\n" + b" " * 2**16 + b"\r\n"
        start = build_head("HTTP/1.1 200 OK", "Content-Type: application/json", "Transfer-Encoding: chunked")
        setup.upstream.respond = lambda _: itertools.chain([start], itertools.repeat(chunk))
        with limited_memory(8 * MEGABYTE):
            async with raw_connection(setup.gateway.url) as connection:
                await connection.send(build_request(GET, {"relay_token": "x"}, key=setup.keys["lender"]))
                read = 0
                with contextlib.suppress(ConnectionError):
                    async with asyncio.timeout(30):
                        while piece := await connection.reader.read(2**18):
                            read += len(piece)
                            if read > 80 * MEGABYTE:
                                break
        async with asyncio.timeout(60):
            while setup.upstream.connections:
                await asyncio.sleep(0.02)
        setup.upstream.respond = setup.upstream.creation_response


async def test_a_hanging_source_of_credentials_times_out():
    """It has the timeout of a caller; nothing was sent by then, and the next call succeeds."""
    hangs = [True]

    async def vault():
        await asyncio.sleep(3600 if hangs else 0)
        return UPSTREAM_CREDENTIALS["default"]

    async with running_gateway(
        credentials={"default": vault}, upstream_connections=1, **SHORT_TIMEOUT
    ) as setup:
        response = await setup.call()
        assert (response.status, response.error_code) == (503, "UPSTREAM_UNREACHABLE")
        hangs.clear()
        assert (await setup.call()).status == 200


@pytest.mark.parametrize(
    ("body", "code"), [(b'["%s"]', "INVALID_BODY"), (b'{"relay_token": "%s"}', "UPSTREAM_LOST")]
)
async def test_a_failed_call_is_freed_immediately(setup, body, code):
    """Memory of a rejected or lost call doesn't wait for Python's garbage collector."""
    body %= b"x" * 1_000_000
    setup.upstream.respond, setup.upstream.ending = lambda _: [], "close"
    await setup.call(GET, body=body)
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        for _ in range(10):
            assert (await setup.call(GET, body=body)).error_code == code
        setup.upstream.requests.clear()
        assert tracemalloc.get_traced_memory()[0] < 3 * MEGABYTE
    finally:
        tracemalloc.stop()
        gc.enable()


async def test_memory_stays_flat_over_many_attacks():
    """Hundreds of rejected, broken and lost requests leave nothing behind."""
    async with running_gateway(timeouts=Timeouts(read=0.2, slow_read=0.2), **SHORT_TIMEOUT) as setup:
        key = setup.keys["lender"]
        attacks = [
            build_request(key="x" * 50),
            build_request(key=key, body=b"[" * 10_000),
            build_request("/nowhere", key=key),
            build_request(key=key, body=b'{"a": NaN}'),
            b"\x16\x03\x01" + bytes(2_000),
            build_head(
                f"POST {CREATE} HTTP/1.1",
                f"Host: {HOST_PLACEHOLDER}",
                "Content-Length: 5",
                "Transfer-Encoding: chunked",
            ),
            build_request(CREATE, CREATE_BODY, "Origin: https://evil.example", key=key),
            build_request(key=key, content_type="text/plain"),
        ]
        for attack in attacks * 10:  # fill caches first
            await setup.exchange(attack)
        with limited_memory(MEGABYTE):
            for attack in attacks * 60:
                await setup.exchange(attack)
        setup.assert_upstream_requests()


async def test_metrics_do_not_grow_with_input():
    """Unknown paths, keys, partners and methods add no lines."""
    pytest.importorskip("prometheus_client")
    async with running_gateway(metrics_port=0) as setup:

        async def read_metrics() -> str:
            metrics_request = build_request("/metrics", b"", method="GET", content_type=None)
            (response,) = await exchange(setup.gateway.metrics_url, metrics_request)
            return response.body.decode()

        async def attack(mark: str) -> None:
            await setup.exchange_one(build_request(f"/{mark}", key=setup.keys["lender"]))
            await setup.exchange_one(build_request(key=f"plaid-gateway-{mark}"))
            await setup.exchange_one(
                build_request(key=setup.keys["lender"], body=CREATE_BODY | {"secondary_client_id": mark})
            )
            await setup.exchange_one(build_request(key=setup.keys["lender"], method=f"X{mark}"))

        await attack("mark")
        before = await read_metrics()
        for number in range(30):
            await attack(f"MARK{number}")
        after = await read_metrics()
        assert "MARK" not in after
        assert len(after.splitlines()) == len(before.splitlines())
        assert 'plaid_gateway_operations_total{caller="lender"' in after
