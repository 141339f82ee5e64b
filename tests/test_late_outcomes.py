"""The outcome of a call whose task was cancelled: it is reported before the cancellation is raised."""

from __future__ import annotations

import asyncio
import ssl
import sys
import time

import aiohttp
import anyio
import pytest
from canaries import CREDENTIALS, REPORT_TOKEN, SECRET, assert_no_canary
from cancellation_support import CANCELLATIONS, act_once_sent, cancel_once_sent, listening
from processes import wait_until_async
from servers import serving, stay_silent
from support import CREATE, GET, OWNER, QUICK, REMOVE, ClosedLimiter, RecordingJournal

from plaid_relay_async import (
    Completed,
    ConfigurationError,
    Created,
    Credentials,
    Failed,
    JournalError,
    OutcomeUnknownError,
    Refreshed,
    RelayClient,
    RelayCreateRequest,
    Removed,
    RetryPolicy,
    Timeouts,
    Unknown,
)
from plaid_relay_async.simulator import Fault, Simulator

# ----------------------------------------------------------------------------- which outcomes are reported


@CANCELLATIONS
@pytest.mark.parametrize("direct", [True, False])
async def test_a_cancelled_call_drains_and_its_outcome_is_reported(plaid, cancelled, direct):
    """A token that arrives after the cancellation goes to `on_late_outcome`, before the cancellation is raised."""
    plaid.fail(Fault(path=CREATE, when="after", latency=0.3))
    async with listening(plaid, direct=direct) as (client, late):
        report = plaid.add_report()
        await cancelled(plaid, CREATE, lambda: client.relay.create([report], "partner"))
        (outcome,) = late
        assert isinstance(outcome, Created)
        assert outcome.relay_token == plaid.ledger[0]["relay_token"]
        assert outcome.request == RelayCreateRequest([report], "partner")
        assert (outcome.attempts, outcome.journalled) == (1, False)
        assert outcome.elapsed >= 0.3
        assert client.statistics().outcomes == {"succeeded": 1}
        plaid.clear_faults()
        await client.relay.create([report], "another")
    assert asyncio.current_task().cancelling() == 0


async def test_the_drain_of_a_call_uses_no_cpu_time(plaid):
    """A call in a cancelled AnyIO scope waits without a busy loop, for as long as a drain lasts."""
    plaid.fail(Fault(path=CREATE, stall=60, when="after"))
    async with listening(plaid, timeouts=Timeouts(drain=2)) as (client, late):
        started: list[float] = []

        def cancel() -> None:
            scope.cancel()
            started.append(time.process_time())

        with anyio.CancelScope() as scope:
            asyncio.get_running_loop().create_task(act_once_sent(plaid, CREATE, cancel))
            await client.relay.create([plaid.add_report()], "partner")
        assert time.process_time() - started[0] < 0.1
        assert [type(outcome) for outcome in late] == [Unknown]
        assert scope.cancelled_caught


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ({"status": 400}, Failed),
        ({"status": 429, "times": 1}, Failed),
        ({"close": True}, Unknown),
        ({"status": 500}, Unknown),
        ({"truncate": 90}, Created),
        ({"truncate": 10}, Unknown),
    ],
)
async def test_each_kind_of_outcome_is_reported(plaid, fault, kind):
    """The response determines the outcome, and the call isn't repeated."""
    plaid.fail(Fault(path=CREATE, latency=0.1, when="after" if kind is not Failed else "before", **fault))
    async with listening(plaid) as (client, late):
        await cancel_once_sent(plaid, CREATE, client.relay.create([plaid.add_report()], "partner"))
    assert [type(outcome) for outcome in late] == [kind]
    assert plaid.counts[CREATE] == 1


async def test_the_operations_whose_outcome_is_reported(plaid):
    """Every call that changes something reports its outcome; a read is cancelled immediately."""
    async with listening(plaid) as (client, late):
        report = plaid.add_report()
        created = await client.relay.create([report], OWNER.client_id)
        item = await client.sandbox.create_public_token()
        plaid.fail(Fault(when="after", latency=0.1))
        for path, kind, make in (
            ("/credit/relay/refresh", Refreshed, lambda: client.relay.refresh(created.relay_token)),
            ("/asset_report/refresh", Completed, lambda: client.asset_report.refresh(report)),
            ("/sandbox/public_token/create", Completed, client.sandbox.create_public_token),
            (
                "/item/public_token/exchange",
                Completed,
                lambda: client.item.exchange_public_token(item.public_token),
            ),
            (REMOVE, Removed, lambda: client.relay.remove(created.relay_token)),
        ):
            plaid.counts[path] = 0
            await cancel_once_sent(plaid, path, make())
            assert type(late[-1]) is kind, path
            assert late[-1].response.request_id == late[-1].request_id
        count = len(late)
        plaid.fail(Fault(path=GET, stall=60))
        await cancel_once_sent(plaid, GET, client.relay.get("token"))
        assert len(late) == count == 5


