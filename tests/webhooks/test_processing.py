"""The processing of stored webhooks: handlers, retries, dead letters, leases, and the end."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import time

import anyio
import pytest
from attrs import frozen
from canaries import CREDENTIALS, assert_no_canary, package_frames
from processes import wait_until_async
from virtual_clock import run_virtually
from webhook_receiving import FaultyInbox, ready, stored

from plaid_relay_async import RelayClient
from plaid_relay_async.webhooks import (
    AssetsProductReadyWebhook,
    IncomingWebhook,
    UnknownWebhook,
    WebhookReceiver,
    WebhookRouter,
    WebhookState,
)
from plaid_relay_async.webhooks.processing import full_jitter

PAIR = "0123456789abcdef" * 2
FAST = {"backoff": 0.001, "max_backoff": 0.01}


@pytest.fixture
def router():
    return WebhookRouter()


@pytest.fixture
def new_receiver(inbox, router):
    """A function that creates a receiver with some settings; nothing is received over the network."""
    client = RelayClient(CREDENTIALS)

    def create(**settings) -> WebhookReceiver:
        return WebhookReceiver(client.webhooks, inbox, router, **{**FAST, **settings})

    return create


async def put(inbox, body: bytes | None = None, *, pair: str | None = None) -> None:
    await inbox.add(IncomingWebhook(ready() if body is None else body, time.time(), pair))


async def state_of(inbox) -> WebhookState:
    (webhook,) = await stored(inbox)
    return webhook.state


async def wait_for_states(inbox, *states: WebhookState) -> None:
    while [each.state for each in await stored(inbox)] != [*states]:
        await asyncio.sleep(0.002)


async def test_a_handler_gets_its_delivery(inbox, router, new_receiver):
    """A webhook that was stored is delivered with what identifies it, and is done afterwards."""
    deliveries = []

    @router.on(AssetsProductReadyWebhook)
    async def handle(delivery):
        deliveries.append(delivery)

    async with new_receiver():
        await put(inbox, pair=PAIR)
        await wait_for_states(inbox, WebhookState.DONE)
    (delivery,), (webhook,) = deliveries, await stored(inbox)
    assert delivery.event.asset_report_id == "canary-report-1"
    assert delivery.body == ready()
    assert delivery.idempotency_key == webhook.id
    assert (delivery.attempt, delivery.pair_id, delivery.pair) == (1, PAIR, None)
    assert (delivery.sent_at, delivery.received_at) == (webhook.sent_at, webhook.received_at)
    assert_no_canary(repr(delivery))
    assert "event=AssetsProductReadyWebhook" in repr(delivery)


async def test_a_webhook_of_an_earlier_process(inbox, router, new_receiver):
    """A webhook that is pending when the receiver is entered is delivered, too."""
    done = asyncio.Event()

    @router.default
    async def handle(delivery):
        done.set()

    await put(inbox)
    async with new_receiver():
        await done.wait()


async def test_a_failure_is_retried(inbox, router, new_receiver, clean_logs):
    """A handler that fails runs again with the same key; the log has the traceback, and no payload."""
    attempts = []

    @router.default
    async def handle(delivery):
        attempts.append((delivery.idempotency_key, delivery.attempt))
        if len(attempts) < 3:
            raise LookupError("of the handler")

    async with new_receiver():
        await put(inbox, pair=PAIR)
        await wait_for_states(inbox, WebhookState.DONE)
    (webhook,) = await stored(inbox)
    assert attempts == [(webhook.id, 1), (webhook.id, 2), (webhook.id, 3)]
    assert webhook.error == "LookupError"
    failures = [record for record in clean_logs.records if record.levelno == logging.ERROR]
    messages = [record.getMessage() for record in failures]
    assert [message.partition(";")[0] for message in messages] == [
        f"the handler of webhook {webhook.id} failed, attempt {number} of 12" for number in (1, 2)
    ]
    assert "LookupError: of the handler" in clean_logs.text
    assert PAIR not in clean_logs.text
    for record in failures:  # as an error tracker would show the package's frames
        assert_no_canary(package_frames(record.exc_info[1]))


async def test_a_dead_letter(inbox, router, new_receiver, caplog):
    """A webhook whose handler fails too often is a dead letter until it is delivered again by hand."""
    fails = True

    @router.default
    async def handle(delivery):
        if fails:
            raise LookupError

    async with new_receiver(max_attempts=3):
        await put(inbox)
        await wait_for_states(inbox, WebhookState.DEAD)
        (webhook,) = await stored(inbox)
        assert (webhook.attempts, webhook.error) == (3, "LookupError")
        assert "attempt 3 of 3: it is a dead letter" in caplog.text
        fails = False
        assert await inbox.redeliver(webhook.id)
        await wait_for_states(inbox, WebhookState.DONE)


async def test_a_webhook_that_ends_its_process_is_a_dead_letter(inbox, router, new_receiver, caplog):
    """A webhook whose last attempts never ended isn't attempted again: it may be what kills the process."""

    @router.default
    async def handle(delivery):
        raise AssertionError

    inbox.lease_seconds = 0.0
    await put(inbox)
    for _ in range(2):  # two processes that were killed
        assert await inbox.lease(1)
    inbox.lease_seconds = 60.0
    async with new_receiver(max_attempts=2):
        await wait_for_states(inbox, WebhookState.DEAD)
    (webhook,) = await stored(inbox)
    assert webhook.error == "LeaseExpired"
    assert "its last attempts didn't end" in caplog.text


