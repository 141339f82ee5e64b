"""Who works on a journal, and whether they are alive.

On SQLite the operating system tells: each holder has a lock on a file of its own, which it lets go of when it
dies, however it dies. On PostgreSQL a holder has a lease, by the server's clock, which it renews.
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

from plaid_relay_async.errors import JournalError
from plaid_relay_async.journal.database import Database, JournalConnection, journal_errors
from plaid_relay_async.journal.schema import now, workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sqlalchemy import Connection


T = TypeVar("T")

_RENEWALS_PER_LEASE = 3  # in one lease


def _read_clocks() -> tuple[float, float]:
    # A machine that sleeps stops its monotonic clock; this one goes on, and so does the wall's.
    boot = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boot is None else time.clock_gettime(boot), time.time()


@frozen
class ClockReading:
    """A moment, by each clock that there is."""

    clocks: tuple[float, float] = field(factory=_read_clocks)

    def elapsed_seconds(self) -> float:
        """Give the seconds since, by the clock that went furthest."""
        return max(new - old for new, old in zip(_read_clocks(), self.clocks, strict=True))


@frozen
class Liveness:
    """Of the holders that were asked for: which are alive, and for how long others may still be waited for.

    Attributes:
        living: those that may begin or end something.
        patience: by a dead one's number, the seconds that a request of its may have been under way for.
    """

    live_ids: frozenset[int]
    request_seconds: dict[int, float]


@define(eq=False, repr=False)
class Worker:
    """This opening of the journal, as others see it."""

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

    def _schedule_heartbeat(self, _beating: object = None) -> None:
        # A timer, not one long task: code that cancels all tasks would end that one, and with it the lease.
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
            # What waits for a lock within an update has looked at the time before.
            connection.execute(lock)
            connection.execute(renew)

        with contextlib.suppress(JournalError):  # a call that begins something meets the error
            await self._database.run_transaction(self._connection, work, lease)

    def lease_remaining(self, connection: Connection) -> float:
        """Give the seconds that its lease has left, which stays so within this transaction."""
        if self.lease is None:
            return math.inf
        live = (workers.c.id == self.id) & (workers.c.expires_at > now()) & ~workers.c.ended
        asked = select(workers.c.expires_at - now()).where(live).with_for_update(read=True)
        return connection.execute(asked).scalar_one_or_none() or 0.0

    async def set_request_seconds(self, request_seconds: float) -> None:
        """Let others know that a request may be under way for longer.

        Raises:
            JournalError: it can't be written.
        """
        longer = update(workers).where(workers.c.id == self.id).values(request_seconds=request_seconds)
        await self._database.run_transaction(
            self._connection, lambda connection: connection.execute(longer).close(), 0.0
        )

    async def deregister(self, *, drained: bool) -> None:
        """Show other processes that this one has ended. It may be cancelled, and called again.

        Args:
            settled: whether nothing is in flight. Otherwise the lease is left to run out, so that others wait
                until no response can arrive any more.
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
            with contextlib.suppress(JournalError):  # its lock, or its lease, shows it as well
                await self._database.run_transaction(self._connection, work, 0.0)
        await _release_lock(self._lock)


async def _release_lock(lock: FileLock | None) -> None:
    if lock is not None:
        await asyncio.to_thread(_delete_and_release, lock)


def _delete_and_release(lock: FileLock) -> None:
    # Gone before it is let go of: whoever finds it afterwards has made it anew, and it tells the same.
    with contextlib.suppress(OSError):  # one that stays tells the same as well
        Path(lock.lock_file).unlink()
    lock.release()


def _create_lock(path: Path, owner: int) -> FileLock:
    """Create a lock file and hold it; root creates it for the owner of the journal."""
    lock = FileLock(path, timeout=0, mode=0o600, thread_local=False, fallback_to_soft=False)
    lock.acquire()
    # Otherwise the owner couldn't check whether root's process is alive. Only root may change the owner to
    # another user, and Windows has no such call.
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
        return False  # The file of a live process exists.
    except OSError as error:
        raise JournalError(
            f"{path}: this lock file shows whether a process is still using the journal, and it can't be "
            f"opened: {error.strerror}",
            advice="It may belong to another user, such as root. If no process of that user is using the "
            "journal, delete the file: what its process had in flight is then unknown.",
        ) from None
    try:
        if not lock_descriptor(descriptor, blocking=False):
            return True
        with contextlib.suppress(OSError):  # A file that stays leads to the same answer the next time.
            path.unlink()
        return False
    finally:
        os.close(descriptor)


