"""The services of `tests/recipes`, each a process that listens on a socket of the test."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import define, field
from cryptography.fernet import Fernet
from processes import wait_until_async
from raw_http import Response, build_request, raw_connection
from support import CREATE

from plaid_relay_async.journal import Journal
from plaid_relay_async.simulator import Fault, Simulator

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from plaid_relay_async.journal import Record

RECIPES = Path(__file__).parent / "recipes"
REPORT = "token-of-report-1"  # what `recipes/reports.py` returns
_AIOHTTP = """
import importlib, socket, sys
from aiohttp import web
app = importlib.import_module(sys.argv[2]).app
options = {name: int(value) for name, _, value in (text.partition("=") for text in sys.argv[3:])}
web.run_app(app, sock=socket.socket(fileno=int(sys.argv[1])), **options)
"""
_UVICORN = ["-m", "uvicorn", "--fd", "{fd}"]
_GUNICORN = ["-m", "gunicorn", "-b", "fd://{fd}"]
# The command of each service; `{fd}` is the descriptor of its socket.
COMMANDS = {
    "fastapi": [*_UVICORN, "fastapi_service:app"],
    "aiohttp": ["-c", _AIOHTTP, "{fd}", "aiohttp_service"],
    "django": [*_UVICORN, "asgi:application", "--lifespan", "on"],
    "gunicorn": [*_GUNICORN, "starlette_service:app", "-c", "gunicorn_conf.py"],
    "wsgi": [*_GUNICORN, "wsgi:application", "-c", "wsgi_conf.py"],
    "celery": ["-m", "celery", "-A", "worker", "worker", "-c", "1", "-l", "info"],
    "script": ["-c", "import run_once; run_once.create_token('report-1', 'ada')"],
    # The handlers of `recipes/handlers.py`.
    "Starlette": [*_UVICORN, "handlers:starlette"],
    "Starlette with BaseHTTPMiddleware": [*_UVICORN, "handlers:with_middleware"],
    "a StreamingResponse": [*_UVICORN, "handlers:streaming"],
    "Starlette under gunicorn's own worker": [*_GUNICORN, "handlers:starlette", "-k", "asgi"],
    "Django": [*_UVICORN, "django_asgi:application"],
    "aiohttp.web": ["-c", _AIOHTTP, "{fd}", "handlers"],
    "aiohttp.web with handler_cancellation": ["-c", _AIOHTTP, "{fd}", "handlers", "handler_cancellation=1"],
}


@define(eq=False)
class Service:
    """A service, the simulator that it calls, and its journal.

    Attributes:
        name: its key in `COMMANDS`.
        plaid: the simulator.
        folder: has the journal and the log.
        options: further arguments of its command.
        variables: further environment variables.
        url: the URL of its socket.
        key: encrypts the journal.
        process: the process, once it runs.
    """

    name: str
    plaid: Simulator
    folder: Path
    options: tuple[str, ...] = ()
    variables: dict[str, str] = field(factory=dict)
    url: str = field(default="", init=False)
    key: str = field(factory=lambda: Fernet.generate_key().decode(), init=False)
    process: Any = field(default=None, init=False)

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(encoding="utf-8")

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Service]:
        """Run the service; at the end, it is asked to stop, and has to do so by itself."""
        self.plaid.add_report(REPORT)
        with socket.create_server(("127.0.0.1", 0)) as listener, (self.folder / "log").open("wb") as log:
            self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            command = [part.replace("{fd}", str(listener.fileno())) for part in COMMANDS[self.name]]
            self.process = await asyncio.create_subprocess_exec(
                sys.executable,
                *(*command, *self.options),
                cwd=RECIPES,
                env=os.environ | self._variables(),
                pass_fds=[listener.fileno()],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            yield self
            await self.stop()
        finally:
            if self.process.returncode is None:
                os.killpg(self.process.pid, signal.SIGKILL)
                await self.process.wait()

    def _variables(self) -> dict[str, str]:
        return {
            "PLAID_BASE_URL": self.plaid.url,
            "PLAID_CLIENT_ID": "owner",
            "PLAID_SECRET": "secret-of-the-owner",
            "PLAID_RELAY_KEY": self.key,
            "RELAY_JOURNAL": str(self.folder / "relay.db"),
            **self.variables,
        }

    async def stop(self) -> None:
        """Ask the service to stop, as a supervisor does, and wait until it has."""
        if self.process.returncode is None:
            self.process.terminate()
        async with asyncio.timeout(90):
            await self.process.wait()

    async def share(self, partner: str) -> Response:
        """Request a token for a partner."""
        async with raw_connection(self.url) as connection:
            await connection.send(request_to_share(partner))
            return await connection.read_response()

    async def disconnect(self, partner: str) -> None:
        """Request a token for a partner, and disconnect while its creation is in flight at Plaid."""
        async with raw_connection(self.url) as connection:
            await connection.send(request_to_share(partner))
            await self.wait_for_creation(partner)

    async def wait_for_creation(self, partner: str) -> None:
        """Wait until a creation for a partner has arrived at Plaid."""
        await wait_until_async(
            lambda: any(
                (each.path, each.secondary_client_id) == (CREATE, partner) for each in self.plaid.requests
            )
        )

    async def enqueue(self, partner: str) -> None:
        """Send a task for a partner to the broker."""
        arguments = ("call", "tasks.share", "--args", json.dumps(["report-1", partner]))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "celery", "-A", "worker", *arguments),
            cwd=RECIPES,
            env=os.environ | self._variables(),
            stdout=asyncio.subprocess.DEVNULL,
        )
        assert await process.wait() == 0

    def children(self) -> list[int]:
        """Return the processes that the service has started."""
        parents = {}
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        return [pid for pid, parent in parents.items() if parent == self.process.pid]

    async def records(self) -> dict[str, Record]:
        """Return what the journal has recorded for each partner."""
        async with Journal(self._variables()["RELAY_JOURNAL"], run="web", key=self.key) as journal:
            return {record.secondary_client_id: record async for record in journal.records("web")}


def request_to_share(partner: str) -> bytes:
    return build_request(f"/reports/report-1/partners/{partner}", b"")


def slow(partner: str, seconds: float = 1.5) -> Fault:
    """Return a fault that delays the response to the creation for a partner, after its execution."""
    return Fault(secondary_client_id=partner, when="after", latency=seconds)


async def check_nothing_lost(service: Service, *, unknown: set[str] = frozenset()) -> None:
    """Check that no pair has two tokens, and that each token is in the journal, except those of unknown pairs.

    The log must contain no token, and no warning about a coroutine or a connection that was forgotten.
    """
    records = await service.records()
    issued = {entry["secondary_client_id"]: entry["relay_token"] for entry in service.plaid.ledger}
    assert len(issued) == len(service.plaid.ledger)
    assert {partner for partner, record in records.items() if record.outcome == "unknown"} == unknown
    for partner, token in issued.items():
        assert records[partner].relay_token == (None if partner in unknown else token)
    assert not re.search("|".join([REPORT, "never awaited", "Unclosed", *issued.values()]), service.log)
