"""Callers that take much and give little: time, memory and connections are bounded."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import gc
import itertools
import json
import os
import resource
import socket
import struct
import sys
import termios
import tracemalloc
import types
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from gateway_setup import UPSTREAM_CREDENTIALS, running_gateway, tls_contexts
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

from plaid_relay_async import Timeouts
from plaid_relay_async.gateway import Gateway, new_key

BODY = json.dumps(CREATE_BODY).encode()
HASTY = {"patience": 0.4}
MEGABYTE = 2**20


def opening(key: str, *lines: str) -> bytes:
    more = (
        f"Host: {HOST_PLACEHOLDER}",
        "Content-Type: application/json",
        f"Authorization: Bearer {key}",
        *lines,
    )
    return build_head(f"POST {CREATE} HTTP/1.1", *more)


def grown() -> int:
    """Bytes that Python has allocated and still holds."""
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


@contextlib.contextmanager
def flat(most: int):
    """So many bytes more, at most, are held at the end, and three times as many meanwhile."""
    tracemalloc.start()
    try:
        before = grown()
        tracemalloc.reset_peak()
        yield
        peak = tracemalloc.get_traced_memory()[1] - before
        assert (grown() - before, peak) < (most, 3 * most)
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
async def test_a_slow_head_is_given_up(pieces):
    """Who doesn't send a request in time loses the connection, however busily."""
    async with running_gateway(**HASTY) as held:
        began = asyncio.get_running_loop().time()
        await held.exchange(*pieces, pause=0.02, seconds=60)
        assert asyncio.get_running_loop().time() - began < 15  # all of it takes longer
        held.assert_upstream_requests()


@pytest.mark.parametrize("frame", [f"Content-Length: {len(BODY)}", "Transfer-Encoding: chunked"])
@pytest.mark.parametrize("drips", [False, True])
@pytest.mark.parametrize("place", ["head", "body"])
async def test_a_slow_body_is_given_up(frame, drips, place):
    """A body that doesn't come in time gets a 408 and the end of the connection."""
    async with running_gateway(**HASTY) as held:
        key = held.keys["lender"]
        start = opening(key, frame)
        if place == "body":
            start = start.replace(f"Authorization: Bearer {key}\r\n".encode(), b"")
        whole = b"".join(b"1\r\n%c\r\n" % each for each in BODY) if "chunked" in frame else BODY
        drops = [whole[n : n + 6] for n in range(0, 480, 6)] if drips else [whole[:12]]
        answers = await held.exchange(start, *drops, pause=0.05, seconds=60)
        assert [(each.status, each.error_code) for each in answers] == [(408, "BODY_TIMEOUT")]
        held.assert_upstream_requests()


async def test_a_second_head_may_not_be_slow_either():
    """The bound holds for each request of a connection; until one begins, it may be idle."""
    async with running_gateway(**HASTY) as held, raw_connection(held.gateway.url) as opened:
        await opened.send(build_request(key=held.keys["lender"], close=False))
        assert (await opened.read_response()).status == 200
        await asyncio.sleep(1)
        await opened.send(build_request(key=held.keys["lender"], close=False))
        assert (await opened.read_response()).status == 200
        await opened.send(b"POST /cr")
        assert await opened.read_to_end(60) == b""
        held.assert_upstream_requests(count=2)


@pytest.mark.parametrize("length", [MEGABYTE + 1, 10**9, 2**31, 2**63 - 1])
async def test_a_huge_body_is_refused_before_it_is_sent(length):
    """Its Content-Length tells; nobody waits for the rest."""
    async with running_gateway(**HASTY) as held:
        answers = await held.exchange(opening(held.keys["lender"], f"Content-Length: {length}"), seconds=60)
        assert [(each.status, each.error_code) for each in answers] == [(413, "BODY_TOO_LARGE")]
        held.assert_upstream_requests()


