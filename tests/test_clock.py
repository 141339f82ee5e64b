"""The virtual clock behaves as the tests that use it rely on."""

from __future__ import annotations

import asyncio
import time

import pytest
from virtual_clock import run_virtually


def test_hours_pass_in_no_time():
    """Sleeps and timeouts end in the order of their times, and at their times."""

    async def main():
        loop, ends = asyncio.get_running_loop(), []

        async def sleep(seconds):
            await asyncio.sleep(seconds)
            ends.append(loop.time())

        await asyncio.gather(sleep(7200), sleep(0.25), sleep(3600))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(100):
                await asyncio.Event().wait()
        return ends, loop.time()

    started = time.monotonic()
    ends, now = run_virtually(main())
    assert ends == pytest.approx([0.25, 3600, 7200])
    assert now == pytest.approx(7300)
    assert time.monotonic() - started < 30


def test_bytes_in_a_socket_arrive_first():
    """Bytes between two ends in the loop take no time, however near the next timer is."""

    async def main():
        async def echo(reader, writer):
            while line := await reader.readline():
                writer.write(line)
            writer.close()
            await writer.wait_closed()
            closed.set()

        loop, closed = asyncio.get_running_loop(), asyncio.Event()
        async with await asyncio.start_server(echo, "127.0.0.1", 0) as server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            for _ in range(200):
                writer.write(b"hello\n")
                async with asyncio.timeout(1e-6):
                    assert await reader.readline() == b"hello\n"
            writer.close()
            await closed.wait()
            return loop.time()

    assert run_virtually(main()) < 1e-4


def test_time_stands_still_for_a_thread():
    """Code in a thread of the loop has all the time that it needs."""

    async def main():
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(0.01):
            await asyncio.to_thread(time.sleep, 0.05)
        before = loop.time()
        await asyncio.sleep(5)
        return before, loop.time()

    before, after = run_virtually(main())
    assert before < 0.001
    assert after == pytest.approx(before + 5)


def test_time_advances_slightly_while_anything_is_ready():
    """A loop that polls the time does not run forever."""

    async def main():
        loop = asyncio.get_running_loop()
        before = loop.time()
        while loop.time() < before + 1e-8:
            await asyncio.sleep(0)

    run_virtually(main())
