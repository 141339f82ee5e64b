"""A worker: makes the calls of a task queue, one for each activity, and records them in the journal."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import OrderedDict
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from attrs import asdict, define, evolve, field
from temporalio import activity
from temporalio.exceptions import ApplicationError
from temporalio.worker import Worker as ActivityWorker

from plaid_relay_async.config import RetryPolicy, check_count
from plaid_relay_async.errors import BatchStoppedError, ConfigurationError, JournalError, PlaidRelayError
from plaid_relay_async.journal import Journal
from plaid_relay_async.journal.recording import IntentKey
from plaid_relay_async.temporal.payloads import check_encryption
from plaid_relay_async.temporal.tasks import (
    CREATE_ACTIVITY,
    REMOVE_ACTIVITY,
    Task,
    TaskResult,
    check_queue_name,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from sqlalchemy.ext.asyncio import AsyncEngine
    from temporalio.client import Client

    from plaid_relay_async.batch import CallContext
    from plaid_relay_async.client import RelayClient
    from plaid_relay_async.journal.journal import JournalSettings

# A run has a journal for each combination of settings. Each one has its own connections.
_MAX_IDLE_JOURNALS: Final = 8
_FLUSH_SECONDS: Final = 1.0  # between two attempts to record what couldn't be recorded


@define(eq=False, repr=False)
class _CheckedRecorder:
    """A recorder that starts no attempt after the activity has timed out.

    Temporal may have handed out the next repetition by then.

    Attributes:
        recorder: the journal's recorder.
        deadline: the time of the wall clock, in seconds since 1970.
    """

    recorder: Any
    deadline: float

    def __getattr__(self, name: str) -> Any:
        return getattr(self.recorder, name)

    async def record_intent(self) -> None:
        """Record the intent; see `CallRecorder`. It is undone if this raises.

        Raises:
            JournalError: the activity has timed out.
        """
        await self.recorder.record_intent()
        if time.time() >= self.deadline:
            raise JournalError("the activity has timed out, so no attempt was started")


@define(eq=False, repr=False)
class _TaskJournal:
    """The journal of one task.

    It checks that the submitter has named the same pair, or the same token, and starts no attempt too late.

    Attributes:
        journal: the journal of the run.
        task: the task.
        deadline: see `_CheckedRecorder`.
        intent_key: the key of the intent of a creation's attempts, once its recorder is acquired.
    """

    journal: Journal
    task: Task
    deadline: float
    intent_key: IntentKey | None = field(default=None, init=False)

    @property
    def run(self) -> str:
        """The run name."""
        return self.journal.run

    async def acquire_recorder(self, request: Any, context: CallContext) -> _CheckedRecorder:
        """Return the journal's recorder for the request.

        Raises:
            ConfigurationError: the submitter has another journal, or calls for another lender.
        """
        is_creation = self.task.activity == CREATE_ACTIVITY
        name = (
            await self.journal.pair_id(request, context)
            if is_creation
            else self.journal.keyed_hash(request.relay_token)
        )
        if self.task.name != name:
            raise ConfigurationError(
                "the task is from another journal or for another lender than this worker's",
                advice="Start the worker and the run with the same journal, the same client ID or namespace, "
                "and the same address of Plaid.",
            )
        recorder: Any = await self.journal.acquire_recorder(request, context)
        if is_creation and recorder.row_in_doubt not in {None, self.task.in_doubt}:
            # An earlier execution of this task has replaced the row, and is itself in doubt now.
            recorder.release()
            unrepeated = evolve(context, retry_unknown=False)
            recorder = await self.journal.acquire_recorder(request, unrepeated)
        if is_creation and recorder.recorded_outcome is None:
            self.intent_key = recorder.intent_key
        return _CheckedRecorder(recorder, self.deadline)


@define(eq=False, repr=False)
class _OpenJournal:
    """A journal that is opened by the first of the calls that use it.

    Attributes:
        journal: the journal.
        users: the number of calls that use it.
        is_open: whether it is open.
        failed: whether it couldn't be opened, read or written.
        lock: held while it is opened.
    """

    journal: Journal
    users: int = 0
    is_open: bool = False
    failed: bool = False
    lock: asyncio.Lock = field(factory=asyncio.Lock, init=False)


class Worker:
    """Makes the calls of a task queue of Temporal; several workers may share a queue.

    Args:
        temporal: a client of Temporal with the data converter of `data_converter`.
        task_queue: the name of the task queue.
        client: an open client of the lender.
        journal_url: the URL of the journal in PostgreSQL, or an `AsyncEngine`.
        key: as of `Journal`.
        namespace: as of `Journal`; the runs must have the same.
        concurrency: the maximum number of concurrent calls.
        lease: as of `Journal`.
        retry: the retry policy of the calls. A pause that takes longer than half of an activity's time limit
            ends the call, and another activity makes it later.

    Raises:
        ConfigurationError: an argument is invalid.
    """

    def __init__(
        self,
        temporal: Client,
        task_queue: str,
        client: RelayClient,
        journal_url: str | AsyncEngine,
        *,
        key: str | bytes | Sequence[str | bytes] | Path | None = None,
        namespace: str | None = None,
        concurrency: int = 50,
        lease: float = 30.0,
        retry: RetryPolicy | None = None,
    ) -> None:
        check_queue_name(task_queue)
        check_count("concurrency", concurrency)
        check_encryption(temporal)
        self._temporal = temporal
        self._task_queue = task_queue
        self._client = client
        self._journal_url = journal_url
        self._journal_options: dict[str, Any] = {"key": key, "namespace": namespace, "lease": lease}
        self._concurrency = concurrency
        self._retry = retry or RetryPolicy()
        self._journals: OrderedDict[JournalSettings, _OpenJournal] = OrderedDict()
        self._closing: set[asyncio.Task[None]] = set()
        # The arguments are checked now, and not by the first task.
        if Journal(journal_url, **self._journal_options).path is not None:
            raise ConfigurationError("a run on Temporal requires a journal in PostgreSQL")

    async def run(self) -> None:
        """Make calls until the task is cancelled; then drain.

        A drain accepts no further activity, and waits for the calls in flight. A second cancellation
        abandons them.

        Raises:
            ConfigurationError: the key of the journal doesn't match.
            JournalError: the journal can't be opened.
            RuntimeError: Temporal rejects the worker.
        """
        # A worker that can't use the journal fails now, and not with each task.
        async with Journal(self._journal_url, **self._journal_options):
            pass
        worker = ActivityWorker(
            self._temporal,
            task_queue=self._task_queue,
            activities=[self._create, self._remove],
            max_concurrent_activities=self._concurrency,
            graceful_shutdown_timeout=timedelta(days=1),
        )
        try:
            async with worker:
                await asyncio.get_running_loop().create_future()
        finally:
            for task in self._closing:
                task.cancel()
            for open_journal in self._journals.values():
                await open_journal.journal.close()
            self._journals.clear()
            await asyncio.gather(*self._closing, return_exceptions=True)

    @activity.defn(name=CREATE_ACTIVITY)
    async def _create(self, payload: dict[str, Any]) -> dict[str, Any]:
        return await self._make_call(payload)

    @activity.defn(name=REMOVE_ACTIVITY)
    async def _remove(self, payload: dict[str, Any]) -> dict[str, Any]:
        return await self._make_call(payload)

    async def _make_call(self, payload: dict[str, Any]) -> dict[str, Any]:
        """Make the call of an activity, and return its result.

        Raises:
            ApplicationError: nothing was executed.
        """
        info = activity.info()
        limit = (info.start_to_close_timeout or timedelta.max).total_seconds()
        relay, result = self._client.relay, None
        error: BaseException | None = None
        try:
            task = Task.from_payload(info.activity_type, payload)
            async with self._open_journal(task.settings) as open_journal:
                create_batch: Any = (
                    relay.create_many if task.activity == CREATE_ACTIVITY else relay.remove_many
                )
                journal = _TaskJournal(open_journal.journal, task, info.started_time.timestamp() + limit)
                batch = create_batch(
                    [task.request],
                    journal=journal,
                    concurrency=1,
                    timeout=min(limit / 2, self._client.call_context().max_request_seconds or limit),
                    retry=evolve(self._retry, max_pause=min(self._retry.max_pause, limit / 2)),
                )
                try:
                    await batch
                except BatchStoppedError as batch_error:
                    error = batch_error.__cause__
                    open_journal.failed = open_journal.failed or isinstance(error, JournalError)
                for outcome in (*batch.result.succeeded, *batch.result.failed, *batch.result.unknown):
                    result = TaskResult.of(outcome, journal.intent_key)
        except (ConfigurationError, JournalError) as own_error:
            error = own_error
        if result is not None:
            return result.to_payload()
        # The message is encrypted, and has no secret.
        message = str(error.args[0]) if isinstance(error, PlaidRelayError) else "the call wasn't made"
        raise ApplicationError(message, type=type(error).__name__, non_retryable=True)

    @contextlib.asynccontextmanager
    async def _open_journal(self, settings: JournalSettings) -> AsyncIterator[_OpenJournal]:
        """Open the journal of a run, or use the one that is open.

        A journal that has failed is replaced, because its lease may have expired.
        """
        open_journal = self._journals.get(settings)
        if open_journal is None:
            journal = Journal(self._journal_url, **asdict(settings), **self._journal_options)
            open_journal = self._journals[settings] = _OpenJournal(journal)
        self._journals.move_to_end(settings)
        open_journal.users += 1
        try:
            async with open_journal.lock:
                if not open_journal.is_open:
                    await open_journal.journal.open()
                    open_journal.is_open = True
            yield open_journal
        except JournalError:
            open_journal.failed = True
            raise
        finally:
            open_journal.users -= 1
            await self._close_unused(settings, open_journal)

    async def _close_unused(self, settings: JournalSettings, open_journal: _OpenJournal) -> None:
        """Close a journal that has failed, and those of the runs that were used least recently."""
        unused = []
        if open_journal.failed:
            if self._journals.get(settings) is open_journal:
                del self._journals[settings]
            if not open_journal.users:
                task = asyncio.create_task(_close_when_written(open_journal))
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)
        for key, other in list(self._journals.items()):
            if len(self._journals) > _MAX_IDLE_JOURNALS and not other.users:
                unused.append(self._journals.pop(key))
        for unused_journal in unused:
            await unused_journal.journal.close()


async def _close_when_written(open_journal: _OpenJournal) -> None:
    """Close a journal that has failed, once it has recorded the outcomes of its calls.

    If the activity of such a call had timed out by then, no other process has its token.
    """
    try:
        while open_journal.is_open:
            with contextlib.suppress(JournalError):
                await open_journal.journal.flush()
                break
            await asyncio.sleep(_FLUSH_SECONDS)
    finally:
        await open_journal.journal.close()