@pytest.mark.parametrize("frame", ["Content-Length: 1000000000", "Transfer-Encoding: chunked"])
@pytest.mark.parametrize("key", ["a key", "no key", "key in the body"])
async def test_a_body_without_an_end_is_cut_off(held, frame, key):
    """Whoever goes on sending is cut off; what was taken in doesn't grow with what was sent."""
    start = opening(held.keys["lender"] if key == "a key" else "x", frame)
    if key == "key in the body":
        start = start.replace(b"Authorization: Bearer x\r\n", b"")
    piece = b" " * 2**16
    chunk = b"%x\r\n%s\r\n" % (len(piece), piece) if "chunked" in frame else piece
    with flat(3 * MEGABYTE):
        async with raw_connection(held.gateway.url) as opened:
            with contextlib.suppress(ConnectionError):
                opened.writer.write(start.replace(HOST_PLACEHOLDER.encode(), b"127.0.0.1"))
                async with asyncio.timeout(60):
                    while True:
                        opened.writer.write(chunk)
                        await opened.writer.drain()
    held.assert_upstream_requests()


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
async def test_a_head_without_an_end_is_cut_off(name):
    """No line, and no number of lines, fills the memory."""
    async with running_gateway(**HASTY) as held:
        with flat(2 * MEGABYTE):
            async with raw_connection(held.gateway.url) as opened:
                with contextlib.suppress(ConnectionError, TimeoutError):
                    async with asyncio.timeout(60):
                        for piece in HEADS[name]:
                            opened.writer.write(piece)
                            await opened.writer.drain()
        held.assert_upstream_requests()


@pytest.mark.parametrize("said", [b"", b"GET /met"])
async def test_the_port_of_metrics_has_its_bounds_as_well(said):
    """A connection that says nothing there, or half of something, is given up too."""
    async with Gateway([], credentials=UPSTREAM_CREDENTIALS, metrics_port=0, **HASTY) as gateway:
        async with raw_connection(gateway.metrics_url) as opened:
            await opened.send(said)
            assert await opened.read_to_end(60) == b""


async def test_idle_connections_keep_nobody_out():
    """Twice as many as are allowed say nothing and are given up, and each good call meanwhile passes."""
    count = 1_000 if resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= 4_096 else 300
    async with (
        running_gateway(patience=2.0, connections=count // 2) as held,
        contextlib.AsyncExitStack() as stack,
    ):
        idle = [await stack.enter_async_context(raw_connection(held.gateway.url)) for _ in range(count)]
        for _ in range(5):
            assert (await held.call()).status == 200
        async with asyncio.timeout(60):
            await asyncio.gather(*(each.read_to_end() for each in idle))
        held.assert_upstream_requests(count=5)


async def test_used_connections_that_are_idle_keep_nobody_out():
    """The same for those that once made a good call, and for those in the middle of a head or body."""
    async with running_gateway(connections=50) as held, contextlib.AsyncExitStack() as stack:
        key = held.keys["lender"]
        for number in range(200):
            each = await stack.enter_async_context(raw_connection(held.gateway.url))
            if number < 50:
                await each.send(build_request(key=key, close=False))
                assert (await each.read_response()).status == 200
            elif number < 100:
                await each.send(b"POST /cr")
            else:
                await each.send(b"\r\n")
        for _ in range(3):
            assert (await held.call()).status == 200
        held.assert_upstream_requests(count=53)


async def test_callers_in_the_middle_of_a_body_keep_nobody_out():
    """Who owes a body gives way to a new connection."""
    async with running_gateway(connections=20) as held, contextlib.AsyncExitStack() as stack:
        key = held.keys["lender"]
        slow = [await stack.enter_async_context(raw_connection(held.gateway.url)) for _ in range(40)]
        for each in slow:
            await each.send(opening(key, "Content-Length: 100"))
        assert (await held.call()).status == 200
        held.assert_upstream_requests(count=1)


PAGE = build_request("/console/operations.js", b"", method="GET", content_type=None, close=False)


def descriptors(gateway) -> int:
    """How many sockets of this process are the gateway's ends of its callers' connections."""
    found = 0
    for name in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            number = os.dup(int(name.name))
            try:
                with socket.socket(fileno=number) as opened:
                    opened.getpeername()
                    found += opened.getsockname()[1] == urlsplit(gateway.url).port
                number = -1
            finally:
                if number >= 0:
                    os.close(number)
    return found


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])
async def test_callers_that_read_nothing_hold_no_more_connections_than_there_may_be(secure):
    """Each asks for megabytes of the page and takes none: one that goes frees its socket, and good calls pass."""
    trusting = None
    options = {"connections": 10, "patience": 60.0}
    if secure:
        options["ssl"], trusting = tls_contexts()
    async with running_gateway(**options, trusting=trusting) as held, contextlib.AsyncExitStack() as stack:
        for _ in range(30):
            opened = await stack.enter_async_context(raw_connection(held.gateway.url, limit=1, ssl=trusting))
            await opened.send(PAGE * 600)
            assert descriptors(held.gateway) <= 11  # one may have been aborted just now
        assert len(held.gateway._listener) <= 11
        for _ in range(3):
            assert (await held.call()).status == 200
        assert descriptors(held.gateway) <= 11


