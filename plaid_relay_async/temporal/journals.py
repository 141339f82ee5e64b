"""The open journals of a worker: one for each run and its settings, for as long as calls use it."""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final

from attrs import asdict, define, field

from plaid_relay_async.errors import BatchStoppedError, ConfigurationError, JournalError
from plaid_relay_async.journal import Journal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy.ext.asyncio import AsyncEngine

    from plaid_relay_async.journal.journal import JournalSettings

_MAX_OPEN: Final = 8  # if more are open, unused ones are closed
_FLUSH_SECONDS: Final = 1.0  # between two attempts to record what couldn't be recorded


@define(eq=False, repr=False)
class _OpenJournal:
    """A journal that is opened by the first of the calls that use it.

    Attributes:
        journal: the journal.
        users: the number of calls that use it.
        is_open: whether it is open.
        lock: held while it is opened.
        idle_timer: closes it, unless another call uses it before.
    """

    journal: Journal
    users: int = 0
    is_open: bool = False
    lock: asyncio.Lock = field(factory=asyncio.Lock, init=False)
    idle_timer: asyncio.TimerHandle | None = field(default=None, init=False)

    def cancel_idle_timer(self) -> None:
        """Cancel the timer, if it was started."""
        if self.idle_timer is not None:
            self.idle_timer.cancel()


class OpenJournals:
    """Opens a journal for each combination of settings, and closes those that no call uses.

    An open journal has database connections, and a lease that shows other processes that this one is working
    on its run.

    Args:
        url: the URL of the journal in PostgreSQL, or an `AsyncEngine`.
        idle_seconds: seconds after which a journal that no call uses is closed.
        options: the arguments of `Journal` that aren't `JournalSettings`.

    Raises:
        ConfigurationError: an argument is invalid, or the journal isn't in PostgreSQL.
    """

    def __init__(self, url: str | AsyncEngine, *, idle_seconds: float = 60.0, **options: Any) -> None:
        self._url = url
        self._idle_seconds = idle_seconds
        self._options = options
        # In the order in which they were used last.
        self._journals: OrderedDict[JournalSettings, _OpenJournal] = OrderedDict()
        self._closing: dict[asyncio.Task[None], Journal] = {}
        self._unrecorded: dict[JournalSettings, str] = {}  # why a failed journal can't record its outcomes
        # The arguments are checked now, and not by the first call.
        if Journal(url, **options).path is not None:
            raise ConfigurationError("a run on Temporal requires a journal in PostgreSQL")

    async def check(self) -> None:
        """Open and close a journal.

        Raises:
            ConfigurationError: the key doesn't match.
            JournalError: it can't be opened.
        """
        async with Journal(self._url, **self._options):
            pass

    @contextlib.asynccontextmanager
    async def use(self, settings: JournalSettings) -> AsyncIterator[Journal]:
        """Return the open journal with these settings, as a context in which it isn't closed.

        If the journal fails in the context, the next call gets a new one, because its lease may have expired.

        Raises:
            ConfigurationError: the key doesn't match, or a setting is unknown.
            JournalError: it can't be opened, or the one before still can't record the outcomes of its calls.
        """
        if (entry := self._journals.get(settings)) is None:
            # A new journal couldn't record anything either. Each call would open one, and all would stay
            # open.
            if (reason := self._unrecorded.get(settings)) is not None:
                raise JournalError(reason)
            journal = Journal(self._url, **asdict(settings), **self._options)
            entry = self._journals[settings] = _OpenJournal(journal)
        self._journals.move_to_end(settings)
        entry.cancel_idle_timer()
        entry.users += 1
        try:
            async with entry.lock:
                if not entry.is_open:
                    await entry.journal.open()
                    entry.is_open = True
            yield entry.journal
        except (JournalError, BatchStoppedError) as error:
            has_failed = isinstance(error, JournalError) or isinstance(error.__cause__, JournalError)
            if has_failed and self._journals.get(settings) is entry:
                del self._journals[settings]
            raise
        finally:
            entry.users -= 1
            if not entry.users:
                self._release(settings, entry)

    def _release(self, settings: JournalSettings, entry: _OpenJournal) -> None:
        """Close an unused journal: now if it has failed, otherwise later.

        If too many are open, those that have been unused for the longest time are closed now.
        """
        if self._journals.get(settings) is not entry:
            self._begin_closing(settings, entry)
            return
        loop = asyncio.get_running_loop()
        entry.idle_timer = loop.call_later(self._idle_seconds, self._close_unused, settings)
        unused_keys = [key for key, each in self._journals.items() if not each.users]
        for key in unused_keys[: max(len(self._journals) - _MAX_OPEN, 0)]:
            self._close_unused(key)

    def _close_unused(self, settings: JournalSettings) -> None:
        self._begin_closing(settings, self._journals.pop(settings))

    def _begin_closing(self, settings: JournalSettings, entry: _OpenJournal) -> None:
        entry.cancel_idle_timer()
        if entry.is_open:
            task = asyncio.create_task(self._close_when_written(settings, entry.journal))
            self._closing[task] = entry.journal
            task.add_done_callback(self._closing.pop)

    async def _close_when_written(self, settings: JournalSettings, journal: Journal) -> None:
        """Close a journal, once it has recorded the outcomes of its calls.

        It stays open until then: if the activity of such a call has timed out, no other process has its
        token.
        """
        try:
            while True:
                try:
                    await journal.flush()
                    break
                except JournalError as error:
                    self._unrecorded[settings] = error.args[0]
                await asyncio.sleep(_FLUSH_SECONDS)
        finally:
            self._unrecorded.pop(settings, None)
            await journal.close()

    async def close(self) -> None:
        """Close all journals; calls that still use one can't record an outcome any more."""
        remaining = [*self._closing.values()]
        for task in self._closing:
            task.cancel()
        for each in self._journals.values():
            each.cancel_idle_timer()
            each.is_open = False
            remaining.append(each.journal)
        self._journals.clear()
        await asyncio.gather(*(journal.close() for journal in remaining))
        await asyncio.gather(*self._closing, return_exceptions=True)
