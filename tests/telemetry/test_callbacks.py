"""`RelayClient(on_attempt=..., on_call_end=...)`: what the records say, and that they change nothing."""

from __future__ import annotations

import asyncio
import contextlib
import sys

import pytest
from attrs.exceptions import FrozenInstanceError
from batch_support import BreakingJournal
from canaries import CREDENTIALS, REPORT_TOKEN, SECRET, assert_no_canary
from cancellation_support import cancel_once_sent
from log_support import assert_documented, records_of
from support import CREATE, GET, OWNER, QUICK, REMOVE, issued_tokens

from plaid_relay_async import (
    AttemptEnd,
    BatchStoppedError,
    CallEnd,
    ConfigurationError,
    OutcomeUnknownError,
    PlaidRelayError,
    RelayClient,
    RelayCreateRequest,
    RelayGetRequest,
)
from plaid_relay_async.journal import Journal
from plaid_relay_async.simulator import Fault, Simulator


class Ends:
    """The records that the callbacks of a client receive."""

    def __init__(self) -> None:
        self.attempts: list[AttemptEnd] = []
        self.calls: list[CallEnd] = []

    def client(self, plaid: Simulator, credentials=OWNER, **settings) -> RelayClient:
        return RelayClient(
            credentials,
            base_url=plaid.url,
            on_attempt=self.attempts.append,
            on_call_end=self.calls.append,
            **{"retry": QUICK} | settings,
        )

    @property
    def outcomes(self) -> list[str]:
        return [end.outcome for end in self.calls]


@pytest.fixture
def ends() -> Ends:
    return Ends()


async def test_a_call_with_a_retry(plaid, ends):
    """Each attempt and the call have a record, with the same identifiers."""
    plaid.fail(Fault(path=CREATE, status=429, times=1, headers={"Retry-After": "0"}))
    async with ends.client(plaid) as client:
        await client.relay.create([plaid.add_report()], "p")
    first, second = ends.attempts
    (call,) = ends.calls
    assert (first.attempt, first.status, first.certainty) == (1, 429, "declined")
    assert (first.error_code, first.retry_after, second.retry_after) == ("RATE_LIMIT", 0.0, None)
    assert (second.attempt, second.status, second.certainty, second.error_code) == (
        2,
        200,
        "definitive",
        None,
    )
    assert (call.outcome, call.attempts, call.status, call.error_code) == ("succeeded", 2, None, None)
    assert call.request_id == second.request_id == plaid.ledger[0]["request_id"]
    for end in (first, second, call):
        assert (end.operation, end.call_id, end.partner) == (CREATE, call.call_id, "p")
        assert (end.batch_id, end.run) == (None, None)
    assert 0 < second.duration < call.duration
    with pytest.raises(FrozenInstanceError):
        call.outcome = "failed"  # type: ignore[misc]  # a deliberate mistake


ENDS = {
    "rejected": ({"status": 400}, "failed"),
    "lost": ({"close": True, "when": "after"}, "unknown"),
    "accepted": ({"latency": 0}, "succeeded"),
}


@pytest.mark.parametrize("name", ENDS)
async def test_the_outcome_is_the_same_everywhere(plaid, ends, every_log, name):
    """The callback, the log, the statistics and the batch agree about a call."""
    fault, outcome = ENDS[name]
    plaid.fail(Fault(path=CREATE, **fault))
    report = plaid.add_report()
    async with ends.client(plaid) as client:
        with contextlib.suppress(PlaidRelayError):
            await client.relay.create([report], "single")
        result = await client.relay.create_many(RelayCreateRequest.fan_out([report], ["batched"]))
        statistics = client.statistics()
    assert ends.outcomes == [outcome] * 2
    assert [record["outcome"] for record in records_of(every_log.records, event="call_end")] == [outcome] * 2
    assert statistics.outcomes == {outcome: 2}
    assert result.counts == {"created" if outcome == "succeeded" else outcome: 1}