async def test_little_is_queued_for_a_caller_that_reads_nothing():
    """The system holds some pages for it, not the megabytes that it would take from a program at once."""
    async with running_gateway(patience=60.0) as held, raw_connection(held.gateway.url, limit=1) as opened:
        await opened.send(PAGE * 600)
        await wait_until_async(
            lambda: [state.stage for state in held.gateway._listener._states.values()] == [1]
        )
        (state,) = held.gateway._listener._states.values()
        queued, before = 0, -1
        while queued != before:
            before = queued
            await asyncio.sleep(0.2)
            number = state.transport.get_extra_info("socket").fileno()
            queued = int.from_bytes(fcntl.ioctl(number, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
        assert 0 < queued < 200_000


async def test_a_caller_that_does_not_take_the_page_is_given_up():
    """It has as long for it as for a request; the socket is closed then, whatever it has not taken."""
    async with running_gateway(**HASTY) as held, raw_connection(held.gateway.url, limit=1) as opened:
        await opened.send(PAGE * 600)
        async with asyncio.timeout(10):
            while not descriptors(held.gateway):
                await asyncio.sleep(0.01)
            while descriptors(held.gateway):
                await asyncio.sleep(0.05)
        assert len(held.gateway._listener) == 0


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])
async def test_nothing_stays_open_of_a_gateway_that_closes(secure):
    """Callers that read nothing, say nothing, or don't agree on TLS lose their sockets with the gateway."""
    options, trusting = {"drain": 0.1, "patience": 60.0}, None
    if secure:
        options["ssl"], trusting = tls_contexts()
    record, _ = new_key("nobody")
    async with contextlib.AsyncExitStack() as stack:
        async with Gateway([record], credentials=UPSTREAM_CREDENTIALS, **options) as gateway:
            for number in range(6):
                context = trusting if number % 2 else None
                opened = await stack.enter_async_context(raw_connection(gateway.url, limit=1, ssl=context))
                await opened.send(PAGE * 600 if context is trusting else b"")
            async with asyncio.timeout(10):
                while descriptors(gateway) < 6:
                    await asyncio.sleep(0.01)
            port = gateway.url
        assert descriptors(types.SimpleNamespace(url=port)) == 0


async def test_good_calls_in_flight_give_way_to_nobody():
    """With every connection in the middle of a call a further caller waits, and is served after those."""
    async with running_gateway(connections=5) as held:
        held.upstream.says, held.upstream.pause = lambda came: [b"", *held.upstream.created(came)], 0.5
        calls = [asyncio.ensure_future(held.call()) for _ in range(5)]
        await wait_until_async(lambda: len(held.upstream.requests) == 5)
        further = asyncio.ensure_future(held.call())
        assert [each.status for each in await asyncio.gather(*calls, further)] == [200] * 6
        held.assert_upstream_requests(count=6)


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])
async def test_a_burst_of_new_callers_is_served(secure):
    """Many times as many as there may be connect at the same time: each waits for its turn, and none is cut off."""
    theirs, trusting = tls_contexts() if secure else (None, None)
    async with running_gateway(connections=3, ssl=theirs, trusting=trusting) as held:
        answers = await asyncio.gather(*(held.call() for _ in range(40)))
        assert [each.status for each in answers] == [200] * 40
        held.assert_upstream_requests(count=40)