@define(eq=False, repr=False)
class WorkerRegistry:
    """All holders of a journal."""

    database: Database
    connection: JournalConnection

    async def register(self, run_id: int, lease: float, request_seconds: float) -> Worker:
        """Become one of them.

        Raises:
            JournalError: the database, or the file of the lock, can't be written.
        """
        name = lock = None
        if self.database.path is not None:
            name = f"{self.database.path.name}-{secrets.token_hex(4)}.lock"
            with journal_errors(self.database.path):
                owner = await asyncio.to_thread(self.database.path.stat)
                lock = await asyncio.to_thread(_create_lock, self.database.path.with_name(name), owner.st_uid)
        expires = now() + lease if name is None else None

        def work(connection: Connection) -> int:
            self._mark_dead_workers(connection)
            made = insert(workers).values(
                run_id=run_id, lock=name, expires_at=expires, ended=False, request_seconds=request_seconds
            )
            return int(connection.execute(made.returning(workers.c.id)).scalar_one())

        try:
            number = await self.database.run_transaction(self.connection, work, 0.0)
        except BaseException:
            await _release_lock(lock)
            raise
        return Worker(number, None if name else lease, self.database, self.connection, lock)

    def _mark_dead_workers(self, connection: Connection) -> None:
        """Have those ended whose lock says that they died, for whom nobody may ask again."""
        locked = select(workers).where(workers.c.lock.is_not(None), ~workers.c.ended)
        dead = [row.id for row in connection.execute(locked).all() if self._is_surely_dead(row)]
        connection.execute(update(workers).where(workers.c.id.in_(dead)).values(ended=True))

    def check_liveness(self, connection: Connection, ids: Iterable[int]) -> Liveness:
        """Ask for some of them."""
        of_them = workers.c.id.in_(bindparam("ids", expanding=True))
        asked = select(workers, (workers.c.expires_at > now()).label("leased")).where(of_them)
        found = connection.execute(asked, {"ids": list(ids)}).all()
        living = frozenset([row.id for row in found if self._is_alive(row)])
        patience = {row.id: row.request_seconds for row in found if row.lock is None and not row.ended}
        return Liveness(living, patience)

    def read_with_liveness(
        self, connection: Connection, read: Callable[[], T], worker_ids_in: Callable[[T], set[int]]
    ) -> tuple[T, Liveness]:
        """Look at something that depends on who is alive.

        Args:
            connection: for the second question.
            look: gives what there is; asked anew where somebody has died, who may have written meanwhile.
            holders_in: gives those on whom it depends.
        """
        dead: set[int] = set()
        while True:
            found = read()
            ids = worker_ids_in(found)
            alive = self.check_liveness(connection, ids) if ids else Liveness(frozenset(), {})
            if ids - alive.live_ids <= dead:
                return found, alive
            dead |= ids - alive.live_ids

    def live_workers_of(self, connection: Connection, run_id: int) -> frozenset[int]:
        """Give those that work on a run."""
        asked = select(workers.c.id).where(workers.c.run_id == run_id, ~workers.c.ended)
        ids = connection.execute(asked).scalars().all()
        return self.check_liveness(connection, ids).live_ids

    def _is_alive(self, row: Any) -> bool:
        if row.ended:
            return False
        if row.lock is None:
            return bool(row.leased)
        assert self.database.path is not None  # noqa: S101  # none has a lock but beside a file
        return _is_locked(self.database.path.with_name(row.lock))

    def _is_surely_dead(self, row: Any) -> bool:
        try:
            return not self._is_alive(row)
        except JournalError:  # It is raised again where the answer decides about a pair.
            return False
