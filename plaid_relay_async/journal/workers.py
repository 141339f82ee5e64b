"""The workers of a journal, and whether they are alive.

A worker is one opening of the journal that writes. Its ID is a fencing token: it is never used again, and an
outcome can't overwrite another worker's intent. A worker shows in one of two ways that it is alive:

- On SQLite it locks a file beside the journal. The operating system releases the lock when the process ends,
  however it ends.
- On PostgreSQL it has a lease, by the server's clock, which its heartbeat renews.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from attrs import define, field, frozen
from filelock import FileLock, lock_descriptor
from sqlalchemy import bindparam, insert, select, update

from plaid_relay_async import private_files
from plaid_relay_async.errors import JournalError
from plaid_relay_async.journal.database import Database, JournalConnection
from plaid_relay_async.journal.schema import now, workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sqlalchemy import Connection


T = TypeVar("T")

_RENEWALS_PER_LEASE = 3  # so that one or two heartbeats may be late


def _read_clocks() -> tuple[float, float]:
    # Linux stops the monotonic clock while the machine is suspended, but not the boot-time clock. Where there
    # is no such clock, the wall clock still shows the suspension.
    boot = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boot is None else time.clock_gettime(boot), time.time()


@frozen
class ClockReading:
    """A point in time, read from two clocks."""

    clocks: tuple[float, float] = field(factory=_read_clocks)

    def elapsed_seconds(self) -> float:
        """Return the seconds since the reading, by the clock that has advanced more."""
        return max(new - old for new, old in zip(_read_clocks(), self.clocks, strict=True))


@frozen
class Liveness:
    """Which of some workers are alive, and how long requests of the others may be in flight.

    Attributes:
        live_ids: the IDs of the live workers.
        request_seconds: for each worker with a lease that hasn't deregistered, by its ID: the most seconds
            for which one of its requests may be in flight. It matters once the lease has expired.
    """

    live_ids: frozenset[int]
    request_seconds: dict[int, float]


@define(eq=False, repr=False)
class Worker:
    """One opening of the journal that writes, as other processes see it.

    Attributes:
        id: the fencing token; a new one for each opening.
        lease: seconds for which the worker counts as alive after a heartbeat; `None` on SQLite.
    """

    id: int
    lease: float | None
    _database: Database
    _connection: JournalConnection
    _lock: FileLock | None
    _heartbeat: asyncio.Task[None] | None = field(default=None, init=False)
    _heartbeat_timer: asyncio.TimerHandle | None = field(default=None, init=False)
    _deregistering: bool = field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self._schedule_heartbeat()

    def _schedule_heartbeat(self, _heartbeat: object = None) -> None:
        # A timer, and not one long task: code that cancels all tasks would end the task, and the lease with
        # it.
        if self.lease is not None and not self._deregistering:
            loop = asyncio.get_running_loop()
            self._heartbeat_timer = loop.call_later(
                self.lease / _RENEWALS_PER_LEASE, self._start_heartbeat, self.lease
            )

    def _start_heartbeat(self, lease: float) -> None:
        self._heartbeat = asyncio.ensure_future(self._renew_lease(lease))
        self._heartbeat.add_done_callback(self._schedule_heartbeat)

    async def _renew_lease(self, lease: float) -> None:
        renew = (
            update(workers)
            .where(workers.c.id == self.id, workers.c.expires_at > now(), ~workers.c.ended)
            .values(expires_at=now() + lease)
        )

        lock = select(workers.c.id).where(workers.c.id == self.id).with_for_update()

        def work(connection: Connection) -> None:
            # An update evaluates now() before it waits for a lock. So the lock is taken first.
            connection.execute(lock)
            connection.execute(renew)

        with contextlib.suppress(JournalError):  # the next intent raises it
            await self._database.run_transaction(self._connection, work, lease)

    def lease_remaining(self, connection: Connection) -> float:
        """Return the seconds that the lease has left, and lock the worker's row for this transaction.

        It is 0 if the lease has expired, and infinite without a lease.
        """
        if self.lease is None:
            return math.inf
        live = (workers.c.id == self.id) & (workers.c.expires_at > now()) & ~workers.c.ended
        remaining = select(workers.c.expires_at - now()).where(live).with_for_update(read=True)
        return connection.execute(remaining).scalar_one_or_none() or 0.0

    async def set_request_seconds(self, request_seconds: float) -> None:
        """Record how many seconds a request of this worker may be in flight.

        Raises:
            JournalError: the journal can't be written.
        """
        statement = update(workers).where(workers.c.id == self.id).values(request_seconds=request_seconds)
        await self._database.run_transaction(
            self._connection, lambda connection: connection.execute(statement).close(), 0.0
        )

    async def deregister(self, *, drained: bool) -> None:
        """Stop the heartbeat, and show other processes that this worker has ended.

        It may be cancelled, and called again.

        Args:
            drained: whether no request is in flight. If one is, a lease is left to expire: other processes
                wait for that, and with `retry_unknown` until no response can arrive any more. A worker on
                SQLite is marked as ended in any case.
        """
        self._deregistering = True
        if self._heartbeat_timer is not None:
            self._heartbeat_timer.cancel()
        if self._heartbeat is not None:
            self._heartbeat.cancel()
            await asyncio.wait([self._heartbeat])

        def work(connection: Connection) -> None:
            connection.execute(update(workers).where(workers.c.id == self.id).values(ended=True))

        if drained or self.lease is None:
            with contextlib.suppress(JournalError):  # its free lock, or its expired lease, shows the same
                await self._database.run_transaction(self._connection, work, 0.0)
        await _release_lock(self._lock)


async def _release_lock(lock: FileLock | None) -> None:
    if lock is not None:
        await asyncio.to_thread(_delete_and_release, lock)


def _delete_and_release(lock: FileLock) -> None:
    # The file is deleted before the lock is released, so that no other process can lock it in between. A
    # missing file and a free lock both show that the worker has ended.
    with contextlib.suppress(OSError):  # a file that stays has a free lock
        Path(lock.lock_file).unlink()
    lock.release()


def _create_lock(path: Path, owner: int) -> FileLock:
    """Create a lock file for the owner of the journal, and lock it.

    Args:
        path: the lock file.
        owner: the user ID of the journal's owner, who gets the file if root creates it.
    """
    lock = FileLock(path, timeout=0, mode=private_files.MODE, thread_local=False, fallback_to_soft=False)
    lock.acquire()
    # The owner of the journal must be able to check whether root's process is alive. Only root may change the
    # owner of a file to another user, and Windows has no such call.
    with contextlib.suppress(OSError, AttributeError):
        os.chown(path, owner, -1)
    return lock


def _is_locked(path: Path) -> bool:
    """Return whether a process holds a lock file, and delete the file if none does.

    Raises:
        JournalError: the file can't be opened, so that its process may be alive or dead.
    """
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False  # a live process has its file
    except OSError as error:
        raise JournalError(
            f"{path}: this lock file shows whether a process is still using the journal, and it can't be "
            f"opened: {error.strerror}",
            advice="It may belong to another user, such as root. If no process of that user is using the "
            "journal, delete the file: the outcomes of the calls that its process had in flight are then "
            "unknown.",
        ) from None
    try:
        if not lock_descriptor(descriptor, blocking=False):
            return True
        with contextlib.suppress(OSError):  # a file that remains is found unlocked again
            path.unlink()
        return False
    finally:
        os.close(descriptor)


@define(eq=False, repr=False)
class WorkerRegistry:
    """All workers of a journal.

    Attributes:
        database: the journal's database.
        connection: the connection for leases.
    """

    database: Database
    connection: JournalConnection

    async def register(self, run_id: int, lease: float, request_seconds: float) -> Worker:
        """Register this process as a worker.

        Args:
            run_id: the run of its creations.
            lease: seconds for which it counts as alive after a heartbeat; unused on SQLite.
            request_seconds: the most seconds for which one of its requests may be in flight.

        Raises:
            JournalError: the database or the lock file can't be written.
        """
        name = lock = None
        if self.database.path is not None:
            name = f"{self.database.path.name}-{secrets.token_hex(4)}.lock"
            with self.database.errors():
                status = await asyncio.to_thread(self.database.path.stat)
                lock = await asyncio.to_thread(
                    _create_lock, self.database.path.with_name(name), status.st_uid
                )
        expires = now() + lease if name is None else None

        def work(connection: Connection) -> int:
            self._mark_dead_workers(connection)
            statement = insert(workers).values(
                run_id=run_id, lock=name, expires_at=expires, ended=False, request_seconds=request_seconds
            )
            return int(connection.execute(statement.returning(workers.c.id)).scalar_one())

        try:
            worker_id = await self.database.run_transaction(self.connection, work, 0.0)
        except BaseException:
            await _release_lock(lock)
            raise
        return Worker(worker_id, None if name else lease, self.database, self.connection, lock)

    def _mark_dead_workers(self, connection: Connection) -> None:
        """Delete lock files that no process holds, and mark their workers as ended."""
        query = select(workers).where(workers.c.lock.is_not(None), ~workers.c.ended)
        dead = [row.id for row in connection.execute(query).all() if self._is_surely_dead(row)]
        connection.execute(update(workers).where(workers.c.id.in_(dead)).values(ended=True))

    def check_liveness(self, connection: Connection, ids: Iterable[int]) -> Liveness:
        """Return which of some workers are alive.

        Raises:
            JournalError: a lock file can't be opened.
        """
        selected = workers.c.id.in_(bindparam("ids", expanding=True))
        query = select(workers, (workers.c.expires_at > now()).label("leased")).where(selected)
        rows = connection.execute(query, {"ids": list(ids)}).all()
        live_ids = frozenset([row.id for row in rows if self._is_alive(row)])
        request_seconds = {row.id: row.request_seconds for row in rows if row.lock is None and not row.ended}
        return Liveness(live_ids, request_seconds)

    def read_with_liveness(
        self, connection: Connection, read: Callable[[], T], worker_ids_in: Callable[[T], set[int]]
    ) -> tuple[T, Liveness]:
        """Read rows whose meaning depends on whether their workers are alive.

        Args:
            connection: a connection in a transaction that sees what others commit.
            read: reads the rows.
            worker_ids_in: returns the IDs of the workers on which the rows depend.

        Returns:
            The rows, and the liveness of their workers. A worker that isn't alive was no longer alive when
            the rows were read.

        Raises:
            JournalError: a lock file can't be opened.
        """
        dead: set[int] = set()
        while True:
            rows = read()
            ids = worker_ids_in(rows)
            liveness = self.check_liveness(connection, ids) if ids else Liveness(frozenset(), {})
            if ids - liveness.live_ids <= dead:
                return rows, liveness
            # A worker that is dead now may have written between the read and the check. So the rows are read
            # again, until they name no worker that has died since.
            dead |= ids - liveness.live_ids

    def live_workers_of(self, connection: Connection, run_id: int) -> frozenset[int]:
        """Return the IDs of the live workers of a run.

        Raises:
            JournalError: a lock file can't be opened.
        """
        query = select(workers.c.id).where(workers.c.run_id == run_id, ~workers.c.ended)
        ids = connection.execute(query).scalars().all()
        return self.check_liveness(connection, ids).live_ids

    def _is_alive(self, row: Any) -> bool:
        if row.ended:
            return False
        if row.lock is None:
            return bool(row.leased)
        assert self.database.path is not None  # noqa: S101  # only a worker on SQLite has a lock
        return _is_locked(self.database.path.with_name(row.lock))

    def _is_surely_dead(self, row: Any) -> bool:
        try:
            return not self._is_alive(row)
        except JournalError:  # it is raised again when a decision on a pair depends on it
            return False