async def test_a_request_that_has_arrived_is_not_cut_off():
    """An idle connection isn't closed for a new caller once bytes of a request lie in its socket."""
    async with running_gateway(connections=1) as held, raw_connection(held.gateway.url) as idle:
        await idle.send(build_request(key=held.keys["lender"], close=False))
        assert (await idle.read_response()).status == 200
        await asyncio.sleep(1.2)  # it may be closed now
        with socket.socket() as caller:
            caller.setblocking(False)
            place = urlsplit(held.gateway.url)
            caller.connect_ex((place.hostname, place.port))
            await asyncio.sleep(0)
            # The loop has looked for what can be read in this turn, and accepts the caller in the next one.
            idle.writer.write(
                build_request(key=held.keys["lender"], close=False).replace(
                    HOST_PLACEHOLDER.encode(), b"127.0.0.1"
                )
            )
            assert (await idle.read_response()).status == 200
        held.assert_upstream_requests(count=2)


async def test_nothing_is_sent_for_a_caller_that_left_while_the_gateway_was_full():
    """Its request was waiting in the system's queue, with the end of its connection behind it."""
    async with running_gateway(connections=1) as held:
        held.upstream.says, held.upstream.pause = lambda came: [b"", *held.upstream.created(came)], 0.5
        first = asyncio.ensure_future(held.call())
        await wait_until_async(lambda: held.upstream.requests)
        for _ in range(2):  # one is accepted, and waits; the other isn't
            async with raw_connection(held.gateway.url) as opened:
                opened.writer.write(
                    build_request(key=held.keys["lender"]).replace(HOST_PLACEHOLDER.encode(), b"127.0.0.1")
                )
                opened.writer.write_eof()
        assert (await first).status == 200
        assert (await held.call()).status == 200
        held.assert_upstream_requests(count=2)


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])
async def test_no_connection_is_closed_for_a_caller_that_has_left(secure):
    """A full gateway keeps an idle connection if the new caller reset its own, or closed it before TLS."""
    theirs, trusting = tls_contexts() if secure else (None, None)
    async with (
        running_gateway(connections=1, ssl=theirs, trusting=trusting) as held,
        raw_connection(held.gateway.url, ssl=trusting) as idle,
    ):
        await idle.send(build_request(key=held.keys["lender"], close=False))
        assert (await idle.read_response()).status == 200
        await asyncio.sleep(1.2)  # it may be closed now
        place = urlsplit(held.gateway.url)
        for _ in range(3):
            with socket.socket() as caller:
                if not secure:
                    caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                caller.setblocking(False)
                caller.connect_ex((place.hostname, place.port))
        await asyncio.sleep(0.2)
        await idle.send(build_request(key=held.keys["lender"], close=False))
        assert (await idle.read_response()).status == 200
        held.assert_upstream_requests(count=2)


async def test_a_caller_that_waits_is_closed_with_the_gateway():
    """A full gateway that closes carries nothing out for those whom it hasn't served."""
    async with Recorder() as upstream, contextlib.AsyncExitStack() as stack:
        upstream.says, upstream.pause = lambda came: [b"", *upstream.created(came)], 60.0
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
    """Callers wait until it may open files again; a line in the log says why."""
    async with running_gateway() as held:
        caller = socket.socket()
        before, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        with caller:
            caller.setblocking(False)
            await held.call()
            free = os.dup(caller.fileno())
            os.close(free)
            resource.setrlimit(resource.RLIMIT_NOFILE, (free, most))
            try:
                place = urlsplit(held.gateway.url)
                caller.connect_ex((place.hostname, place.port))
                await wait_until_async(
                    lambda: "no connection can be accepted: Too many open files" in caplog.text
                )
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (before, most))
            assert (await held.call()).status == 200
        held.assert_upstream_requests(count=2)