@pytest.mark.parametrize("batched", [False, True])
async def test_a_token_that_was_not_removed(plaid, ends, batched):
    """A removal of which Plaid says that it removed nothing has failed, in a batch and outside."""
    plaid.fail(Fault(path=REMOVE, status=200, body={"removed": False, "request_id": "r"}))
    async with ends.client(plaid) as client:
        if batched:
            await client.relay.remove_many(["token"])
        else:
            assert not (await client.relay.remove("token")).removed
        assert client.statistics().outcomes == {"failed": 1}
    assert ends.outcomes == ["failed"]


async def test_the_calls_of_a_batch(plaid, ends):
    """They have the identifier of their batch, and the position of their request; none is left out."""
    requests = RelayCreateRequest.fan_out([plaid.add_report()], ["a", "b", "a"])
    async with ends.client(plaid) as client:
        await client.relay.create_many(requests, concurrency=1)
    (batch,) = {end.batch_id for end in (*ends.calls, *ends.attempts)}
    assert [end.call_id for end in ends.calls] == [f"{batch}-{number}" for number in (1, 2, 3)]
    assert [(end.outcome, end.attempts) for end in ends.calls] == [
        ("succeeded", 1),
        ("succeeded", 1),
        ("failed", 0),
    ]
    assert ends.calls[2].error_code == "DuplicateRequestError"


async def test_requests_that_a_batch_does_not_send(plaid, ends):
    """A request that was read and not sent has the outcome `not_attempted`, also in the statistics."""
    requests = RelayCreateRequest.fan_out([plaid.add_report()], ["a", "b"])
    async with ends.client(plaid) as client:
        with pytest.raises(BatchStoppedError):
            await client.relay.create_many(requests, journal=BreakingJournal(breaks_at_intent=0))
        assert client.statistics().outcomes == {"not_attempted": len(ends.calls)}
    assert set(ends.outcomes) == {"not_attempted"}


@pytest.mark.may_block
async def test_a_call_with_a_journal(plaid, ends, tmp_path):
    """Its records have the run; a call whose outcome the journal has already has no attempt."""
    report = plaid.add_report()
    async with Journal(tmp_path / "relay.db", run="nightly") as journal, ends.client(plaid) as client:
        for _ in range(2):
            await client.relay.create([report], "p", journal=journal)
        assert client.statistics().outcomes == {"succeeded": 2}
    assert [(end.run, end.outcome, end.attempts) for end in ends.calls] == [
        ("nightly", "succeeded", 1),
        ("nightly", "succeeded", 0),
    ]
    assert [end.run for end in ends.attempts] == ["nightly"]


async def test_a_cancelled_call(plaid, ends):
    """A read is cancelled; a creation that was sent ends with the outcome that its late outcome has."""
    plaid.fail(Fault(path=GET, stall=60), Fault(path=CREATE, when="after", latency=0.1))
    late = []
    async with ends.client(plaid, on_late_outcome=late.append) as client:
        await cancel_once_sent(plaid, GET, client.relay.get("token"))
        await cancel_once_sent(plaid, CREATE, client.relay.create([plaid.add_report()], "p"))
    assert [end.certainty for end in ends.attempts] == ["cancelled", "definitive"]
    assert ends.outcomes == ["cancelled", "succeeded"]
    assert late[0].relay_token


async def test_a_call_that_is_cancelled_before_it_is_sent(plaid, ends):
    """It is cancelled, and has no attempt."""

    class Stuck:
        async def acquire(self, endpoint: str) -> None:
            await asyncio.Event().wait()

    async with ends.client(plaid, rate_limiter=Stuck()) as client:
        task = asyncio.create_task(client.relay.create([plaid.add_report()], "p"))
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait([task])
    assert (ends.outcomes, ends.attempts) == (["cancelled"], [])


