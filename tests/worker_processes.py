"""Worker processes that a test can kill, forked within milliseconds from a process that has loaded all modules."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from attrs import define, field

if TYPE_CHECKING:
    from collections.abc import Iterator

    from plaid_relay_async.simulator import Simulator


@define(eq=False)
class WorkerProcesses:
    """Starts worker processes, each of which makes one call with a journal and is killed in flight."""

    _process: subprocess.Popen[str] = field(init=False)

    def __attrs_post_init__(self) -> None:
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = subprocess.Popen([sys.executable, __file__], text=True, **pipes)

    async def kill_in_flight(self, plaid: Simulator, **job: Any) -> bool:
        """Return whether the worker sent a request before it ended by itself; it is dead in either case.

        Args:
            plaid: a simulator with a fault that lets the request hang.
            job: see `_work`.
        """
        sent, pid = len(plaid.requests), int(self._exchange(job))
        while len(plaid.requests) == sent and self._exchange(pid) == "alive":
            await asyncio.sleep(0.001)
        os.kill(pid, signal.SIGKILL)
        while self._exchange(pid) == "alive":
            await asyncio.sleep(0.001)
        self._exchange({"reap": pid})
        return len(plaid.requests) > sent

    def _exchange(self, message: object) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()

    def close(self) -> None:
        self._process.communicate(timeout=20)


@contextlib.contextmanager
def worker_processes() -> Iterator[WorkerProcesses]:
    """Yield a starter of worker processes."""
    opened = WorkerProcesses()
    try:
        yield opened
    finally:
        opened.close()


def _serve() -> None:
    """Respond to each line: fork a worker for a job, report whether a worker is alive, or reap a dead one.

    A dead worker stays a zombie until it is reaped, so that its process id isn't used again.
    """
    for line in sys.stdin:
        message = json.loads(line)
        if isinstance(message, int):
            status = os.waitid(os.P_PID, message, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            response = "alive" if status is None else "dead"
        elif "reap" in message:
            os.waitpid(message["reap"], 0)
            response = "reaped"
        else:
            pid = os.fork()
            if pid == 0:
                _run(message)
            response = str(pid)
        sys.stdout.write(response + "\n")
        sys.stdout.flush()


def _run(job: dict[str, Any]) -> None:
    """Do a job in this process, and end the process without output."""
    os.dup2(os.open(os.devnull, os.O_RDWR), 1)
    try:
        asyncio.run(_work(**job))
    finally:
        os._exit(0)


async def _work(*, base_url: str, journal: dict[str, Any], operation: str, arguments: list[Any]) -> None:
    """Make one call of `client.relay` with a journal.

    Args:
        base_url: of the simulator.
        journal: the arguments of the journal.
        operation: the name of the method, `create` or `remove`.
        arguments: of the call.
    """
    from support import OWNER

    from plaid_relay_async import PlaidRelayError, RelayClient
    from plaid_relay_async.journal import Journal

    async with RelayClient(OWNER, base_url=base_url) as client, Journal(**journal) as opened:
        with contextlib.suppress(PlaidRelayError):
            await getattr(client.relay, operation)(*arguments, journal=opened)


if __name__ == "__main__":
    import psycopg  # noqa: F401  # a worker has it loaded
    import support  # noqa: F401

    import plaid_relay_async.journal  # noqa: F401

    _serve()