async def test_a_call_that_is_cancelled_before_it_is_sent_has_no_outcome(plaid):
    """A call is cancelled immediately while it waits for a limiter, and while it connects."""
    async with listening(plaid, rate_limiter=ClosedLimiter()) as (client, late):
        task = asyncio.ensure_future(client.relay.create([plaid.add_report()], "partner"))
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait([task])
        assert (task.cancelled(), late) == (True, [])
    async with (
        serving(stay_silent, "https") as (url, accepted),
        listening(plaid, base_url=url, ssl=ssl.create_default_context()) as (client, late),
    ):
        task = asyncio.ensure_future(client.relay.create([plaid.add_report()], "partner"))
        await wait_until_async(lambda: accepted)
        task.cancel()
        await asyncio.wait([task])
        assert (task.cancelled(), late) == (True, [])
        assert client.statistics().attempts == {"cancelled": 1}


async def test_a_call_that_is_cancelled_before_its_intent_has_no_late_outcome(plaid):
    """While the journal looks the pair up, nothing can have been sent."""
    asked = asyncio.Event()

    class Asked(RecordingJournal):
        async def acquire_recorder(self, request, context):
            asked.set()
            await asyncio.Event().wait()

    async with listening(plaid) as (client, late):
        task = asyncio.ensure_future(client.relay.create(["report"], "partner", journal=Asked()))
        await asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert (late, plaid.counts[CREATE]) == ([], 0)


@pytest.mark.parametrize(
    ("fault", "replay", "kind"),
    [
        (Fault(status=429, headers={"Retry-After": "30"}, times=1), "safe", Failed),
        (Fault(close=True, when="after", times=1), "always", Unknown),
    ],
)
async def test_a_call_that_is_cancelled_between_two_attempts_reports_the_first(plaid, fault, replay, kind):
    """A call between two attempts is cancelled immediately, with the outcome of the first."""
    plaid.fail(fault)
    retry = RetryPolicy(replay=replay, backoff=100.0, max_backoff=100.0, max_pause=1e6)
    async with listening(plaid, retry=retry) as (client, late):
        task = asyncio.ensure_future(client.relay.create([plaid.add_report()], "partner"))
        while not client.statistics().retries:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
    (outcome,) = late
    assert (type(outcome), outcome.attempts) == (kind, 1)


class UncheckedJournal(RecordingJournal):
    async def record_intent(self, request) -> None: ...

    async def record_outcome(self, outcome) -> None: ...


WITH_AND_WITHOUT_JOURNAL = pytest.mark.parametrize(
    "journal", [None, UncheckedJournal()], ids=["without a journal", "with a journal"]
)


@WITH_AND_WITHOUT_JOURNAL
async def test_a_call_of_which_no_attempt_was_sent_has_no_late_outcome(plaid, journal):
    """A call is cancelled while it waits to retry an attempt that failed in the TLS handshake."""

    async def end_connection(reader, writer) -> None: ...

    retry = RetryPolicy(backoff=100.0, max_backoff=100.0, max_pause=1e6)
    async with (
        serving(end_connection, "https") as (url, _),
        listening(plaid, base_url=url, ssl=ssl.create_default_context(), retry=retry) as (client, late),
    ):
        task = asyncio.ensure_future(client.relay.create(["report"], "partner", journal=journal))
        await wait_until_async(lambda: client.statistics().retries)
        task.cancel()
        await asyncio.wait([task])
        assert (task.cancelled(), late) == (True, [])
        assert client.statistics().attempts == {"not_sent": 1}


@WITH_AND_WITHOUT_JOURNAL
async def test_an_attempt_after_one_that_was_not_sent_has_a_late_outcome(plaid, journal):
    """The first attempt finds no credentials, and the call is cancelled during the second one."""
    sources = iter([OSError("no credentials"), OWNER])
    late = []

    async def fetch_credentials() -> Credentials:
        source = next(sources)
        if isinstance(source, OSError):
            raise source
        return source

    plaid.fail(Fault(path=CREATE, when="after", latency=0.1))
    async with RelayClient(
        fetch_credentials, base_url=plaid.url, retry=QUICK, on_late_outcome=late.append
    ) as client:
        await cancel_once_sent(
            plaid, CREATE, client.relay.create([plaid.add_report()], "partner", journal=journal)
        )
    assert [type(outcome) for outcome in late] == [Created]