async def test_no_handler(inbox, router, new_receiver):
    """A webhook that no handler is registered for is done."""
    async with new_receiver():
        await put(inbox)
        await wait_for_states(inbox, WebhookState.DONE)


@pytest.mark.parametrize(
    "body", [ready(7), b'{"webhook_type": "ASSETS", "webhook_code": "ERROR"}', b"[1]", b"\xff"]
)
async def test_an_undocumented_webhook(inbox, router, new_receiver, body):
    """An authentic webhook that isn't as documented is delivered as an `UnknownWebhook`, with its body."""
    deliveries = []

    @router.on(UnknownWebhook)
    async def handle(delivery):
        deliveries.append(delivery)

    @router.on(AssetsProductReadyWebhook)
    async def handle_documented(delivery):
        raise AssertionError

    async with new_receiver():
        await put(inbox, body)
        await wait_for_states(inbox, WebhookState.DONE)
    assert isinstance(deliveries[0].event, UnknownWebhook)
    assert deliveries[0].body == body
    if body == ready(7):
        assert deliveries[0].event.additional_properties["asset_report_id"] == 7


@pytest.mark.parametrize("body", [ready(7), b"[1]"])
async def test_an_undocumented_webhook_without_a_handler(inbox, router, new_receiver, body, caplog):
    """Without a handler for it, such a webhook is a dead letter: it isn't lost."""

    @router.on(AssetsProductReadyWebhook)
    async def handle(delivery):
        raise AssertionError

    async with new_receiver():
        await put(inbox, body)
        await wait_for_states(inbox, WebhookState.DEAD)
    (webhook,) = await stored(inbox)
    assert (webhook.attempts, webhook.error) == (1, "WebhookDecodeError")
    assert "it isn't as documented, and has no handler" in caplog.text


async def test_concurrency(inbox, router, new_receiver):
    """As many handlers run concurrently as `concurrency` permits, and no more."""
    running = highest = 0

    @router.default
    async def handle(delivery):
        nonlocal running, highest
        running += 1
        highest = max(highest, running)
        await asyncio.sleep(0.01)
        running -= 1

    for number in range(20):
        await put(inbox, ready(str(number)))
    async with new_receiver(concurrency=3):
        await wait_for_states(inbox, *[WebhookState.DONE] * 20)
    assert highest == 3


async def test_each_handler_has_its_own_context(inbox, router, new_receiver):
    """A context variable that one handler sets isn't set for the next."""
    variable = contextvars.ContextVar("variable", default=0)
    values = []

    @router.default
    async def handle(delivery):
        values.append(variable.get())
        variable.set(1)

    for number in range(3):
        await put(inbox, ready(str(number)))
    async with new_receiver(concurrency=1):
        await wait_for_states(inbox, *[WebhookState.DONE] * 3)
    assert values == [0, 0, 0]


async def test_a_handler_that_takes_too_long(inbox, router, new_receiver):
    """A handler has a time limit; exceeding it is a failure."""

    @router.default
    async def handle(delivery):
        if delivery.attempt == 1:
            await asyncio.sleep(60)

    async with new_receiver(handler_timeout=0.05):
        await put(inbox)
        await wait_for_states(inbox, WebhookState.DONE)
    (webhook,) = await stored(inbox)
    assert (webhook.attempts, webhook.error) == (2, "TimeoutError")


async def test_a_handler_that_is_cancelled_by_itself(inbox, router, new_receiver):
    """A handler that awaits a cancelled task has failed; the receiver continues."""

    @router.default
    async def handle(delivery):
        if delivery.attempt == 1:
            task = asyncio.ensure_future(asyncio.sleep(60))
            task.cancel()
            await task

    async with new_receiver(handler_timeout=None):
        await put(inbox)
        await wait_for_states(inbox, WebhookState.DONE)
    (webhook,) = await stored(inbox)
    assert (webhook.attempts, webhook.error) == (2, "CancelledError")


