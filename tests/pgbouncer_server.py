"""A real PgBouncer on 127.0.0.1, in front of the PostgreSQL server of the tests, in a temporary folder."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
from pathlib import Path

import psycopg
import pytest
from attrs import define, field
from postgres_server import START_SECONDS, PostgresServer, free_port

# There are two connections to the server for the five of each journal. Code that holds one while it waits for
# another would hang.
SETTINGS = """\
[databases]
postgres = host=127.0.0.1 port={server} dbname=postgres user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
admin_users = postgres
pool_mode = transaction
default_pool_size = 2
max_client_conn = 200
"""


@define
class PgBouncer:
    """A pooler in transaction mode that can be killed and restarted on the same port."""

    server: PostgresServer
    folder: Path = field(factory=lambda: Path(tempfile.mkdtemp(prefix="pgbouncer-")))
    port: int = field(factory=free_port)
    process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    async def start(self) -> None:
        program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin")
        if program is None:
            pytest.skip("needs pgbouncer, which Debian has as a package of this name")
        self.folder.chmod(0o755)
        settings = self.folder / "pgbouncer.ini"
        settings.write_text(SETTINGS.format(server=self.server.port, port=self.port))
        user = {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.geteuid() == 0 else {}
        self.process = await asyncio.create_subprocess_exec(
            *(program, "-q", str(settings)), cwd=self.folder, stderr=asyncio.subprocess.DEVNULL, **user
        )
        async with asyncio.timeout(START_SECONDS):
            while True:
                with contextlib.suppress(psycopg.OperationalError):
                    async with await psycopg.AsyncConnection.connect(self.url, autocommit=True) as connection:
                        await connection.execute("SELECT 1")
                    return
                await asyncio.sleep(0.02)

    async def command(self, text: str) -> None:
        console = self.url.removesuffix("postgres") + "pgbouncer"
        async with await psycopg.AsyncConnection.connect(console, autocommit=True) as connection:
            await connection.execute(text)

    async def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            await self.process.wait()
            self.process = None

    async def remove(self) -> None:
        await self.kill()
        await asyncio.to_thread(shutil.rmtree, self.folder)
