"""What several test modules use: paths, credentials, retry settings, subprocesses, a rate limiter and a journal."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from typing import TYPE_CHECKING, Any

import pytest
from attrs import define
from processes import wait_until_async

from plaid_relay_async import Credentials, RetryPolicy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

    from plaid_relay_async import RelayClient
    from plaid_relay_async.batch import CallContext
    from plaid_relay_async.session import SessionManager
    from plaid_relay_async.simulator import Simulator
    from plaid_relay_async.transport.throttle import Throttle

CREATE, GET, PDF = "/credit/relay/create", "/credit/relay/get", "/credit/relay/pdf/get"
REFRESH, REMOVE = "/credit/relay/refresh", "/credit/relay/remove"
OWNER = Credentials("owner", "secret-of-the-owner")
PARTNER = Credentials("partner", "secret-of-the-partner")
QUICK = RetryPolicy(backoff=0.001, max_backoff=0.002)
MAINTENANCE = {"error_type": "API_ERROR", "error_code": "PLANNED_MAINTENANCE"}
BOTH_EXCHANGES = pytest.mark.parametrize("direct", [True, False], ids=["directly", "through a session"])


def sampled(values: Iterable[Any], *, step: int) -> list[Any]:
    """Return the parameters of a test: `tests` runs every `step`-th of them, and `slow` the others."""
    rows = [value if isinstance(value, tuple) else (value,) for value in values]
    return [
        pytest.param(*row, marks=[] if number % step == 0 else [pytest.mark.slow])
        for number, row in enumerate(rows)
    ]


def session_of(client: RelayClient) -> SessionManager:
    """Return the manager of a client's connection pool."""
    return client._session


def throttle_of(client: RelayClient, path: str) -> Throttle:
    """Return the throttle of one of a client's operations."""
    return client._transport.throttles[path]


def issued_tokens(plaid: Simulator) -> list[str]:
    """Return the relay tokens that a simulator has issued, in order."""
    return [entry["relay_token"] for entry in plaid.ledger]


def max_in_window(moments, length):
    """Return the largest number of moments in any half-open window of `length` seconds."""
    return max(sum(start <= moment < start + length for moment in moments) for start in moments)


@contextlib.asynccontextmanager
async def timeout_when(condition: Callable[[], object]) -> AsyncIterator[None]:
    """Raise TimeoutError in the block as soon as a condition holds, as `asyncio.timeout` does after a delay."""
    async with asyncio.timeout(None) as timeout:

        async def expire() -> None:
            await wait_until_async(condition)
            timeout.reschedule(asyncio.get_running_loop().time())

        task = asyncio.create_task(expire())
        try:
            yield
        finally:
            task.cancel()


@contextlib.asynccontextmanager
async def python_process(source: str, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a Python program that shows every warning."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        # Not `-X dev`: asyncio's debug mode also reports each step that took long, as on a busy machine.
        *("-W", "default", "-c", source, *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


class ClosedLimiter:
    """A rate limiter that grants no permit."""

    async def acquire(self, _endpoint: str) -> None:
        await asyncio.Event().wait()


class RecordingJournal:
    """A journal that passes each record to the methods of a subclass.

    A subclass defines `record_intent(request)` and `record_outcome(outcome)`.
    """

    async def acquire_recorder(self, request: Any, context: CallContext) -> ForwardingRecorder:
        return ForwardingRecorder(self, request)


@define
class ForwardingRecorder:
    journal: Any
    request: Any
    recorded_outcome: Any = None
    earlier_in_doubt_error: Any = None
    journalled: bool = True

    def request_to_send(self, request: Any) -> Any:
        return request

    async def record_intent(self) -> None:
        await self.journal.record_intent(self.request)

    async def record_outcome(self, outcome: Any) -> None:
        await self.journal.record_outcome(outcome)

    def release(self) -> None:
        """Do nothing: no other call waits for the request."""