# --------------------------------------------------------------------------------------------- pairs


@frozen
class PairRecord:
    pair_id: str
    run: str = "run"
    secondary_client_id: str = "partner"
    outcome: str = "unknown"
    retrieved_at: None = None


class Journal:
    """A journal that knows one pair, and fails at first."""

    def __init__(self, failures: int = 0) -> None:
        self.failures = failures
        self.pairs, self.times = [], []

    async def record_retrieval(self, pair_id, *, retrieved_at):
        if self.failures:
            self.failures -= 1
            raise OSError("canary-journal")
        self.pairs.append(pair_id)
        self.times.append(retrieved_at)
        return PairRecord(pair_id) if pair_id == PAIR else None


async def test_a_retrieval_is_recorded_before_the_handler(inbox, router, new_receiver):
    """The journal records the pair's retrieval, with the time of the webhook, and the handler gets the pair."""
    journal, pairs = Journal(), []

    @router.default
    async def handle(delivery):
        pairs.append((delivery.pair, [*journal.pairs]))

    async with new_receiver(journal=journal):
        await put(inbox, pair=PAIR)
        await wait_for_states(inbox, WebhookState.DONE)
        await put(inbox, pair="f" * 32)
        await wait_for_states(inbox, *[WebhookState.DONE] * 2)
        await put(inbox)
        await wait_for_states(inbox, *[WebhookState.DONE] * 3)
    assert pairs == [
        (PairRecord(PAIR), [PAIR]),
        (None, [PAIR, "f" * 32]),
        (None, [PAIR, "f" * 32]),
    ]
    sent_at = [each.sent_at async for each in inbox.webhooks() if each.pair]
    assert [time.timestamp() for time in journal.times] == pytest.approx(sent_at)


async def test_a_retrieval_is_recorded_without_a_handler(inbox, router, new_receiver):
    """The retrieval is recorded whether there is a handler or not; a failing journal is tried again."""
    journal = Journal(failures=2)
    async with new_receiver(journal=journal):
        await put(inbox, pair=PAIR)
        await wait_for_states(inbox, WebhookState.DONE)
    assert journal.pairs == [PAIR]


# -------------------------------------------------------------------------------------------- leases


async def test_a_lease_is_renewed_while_the_handler_runs(router, new_receiver, inbox):
    """A handler that runs for several leases is the only one."""
    attempts = []

    @router.default
    async def handle(delivery):
        attempts.append(delivery.attempt)
        await asyncio.sleep(0.6)

    inbox.lease_seconds = 0.15
    inbox.failures["renew"] = 1  # one failure is made up for by the next renewal
    async with new_receiver():
        await put(inbox)
        await wait_for_states(inbox, WebhookState.DONE)
    assert attempts == [1]
    assert inbox.calls["renew"] > 3


async def test_a_renewal_during_the_end_of_a_lease(inbox, router, new_receiver, caplog):
    """A renewal that the inbox executes after the result doesn't look like a lost lease."""

    @router.default
    async def handle(delivery):
        await wait_until_async(lambda: inbox.calls["renew"])  # it is in progress when the handler ends

    inbox.lease_seconds = 0.1
    inbox.delays["renew"] = 0.2
    async with new_receiver():
        await put(inbox)
        await wait_for_states(inbox, WebhookState.DONE)
        await asyncio.sleep(0.3)
    assert caplog.records == []


@pytest.mark.parametrize("noticed_by", ["renew", "complete"])
async def test_a_lost_lease_is_logged(inbox, router, new_receiver, noticed_by, caplog):
    """If another process has the lease, the log says so, and the result isn't stored."""

    @router.default
    async def handle(delivery):
        entry = inbox._entries[delivery.idempotency_key]
        entry.fencing_token += 1  # as the lease of another process would
        if noticed_by == "renew":
            await wait_until_async(lambda: "was lost while its handler runs" in caplog.text)

    inbox.lease_seconds = 0.3
    async with new_receiver(drain=5.0):
        await put(inbox)
        await wait_until_async(lambda: "wasn't stored, because its lease was lost" in caplog.text)
    assert caplog.text.count("was lost") == (2 if noticed_by == "renew" else 1)
    assert await state_of(inbox) is WebhookState.PENDING


