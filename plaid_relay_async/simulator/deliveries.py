"""The delivery of webhooks: attempts, their faults, and when they are repeated.

The schedule is that of https://plaid.com/docs/api/webhooks/. Only receivers on this machine get webhooks.
"""

import asyncio
import json
import logging
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from random import Random
from typing import TYPE_CHECKING

import aiohttp
from attrs import define, evolve
from yarl import URL

from plaid_relay_async.simulator.faults import FaultScript, WebhookFault
from plaid_relay_async.simulator.requests import is_loopback_name
from plaid_relay_async.simulator.webhook_log import DELIVERED, FAILED, PENDING, SentWebhook
from plaid_relay_async.simulator.webhooks import sign_webhook
from plaid_relay_async.simulator.world import World

if TYPE_CHECKING:
    from plaid_relay_async.simulator.agenda import Entry

_RESPONSE_TIMEOUT = 10.0
_RETRY_SECONDS = 86_400.0
_DELAY_FACTOR = 4
_MAX_RETRY_AFTER = 4 * 3600.0
# Plaid publishes no minimum. Without one, a receiver could keep Simulator.advance from returning.
_MIN_RETRY_AFTER = 1.0
_CONCURRENCY = 20
# A clock that a test moves by hand stands still: without a pause, the timer would run all the time.
_MIN_PAUSE = 0.001

_NO_FAULT = WebhookFault(delay=0.0)

_logger = logging.getLogger("plaid_relay_async.simulator")


@define
class _Result:
    """The result of an attempt: the response's status and `Retry-After`, or what happened instead."""

    status: int | None = None
    retry_after: str | None = None
    error: str | None = None


