"""The rate limit of a Temporal task queue, which all its workers share.

Temporal's server dispatches at most a number of activities per second. It stores this setting and a text, the
reason for it, in the configuration of the task queue. The reason has the state of which the setting is a
function: what the user allows, a pause after a 429, and the adaptive rate. So any worker can end the pause of
another one, or increase the rate, and two workers that do the same write the same. The reason is stored
unencrypted and contains no secret.

Temporal has no compare-and-set for it: of two simultaneous updates the later one remains. `set_rate`, `pause`
and `resume` therefore read what is stored, and repeat an update that was lost. A worker repeats its pause if
it was lost, and a decrease that was lost follows after the next 429. The times in the state are those of the
workers' clocks, which must agree: a clock that is a second fast ends a pause a second early.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from attrs import asdict, define, evolve, frozen
from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.taskqueue.v1 import RateLimit, TaskQueue
from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest, UpdateTaskQueueConfigRequest
from temporalio.service import RPCError

from plaid_relay_async.batch import CREATE, REMOVE
from plaid_relay_async.errors import ConfigurationError
from plaid_relay_async.temporal.rate_state import RateState
from plaid_relay_async.transport.adaptation import IDLE_TIME, IsolatedBudget

if TYPE_CHECKING:
    from collections.abc import Callable

    from temporalio.client import Client

    from plaid_relay_async.telemetry import AttemptEnd

# -------------------------------------------------------------------------- the configuration of a task queue

# The key of the state in the JSON of a reason, which may have 1,000 characters.
_STATE_KEY: Final = "plaid_relay_async"


@frozen
class _Config:
    """The configuration of a task queue.

    Attributes:
        state: the stored state. A setting that was made without this package is its `foreign`.
        setting: the setting; infinity without a limit.
        is_own: whether this package made it, or there is none.
        identity: who made it.
        dispatch_rate: activities per second that were dispatched in about the last 30 s.
    """

    state: RateState
    setting: float
    is_own: bool
    identity: str
    dispatch_rate: float


async def _read(temporal: Client, task_queue: str) -> _Config:
    response = await temporal.workflow_service.describe_task_queue(
        DescribeTaskQueueRequest(
            namespace=temporal.namespace,
            task_queue=TaskQueue(name=task_queue),
            task_queue_type=TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY,
            report_config=True,
            report_stats=True,
        )
    )
    limit = response.config.queue_rate_limit
    setting = limit.rate_limit.requests_per_second if limit.HasField("rate_limit") else None
    try:
        state, is_own = RateState(**json.loads(limit.metadata.reason)[_STATE_KEY]), True
    except (ValueError, TypeError, KeyError):  # another text, or none
        state, is_own = RateState(foreign=setting), setting is None
    return _Config(
        state,
        math.inf if setting is None else setting,
        is_own,
        limit.metadata.update_identity,
        response.stats.tasks_dispatch_rate,
    )


async def _write(temporal: Client, task_queue: str, state: RateState) -> None:
    setting = state.setting(time.time())
    limit = RateLimit(requests_per_second=setting) if math.isfinite(setting) else None
    await temporal.workflow_service.update_task_queue_config(
        UpdateTaskQueueConfigRequest(
            namespace=temporal.namespace,
            identity=temporal.identity,
            task_queue=task_queue,
            task_queue_type=TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY,
            update_queue_rate_limit=UpdateTaskQueueConfigRequest.RateLimitUpdate(
                rate_limit=limit, reason=json.dumps({_STATE_KEY: asdict(state)})
            ),
        )
    )


# Seconds until the state is read again after an update, and until an update isn't repeated any more. A worker
# that has read the state before an update, and overwrites it, does so within the first of these times.
_SETTLE_SECONDS: Final = 0.5
_MAX_UPDATE_SECONDS: Final = 60.0


async def _update(temporal: Client, task_queue: str, change: Callable[[RateState], RateState]) -> None:
    """Change the stored state, and repeat that if another update has undone it."""
    async with asyncio.timeout(_MAX_UPDATE_SECONDS):
        state = change((await _read(temporal, task_queue)).state)
        while True:
            await _write(temporal, task_queue, state)
            await asyncio.sleep(_SETTLE_SECONDS)
            stored = (await _read(temporal, task_queue)).state
            state = change(stored)
            if state == stored:
                return


# -------------------------------------------------------------------------------------- the public functions


@frozen(kw_only=True)
class TaskQueueRate:
    """The rate limit of a task queue. Rates are per second; `None` is no limit.

    Attributes:
        allowed: the rate that `set_rate` allows.
        setting: what is set at Temporal's server now; it is less than `allowed`, because Temporal allows
            bursts.
        adaptive: the rate after a 429, which increases again.
        foreign: the setting of another program, such as Temporal's command; it remains an upper bound.
        foreign_identity: who made that setting, if it is still in effect as it was made.
        is_paused: whether no activity is dispatched.
        paused_until: the end of the pause after a 429; `None` if the queue isn't paused, or until `resume`.
    """

    allowed: float | None
    setting: float | None
    adaptive: float | None
    foreign: float | None
    foreign_identity: str | None
    is_paused: bool
    paused_until: datetime | None


async def read_rate(temporal: Client, task_queue: str) -> TaskQueueRate:
    """Return the rate limit of a task queue.

    Raises:
        RPCError: Temporal's server is unavailable, or rejects the request.
    """
    config, now = await _read(temporal, task_queue), time.time()
    state, adaptive = config.state, config.state.adaptive(now)
    is_timed = now < state.until and not state.stopped
    return TaskQueueRate(
        allowed=state.allowed,
        setting=config.setting if math.isfinite(config.setting) else None,
        adaptive=adaptive if math.isfinite(adaptive) else None,
        foreign=state.foreign,
        foreign_identity=None if config.is_own else config.identity,
        is_paused=config.setting == 0,
        paused_until=datetime.fromtimestamp(state.until, UTC) if is_timed else None,
    )


async def set_rate(temporal: Client, task_queue: str, rate: float | None, *, replace: bool = False) -> None:
    """Limit the calls of all workers of a task queue together; the limit applies within a second.

    At most `rate` calls per second start in any window of 10 s. If `rate` is below 8, the window is longer:
    the time in which 80 calls are allowed. A declined call is sent again by its worker, and isn't counted
    again.

    Args:
        temporal: a client of Temporal.
        task_queue: the name of the task queue.
        rate: the maximum number of calls per second; `None` removes the limit.
        replace: whether to replace a limit that was set without this package.

    Raises:
        ConfigurationError: the rate isn't a number above 0, or such a limit exists and `replace` is false.
        RPCError: Temporal's server is unavailable, or rejects the request.
        TimeoutError: for a minute, other programs have undone each change.
    """
    if rate is not None and (isinstance(rate, bool) or not 0 < rate < math.inf):
        raise ConfigurationError(f"the rate must be a number above 0, or None, not {rate!r}")
    config = await _read(temporal, task_queue)
    if config.state.foreign is not None and not replace:
        raise ConfigurationError(
            f"the task queue has a limit of {config.state.foreign:g} a second that this package didn't set",
            advice="Replace or remove it with replace=True (plaid-relay rate --replace).",
        )
    await _update(
        temporal,
        task_queue,
        lambda state: evolve(state, allowed=rate, foreign=None if replace else state.foreign),
    )


async def pause(temporal: Client, task_queue: str) -> None:
    """Stop dispatching calls until `resume`, also if a limit is set meanwhile.

    See `set_rate` for the errors of Temporal.
    """
    await _update(temporal, task_queue, lambda state: evolve(state, stopped=True))


async def resume(temporal: Client, task_queue: str) -> None:
    """Continue after `pause`, with the limit as before; a pause after a 429 remains.

    See `set_rate` for the errors of Temporal.
    """
    await _update(temporal, task_queue, lambda state: evolve(state, stopped=False))


# ------------------------------------------------------------------------------------------ sharing a 429

_PATHS: Final = frozenset(each.endpoint.path for each in (CREATE, REMOVE))

# Seconds of a pause. A mistaken `Retry-After` of years would otherwise stop all runs for that time. If the
# server still declines after `_MAX_PAUSE`, the first declined attempt starts the next pause.
_MIN_PAUSE: Final = 1.0
_MAX_PAUSE: Final = 3_600.0

# Seconds between two readings of the state, and the seconds over which the server averages the rate of
# dispatches.
_INTERVAL: Final = 1.0
_STATISTICS_SECONDS: Final = 30.0

# Seconds after a 429 until the rate is decreased. After the first of them the attempts in flight may have
# shown that the 429 was isolated. After the second the server's statistics, which it caches for 5 s, are up
# to date, so the decision waits that long if the pause does.
_MIN_DECISION_SECONDS: Final = 0.5
_MAX_DECISION_SECONDS: Final = 6.0


@define(eq=False)
class _Trip:
    """A 429 because of which the rate may be decreased.

    Attributes:
        started: the time at which the declined attempt started.
        declined_at: the time at which it ended.
        contradicted: whether an attempt that started after it was accepted.
    """

    started: float
    declined_at: float
    contradicted: bool = False


class SharedRate:
    """Shares the pauses and the rate after a 429 among all workers of a task queue. Each worker runs one.

    Pass its method `on_attempt` to the worker's `RelayClient`, as `on_attempt=`. A 429 pauses the task queue
    for all workers, for `Retry-After` (an hour at most) or for a second. Then the queue continues with a
    lower rate, which increases slowly, as that of each client does (see `transport.throttle`). A few isolated
    429s don't change the rate; without `Retry-After` they cause no pause either.

    A `SharedRate` is also a `RateLimiter`. As the client's `rate_limiter`, it delays calls that were
    dispatched before a pause until the pause has ended.

    Args:
        temporal: a client of Temporal.
        task_queue: the name of the task queue.
    """

    def __init__(self, temporal: Client, task_queue: str) -> None:
        self._temporal = temporal
        self._task_queue = task_queue
        self._state = RateState()  # as of the last reading
        self._pause_until = 0.0
        self._trip: _Trip | None = None
        self._isolated_budget = IsolatedBudget()
        self._active_since = self._last_attempt = 0.0
        self._declined = asyncio.Event()

    def on_attempt(self, attempt: AttemptEnd) -> None:
        """Note the end of an attempt; a callback for `RelayClient(on_attempt=...)`."""
        if attempt.operation not in _PATHS:
            return
        now = time.time()
        started = now - attempt.duration
        if now - self._last_attempt > IDLE_TIME:
            self._active_since = started
        self._last_attempt = now
        if attempt.certainty == "definitive":
            self._isolated_budget.count_accepted()
            if self._trip is not None and started > self._trip.started:
                self._trip.contradicted = True
        elif attempt.certainty == "declined" and attempt.status == 429:
            self._isolated_budget.count_declined()
            if attempt.retry_after or self._isolated_budget.is_exceeded:
                pause = min(max(attempt.retry_after or 0.0, _MIN_PAUSE), _MAX_PAUSE)
                self._pause_until = max(self._pause_until, now + pause)
                self._trip = self._trip or _Trip(started, now)
                self._declined.set()

    async def acquire(self, endpoint: str, /) -> None:
        """Wait for the end of a pause after a 429, as known to this worker."""
        while endpoint in _PATHS and (wait := self._state.until - time.time()) > 0:  # noqa: ASYNC110  # only time ends it
            await asyncio.sleep(wait)

    async def run(self) -> None:
        """Keep the setting of the task queue as the stored state says, until the task is cancelled.

        While Temporal's server is unavailable, no activity is dispatched, and this waits for it.
        """
        while True:
            self._declined.clear()
            with contextlib.suppress(RPCError):
                await self._update_setting()
            now = time.time()
            ends = [self._state.until, self._decision_time(self._trip) if self._trip else 0.0]
            delay = min([_INTERVAL, *(end - now for end in ends if end > now)])
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._declined.wait()

    async def _update_setting(self) -> None:
        """Report this worker's 429s to the stored state, and set what follows from it now."""
        config = await _read(self._temporal, self._task_queue)
        now, state, trip = time.time(), config.state, self._trip
        if now < self._pause_until:
            state = state.paused(self._pause_until)
        is_decided = trip is not None and now >= self._decision_time(trip)
        is_isolated = trip is not None and trip.contradicted and not self._isolated_budget.is_exceeded
        # A rate that was decreased after the declined attempt had started isn't decreased because of it
        # again.
        if trip is not None and is_decided and trip.started >= state.since and not is_isolated:
            since = max(self._active_since, now - _STATISTICS_SECONDS, state.since)
            admitted = config.dispatch_rate * _STATISTICS_SECONDS
            state = state.decreased(trip.declined_at, admitted=admitted, measured_since=since)
            self._isolated_budget.reset()
        self._state = state
        is_current = math.isclose(state.setting(now), config.setting, rel_tol=1e-5)  # it is a 32-bit number
        # A limit that was set without this package isn't touched, unless there was a 429.
        if state != config.state or (config.is_own and not is_current):
            await _write(self._temporal, self._task_queue, state)
        if is_decided:
            self._trip = None

    def _decision_time(self, trip: _Trip) -> float:
        latest = min(self._state.until - _MIN_DECISION_SECONDS, trip.declined_at + _MAX_DECISION_SECONDS)
        return max(trip.declined_at + _MIN_DECISION_SECONDS, latest)