async def test_a_failing_inbox_is_waited_for(inbox, router, new_receiver, clean_logs):
    """If the inbox fails, the receiver tries again: to lease, and to store a result."""
    attempts = []

    @router.default
    async def handle(delivery):
        attempts.append(delivery.attempt)

    inbox.failures.update({"lease": 2, "complete": 2})
    async with new_receiver():
        await put(inbox)
        await wait_for_states(inbox, WebhookState.DONE)
    assert attempts == [1]
    assert clean_logs.text.count("the inbox failed (InboxError); trying again") == 4


async def test_a_result_that_can_not_be_stored(inbox, router, new_receiver, caplog):
    """If a result isn't stored within a lease, the webhook's handler runs again, and the log says why."""
    attempts = []

    @router.default
    async def handle(delivery):
        attempts.append(delivery.attempt)

    inbox.lease_seconds = 0.2
    inbox.failures["complete"] = 1_000
    async with new_receiver():
        await put(inbox)
        await wait_until_async(lambda: "wasn't stored: InboxError" in caplog.text)
        inbox.failures.clear()
        await wait_for_states(inbox, WebhookState.DONE)
    assert attempts[:2] == [1, 2]


async def test_an_inbox_whose_waits_fail(inbox, router, new_receiver, caplog):
    """An inbox that raises `TimeoutError` while it waits has failed like any other."""

    class Waiting(FaultyInbox):
        async def wait_until_due(self, timeout):  # noqa: ASYNC109  # as in `Inbox`
            await self._act("wait")
            raise TimeoutError

    failing = Waiting()
    async with WebhookReceiver(RelayClient(CREDENTIALS).webhooks, failing, router):
        await wait_until_async(lambda: failing.calls["wait"] >= 2)
    assert "the inbox failed (TimeoutError)" in caplog.text


async def test_a_broken_inbox_is_reported_at_once(router, caplog):
    """An unexpected error ends the processing, and the log says so immediately."""

    class Broken(FaultyInbox):
        @property
        def lease_seconds(self):
            raise RuntimeError("no seconds")

        @lease_seconds.setter
        def lease_seconds(self, value): ...

    async with WebhookReceiver(RelayClient(CREDENTIALS).webhooks, Broken(), router):
        await wait_until_async(lambda: "the processing of webhooks has ended" in caplog.text)
    assert caplog.records[-1].levelno == logging.CRITICAL


# ------------------------------------------------------------------------------------------- the end


async def test_leaving_drains(inbox, router, new_receiver):
    """At its end, the receiver waits for a running handler, and starts no other."""
    started, finished = asyncio.Event(), []

    @router.default
    async def handle(delivery):
        started.set()
        await asyncio.sleep(0.1)
        finished.append(delivery.event.asset_report_id)

    async with new_receiver(concurrency=1):
        await put(inbox, ready("1"))
        await put(inbox, ready("2"))
        await started.wait()
    assert finished == ["1"]
    assert [each.state for each in await stored(inbox)] == [WebhookState.DONE, WebhookState.PENDING]


async def test_a_handler_that_is_running_at_the_end_is_cancelled(inbox, router, new_receiver, caplog):
    """A handler that takes longer than the drain is cancelled, and its webhook is due immediately."""
    caplog.set_level(logging.INFO, logger="plaid_relay_async")
    started, cancelled = asyncio.Event(), []

    @router.default
    async def handle(delivery):
        started.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(delivery.attempt)
            raise

    async with new_receiver(drain=0.05):
        await put(inbox)
        await started.wait()
    assert cancelled == [1]
    assert "will run again: 1" in caplog.text
    (lease,) = await inbox.lease(1)
    assert (lease.webhook.attempts, lease.webhook.error) == (2, "CancelledError")


def test_a_program_that_cancels_all_of_its_tasks(inbox, router, new_receiver, clean_logs):
    """A handler that is cancelled because the program ends hasn't failed, although the receiver wasn't left."""

    async def serve() -> None:
        started = asyncio.Event()

        @router.default
        async def handle(delivery):
            started.set()
            await asyncio.sleep(60)

        await new_receiver(max_attempts=1).__aenter__()
        await put(inbox)
        await started.wait()

    asyncio.run(serve())
    assert asyncio.run(state_of(inbox)) is WebhookState.PENDING


async def test_a_handler_that_ends_although_it_is_cancelled(inbox, router, new_receiver):
    """A handler that catches the cancellation and returns has succeeded."""
    started = asyncio.Event()

    @router.default
    async def handle(delivery):
        started.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return

    async with new_receiver(drain=0.05):
        await put(inbox)
        await started.wait()
    assert await state_of(inbox) is WebhookState.DONE