@pytest.mark.parametrize("frame", ["Content-Length: 100", "Transfer-Encoding: chunked"])
async def test_a_caller_that_leaves_in_the_middle_of_its_body_is_forgotten(held, caplog, frame):
    """It is no error of the gateway's, and nothing leaves."""
    for _ in range(5):
        async with raw_connection(held.gateway.url) as opened:
            await opened.send(opening(held.keys["lender"], frame) + b"1\r\n{")
            await asyncio.sleep(0.02)
    async with asyncio.timeout(60):
        while len(held.gateway._listener):
            await asyncio.sleep(0.01)
    held.assert_upstream_requests()
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_calls_beyond_the_upstreams_connections_wait_or_are_told_to():
    """Many at once share the upstream's connections; nobody is lost, and nobody waits for ever."""
    async with running_gateway(upstream_connections=3, patience=0.6) as held:

        def slowly(came):
            yield b""
            yield from held.upstream.created(came)

        held.upstream.says, held.upstream.pause = slowly, 0.2
        answers = await asyncio.gather(*(held.call() for _ in range(30)))
        counts = {status: [each.status for each in answers].count(status) for status in (200, 429)}
        assert counts[200] + counts[429] == 30
        assert counts[200] >= 3
        assert all(
            each.error_code == "BUSY" and each.headers["Retry-After"]
            for each in answers
            if each.status == 429
        )
        assert len(held.upstream.requests) == counts[200]
        assert held.upstream.connections <= 3


async def test_nothing_is_sent_for_a_caller_that_has_left_the_line(audit):
    """Who goes while its call waits for a connection to the upstream would never hold what it made."""
    async with running_gateway(upstream_connections=1) as held:
        held.upstream.says, held.upstream.pause = lambda came: [b"", *held.upstream.created(came)], 2.0
        first = asyncio.ensure_future(held.call())
        await wait_until_async(lambda: held.upstream.requests)
        async with raw_connection(held.gateway.url) as opened:
            await opened.send(build_request(key=held.keys["lender"]))
            await asyncio.sleep(0.2)  # it waits for the connection
        assert (await first).status == 200

        def lines():
            return [json.loads(each.getMessage()) for each in audit.records if each.name.endswith("audit")]

        await wait_until_async(lambda: len(lines()) == 2)
        held.assert_upstream_requests(count=1)
        assert [(each["error_code"], each["delivered"]) for each in lines()] == [
            (None, True),
            ("CALLER_GONE", False),
        ]


async def test_a_slow_reader_of_a_long_answer_holds_no_memory():
    """Sixty megabytes for somebody who doesn't read: the gateway holds little of it, and serves the others."""
    async with running_gateway(patience=1.0) as held:
        long = (
            build_response(200, b"")[:-4].replace(
                b"Content-Length: 0", b"Content-Length: %d" % (60 * MEGABYTE)
            )
            + b"\r\n\r\n"
        )

        def says(came):
            if b"/credit/relay/get" not in came:
                return held.upstream.created(came)
            return itertools.chain([long], itertools.repeat(b" " * 2**16, 60 * 16))

        held.upstream.says = says
        with flat(8 * MEGABYTE):
            async with contextlib.AsyncExitStack() as stack:
                for _ in range(10):
                    opened = await stack.enter_async_context(raw_connection(held.gateway.url, limit=2**10))
                    await opened.send(build_request(GET, {"relay_token": "x"}, key=held.keys["lender"]))
                await asyncio.sleep(0.3)
                for _ in range(3):
                    assert (await held.call()).status == 200
                async with asyncio.timeout(60):  # and those are given up: what they held comes back
                    while held.gateway._upstream.in_flight or len(held.gateway._listener):
                        await asyncio.sleep(0.05)