async def test_the_deadline_of_a_call_ends_its_drain(plaid):
    """`timeout=` includes the drain: when it has passed, the outcome is unknown."""
    plaid.fail(Fault(path=CREATE, stall=60, when="after"))
    async with listening(plaid, timeouts=Timeouts(drain=60)) as (client, late):
        created = client.relay.create([plaid.add_report()], "partner", timeout=2)
        async with asyncio.timeout(30):
            await cancel_once_sent(plaid, CREATE, created)
    assert [type(outcome) for outcome in late] == [Unknown]


async def test_a_timeout_within_a_session_is_not_a_cancellation_of_the_call(plaid):
    """A middleware's own timeout ends the attempt, not the task."""

    async def impatient(request, handler):
        async with asyncio.timeout(1):
            return await handler(request)

    plaid.fail(Fault(path=CREATE, stall=60, when="after"))
    async with (
        aiohttp.ClientSession(middlewares=(impatient,)) as session,
        listening(plaid, session=session, timeouts=Timeouts(drain=0.1)) as (client, late),
    ):
        with pytest.raises(OutcomeUnknownError):
            await client.relay.create([plaid.add_report()], "partner")
        assert late == []
        assert asyncio.current_task().cancelling() == 0


# -------------------------------------------------------------------------------- the callback and the log


def lost_token(caplog) -> str:
    """Return the message of the warning about a lost token, which the event loop has received as well."""
    (warning,) = [each for each in caplog.records if getattr(each, "plaid_event", None) == "late_outcome"]
    (error,) = [each for each in caplog.records if each.name == "asyncio"]
    assert (warning.levelname, error.levelname) == ("WARNING", "ERROR")
    assert error.getMessage() == f"a token was lost: {warning.getMessage()}"
    return warning.getMessage()


async def test_without_a_callback_a_late_outcome_is_logged(plaid, client, caplog):
    """The warning names the operation, the partner and the request ID, and contains no token."""
    plaid.fail(Fault(path=CREATE, when="after", latency=0.1))
    await cancel_once_sent(plaid, CREATE, client.relay.create([plaid.add_report()], "partner"))
    (entry,) = plaid.ledger
    text = lost_token(caplog)
    for detail in (f"operation={CREATE}", "outcome=succeeded", "partner=partner", entry["request_id"]):
        assert detail in text
    assert entry["relay_token"] not in caplog.text


@pytest.mark.parametrize("request_id", ["r\nERROR root: \x1b[2J", f"x {SECRET}", SECRET, "x, outcome=failed"])
@pytest.mark.parametrize("journal", [None, UncheckedJournal], ids=["alone", "with a journal"])
async def test_the_log_of_a_late_outcome_shows_only_identifiers(caplog, request_id, journal):
    """A request ID that a server chose can't add a line or a field to the log, act on a terminal, or be a secret."""

    class Broken(UncheckedJournal):
        async def record_outcome(self, outcome) -> None:
            raise JournalError("the disk is full")

    body = {"relay_token": "credit-relay-late", "request_id": request_id}
    async with (
        Simulator(clients={"owner": SECRET}, reports=[REPORT_TOKEN]) as plaid,
        RelayClient(CREDENTIALS, base_url=plaid.url) as client,
    ):
        plaid.fail(Fault(path=CREATE, status=200, body=body, latency=0.1))
        call = client.relay.create(
            [REPORT_TOKEN], "partner", **({} if journal is None else {"journal": Broken()})
        )
        await cancel_once_sent(plaid, CREATE, call)
    assert "request_id=[hidden], " in lost_token(caplog)
    assert_no_canary(caplog.text)


async def test_a_late_token_without_a_request_id_is_logged(plaid, client, caplog):
    """A response that was cut off after its token has no request ID."""
    plaid.fail(Fault(path=CREATE, when="after", latency=0.1, truncate=90))
    await cancel_once_sent(plaid, CREATE, client.relay.create([plaid.add_report()], "partner"))
    assert "request_id=" not in lost_token(caplog)


async def test_a_late_unknown_outcome_is_logged_once(plaid, client, caplog):
    """There is no token to lose: the end of the call is the only warning."""
    plaid.fail(Fault(path=CREATE, close=True, when="after", latency=0.1))
    await cancel_once_sent(plaid, CREATE, client.relay.create([plaid.add_report()], "partner"))
    (record,) = caplog.records
    assert record.getMessage().startswith("call_end: ")


async def test_a_removal_is_no_lost_token(plaid, client, caplog):
    """The event loop's exception handler receives lost tokens only."""
    created = await client.relay.create([plaid.add_report()], "partner")
    plaid.fail(Fault(path=REMOVE, when="after", latency=0.1))
    await cancel_once_sent(plaid, REMOVE, client.relay.remove(created.relay_token))
    assert [record.name for record in caplog.records] == ["plaid_relay_async.calls"]


