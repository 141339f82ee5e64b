"""A worker: makes the calls of a task queue, one for each activity, and records them in the journal."""

from __future__ import annotations

import asyncio
import logging
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from attrs import define, evolve, field
from temporalio import activity
from temporalio.exceptions import ApplicationError
from temporalio.worker import Worker as ActivityWorker

from plaid_relay_async.config import RetryPolicy, check_count
from plaid_relay_async.errors import BatchStoppedError, ConfigurationError
from plaid_relay_async.journal import Journal
from plaid_relay_async.journal.recording import IntentKey
from plaid_relay_async.redaction import ExpectedError, Hidden
from plaid_relay_async.temporal.journals import OpenJournals
from plaid_relay_async.temporal.payloads import check_encryption
from plaid_relay_async.temporal.tasks import (
    CREATE_ACTIVITY,
    REMOVE_ACTIVITY,
    CallNotMadeError,
    Task,
    TaskResult,
    check_queue_name,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    from sqlalchemy.ext.asyncio import AsyncEngine
    from temporalio.client import Client

    from plaid_relay_async.batch import Batch, CallContext
    from plaid_relay_async.client import RelayClient

_logger = logging.getLogger("plaid_relay_async.temporal")


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
            CallNotMadeError: the activity has timed out.
        """
        await self.recorder.record_intent()
        if (late := time.time() - self.deadline) >= 0:
            raise CallNotMadeError(
                f"the activity had timed out {late:.1f} s before the attempt could start; are the clocks of "
                "the worker and of the Temporal server synchronized?"
            )


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
        digest = (
            await self.journal.pair_id(request, context)
            if is_creation
            else self.journal.keyed_hash(request.relay_token)
        )
        if self.task.digest != digest:
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
        self._journals = OpenJournals(journal_url, key=key, namespace=namespace, lease=lease)
        self._concurrency = concurrency
        self._retry = retry or RetryPolicy()
        self._batches: set[Batch[Any, Any]] = set()

    async def run(self, *, on_started: Callable[[], object] | None = None) -> None:
        """Make calls until the task is cancelled; then drain.

        A drain accepts no further activity, and waits for the calls in flight. A second cancellation
        abandons them.

        Args:
            on_started: called without arguments once the journal is checked and the worker accepts calls.

        Raises:
            ConfigurationError: the key of the journal doesn't match.
            JournalError: the journal can't be opened.
            RuntimeError: Temporal rejects the worker.
        """
        # A worker that can't use the journal fails now, and not with each task.
        await self._journals.check()
        worker = ActivityWorker(
            self._temporal,
            task_queue=self._task_queue,
            activities=[self._activity(name) for name in (CREATE_ACTIVITY, REMOVE_ACTIVITY)],
            max_concurrent_activities=self._concurrency,
            # A drain has no limit of its own: each call has one, and `start_to_close` is a day at most.
            graceful_shutdown_timeout=timedelta(days=1),
        )
        try:
            async with worker:
                if on_started is not None:
                    on_started()
                await asyncio.get_running_loop().create_future()
        finally:
            for batch in self._batches:  # there are some only after a second cancellation
                batch.abandon()
            await self._journals.close()

    def _activity(self, name: str) -> Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]:
        @activity.defn(name=name)
        async def make_call(payload: dict[str, Any]) -> dict[str, Any]:
            hidden = Hidden(payload)
            del payload  # a traceback with locals would show its report tokens
            return await self._make_call(hidden)

        return make_call

    async def _make_call(self, payload: Hidden[dict[str, Any]]) -> dict[str, Any]:
        """Make the call of an activity, and return its result.

        Raises:
            ApplicationError: the call has no outcome; see `_failure`.
        """
        info = activity.info()
        limit = (info.start_to_close_timeout or timedelta.max).total_seconds()
        journal: _TaskJournal | None = None
        batch: Batch[Any, Any] | None = None
        error: BaseException | None = None
        try:
            task = Task.from_payload(info.activity_type, payload.reveal())
            async with self._journals.use(task.settings) as open_journal:
                journal = _TaskJournal(open_journal, task, info.started_time.timestamp() + limit)
                batch = self._create_batch(journal, limit)
                self._batches.add(batch)
                await batch
        except BatchStoppedError as batch_error:
            error = batch_error.__cause__
        except Exception as own_error:  # noqa: BLE001  # the submitter must receive its class
            error = own_error
        finally:
            self._batches.discard(batch)
        if not isinstance(error, ExpectedError | None):
            _logger.error("an activity raised an unexpected error", exc_info=error)
        if journal is not None and batch is not None:
            result = batch.result
            for outcome in (*result.succeeded, *result.failed, *result.unknown):
                return TaskResult.of(outcome, journal.intent_key).to_payload()
        raise _failure(error)

    def _create_batch(self, journal: _TaskJournal, limit: float) -> Batch[Any, Any]:
        """Return the batch that makes the call of a task.

        Args:
            journal: the journal of the task.
            limit: the seconds after which the activity times out. Half of them are for the call.
        """
        relay = self._client.relay
        is_creation = journal.task.activity == CREATE_ACTIVITY
        create_batch: Any = relay.create_many if is_creation else relay.remove_many
        batch: Batch[Any, Any] = create_batch(
            [journal.task.request],
            journal=journal,
            concurrency=1,
            timeout=min(limit / 2, self._client.call_context().max_request_seconds or limit),
            retry=evolve(self._retry, max_pause=min(self._retry.max_pause, limit / 2)),
        )
        return batch


def _failure(error: BaseException | None) -> ApplicationError:
    """Return the failure of an activity without an outcome.

    Its type is the class of the error: the submitter queues a call again after a `JournalError` or a
    `CallNotMadeError`, and stops after any other one. The message has nothing of the request.

    Args:
        error: the error; `None` if the batch was stopped, because the worker is ending.
    """
    if error is None:
        error = CallNotMadeError("the worker was stopped before it could make the call")
    expected = isinstance(error, ExpectedError)
    message = str(error.args[0]) if expected else f"unexpected error: {type(error).__name__}"
    return ApplicationError(message, type=type(error).__name__, non_retryable=True)