def test_a_handler_that_does_not_end(inbox, router, new_receiver, caplog):
    """A handler that continues although it was cancelled delays the end by some seconds at most."""

    async def serve() -> float:
        started, released = asyncio.Event(), asyncio.Event()

        @router.default
        async def handle(delivery):
            started.set()
            while not released.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await released.wait()

        async with new_receiver(drain=1.0):
            await put(inbox)
            await started.wait()
            leaving = asyncio.get_running_loop().time()
        seconds = asyncio.get_running_loop().time() - leaving
        released.set()
        await wait_for_states(inbox, WebhookState.DONE)
        return seconds

    assert 6 <= run_virtually(serve()) < 7
    assert "haven't ended although they were cancelled: 1" in caplog.text


async def test_an_inbox_that_hangs_at_the_end(inbox, router, new_receiver):
    """An inbox that doesn't respond delays the end by the drain at most."""
    inbox.delays["lease"] = 60.0
    async with new_receiver(drain=0.05):
        await wait_until_async(lambda: inbox.calls["lease"])
    assert inbox.calls["lease"] == 1


async def test_leaving_during_a_lease(inbox, router, new_receiver):
    """A webhook that was leased when the receiver was closed is still handled."""

    @router.default
    async def handle(delivery): ...

    await put(inbox)
    inbox.delays["lease"] = 0.1
    async with new_receiver():
        await wait_until_async(lambda: inbox.calls["lease"])
    assert await state_of(inbox) is WebhookState.DONE


async def test_leaving_at_once(inbox, router, new_receiver):
    """A receiver can be left before it has done anything."""
    await put(inbox)
    async with new_receiver():
        pass
    assert await state_of(inbox) in WebhookState


async def test_leaving_while_nothing_is_leased(inbox, router, new_receiver):
    """If the inbox returns no lease after the receiver was closed, the receiver doesn't wait for one."""
    inbox.delays["lease"] = 0.1
    async with asyncio.timeout(5):
        async with new_receiver():
            await wait_until_async(lambda: inbox.calls["lease"])
    assert inbox.calls["lease"] == 1


@pytest.mark.parametrize("scope", ["asyncio", "anyio"])
async def test_a_cancelled_exit_drains(inbox, router, new_receiver, scope):
    """A cancellation, edge-triggered or level-triggered, doesn't cut off the drain, and isn't lost."""
    started, finished = asyncio.Event(), []

    @router.default
    async def handle(delivery):
        started.set()
        await asyncio.sleep(0.1)
        finished.append(1)

    async def serve() -> None:
        async with new_receiver():
            await put(inbox)
            await asyncio.Event().wait()

    if scope == "anyio":
        with anyio.CancelScope() as cancel_scope:
            async with anyio.create_task_group() as group:
                group.start_soon(serve)
                await started.wait()
                cancel_scope.cancel()
        assert cancel_scope.cancelled_caught
    else:
        task = asyncio.create_task(serve())
        await started.wait()
        task.cancel()
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert finished == [1]
    assert await state_of(inbox) is WebhookState.DONE


def test_a_handler_that_exits(inbox, router, new_receiver):
    """`SystemExit` of a handler ends the program, and the webhook stays pending."""

    @router.default
    async def handle(delivery):
        raise SystemExit(3)

    async def serve() -> None:
        async with new_receiver():
            await put(inbox)
            await asyncio.Event().wait()

    with pytest.raises(SystemExit, match="3"):
        asyncio.run(serve())
    (webhook,) = asyncio.run(stored(inbox))
    assert webhook.state is WebhookState.PENDING


async def test_two_receivers_share_an_inbox(inbox, router, new_receiver):
    """Each webhook is handled once, by one of two receivers."""
    handled = []

    @router.default
    async def handle(delivery):
        await asyncio.sleep(0)
        handled.append(delivery.event.asset_report_id)

    numbers = [str(number) for number in range(50)]
    async with new_receiver(concurrency=2), new_receiver(concurrency=2):
        for number in numbers:
            await put(inbox, ready(number))
        await wait_for_states(inbox, *[WebhookState.DONE] * 50)
    assert sorted(handled, key=int) == numbers


def test_backoff_is_a_random_part_of_an_exponential():
    """The wait is between 0 and an exponential that has a limit, also after any number of failures."""
    for failures, limit in ((1, 2.0), (2, 4.0), (5, 32.0), (12, 3600.0), (5000, 3600.0)):
        waits = [full_jitter(2.0, 3600.0, failures) for _ in range(200)]
        assert 0 <= min(waits) < limit / 4
        assert limit * 3 / 4 < max(waits) <= limit
