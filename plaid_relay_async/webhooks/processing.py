"""The processing of stored webhooks: leases, handlers, retries and dead letters.

A webhook is leased from the inbox before its handler runs, and the lease is renewed while it runs. If the
process ends, the lease expires, and the handler runs again, in any process. So it runs at least once.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Final, TypeAlias

from attrs import Attribute, field, frozen

from plaid_relay_async.cancellation import wait_until_done
from plaid_relay_async.config import check_count, check_seconds
from plaid_relay_async.errors import PlaidAPIError, PlaidRelayError, reason_of
from plaid_relay_async.redaction import Hidden
from plaid_relay_async.webhooks.errors import WebhookDecodeError
from plaid_relay_async.webhooks.parsing import parse_leniently
from plaid_relay_async.webhooks.router import Delivery

if TYPE_CHECKING:
    from plaid_relay_async.models.webhooks import WebhookEvent
    from plaid_relay_async.webhooks.inbox import Inbox, Lease, StoredWebhook
    from plaid_relay_async.webhooks.router import RetrievalJournal, RetrievedPair, WebhookRouter

StoreResult: TypeAlias = Callable[[], Awaitable[bool]]
"""Stores the result of an attempt in the inbox, and returns whether the lease was still valid."""

_log = logging.getLogger("plaid_relay_async.webhooks")

_POLL_SECONDS: Final = 10.0  # the longest wait for a webhook that is due, before the inbox is read again
_RELEASE_SECONDS: Final = 5.0  # the time for cancelled handlers to end and for the release of their leases
_INBOX_BACKOFF: Final = 0.5
_MAX_INBOX_BACKOFF: Final = 30.0


def _validate_seconds(_: object, attribute: Attribute[float], value: object) -> None:
    check_seconds(attribute.name, value, zero_allowed=True)


def _validate_timeout(_: object, attribute: Attribute[float | None], value: object) -> None:
    if value is not None:
        check_seconds(attribute.name, value)


def _validate_count(_: object, attribute: Attribute[int], value: object) -> None:
    check_count(attribute.name, value)


@frozen(kw_only=True)
class ProcessingSettings:
    """How handlers run; see `WebhookReceiver`."""

    concurrency: int = field(validator=_validate_count)
    max_attempts: int = field(validator=_validate_count)
    backoff: float = field(validator=_validate_seconds)
    max_backoff: float = field(validator=_validate_seconds)
    handler_timeout: float | None = field(validator=_validate_timeout)
    drain: float = field(validator=_validate_seconds)


def describe_error(error: BaseException) -> str:
    """Return the text of an error of this package, or the class of another one, which may quote a payload."""
    if isinstance(error, PlaidAPIError):
        return reason_of(error)  # Plaid's text may quote the ID of a key, which is the sender's choice
    return str(error) if isinstance(error, PlaidRelayError) else type(error).__name__


def full_jitter(first: float, longest: float, failures: int) -> float:
    """Return the seconds to wait after a number of failures: a random part of an exponential backoff."""
    # The exponent is limited because a float is.
    return random.uniform(0, min(longest, first * 2.0 ** min(failures - 1, 60)))


class WebhookProcessor:
    """Runs the handlers of the webhooks in an inbox, from `start` to `close`."""

    def __init__(
        self,
        inbox: Inbox,
        router: WebhookRouter,
        journal: RetrievalJournal | None,
        settings: ProcessingSettings,
    ) -> None:
        self._inbox = inbox
        self._router = router
        self._journal = journal
        self._settings = settings
        self._leases: set[Lease] = set()  # those to be renewed
        self._running = 0
        self._handler_ended = asyncio.Event()
        self._stopping = False
        self._wait: asyncio.Timeout | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start to lease webhooks and to run their handlers."""
        self._task = asyncio.create_task(self._run())
        self._task.add_done_callback(_report_crash)

    async def close(self) -> None:
        """Lease no more webhooks, and wait for the running handlers; cancel those that take too long."""
        assert self._task is not None  # noqa: S101  # the receiver has started it
        self._stopping = True
        if self._wait is not None:
            self._wait.reschedule(asyncio.get_running_loop().time())
        await wait_until_done(asyncio.create_task(self._drain(self._task)))

    async def _drain(self, task: asyncio.Task[None]) -> None:
        await asyncio.wait([task], timeout=self._settings.drain)
        if not task.done():
            _log.warning("running handlers of webhooks are cancelled, and will run again: %d", self._running)
            task.cancel()
            await asyncio.wait([task], timeout=_RELEASE_SECONDS)
        if not task.done():
            _log.error("handlers of webhooks haven't ended although they were cancelled: %d", self._running)

    # ------------------------------------------------------------------------------------- leases

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            renewal = group.create_task(self._renew_leases())
            async with asyncio.TaskGroup() as handlers:
                await self._lease_until_stopped(handlers)
            renewal.cancel()

    async def _lease_until_stopped(self, group: asyncio.TaskGroup) -> None:
        failures = 0
        while not self._stopping:
            free = self._settings.concurrency - self._running
            if not free:
                self._handler_ended.clear()
                await self._wait_for(self._handler_ended.wait)
                continue
            try:
                leases = await self._inbox.lease(free)
                if not leases:
                    await self._wait_for(lambda: self._inbox.wait_until_due(_POLL_SECONDS))
                failures = 0
            except Exception as error:  # noqa: BLE001  # any inbox may fail in its own way
                failures += 1
                seconds = full_jitter(_INBOX_BACKOFF, _MAX_INBOX_BACKOFF, failures)
                _log.warning("the inbox failed (%s); trying again in %.1f s", describe_error(error), seconds)
                await self._wait_for(lambda: asyncio.sleep(seconds))  # noqa: B023  # it is awaited here
                continue
            for lease in leases:
                self._running += 1
                self._leases.add(lease)
                group.create_task(self._process(lease))

    async def _wait_for(self, wait: Callable[[], Awaitable[object]]) -> None:
        """Wait, until `close` is called at the latest."""
        if self._stopping:
            return
        try:
            async with asyncio.timeout(None) as self._wait:
                await wait()
        except TimeoutError:
            if not self._stopping:  # then it is an error of the inbox
                raise
        finally:
            self._wait = None

    async def _renew_leases(self) -> None:
        while True:
            await asyncio.sleep(self._inbox.lease_seconds / 3)
            await asyncio.gather(*map(self._renew, self._leases))

    async def _renew(self, lease: Lease) -> None:
        try:
            valid = await self._inbox.renew(lease)
        except Exception as error:  # noqa: BLE001  # any inbox may fail in its own way
            _log.warning(
                "the lease of webhook %s wasn't renewed: %s", lease.webhook.id, describe_error(error)
            )
            return
        if not valid and lease in self._leases:
            self._leases.remove(lease)
            text = "the lease of webhook %s was lost while its handler runs; the handler may run again"
            _log.warning(text, lease.webhook.id)

    # ----------------------------------------------------------------------------------- one webhook

    async def _process(self, lease: Lease) -> None:
        """Run the handler of a leased webhook, and store the result."""
        try:
            store = await self._run_handler(lease)
            self._leases.discard(lease)  # a renewal that comes after the result would look like a lost lease
            await self._store_result(lease, store)
        finally:
            self._running -= 1
            self._leases.discard(lease)
            self._handler_ended.set()

    async def _run_handler(self, lease: Lease) -> StoreResult:
        """Run the handler of a webhook, and return the function that stores the result."""
        webhook = lease.webhook
        if webhook.attempts > self._settings.max_attempts:
            # Each time, the process ended while the handler was running. The handler may be the cause.
            _log.error("webhook %s is a dead letter: its last attempts didn't end", webhook.id)
            return partial(self._inbox.bury, lease, error=webhook.error or "LeaseExpired")
        try:
            async with asyncio.timeout(self._settings.handler_timeout):
                return await self._deliver(lease)
        except asyncio.CancelledError as error:
            # All handlers are cancelled at the end of the drain, or if a program cancels all of its tasks.
            assert self._task is not None  # noqa: S101  # it runs this handler
            if not self._task.cancelling():  # the handler has awaited something that was cancelled
                return self._after_failure(lease, error)
            _log.info("the handler of webhook %s was cancelled; it will run again", webhook.id)
            return partial(self._inbox.retry, lease, delay=0.0, error=type(error).__name__)
        except Exception as error:  # noqa: BLE001  # a handler may raise anything
            return self._after_failure(lease, error)

    async def _deliver(self, lease: Lease) -> StoreResult:
        # No local variable has the payload, because an error tracker may show the variables of all frames.
        webhook = lease.webhook
        assert webhook.body is not None  # noqa: S101  # that of a leased webhook isn't deleted
        pair = None
        if self._journal is not None and webhook.pair is not None:
            retrieved_at = datetime.fromtimestamp(webhook.sent_at, UTC)
            pair = await self._journal.record_retrieval(webhook.pair, retrieved_at=retrieved_at)
        parsed = Hidden(parse_leniently(webhook.body))
        handler = self._router.find_handler(parsed.reveal().event)
        if handler is not None:
            await handler(_to_delivery(webhook, parsed.reveal().event, pair))
        elif not parsed.reveal().documented:
            _log.error("webhook %s is a dead letter: it isn't as documented, and has no handler", webhook.id)
            return partial(self._inbox.bury, lease, error=WebhookDecodeError.__name__)
        else:
            _log.info("webhook %s has no handler", webhook.id)
        return partial(self._inbox.complete, lease)

    def _after_failure(self, lease: Lease, error: BaseException) -> StoreResult:
        """Log the failure of a handler, and return the function that stores it."""
        webhook, name = lease.webhook, type(error).__name__
        of_attempts = (webhook.id, webhook.attempts, self._settings.max_attempts)
        if webhook.attempts >= self._settings.max_attempts:
            text = "the handler of webhook %s failed, attempt %d of %d: it is a dead letter"
            _log.error(text, *of_attempts, exc_info=error)
            return partial(self._inbox.bury, lease, error=name)
        delay = full_jitter(self._settings.backoff, self._settings.max_backoff, webhook.attempts)
        text = "the handler of webhook %s failed, attempt %d of %d; the next one is in %.1f s"
        _log.error(text, *of_attempts, delay, exc_info=error)
        return partial(self._inbox.retry, lease, delay=delay, error=name)

    async def _store_result(self, lease: Lease, store: StoreResult) -> None:
        """Store a result. If the inbox fails for longer than a lease, the handler runs again."""
        loop, failures = asyncio.get_running_loop(), 0
        deadline = loop.time() + self._inbox.lease_seconds
        valid = False
        while True:
            try:
                valid = await store()
                break
            except Exception as error:  # noqa: BLE001  # any inbox may fail in its own way
                failures += 1
                seconds = full_jitter(_INBOX_BACKOFF, _MAX_INBOX_BACKOFF, failures)
                problem = describe_error(error)
            if loop.time() + seconds >= deadline:
                _log.error("the result of webhook %s wasn't stored: %s", lease.webhook.id, problem)
                return
            _log.warning("the inbox failed (%s); trying again in %.1f s", problem, seconds)
            await asyncio.sleep(seconds)
        if not valid:
            text = "the result of webhook %s wasn't stored, because its lease was lost; it may run again"
            _log.warning(text, lease.webhook.id)


def _to_delivery(
    webhook: StoredWebhook, event: WebhookEvent, pair: RetrievedPair | None
) -> Delivery[WebhookEvent]:
    return Delivery(
        event=event,
        body=webhook.body or b"",
        idempotency_key=webhook.id,
        attempt=webhook.attempts,
        sent_at=webhook.sent_at,
        received_at=webhook.received_at,
        pair_id=webhook.pair,
        pair=pair,
    )


def _report_crash(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.critical("the processing of webhooks has ended with an unexpected error", exc_info=error)
