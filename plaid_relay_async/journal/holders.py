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
from plaid_relay_async.journal.database import Database, Line, telling
from plaid_relay_async.journal.schema import holders, now

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sqlalchemy import Connection


T = TypeVar("T")

_RENEWALS = 3  # in one lease


def _clocks() -> tuple[float, float]:
    # A machine that sleeps stops its monotonic clock; this one goes on, and so does the wall's.
    boot = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boot is None else time.clock_gettime(boot), time.time()


@frozen
class Moment:
    """A moment, by each clock that there is."""

    clocks: tuple[float, float] = field(factory=_clocks)

    def passed(self) -> float:
        """Give the seconds since, by the clock that went furthest."""
        return max(new - old for new, old in zip(_clocks(), self.clocks, strict=True))


@frozen
class Alive:
    """Of the holders that were asked for: which are alive, and for how long others may still be waited for.

    Attributes:
        living: those that may begin or end something.
        patience: by a dead one's number, the seconds that a request of its may have been under way for.
    """

    living: frozenset[int]
    patience: dict[int, float]


@define(eq=False, repr=False)
class Holder:
    """This opening of the journal, as others see it."""

    id: int
    lease: float | None
    _database: Database
    _line: Line
    _lock: FileLock | None
    _beating: asyncio.Task[None] | None = field(default=None, init=False)
    _next_beat: asyncio.TimerHandle | None = field(default=None, init=False)
    _ending: bool = field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self._plan_beat()

    def _plan_beat(self, _beating: object = None) -> None:
        # A timer, not one long task: code that cancels all tasks would end that one, and with it the lease.
        if self.lease is not None and not self._ending:
            loop = asyncio.get_running_loop()
            self._next_beat = loop.call_later(self.lease / _RENEWALS, self._beat, self.lease)

    def _beat(self, lease: float) -> None:
        self._beating = asyncio.ensure_future(self._renew(lease))
        self._beating.add_done_callback(self._plan_beat)

    async def _renew(self, lease: float) -> None:
        renew = (
            update(holders)
            .where(holders.c.id == self.id, holders.c.expires_at > now(), ~holders.c.ended)
            .values(expires_at=now() + lease)
        )

        lock = select(holders.c.id).where(holders.c.id == self.id).with_for_update()

        def work(connection: Connection) -> None:
            # What waits for a lock within an update has looked at the time before.
            connection.execute(lock)
            connection.execute(renew)

        with contextlib.suppress(JournalError):  # a call that begins something meets the error
            await self._database.write(self._line, work, lease)

    def left(self, connection: Connection) -> float:
        """Give the seconds that its lease has left, which stays so within this transaction."""
        if self.lease is None:
            return math.inf
        live = (holders.c.id == self.id) & (holders.c.expires_at > now()) & ~holders.c.ended
        asked = select(holders.c.expires_at - now()).where(live).with_for_update(read=True)
        return connection.execute(asked).scalar_one_or_none() or 0.0

    async def allow(self, request_seconds: float) -> None:
        """Let others know that a request may be under way for longer.

        Raises:
            JournalError: it can't be written.
        """
        longer = update(holders).where(holders.c.id == self.id).values(request_seconds=request_seconds)
        await self._database.write(self._line, lambda connection: connection.execute(longer).close(), 0.0)

    async def end(self, *, settled: bool) -> None:
        """Show other processes that this one has ended. It may be cancelled, and called again.

        Args:
            settled: whether nothing is in flight. Otherwise the lease is left to run out, so that others wait
                until no response can arrive any more.
        """
        self._ending = True
        if self._next_beat is not None:
            self._next_beat.cancel()
        if self._beating is not None:
            self._beating.cancel()
            await asyncio.wait([self._beating])

        def work(connection: Connection) -> None:
            connection.execute(update(holders).where(holders.c.id == self.id).values(ended=True))

        if settled or self.lease is None:
            with contextlib.suppress(JournalError):  # its lock, or its lease, shows it as well
                await self._database.write(self._line, work, 0.0)
        await _let_go(self._lock)


async def _let_go(lock: FileLock | None) -> None:
    if lock is not None:
        await asyncio.to_thread(_unlock, lock)