async def test_an_exception_handler_receives_a_lost_token(plaid, client):
    """A handler that a program has set is called; what it raises doesn't replace the cancellation."""
    contexts = []

    def handler(_loop, context):
        contexts.append(context)
        raise ZeroDivisionError

    plaid.fail(Fault(path=CREATE, when="after", latency=0.1))
    asyncio.get_running_loop().set_exception_handler(handler)
    try:
        await cancel_once_sent(plaid, CREATE, client.relay.create([plaid.add_report()], "partner"))
    finally:
        asyncio.get_running_loop().set_exception_handler(None)
    (context,) = contexts
    assert context["message"].startswith(f"a token was lost: late_outcome: operation={CREATE}, ")
    assert plaid.ledger[0]["relay_token"] not in repr(context)


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_an_exception_handler_that_ends_the_process(error):
    """The call is cancelled before the event loop ends with what the handler raised."""
    cancelled = []

    def handler(_loop, _context):
        raise error

    async def program():
        asyncio.get_running_loop().set_exception_handler(handler)
        fault = Fault(path=CREATE, when="after", latency=0.1)
        async with (
            Simulator(reports=[REPORT_TOKEN], faults=[fault]) as plaid,
            RelayClient(OWNER, base_url=plaid.url) as client,
        ):
            task = asyncio.ensure_future(client.relay.create([REPORT_TOKEN], "partner"))
            task.add_done_callback(lambda task: cancelled.append(task.cancelled()))
            await act_once_sent(plaid, CREATE, task.cancel)
            await asyncio.Event().wait()

    with pytest.raises(error):
        asyncio.run(program())
    assert cancelled == [True]


LOSING_PROGRAM = """
import asyncio
from plaid_relay_async import Credentials, RelayClient
from plaid_relay_async.simulator import Fault, Simulator

async def main():
    async with (
        Simulator(reports=["report"], faults=[Fault(when="after", latency=1)]) as plaid,
        RelayClient(Credentials("a", "secret"), base_url=plaid.url) as client,
    ):
        task = asyncio.create_task(client.relay.create(["report"], "ann"))
        while not plaid.counts["/credit/relay/create"]:
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait([task])
        print(plaid.ledger[0]["relay_token"])

asyncio.run(main())
"""


async def test_a_program_without_logging_shows_a_lost_token():
    """A program that doesn't configure logging prints that a token was lost, as asyncio prints a lost exception."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-Ic", LOSING_PROGRAM),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = (stream.decode() for stream in await process.communicate())
    (line,) = err.splitlines()
    assert line.startswith(f"a token was lost: late_outcome: operation={CREATE}, call_id=")
    assert "partner=ann" in line
    assert "on_late_outcome=" in line
    assert out.strip() not in line


@pytest.mark.parametrize("error", [ValueError, asyncio.CancelledError])
async def test_a_callback_that_raises_does_not_take_the_cancellation_away(plaid, caplog, error):
    """The outcome is logged in its place, with the class of the error and without its text."""

    def callback(outcome) -> None:
        raise error(outcome.relay_token)

    plaid.fail(Fault(path=CREATE, when="after", latency=0.1))
    async with listening(plaid, on_late_outcome=callback) as (client, _):
        await cancel_once_sent(plaid, CREATE, client.relay.create([plaid.add_report()], "partner"))
    assert f"on_late_outcome raised {error.__name__}" in lost_token(caplog)
    assert plaid.ledger[0]["relay_token"] not in caplog.text


@pytest.mark.parametrize("callback", [act_once_sent, "print"])
def test_the_callback_is_a_plain_function(callback):
    """An async function, or something that can't be called, is rejected when the client is created."""
    with pytest.raises(ConfigurationError, match="on_late_outcome must be a plain function"):
        RelayClient(OWNER, on_late_outcome=callback)


@pytest.mark.may_block
@pytest.mark.parametrize("breaks", [False, True])
async def test_a_late_outcome_of_a_call_with_a_journal(plaid, tmp_path, caplog, breaks):
    """A late outcome is reported as journalled or not, and logged only if the journal doesn't have it."""

    class Broken(UncheckedJournal):
        async def record_outcome(self, outcome) -> None:
            if breaks:
                raise JournalError("the disk is full")

    plaid.fail(Fault(path=CREATE, when="after", latency=0.1))
    report = plaid.add_report()
    async with listening(plaid) as (client, late):
        await cancel_once_sent(plaid, CREATE, client.relay.create([report], "partner", journal=Broken()))
    assert [(type(outcome), outcome.journalled) for outcome in late] == [(Created, not breaks)]
    plaid.counts.clear()
    async with listening(plaid, on_late_outcome=None) as (client, _):
        await cancel_once_sent(plaid, CREATE, client.relay.create([report], "another", journal=Broken()))
    assert ("late_outcome" in caplog.text) == breaks