async def test_an_answer_without_an_end_is_read_by_who_reads_it():
    """It ends at the bound, or when the caller goes; the gateway doesn't gather it."""
    async with running_gateway(patience=1.0) as held:
        chunk = b"10000\r\n" + b" " * 2**16 + b"\r\n"
        start = build_head("HTTP/1.1 200 OK", "Content-Type: application/json", "Transfer-Encoding: chunked")
        held.upstream.says = lambda _: itertools.chain([start], itertools.repeat(chunk))
        with flat(8 * MEGABYTE):
            async with raw_connection(held.gateway.url) as opened:
                await opened.send(build_request(GET, {"relay_token": "x"}, key=held.keys["lender"]))
                read = 0
                with contextlib.suppress(ConnectionError):
                    async with asyncio.timeout(30):
                        while piece := await opened.reader.read(2**18):
                            read += len(piece)
                            if read > 80 * MEGABYTE:
                                break
        async with asyncio.timeout(60):
            while held.upstream.connections:
                await asyncio.sleep(0.02)
        held.upstream.says = held.upstream.created


async def test_a_source_of_credentials_that_hangs_holds_nobody_up_for_ever():
    """It has as long as a caller has; nothing was sent by then, and the next call has its turn."""
    hangs = [True]

    async def vault():
        await asyncio.sleep(3600 if hangs else 0)
        return UPSTREAM_CREDENTIALS["default"]

    async with running_gateway(credentials={"default": vault}, upstream_connections=1, **HASTY) as held:
        answer = await held.call()
        assert (answer.status, answer.error_code) == (503, "UPSTREAM_UNREACHABLE")
        hangs.clear()
        assert (await held.call()).status == 200


@pytest.mark.parametrize(
    ("body", "code"), [(b'["%s"]', "INVALID_BODY"), (b'{"relay_token": "%s"}', "UPSTREAM_LOST")]
)
async def test_a_call_that_failed_is_let_go_at_once(held, body, code):
    """What was refused or lost isn't kept until Python's garbage collector comes by."""
    body %= b"x" * 1_000_000
    held.upstream.says, held.upstream.then = lambda _: [], "close"
    await held.call(GET, body=body)
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        for _ in range(10):
            assert (await held.call(GET, body=body)).code == code
        held.upstream.requests.clear()
        assert tracemalloc.get_traced_memory()[0] < 3 * MEGABYTE
    finally:
        tracemalloc.stop()
        gc.enable()


async def test_memory_stays_flat_over_many_attacks():
    """Hundreds of refused, broken and lost requests leave nothing behind."""
    async with running_gateway(timeouts=Timeouts(read=0.2, slow_read=0.2), **HASTY) as held:
        key = held.keys["lender"]
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
        for attack in attacks * 10:  # fill what is kept once
            await held.exchange(attack)
        with flat(MEGABYTE):
            for attack in attacks * 60:
                await held.exchange(attack)
        held.assert_upstream_requests()


async def test_metrics_do_not_grow_with_what_callers_say():
    """Paths, keys, partners and methods that nobody knows make no line of their own."""
    pytest.importorskip("prometheus_client")
    async with running_gateway(metrics_port=0) as held:

        async def said() -> str:
            asked = build_request("/metrics", b"", method="GET", content_type=None)
            (answer,) = await exchange(held.gateway.metrics_url, asked)
            return answer.body.decode()

        async def attack(mark: str) -> None:
            await held.exchange_one(build_request(f"/{mark}", key=held.keys["lender"]))
            await held.exchange_one(build_request(key=f"plaid-gateway-{mark}"))
            await held.exchange_one(
                build_request(key=held.keys["lender"], body=CREATE_BODY | {"secondary_client_id": mark})
            )
            await held.exchange_one(build_request(key=held.keys["lender"], method=f"X{mark}"))

        await attack("mark")
        before = await said()
        for number in range(30):
            await attack(f"MARK{number}")
        after = await said()
        assert "MARK" not in after
        assert len(after.splitlines()) == len(before.splitlines())
        assert 'plaid_gateway_calls_total{caller="lender"' in after
