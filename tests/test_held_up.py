"""An event loop that is held up beyond a deadline still takes what arrived before it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest
from support import OWNER

from plaid_relay_async import RelayClient, Timeouts

if TYPE_CHECKING:
    from collections.abc import Iterator

BODY = b'{"relay_token": "T-1", "request_id": "q"}'
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(BODY)


@contextlib.contextmanager
def answering(*pieces: bytes) -> Iterator[str]:
    """A server in a thread of its own, which takes a tenth of a second before each piece of its answer."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        done = threading.Event()

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65_536)
                for piece in pieces:
                    time.sleep(0.1)
                    connection.sendall(piece)
                done.wait(10)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}"
        finally:
            done.set()
            thread.join()


@pytest.mark.parametrize(
    "timeouts", [Timeouts(total=0.4), Timeouts(slow_read=0.4)], ids=["total", "slow_read"]
)
@pytest.mark.parametrize("pieces", [(HEAD + BODY,), (HEAD, BODY)], ids=["at once", "in two pieces"])
async def test_a_token_that_came_in_time_is_not_lost_to_a_loop_that_is_late(pieces, timeouts):
    """Whatever else held the event loop up: the answer was there when the time was not over yet."""
    with answering(*pieces) as url:
        async with RelayClient(OWNER, base_url=url, timeouts=timeouts) as client:
            asyncio.get_running_loop().call_later(0.1 * len(pieces) - 0.05, time.sleep, 0.6)
            made = await client.relay.create(["t"], "p")
    assert made.relay_token == "T-1"