def _unlock(lock: FileLock) -> None:
    # Gone before it is let go of: whoever finds it afterwards has made it anew, and it tells the same.
    with contextlib.suppress(OSError):  # one that stays tells the same as well
        Path(lock.lock_file).unlink()
    lock.release()


def _take(path: Path, owner: int) -> FileLock:
    """Create a lock file and hold it; root creates it for the owner of the journal."""
    lock = FileLock(path, timeout=0, mode=0o600, thread_local=False, fallback_to_soft=False)
    lock.acquire()
    # Otherwise the owner couldn't check whether root's process is alive. Only root may change the owner to
    # another user, and Windows has no such call.
    with contextlib.suppress(OSError, AttributeError):
        os.chown(path, owner, -1)
    return lock


def _is_held(path: Path) -> bool:
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
class Holders:
    """All holders of a journal."""

    database: Database
    line: Line

    async def join(self, run_id: int, lease: float, request_seconds: float) -> Holder:
        """Become one of them.

        Raises:
            JournalError: the database, or the file of the lock, can't be written.
        """
        name = lock = None
        if self.database.path is not None:
            name = f"{self.database.path.name}-{secrets.token_hex(4)}.lock"
            with telling(self.database.path):
                owner = await asyncio.to_thread(self.database.path.stat)
                lock = await asyncio.to_thread(_take, self.database.path.with_name(name), owner.st_uid)
        expires = now() + lease if name is None else None

        def work(connection: Connection) -> int:
            self._clear_away(connection)
            made = insert(holders).values(
                run_id=run_id, lock=name, expires_at=expires, ended=False, request_seconds=request_seconds
            )
            return int(connection.execute(made.returning(holders.c.id)).scalar_one())

        try:
            number = await self.database.write(self.line, work, 0.0)
        except BaseException:
            await _let_go(lock)
            raise
        return Holder(number, None if name else lease, self.database, self.line, lock)

    def _clear_away(self, connection: Connection) -> None:
        """Have those ended whose lock says that they died, for whom nobody may ask again."""
        locked = select(holders).where(holders.c.lock.is_not(None), ~holders.c.ended)
        dead = [row.id for row in connection.execute(locked).all() if self._is_dead(row)]
        connection.execute(update(holders).where(holders.c.id.in_(dead)).values(ended=True))

    def alive(self, connection: Connection, ids: Iterable[int]) -> Alive:
        """Ask for some of them."""
        of_them = holders.c.id.in_(bindparam("ids", expanding=True))
        asked = select(holders, (holders.c.expires_at > now()).label("leased")).where(of_them)
        found = connection.execute(asked, {"ids": list(ids)}).all()
        living = frozenset([row.id for row in found if self._lives(row)])
        patience = {row.id: row.request_seconds for row in found if row.lock is None and not row.ended}
        return Alive(living, patience)

    def seen(
        self, connection: Connection, look: Callable[[], T], holders_in: Callable[[T], set[int]]
    ) -> tuple[T, Alive]:
        """Look at something that depends on who is alive.

        Args:
            connection: for the second question.
            look: gives what there is; asked anew where somebody has died, who may have written meanwhile.
            holders_in: gives those on whom it depends.
        """
        dead: set[int] = set()
        while True:
            found = look()
            ids = holders_in(found)
            alive = self.alive(connection, ids) if ids else Alive(frozenset(), {})
            if ids - alive.living <= dead:
                return found, alive
            dead |= ids - alive.living

    def of_run(self, connection: Connection, run_id: int) -> frozenset[int]:
        """Give those that work on a run."""
        asked = select(holders.c.id).where(holders.c.run_id == run_id, ~holders.c.ended)
        ids = connection.execute(asked).scalars().all()
        return self.alive(connection, ids).living

    def _lives(self, row: Any) -> bool:
        if row.ended:
            return False
        if row.lock is None:
            return bool(row.leased)
        assert self.database.path is not None  # noqa: S101  # none has a lock but beside a file
        return _is_held(self.database.path.with_name(row.lock))

    def _is_dead(self, row: Any) -> bool:
        try:
            return not self._lives(row)
        except JournalError:  # It is raised again where the answer decides about a pair.
            return False