@pytest.mark.parametrize(("method", "outcome"), [("acquire", "failed"), ("on_rate_limited", "unknown")])
async def test_an_exception_that_ends_the_process(plaid, ends, method, outcome):
    """A call that ends with another exception than an error has a record, too, which assumes the worst."""

    class StopError(BaseException):
        pass

    class Limiter:
        async def acquire(self, endpoint: str) -> None:
            if method == "acquire":
                raise StopError

        def on_rate_limited(self, endpoint: str, retry_after: float | None) -> None:
            raise StopError

    plaid.fail(Fault(path=CREATE, status=429))
    async with ends.client(plaid, rate_limiter=Limiter()) as client:
        with pytest.raises(StopError):
            await client.relay.create([plaid.add_report()], "p")
        assert client.statistics().outcomes == {outcome: 1}
    assert [(end.outcome, end.error_code) for end in ends.calls] == [(outcome, "StopError")]


@pytest.mark.parametrize("error", [ValueError("canary-text"), asyncio.CancelledError("canary-text")])
async def test_a_callback_that_raises_changes_nothing(plaid, every_log, error):
    """The call succeeds, and the class of the error is logged."""

    def broken(_: object) -> None:
        raise error

    async with RelayClient(OWNER, base_url=plaid.url, on_attempt=broken, on_call_end=broken) as client:
        assert (await client.relay.create([plaid.add_report()], "p")).relay_token
        result = await client.relay.get_many([RelayGetRequest("no-such-token")])
    assert result.counts == {"failed": 1}
    errors = records_of(every_log.records, event="callback_error")
    assert [record["error_code"] for record in errors] == [type(error).__name__] * 4
    assert_documented(every_log.records)


@pytest.mark.parametrize("callback", ["on_attempt", "on_call_end"])
def test_a_callback_that_ends_the_process(callback):
    """The caller has the token before `sys.exit` ends the event loop."""
    tokens, issued = [], []

    def leave(_: object) -> None:
        if not tokens:
            sys.exit(7)

    async def program() -> None:
        async with Simulator(reports=[REPORT_TOKEN]) as plaid:
            async with RelayClient(OWNER, base_url=plaid.url, **{callback: leave}) as client:
                tokens.append((await client.relay.create([REPORT_TOKEN], "p")).relay_token)
                issued.extend(issued_tokens(plaid))
                await asyncio.Event().wait()

    with pytest.raises(SystemExit, match="7"):
        asyncio.run(program())
    assert tokens == issued
    assert len(issued) == 1


def test_callbacks_are_plain_functions():
    """An async function, and anything that can't be called, is rejected."""

    async def callback(_: object) -> None: ...

    for name in ("on_attempt", "on_call_end"):
        for value in (callback, 7):
            with pytest.raises(ConfigurationError, match=f"{name} must be a plain function"):
                RelayClient(OWNER, **{name: value})


async def test_secrets_are_hidden(ends):
    """A request ID that quotes the secret, and a token in place of a partner, are hidden."""
    async with Simulator(clients={"owner": SECRET}, reports=[REPORT_TOKEN]) as plaid:
        plaid.fail(
            Fault(path=CREATE, status=200, body={"relay_token": "t", "request_id": f"x {SECRET}"}, times=1)
        )
        async with ends.client(plaid, CREDENTIALS) as client:
            await client.relay.create([REPORT_TOKEN], "partner")
            await client.relay.create([REPORT_TOKEN], "credit-relay-sandbox-misplaced")
            with pytest.raises(OutcomeUnknownError):
                plaid.fail(Fault(path=CREATE, status=500, body={"error_code": SECRET}))
                await client.relay.create([REPORT_TOKEN], "partner")
    assert [end.request_id for end in (ends.attempts[0], ends.calls[0])] == ["[hidden]"] * 2
    assert {end.partner for end in (ends.attempts[1], ends.calls[1])} == {"[hidden]"}
    assert_no_canary(f"{ends.attempts} {ends.calls}")
