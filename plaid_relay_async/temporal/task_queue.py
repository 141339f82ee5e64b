"""A task queue of Temporal, on which workers on other machines make the calls of a batch.

The batch is the same as a local one; only its calls are made elsewhere. For each call, one Standalone
Activity is started. It runs at most once, because it has one attempt. Its ID is a keyed hash of the run, the
pair and the number of the repetition, and Temporal rejects an ID that exists. So a process that was killed
can start all its calls again. The journal decides what happens to a pair; Temporal only hands out the tasks.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
from collections import Counter, deque
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

from attrs import evolve, frozen
from temporalio.client import (
    ActivityExecutionDescription,
    ActivityExecutionStatus,
    ActivityHandle,
    PendingActivityState,
)
from temporalio.common import (
    ActivityIDReusePolicy,
    RetryPolicy,
    SearchAttributeKey,
    SearchAttributePair,
    TypedSearchAttributes,
)
from temporalio.exceptions import ActivityAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode

from plaid_relay_async.batch import CREATE, LostRaceError, TrackedCall
from plaid_relay_async.batch.input import RequestReader
from plaid_relay_async.config import check_count, check_seconds
from plaid_relay_async.errors import (
    ConfigurationError,
    RequestValidationError,
)
from plaid_relay_async.journal.recording import CreationRecorder
from plaid_relay_async.models import RelayCreateRequest, RelayCreateResponse, RelayRemoveResponse
from plaid_relay_async.outcomes import Created, Failed, Outcome, Unknown
from plaid_relay_async.temporal.calls import QueuedCall, TaskRecorder
from plaid_relay_async.temporal.payloads import check_encryption
from plaid_relay_async.temporal.requests import TemporalRequests
from plaid_relay_async.temporal.tasks import CREATE_ACTIVITY, Task, TaskResult, activity_of, check_queue_name

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Coroutine, Iterable

    from temporalio.client import Client

    from plaid_relay_async.batch import Batch, BatchOperation, CallContext, CreationResult
    from plaid_relay_async.client import RelayClient
    from plaid_relay_async.journal import Journal

T = TypeVar("T")

RUN_ATTRIBUTE: Final = SearchAttributeKey.for_keyword("PlaidRelayRun")
"""The search attribute that has the run name."""
# Seconds. In less than the minimum, a worker can't record an intent, and the call would be queued again
# without end.
_MIN_START_TO_CLOSE: Final = 1
_MAX_START_TO_CLOSE: Final = 86_400
# A server accepts 2 MB by default, and encryption adds a third. It rejects a larger task as
# invalid, or, above 4 MB, with an error that looks transient (RESOURCE_EXHAUSTED).
_MAX_TASK_BYTES: Final = 1_500_000
# Deleted activities of a pair that are skipped to find a later one. Each is one request, also for a pair that
# was never on the queue. Only a call that had to be queued more often, and has waited for longer than the
# retention since, isn't found.
_MAX_DELETED: Final = 10
_MAX_LOOKUPS: Final = 50  # pairs whose activities are looked up concurrently; more don't make a server faster
# Outcomes of pairs that may be on the queue: a token may be created again after any but `created`.
_QUEUEABLE: Final = ("not_attempted", "failed", "unknown", "removed")
_PENDING: Final = frozenset({ActivityExecutionStatus.RUNNING, ActivityExecutionStatus.PAUSED})
# States of a pending activity that a worker has begun.
_BEGUN: Final = frozenset(
    {
        PendingActivityState.STARTED,
        PendingActivityState.CANCEL_REQUESTED,
        PendingActivityState.PAUSE_REQUESTED,
    }
)
_logger = logging.getLogger("plaid_relay_async.temporal")


@frozen
class Submitted:
    """What `TaskQueue.submit` did with each request.

    Attributes:
        started: the number of calls that were added to the queue.
        pending: the number of calls that were on the queue already.
        recorded: the number of pairs whose outcome the journal has.
    """

    started: int = 0
    pending: int = 0
    recorded: int = 0


@frozen
class _Activity:
    """An activity of a creation, as the server has described it.

    Attributes:
        repetition: the number of the repetition. It may be more than the index in a list, because the server
            deletes the first activities of a pair first.
        handle: its handle.
        description: its description.
    """

    repetition: int
    handle: ActivityHandle[Any]
    description: ActivityExecutionDescription

    @property
    def is_pending(self) -> bool:
        """Whether it has not ended."""
        return self.description.status in _PENDING


class TaskQueue:
    """A task queue of Temporal for the creations and removals of one run.

    Pass it as `task_queue=` to `client.relay.create_many` and `remove_many`. `Worker` makes the calls.

    .. code-block:: python

        queue = TaskQueue(temporal_client, "relay", journal=journal)
        async with client.relay.create_many(requests, task_queue=queue) as outcomes:
            async for outcome in outcomes: ...

    Args:
        temporal: a client of Temporal with the data converter of `data_converter`.
        name: the name of the task queue.
        journal: the open journal of the run, in PostgreSQL.
        start_to_close: seconds after which a call that a worker has begun is considered lost, from 1 to
            86,400 (a day). The worker's client has half of it for the call.
        search_attribute: whether to set the search attribute `PlaidRelayRun`, with which Temporal's own tools
            can list the calls of a run. The server must have it.

    Raises:
        ConfigurationError: an argument is invalid, or the journal isn't in PostgreSQL.
    """

    def __init__(
        self,
        temporal: Client,
        name: str,
        *,
        journal: Journal,
        start_to_close: float = 120.0,
        search_attribute: bool = True,
    ) -> None:
        check_queue_name(name)
        check_seconds("start_to_close", start_to_close)
        if not _MIN_START_TO_CLOSE <= start_to_close <= _MAX_START_TO_CLOSE:
            raise ConfigurationError(
                f"start_to_close must be from {_MIN_START_TO_CLOSE} to {_MAX_START_TO_CLOSE:,} seconds, "
                f"not {start_to_close:g}"
            )
        check_encryption(temporal)
        if journal.path is not None:
            raise ConfigurationError("a run on Temporal requires a journal in PostgreSQL")
        self._temporal = temporal
        self._name = name
        self._journal = journal
        self._start_to_close = start_to_close
        self.requests = TemporalRequests()
        self._search_attributes = (
            TypedSearchAttributes([SearchAttributePair(RUN_ATTRIBUTE, journal.run)])
            if search_attribute
            else None
        )

    @property
    def run(self) -> str:
        """The run name."""
        return self._journal.run

    @property
    def drain_seconds(self) -> float:
        """The seconds for which a batch waits, once it has stopped, for the calls that workers have begun."""
        return 1.5 * self._start_to_close

    # ------------------------------------------------------------------------------------- for a batch

    async def acquire_recorder(self, request: Any, context: CallContext) -> TaskRecorder:
        """Return a recorder that has what the journal has recorded, and leaves recording to the worker.

        It has no outcome that a pending activity may replace: a retry that a process with permission to
        retry has added to the queue is waited for, also without this permission.
        """
        recorder = await self._journal.acquire_recorder(request, context)
        outcome = recorder.recorded_outcome
        is_in_doubt = isinstance(outcome, Unknown) or recorder.earlier_in_doubt_error is not None
        if not isinstance(recorder, CreationRecorder) or not (is_in_doubt or isinstance(outcome, Failed)):
            return TaskRecorder(recorder, outcome)
        try:
            activities = await self._find_activities(recorder.pair)
            if is_in_doubt and (created := await self._find_unrecorded(request, recorder, activities)):
                return TaskRecorder(recorder, created)
        except BaseException:
            recorder.release()
            raise
        if outcome is not None and activities and activities[-1].is_pending:
            return TaskRecorder(recorder, None, activities[-1].repetition)
        return TaskRecorder(recorder, outcome)

    async def _find_unrecorded(
        self, request: RelayCreateRequest, recorder: CreationRecorder, activities: list[_Activity]
    ) -> Created | None:
        """Return the outcome of a pair that only the result of an activity has, and record it.

        A worker whose journal has failed puts the token into the result. A token that was recorded since, and
        removed or forgotten, isn't the outcome of the attempt in doubt.
        """
        for activity in activities:
            is_completed = activity.description.status is ActivityExecutionStatus.COMPLETED
            if is_completed and (payload := await self.requests.repeat(activity.handle.result)) is not None:
                result = TaskResult.from_payload(payload)
                if (response := result.created_response()) is not None:
                    outcome = Created(
                        request=request,
                        response=response,
                        attempts=result.attempts,
                        elapsed=0.0,
                        request_id=result.request_id,
                    )
                    if result.intent_key is not None:
                        row = await recorder.record_outcome_of(result.intent_key, outcome)
                        if row is not None and not row.has_returnable_token:
                            continue
                        outcome = evolve(outcome, journalled=row is not None)
                    return outcome
        return None

    async def send(
        self, operation: BatchOperation[Any, Any], request: Any, *, gate: TrackedCall[Any]
    ) -> RelayCreateResponse | RelayRemoveResponse:
        """Return the response of a call that a worker makes; see `TaskQueueProtocol`."""
        recorder: Any = gate.recorder
        call = QueuedCall(
            self.start, self.requests, self._task(operation, request, recorder), request, gate, recorder
        )
        running = asyncio.create_task(call.run())
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            return await call.drain(running)
        finally:
            running.cancel()

    def _task(self, operation: BatchOperation[Any, Any], request: Any, recorder: TaskRecorder) -> Task:
        if operation is CREATE:
            digest, in_doubt = recorder.creation.pair, recorder.creation.row_in_doubt
        else:
            digest, in_doubt = self._journal.keyed_hash(request.relay_token), None
        return Task(activity_of(operation), request, digest, self._journal.settings, in_doubt)

    # ----------------------------------------------------------------------------- without a batch

    async def submit(
        self,
        client: RelayClient,
        requests: Iterable[RelayCreateRequest] | AsyncIterable[RelayCreateRequest],
        *,
        concurrency: int = 100,
    ) -> Submitted:
        """Add a creation to the queue for each request that has no outcome, and don't wait for the outcomes.

        If it is interrupted, call it again with the same requests: what is on the queue isn't added twice.

        Args:
            client: an open client of the lender; it sends nothing.
            requests: read on demand.
            concurrency: the maximum number of concurrent requests to Temporal.

        Raises:
            ConfigurationError: Temporal rejects the request, or the journal needs a namespace.
            JournalError: the journal can't be read or written.
        """
        check_count("concurrency", concurrency)
        counts: Counter[str] = Counter()
        context = client.call_context()
        reader = RequestReader(requests, RelayCreateRequest, None)

        async def submit_each() -> None:
            while (request := await reader.read_next()) is not None:
                while (state := await self._submit_one(request, context)) is None:
                    pass  # the journal had assumed that the pair is new, and looks it up now
                counts[state] += 1

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(concurrency):
                    group.create_task(submit_each())
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return Submitted(**counts)

    async def _submit_one(self, request: RelayCreateRequest, context: CallContext) -> str | None:
        recorder = await self.acquire_recorder(request, context)
        try:
            if recorder.recorded_outcome is not None:
                return "recorded"
            await recorder.record_outcome(None)  # so that `follow` finds the pair in the journal
            task = self._task(CREATE, request, recorder)
            for repetition in itertools.count(recorder.first_repetition):
                _, state = await self.start(task, repetition)
                if state != "ended":
                    return state
                if await recorder.creation.read_outcome(request) is not None:
                    break
        except LostRaceError:
            return None
        else:
            return "recorded"
        finally:
            recorder.release()

    def follow(self, client: RelayClient, **options: Any) -> Batch[Outcome, CreationResult]:
        """Return a batch of the creations that were submitted: it waits for them, and has their outcomes.

        It can be left with `abandon`, and called again in another process. It reads the requests from
        Temporal, which deletes them some time after they have ended (the retention of the namespace). After
        that, only the journal has their outcomes: the batch has none for these pairs, and at its end, a
        warning is logged with their number.

        It waits for retries that are queued. If the journal has `retry_failed` or `retry_unknown`, the batch
        retries once more what they have left failed or unknown.

        Args:
            client: an open client of the lender; it sends nothing.
            options: as of `create_many`.
        """
        return client.relay.create_many(self._read_requests(), task_queue=self, **options)

    async def _read_requests(self) -> AsyncIterator[RelayCreateRequest]:
        deleted = 0
        async for activities in self._for_each_pair(partial(self._find_activities, include_input=True)):
            if not activities:
                deleted += 1
            for activity in activities[:1]:
                payloads: Any = await activity.description.input()
                request: Any = Task.from_payload(CREATE_ACTIVITY, payloads[0]).request
                yield request
        if deleted:
            _logger.warning(
                "%d pairs of the run aren't followed, because Temporal never had their requests, or has "
                "deleted them; plaid-relay export writes the outcomes that the journal has of them",
                deleted,
            )

    async def cancel(self) -> int:
        """Take the creations of the run off the queue, and return their number.

        Calls that a worker has begun aren't interrupted. Stop a process that follows the run first, because
        it would add the other calls again.

        Raises:
            ConfigurationError: Temporal rejects the request.
            JournalError: the journal can't be read, or doesn't have the run.
        """
        count = 0
        async for cancelled in self._for_each_pair(self._cancel_pair, outcomes=_QUEUEABLE):
            count += cancelled
        return count

    async def _cancel_pair(self, pair: str) -> int:
        count = 0
        for activity in await self._find_activities(pair):
            if activity.is_pending and activity.description.run_state not in _BEGUN:
                await self.requests.repeat(activity.handle.cancel)
                count += 1
        return count

    async def count_pending(self, *, partner: str | None = None) -> int:
        """Return the number of the run's pairs whose creation is on the queue.

        A call that a worker has begun also counts, except while the journal has its intent and the lease of
        the worker is valid.

        Args:
            partner: count only the pairs of this partner.

        Raises:
            ConfigurationError: Temporal rejects the request, or `partner` is invalid.
            JournalError: the journal can't be read, or doesn't have the run.
        """
        count = 0
        async for activities in self._for_each_pair(
            self._find_activities, outcomes=_QUEUEABLE, partner=partner
        ):
            count += any(activity.is_pending for activity in activities)
        return count

    async def _for_each_pair(
        self, function: Callable[[str], Coroutine[Any, Any, T]], **selection: Any
    ) -> AsyncGenerator[T, None]:
        """Yield what a function returns for each pair of the run, in the order of the journal.

        A limited number of pairs are processed concurrently.

        Args:
            function: takes a pair ID.
            selection: arguments of `Journal.pair_ids`.
        """
        lookups: deque[asyncio.Task[T]] = deque()
        try:
            async for pair in self._journal.pair_ids(self.run, **selection):
                lookups.append(asyncio.create_task(function(pair)))
                if len(lookups) == _MAX_LOOKUPS:
                    yield await lookups.popleft()
            while lookups:
                yield await lookups.popleft()
        finally:
            for lookup in lookups:
                lookup.cancel()
            await asyncio.gather(*lookups, return_exceptions=True)

    # ------------------------------------------------------------------------------------- activities

    async def _find_activities(self, pair: str, *, include_input: bool = False) -> list[_Activity]:
        """Return the activities of a creation that the server has, in the order of their repetitions.

        The server deletes the first ones first, once their retention has passed.
        """
        activities: list[_Activity] = []
        for repetition in itertools.count():
            handle = self._handle(CREATE_ACTIVITY, pair, repetition)
            description = await self.requests.repeat(handle.describe, include_input=include_input)
            if description is not None:
                activities.append(_Activity(repetition, handle, description))
            elif activities or repetition >= _MAX_DELETED:
                break
        return activities

    async def start(
        self, task: Task, repetition: int
    ) -> tuple[ActivityHandle[Any], Literal["started", "pending", "ended"]]:
        """Start an activity of a task, unless there is one with this number of the repetition.

        Returns:
            The activity, and whether it was started now, is pending, or has ended. Once it has ended, only
            the journal shows whether the pair has an outcome, which may have been recorded since its look-up.

        Raises:
            ConfigurationError: Temporal rejects the activity, or it is pending on another task queue.
            RequestValidationError: the request is too large for Temporal.
        """
        if len(json.dumps(task.to_payload())) > _MAX_TASK_BYTES:
            raise RequestValidationError.of("request", "is too large for a task queue")
        try:
            handle = await self.requests.repeat(self._start, task, repetition)
        except ActivityAlreadyStartedError:
            handle = self._handle(task.activity, task.digest, repetition)
            description = await self.requests.repeat(handle.describe)
            if description is None or description.status not in _PENDING:
                return handle, "ended"
            if description.task_queue != self._name:
                # Perhaps no worker polls it, and then the call would be waited for without end.
                raise ConfigurationError(
                    f"calls of the run are already on the task queue {description.task_queue!r}",
                    advice="Continue the run on that task queue, or cancel the run before you move it.",
                ) from None
            return handle, "pending"
        assert handle is not None  # noqa: S101  # an activity needs only its namespace; without it, an error
        return handle, "started"

    async def _start(self, task: Task, repetition: int) -> ActivityHandle[Any]:
        try:
            return await self._temporal.start_activity(
                task.activity,
                task.to_payload(),
                id=self._activity_id(task.activity, task.digest, repetition),
                task_queue=self._name,
                result_type=dict,
                start_to_close_timeout=timedelta(seconds=self._start_to_close),
                id_reuse_policy=ActivityIDReusePolicy.REJECT_DUPLICATE,
                retry_policy=RetryPolicy(maximum_attempts=1),
                search_attributes=self._search_attributes,
            )
        except RPCError as error:
            if error.status is not RPCStatusCode.INVALID_ARGUMENT or self._search_attributes is None:
                raise
        raise ConfigurationError(
            "Temporal has rejected a call: invalid argument",
            advice=f"The server must have the search attribute {RUN_ATTRIBUTE.name}, of the type Keyword: "
            "create it, or pass search_attribute=False. The name of the run or of the task queue may be too "
            "long.",
        )

    def _handle(self, activity: str, digest: str, repetition: int) -> ActivityHandle[Any]:
        activity_id = self._activity_id(activity, digest, repetition)
        return self._temporal.get_activity_handle(activity_id, result_type=dict)

    def _activity_id(self, activity: str, digest: str, repetition: int) -> str:
        return self._journal.keyed_hash(activity, self.run, digest, str(repetition))
