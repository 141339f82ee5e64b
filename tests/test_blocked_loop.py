"""An event loop that is blocked beyond a deadline still processes what arrived before the deadline."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest
from manual_server import tls_contexts
from support import OWNER

from plaid_relay_async import NotSentError, RelayClient, RetryPolicy, Timeouts

if TYPE_CHECKING:
    from collections.abc import Iterator

BODY = b'{"relay_token": "T-1", "request_id": "q"}'
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(BODY)


@contextlib.contextmanager
def serving_slowly(*pieces: bytes) -> Iterator[tuple[str, threading.Event]]:
    """Run a server in a thread, which waits for a tenth of a second before each piece of its response.

    Yield its URL, and an event that is set once the request has arrived.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        arrived, done = threading.Event(), threading.Event()

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65_536)
                arrived.set()
                for piece in pieces:
                    time.sleep(0.1)
                    connection.sendall(piece)
                done.wait(60)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}", arrived
        finally:
            done.set()
            thread.join()


@pytest.mark.parametrize("timeouts", [Timeouts(total=1), Timeouts(slow_read=1)], ids=["total", "slow_read"])
@pytest.mark.parametrize("pieces", [(HEAD + BODY,), (HEAD, BODY)], ids=["in one piece", "in two pieces"])
async def test_a_blocked_loop_does_not_lose_a_token_that_arrived_in_time(pieces, timeouts):
    """The response had arrived before the deadline, whatever blocked the event loop."""
    with serving_slowly(*pieces) as (url, arrived):
        async with RelayClient(OWNER, base_url=url, timeouts=timeouts) as client:
            task = asyncio.create_task(client.relay.create(["t"], "p"))
            while not arrived.is_set():
                await asyncio.sleep(0)
            await asyncio.sleep(0.1 * len(pieces) - 0.05)  # all but the last piece arrives
            time.sleep(1.5)  # noqa: ASYNC251  # this blocks the loop
            assert (await task).relay_token == "T-1"


@contextlib.contextmanager
def slow_handshake(context):
    """Run a TLS server in a thread, which pauses in the handshake; yield its URL, an event for that, and the requests."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        started, requests = threading.Event(), []

        def serve() -> None:
            connection, _ = server.accept()
            connection.recv(1, socket.MSG_PEEK)
            started.set()
            time.sleep(0.1)
            with context.wrap_socket(connection, server_side=True) as secured, contextlib.suppress(OSError):
                requests.append(secured.recv(65_536))
                secured.sendall(HEAD + BODY)
                secured.recv(1)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"https://127.0.0.1:{server.getsockname()[1]}", started, requests
        finally:
            thread.join()


async def create_with_a_blocked_loop(timeouts, requests):
    """Return the token of a call whose loop is blocked for 2 s, while the server's part of the handshake arrives."""
    theirs, ours = tls_contexts()
    once = RetryPolicy(attempts=1)
    with slow_handshake(theirs) as (url, started, received):
        async with RelayClient(OWNER, base_url=url, ssl=ours, timeouts=timeouts, retry=once) as client:
            task = asyncio.create_task(client.relay.create(["t"], "p"))
            while not started.is_set():
                await asyncio.sleep(0)
            time.sleep(2)  # noqa: ASYNC251  # this blocks the loop
            await asyncio.wait([task])
    requests.extend(filter(None, received))
    return (await task).relay_token


async def test_a_blocked_loop_uses_a_connection_that_was_opened_in_time():
    """What has arrived of a handshake is processed before the connect timeout is applied."""
    requests = []
    assert await create_with_a_blocked_loop(Timeouts(connect=1.5), requests) == "T-1"
    assert len(requests) == 1


async def test_a_request_is_not_sent_after_its_deadline():
    """A connection that is ready only after the deadline isn't used: the outcome could only be unknown."""
    requests = []
    with pytest.raises(NotSentError, match="time ran out"):
        await create_with_a_blocked_loop(Timeouts(total=1.5), requests)
    assert requests == []
