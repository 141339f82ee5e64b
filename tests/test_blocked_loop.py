"""An event loop that is held up beyond a deadline still takes what arrived before it."""

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
def answering(*pieces: bytes) -> Iterator[tuple[str, threading.Event]]:
    """Run a server in a thread, which waits for a tenth of a second before each piece of its response.

    Yields its URL, and an event that is set once the request has come.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        came, done = threading.Event(), threading.Event()

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65_536)
                came.set()
                for piece in pieces:
                    time.sleep(0.1)
                    connection.sendall(piece)
                done.wait(60)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}", came
        finally:
            done.set()
            thread.join()


@pytest.mark.parametrize("timeouts", [Timeouts(total=1), Timeouts(slow_read=1)], ids=["total", "slow_read"])
@pytest.mark.parametrize("pieces", [(HEAD + BODY,), (HEAD, BODY)], ids=["at once", "in two pieces"])
async def test_a_token_that_came_in_time_is_not_lost_to_a_loop_that_is_late(pieces, timeouts):
    """Whatever else held the event loop up: the answer was there when the time was not over yet."""
    with answering(*pieces) as (url, came):
        async with RelayClient(OWNER, base_url=url, timeouts=timeouts) as client:
            task = asyncio.create_task(client.relay.create(["t"], "p"))
            while not came.is_set():
                await asyncio.sleep(0)
            await asyncio.sleep(0.1 * len(pieces) - 0.05)  # all but the last piece arrives
            time.sleep(1.5)  # noqa: ASYNC251  # this is what holds the loop up
            assert (await task).relay_token == "T-1"


@contextlib.contextmanager
def greeting(context):
    """A TLS server in a thread of its own, which pauses within the handshake; yields its URL and when that is."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        greeted, requests = threading.Event(), []

        def serve() -> None:
            connection, _ = server.accept()
            connection.recv(1, socket.MSG_PEEK)
            greeted.set()
            time.sleep(0.1)
            with context.wrap_socket(connection, server_side=True) as secured, contextlib.suppress(OSError):
                requests.append(secured.recv(65_536))
                secured.sendall(HEAD + BODY)
                secured.recv(1)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"https://127.0.0.1:{server.getsockname()[1]}", greeted, requests
        finally:
            thread.join()


async def created_by_a_loop_that_is_late(timeouts, requests):
    """The token of a call whose loop is held up for two seconds, while the server's part of the handshake arrives."""
    theirs, ours = tls_contexts()
    once = RetryPolicy(attempts=1)
    with greeting(theirs) as (url, greeted, received):
        async with RelayClient(OWNER, base_url=url, ssl=ours, timeouts=timeouts, retry=once) as client:
            task = asyncio.create_task(client.relay.create(["t"], "p"))
            while not greeted.is_set():
                await asyncio.sleep(0)
            time.sleep(2)  # noqa: ASYNC251  # this is what holds the loop up
            await asyncio.wait([task])
    requests.extend(filter(None, received))
    return (await task).relay_token


async def test_a_connection_that_was_made_in_time_is_used_by_a_loop_that_is_late():
    """What has arrived of a handshake is processed before the connect timeout is applied."""
    requests = []
    assert await created_by_a_loop_that_is_late(Timeouts(connect=1.5), requests) == "T-1"
    assert len(requests) == 1


async def test_a_request_does_not_leave_after_its_deadline():
    """A connection that is ready only after the deadline isn't used: the outcome could only be unknown."""
    requests = []
    with pytest.raises(NotSentError, match="time ran out"):
        await created_by_a_loop_that_is_late(Timeouts(total=1.5), requests)
    assert requests == []