class Deliveries:
    """The attempts to deliver the webhooks of a world, at most twenty at a time.

    Args:
        world: the world; its agenda has the moment of each attempt.
        seed: seed of the random numbers for a fault's `rate`.
    """

    def __init__(self, world: World, seed: int) -> None:
        self._time = world.time
        self._keys = world.webhook_keys
        self._agenda = world.agenda
        self._seed = seed
        self._script: FaultScript[WebhookFault] = FaultScript(seed)
        self._planned: dict[int, Entry] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_open = False
        self._timer: asyncio.TimerHandle | None = None
        self._warned = False
        self._agenda.on_add = self._set_timer
        world.webhooks.on_send = self._plan_first_attempt
        world.webhooks.on_remove = self._cancel

    def start(self) -> None:
        """Make the attempts that are due, from now on and until `close`."""
        self._loop = asyncio.get_running_loop()
        self._is_open = True
        self._set_timer()

    async def close(self) -> None:
        """Stop. Attempts without a response count as failed, and are repeated after another `start`."""
        self._is_open = False
        self._set_timer()
        # A task that is cancelled before it has begun couldn't plan the next attempt.
        await asyncio.sleep(0)
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def add_faults(self, faults: Iterable[WebhookFault]) -> None:
        """Append rules to the script."""
        self._script.add(faults)

    def clear_faults(self) -> None:
        """Remove all rules from the script."""
        self._script.clear()

    @property
    def unused_faults(self) -> Sequence[WebhookFault]:
        """The rules in the script that have not applied yet."""
        return self._script.unused

    async def make_due_attempts(self) -> None:
        """Make all attempts that are due, and wait until they have ended."""
        self._run_agenda()
        while self._tasks:
            await asyncio.wait(self._tasks)

    # When

    def _run_agenda(self) -> None:
        """Run the actions that are due, such as the start of an attempt, and set the timer for the others."""
        while self._is_free() and self._agenda.run_next(self._time()):
            pass
        self._set_timer()

    def _is_free(self) -> bool:
        return self._is_open and len(self._tasks) < _CONCURRENCY

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        moment = self._agenda.next_moment()
        # If too many attempts are being made, the end of one of them runs the agenda.
        if moment is not None and self._loop is not None and self._is_free():
            pause = max(moment - self._time(), _MIN_PAUSE)
            self._timer = self._loop.call_later(pause, self._run_agenda)

    def _plan_first_attempt(self, webhook: SentWebhook) -> None:
        try:
            host = URL(webhook.url).host
        except ValueError:
            host = None
        if host is None or not is_loopback_name(host):
            webhook.status = FAILED
            webhook.error = "not sent: the simulator sends webhooks only to this machine"
        else:
            self._plan(webhook, self._time())

    def _plan(self, webhook: SentWebhook, moment: float, fault: WebhookFault | None = None) -> None:
        self._planned[webhook.number] = self._agenda.add(moment, partial(self._begin, webhook, fault))

    def _cancel(self, webhook: SentWebhook) -> None:
        if (entry := self._planned.pop(webhook.number, None)) is not None:
            self._agenda.cancel(entry)

    # An attempt

    def _begin(self, webhook: SentWebhook, fault: WebhookFault | None) -> None:
        """Begin an attempt, or postpone it if a fault says so.

        Args:
            webhook: the webhook.
            fault: the fault of an attempt that has been postponed.
        """
        del self._planned[webhook.number]
        if fault is None:
            fault = self._next_fault(webhook) or _NO_FAULT
        if fault.delay:
            self._plan(webhook, self._time() + fault.delay, evolve(fault, delay=0.0))
            return
        task = asyncio.create_task(self._attempt(webhook, fault))
        self._tasks.add(task)
        task.add_done_callback(self._end)

    def _next_fault(self, webhook: SentWebhook) -> WebhookFault | None:
        attempt = webhook.attempts + 1
        return self._script.next_fault(
            webhook.payload["webhook_type"],
            webhook.payload["webhook_code"],
            webhook.url,
            attempt,
            # The order in which attempts are planned depends on how fast receivers are.
            rng=Random(f"{self._seed}:{webhook.number}:{attempt}"),
        )

    def _end(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._run_agenda()

    async def _attempt(self, webhook: SentWebhook, fault: WebhookFault) -> None:
        body = json.dumps(webhook.payload, indent=2).encode()
        signed_at = self._time.to_unix(webhook.sent_at if fault.stale else self._time())
        try:
            headers = sign_webhook(body, at=signed_at, key_id=self._keys.current_id)
        except ModuleNotFoundError as error:
            self._fail_unsigned(webhook, error)
            return
        webhook.attempts += 1
        webhook.last_attempt_at = self._time()
        result = _Result(error="the simulator was closed before a response arrived")
        try:
            result = await self._send(webhook.url, body, headers, fault)
        finally:
            self._finish(webhook, result)

    def _fail_unsigned(self, webhook: SentWebhook, error: ModuleNotFoundError) -> None:
        webhook.status = FAILED
        webhook.error = f"not sent: {error}"
        if not self._warned:
            self._warned = True
            _logger.warning("webhooks are not sent: %s", error)

    async def _send(self, url: str, body: bytes, headers: dict[str, str], fault: WebhookFault) -> _Result:
        if fault.lose:
            return _Result(error="lost by a fault")
        async with asyncio.TaskGroup() as group:
            copies = [group.create_task(_post(url, body, headers)) for _ in range(1 + fault.duplicates)]
        results = [copy.result() for copy in copies]
        if fault.ignore_response:
            return _Result(error="the response was ignored by a fault")
        return next((result for result in results if result.status == 200), results[0])

    def _finish(self, webhook: SentWebhook, result: _Result) -> None:
        """Record the result of an attempt, and plan the next one if there has to be one.

        By Plaid's pages, a webhook is DELIVERED after any 2xx, and is sent again after anything but a 200.
        """
        webhook.error = result.error
        if result.status is not None:
            webhook.http_status = result.status
            if 200 <= result.status < 300:
                webhook.status = DELIVERED
        if result.status == 200 or webhook.removed:
            return
        now = self._time()
        moment = now + self._next_delay(webhook, result)
        if moment <= webhook.sent_at + _RETRY_SECONDS:
            self._plan(webhook, moment)
        elif webhook.status == PENDING:
            webhook.status = FAILED

    def _next_delay(self, webhook: SentWebhook, result: _Result) -> float:
        if result.status == 429 and result.retry_after is not None:
            delay = read_retry_after(result.retry_after, self._time.to_unix(self._time()))
            if delay is not None:
                return min(max(delay, _MIN_RETRY_AFTER), _MAX_RETRY_AFTER)
        delay = webhook.next_delay
        webhook.next_delay *= _DELAY_FACTOR
        return delay


async def _post(url: str, body: bytes, headers: dict[str, str]) -> _Result:
    """Send a webhook once, on a new connection: a kept one may belong to a previous receiver."""
    try:
        async with (
            # aiohttp's own timeout is up to a second longer.
            asyncio.timeout(_RESPONSE_TIMEOUT),
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout()) as session,
            # A redirect could lead away from this machine.
            session.post(url, data=body, headers=headers, allow_redirects=False) as response,
        ):
            status = response.status
            error = None if status == 200 else f"the status is {status}"
            return _Result(status, response.headers.get("Retry-After"), error)
    except TimeoutError:
        return _Result(error=f"no response within {_RESPONSE_TIMEOUT:.0f} seconds")
    except (aiohttp.ClientError, OSError) as error:
        return _Result(error=type(error).__name__)


def read_retry_after(value: str, now: float) -> float | None:
    """Return the seconds that a `Retry-After` asks for, or None if it is invalid.

    Args:
        value: whole seconds, or a time in the form of HTTP or of ISO 8601.
        now: the time, in seconds of Unix time.
    """
    if value.isascii() and value.isdigit():
        return float(value)
    for parse in (datetime.fromisoformat, parsedate_to_datetime):
        try:
            moment = parse(value)
        except ValueError:
            continue
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() - now
    return None
