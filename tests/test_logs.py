"""What the package logs; tests/test_matrix.py checks the records of each fault."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import sys
from collections import Counter

import pytest
from attrs import fields_dict
from batch_support import BreakingJournal, all_outcomes
from canaries import CREDENTIALS, REPORT_TOKEN, SECRET, assert_no_canary
from cancellation_support import act_once_sent, cancel_once_sent
from journal_support import KEY
from log_support import (
    EVENTS,
    FIELDS,
    Story,
    assert_documented,
    fields_of,
    records_of,
    story_from_log,
)
from support import CREATE, GET, OWNER, QUICK, REMOVE

from plaid_relay_async import (
    BatchStoppedError,
    ConfigurationError,
    InboxError,
    JournalError,
    NotSentError,
    OutcomeUnknownError,
    PlaidRelayError,
    RelayClient,
    RelayCreateRequest,
    Timeouts,
)
from plaid_relay_async.gateway import new_key
from plaid_relay_async.inbox import SQLInbox
from plaid_relay_async.journal import Journal
from plaid_relay_async.simulator import Fault, Simulator
from plaid_relay_async.telemetry import Fields


@pytest.fixture
def log(every_log):
    """The log at DEBUG; check after the test that each record is as documented."""
    yield every_log
    assert_documented(every_log.records)


def story(log, **fields):
    """Return what happened, as the events of the records with certain values tell it."""
    names = ("event", "attempt", "status", "error_code", "certainty", "outcome")
    return [
        " ".join(str(record[name]) for name in names if name in record)
        for record in records_of(log.records, **fields)
    ]


def test_logs_md_lists_every_field():
    """docs/logs.md has a row for each field, and its events have only these."""
    assert set(fields_dict(Fields)) == FIELDS
    assert set().union(*(fields for fields, _ in EVENTS.values())) == FIELDS


# ------------------------------------------------------------------------------------ what happened to a pair


async def test_a_single_call(plaid, client, log):
    """The attempt and the end of a call have the same identifier, and those of another call have another."""
    report = plaid.add_report()
    await client.relay.create([report], "ann")
    await client.relay.create([report], "bob")
    attempt, end, *others = records_of(log.records)
    assert attempt["call"] == end["call"] not in {each["call"] for each in others}
    assert attempt["request_id"] == plaid.ledger[0]["request_id"]
    assert story(log, partner="ann") == ["attempt 1 200 definitive", "call_end succeeded"]
    assert 0 < attempt["duration"] <= end["duration"]


PAIRS = {
    "declined": (
        {"status": 429, "times": 1, "headers": {"Retry-After": "0.01"}},
        [
            "attempt 1 429 RATE_LIMIT declined",
            "retry 1 429 RATE_LIMIT",
            "attempt 2 200 definitive",
            "call_end succeeded",
        ],
    ),
    "rejected": (
        {"status": 400, "body": {"error_type": "INVALID_INPUT", "error_code": "INVALID_FIELD"}},
        ["attempt 1 400 INVALID_FIELD definitive", "call_end 400 INVALID_FIELD failed"],
    ),
    "lost": (
        {"close": True, "when": "after"},
        ["attempt 1 OutcomeUnknownError in_doubt", "call_end OutcomeUnknownError unknown"],
    ),
    "truncated": (
        {"truncate": 10, "when": "after"},
        ["attempt 1 200 OutcomeUnknownError in_doubt", "call_end 200 OutcomeUnknownError unknown"],
    ),
}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("batched", [False, True])
async def test_what_happened_to_one_pair(plaid, client, log, name, batched):
    """The records of one pair tell what happened to it, among those of others."""
    fault, events = PAIRS[name]
    plaid.fail(Fault(path=CREATE, secondary_client_id="p7", **fault))
    report, partners = plaid.add_report(), [f"p{n}" for n in range(1, 11)]
    if batched:
        await client.relay.create_many(RelayCreateRequest.fan_out([report], partners), concurrency=4)
        start, end = records_of(log.records, operation=CREATE)[0], records_of(log.records)[-1]
        assert (start["event"], end["event"]) == ("batch_start", "batch_end")
        call = f"{start['batch']}-7"
    else:
        await asyncio.gather(
            *(client.relay.create([report], partner) for partner in partners), return_exceptions=True
        )
        call = records_of(log.records, partner="p7")[0]["call"]
    told = story(log, call=call)
    assert told == story(log, partner="p7")
    assert [each.replace("RATE_LIMIT_EXCEEDED", "RATE_LIMIT") for each in told] == events


async def test_each_pair_of_a_batch(plaid, client, log):
    """For each pair, the log has its outcome, the number of its attempts and their reasons, as the batch has them."""
    faults = [("p3", "declined"), ("p7", "rejected"), ("p11", "lost"), ("p16", "truncated")]
    plaid.fail(
        *(Fault(path=CREATE, secondary_client_id=partner, **PAIRS[name][0]) for partner, name in faults)
    )
    partners = [f"p{n}" for n in range(1, 21)]
    result = await client.relay.create_many(
        RelayCreateRequest.fan_out([plaid.add_report()], partners), concurrency=5
    )
    batch = records_of(log.records, event="batch_start")[0]["batch"]
    told = {
        partner: story_from_log(log.records, f"{batch}-{n}") for n, partner in enumerate(partners, start=1)
    }
    outcomes = {outcome.request.secondary_client_id: outcome for outcome in all_outcomes(result)}
    assert told == {partner: Story.of(outcomes[partner]) for partner in partners}
    assert Counter(story.outcome for story in told.values()) == {"succeeded": 17, "failed": 1, "unknown": 2}
    # So has the simulator.
    requests = Counter(request.secondary_client_id for request in plaid.requests)
    assert requests == {partner: story.attempts for partner, story in told.items()}


async def test_a_retry(plaid, client, log):
    """A retry is logged at INFO, with the reason and the wait."""
    plaid.fail(Fault(path=GET, close=True, times=1))
    with contextlib.suppress(PlaidRelayError):
        await client.relay.get("no-such-token")
    (retry,) = records_of(log.records, event="retry")
    assert (retry["operation"], retry["attempt"], retry["error_code"]) == (GET, 1, "ConnectionLostError")
    assert 0 <= retry["wait"] < 1


async def test_a_cancelled_read(plaid, client, log):
    """An attempt that was cancelled is logged as such, and so is its call."""
    plaid.fail(Fault(path=GET, stall=60))
    await cancel_once_sent(plaid, GET, client.relay.get("no-such-token"))
    assert story(log) == ["attempt 1 cancelled", "call_end cancelled"]


async def test_a_call_that_is_not_sent(plaid, log):
    """A call without an attempt has an end as well."""

    class Broken:
        async def acquire(self, endpoint: str) -> None:
            raise ZeroDivisionError

    async with RelayClient(OWNER, base_url=plaid.url, rate_limiter=Broken()) as client:
        result = await client.relay.create_many(
            RelayCreateRequest.fan_out([plaid.add_report()], ["p"]), retry=QUICK
        )
    assert result.counts == {"failed": 1}
    assert story(log, call=records_of(log.records, event="call_end")[0]["call"])[-1] == (
        "call_end NotSentError failed"
    )
    assert not records_of(log.records, event="attempt")


@pytest.mark.parametrize("callback", [None, lambda outcome: 1 / 0])
async def test_a_late_outcome(plaid, log, callback):
    """A late outcome that no function receives has the identifier of its call."""
    plaid.fail(Fault(path=CREATE, when="after", latency=0.1))
    async with RelayClient(OWNER, base_url=plaid.url, on_late_outcome=callback) as client:
        await cancel_once_sent(plaid, CREATE, client.relay.create([plaid.add_report()], "p"))
    assert story(log) == ["attempt 1 200 definitive", "call_end succeeded", "late_outcome succeeded"]
    assert len({record["call"] for record in records_of(log.records)}) == 1


async def test_a_removal_without_a_readable_response(plaid, client, log):
    """The outcome of a removal is unknown to the log and to the statistics, as it would be in a batch."""
    plaid.fail(Fault(path=REMOVE, status=200, body="{"))
    with contextlib.suppress(PlaidRelayError):
        await client.relay.remove("credit-relay-x")
    (end,) = records_of(log.records, event="call_end")
    assert (end["outcome"], end["error_code"]) == ("unknown", "ResponseDecodeError")
    assert client.statistics().outcomes == {"unknown": 1}


# --------------------------------------------------------------------------------------- batches and journals


async def test_a_batch(plaid, client, log):
    """The start and the end of a batch are logged at INFO, with the counts and the error that stopped it."""
    plaid.fail(
        Fault(path=CREATE, status=400, body={"error_code": "INVALID_API_KEYS", "error_type": "INVALID_INPUT"})
    )
    requests = RelayCreateRequest.fan_out([plaid.add_report()], [f"p{n}" for n in range(9)])
    await client.relay.create_many(requests, concurrency=1)
    start, end = records_of(log.records, event="batch_start") + records_of(log.records, event="batch_end")
    assert start["batch"] == end["batch"]
    counts = [end[name] for name in ("succeeded", "failed", "unknown", "not_attempted")]
    assert (counts, end["error_code"]) == ([0, 3, 0, 0], "INVALID_API_KEYS")


async def test_requests_that_a_batch_does_not_send(plaid, client, log):
    """A request that was read and not sent has a record."""
    requests = RelayCreateRequest.fan_out([plaid.add_report()], ["p1", "p2"])
    batch = client.relay.create_many(requests, journal=BreakingJournal(breaks_at_intent=0))
    with pytest.raises(BatchStoppedError):
        await batch
    assert [record["outcome"] for record in records_of(log.records, event="call_end")].count("not_attempted")
    assert records_of(log.records, event="batch_end")[0]["error_code"] == "OSError"


@pytest.mark.parametrize("batched", [False, True])
async def test_a_lost_journal_write(plaid, client, log, batched):
    """An outcome that the journal doesn't confirm is logged as a warning, and the caller receives it."""
    report, journal = plaid.add_report(), BreakingJournal(breaks_at_outcome=1)
    if batched:
        with pytest.raises(BatchStoppedError):
            await client.relay.create_many(RelayCreateRequest.fan_out([report], ["p"]), journal=journal)
    else:
        assert (await client.relay.create([report], "p", journal=journal)).relay_token
    (record,) = [record for record in log.records if record.name == "plaid_relay_async.journal"]
    assert fields_of(record)["event"] == "write_lost"
    assert fields_of(record)["outcome"] == "succeeded"


async def test_a_lost_write_in_the_background(plaid, client, log):
    """A write that continues after the batch was abandoned is reported once, also if it fails."""
    journal = BreakingJournal(breaks_at_outcome=1)
    plaid.fail(Fault(path=CREATE, stall=60))
    batch = client.relay.create_many(RelayCreateRequest.fan_out([plaid.add_report()], ["p"]), journal=journal)
    asyncio.get_running_loop().create_task(act_once_sent(plaid, CREATE, batch.abandon))
    with contextlib.suppress(asyncio.CancelledError):
        await batch
    for _ in range(5):
        await asyncio.sleep(0)
    gc.collect()
    assert [record["outcome"] for record in records_of(log.records, event="write_lost")] == ["unknown"]
    assert not [record for record in log.records if record.name == "asyncio" and record.levelname == "ERROR"]


@pytest.mark.may_block
async def test_a_call_with_a_journal(plaid, client, log, tmp_path):
    """The end of a recorded call has the run, also if the journal has the outcome already."""
    plaid.fail(Fault(path=CREATE, close=True, when="after"))
    report = plaid.add_report()
    async with Journal(tmp_path / "relay.db", run="nightly-production-2026") as journal:
        assert journal.run == "nightly-production-2026"
        for _ in range(2):
            with pytest.raises(OutcomeUnknownError):
                await client.relay.create([report], "p", journal=journal)
        await client.relay.create_many(RelayCreateRequest.fan_out([report], ["p"]), journal=journal)
    ends = records_of(log.records, event="call_end")
    assert [(end["attempts"], end["outcome"], end["run"]) for end in ends] == [
        (attempts, "unknown", "nightly-production-2026") for attempts in (1, 0, 0)
    ]
    assert not records_of(log.records, event="write_lost")
    assert {record["run"] for record in records_of(log.records) if "batch" in record} == {ends[0]["run"]}


# -------------------------------------------------------------------------------------------------- secrets


async def test_secrets_in_identifiers_are_hidden(log):
    """A request ID that quotes the secret, and a token in place of a partner, are hidden."""
    async with (
        Simulator(clients={"owner": SECRET}, reports=[REPORT_TOKEN]) as plaid,
        RelayClient(CREDENTIALS, base_url=plaid.url) as client,
    ):
        plaid.fail(
            Fault(
                path=CREATE,
                status=200,
                body={"relay_token": "a-token", "request_id": f"x {SECRET}\n"},
                times=1,
            )
        )
        await client.relay.create([REPORT_TOKEN], "partner")
        await client.relay.create([REPORT_TOKEN], "credit-relay-sandbox-misplaced")
    assert records_of(log.records, partner="partner")[0]["request_id"] == "[hidden]"
    assert len(records_of(log.records, partner="[hidden]")) == 2


@pytest.mark.may_block
async def test_secrets_in_settings_are_hidden(every_log):
    """The log has neither a gateway's key, nor the password of a proxy or a database, nor the key of a journal."""
    url = "postgresql://user:canary-password@127.0.0.1:1/relay"
    for store in (Journal(url, run="x", key=KEY), SQLInbox(url, key=KEY)):
        with pytest.raises((JournalError, InboxError)):
            await store.open()
    _, gateway_key = new_key("lender")
    proxy = "http://user:canary-password@127.0.0.1:1"
    for settings in ({"gateway_key": gateway_key}, {"credentials": CREDENTIALS, "proxy": proxy}):
        async with RelayClient(base_url="http://127.0.0.1:1", retry=QUICK, **settings) as client:
            with pytest.raises(NotSentError):
                await client.relay.create([REPORT_TOKEN], "p")
    assert {
        record.plaid_error_code for record in every_log.records if hasattr(record, "plaid_error_code")
    } == {"NotSentError"}
    text = "\n".join(logging.Formatter().format(record) for record in every_log.records)
    assert_no_canary(text)
    assert not any(secret in text for secret in (KEY, gateway_key))


# ----------------------------------------------------------------------------------------------- handlers


async def test_no_record_without_a_listener(plaid, client, caplog):
    """By default, a call that succeeds logs nothing, and one whose outcome is unknown logs one warning."""
    report = plaid.add_report()
    await client.relay.create([report], "p")
    assert caplog.records == []
    plaid.fail(Fault(path=CREATE, close=True, when="after"))
    with pytest.raises(OutcomeUnknownError):
        await client.relay.create([report], "q")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert_documented(caplog.records)


async def test_a_handler_that_raises_takes_no_outcome_away(plaid, client, every_log):
    """A token reaches the caller even if a handler of the program raises."""

    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise ZeroDivisionError

    logger, broken = logging.getLogger("plaid_relay_async"), Broken()
    logger.addHandler(broken)
    try:
        created = await client.relay.create([plaid.add_report()], "p")
    finally:
        logger.removeHandler(broken)
    assert created.relay_token == plaid.ledger[0]["relay_token"]


PROGRAM = """
import asyncio, logging, os, sys
from plaid_relay_async import Credentials, RelayClient
from plaid_relay_async.simulator import Fault, Simulator

async def main():
    async with Simulator(reports=["r"]) as plaid:
        for partner in ("ann", "bob"):
            async with RelayClient(Credentials("a", "secret"), base_url=plaid.url) as client:
                await client.relay.create(["r"], partner)
                await client.relay.create_many([])
                os.environ.update(LATER)
        plaid.fail(Fault(close=True, when="after"))
        async with RelayClient(Credentials("a", "secret"), base_url=plaid.url) as client:
            try:
                await client.relay.create(["r"], "eve")
            except Exception:
                pass

LATER = eval(sys.argv[1])
eval(sys.argv[2])
asyncio.run(main())
"""


async def stderr_of(monkeypatch, *, level=None, later="{}", before="None"):
    """Return the lines that a program without handlers writes to standard error."""
    monkeypatch.delenv("PLAID_RELAY_LOG", raising=False)
    if level is not None:
        monkeypatch.setenv("PLAID_RELAY_LOG", level)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-Ic", PROGRAM, later, before, stderr=asyncio.subprocess.PIPE
    )
    _, err = await process.communicate()
    assert process.returncode == 0, err
    return err.decode().splitlines()


def count_of(lines, text):
    return sum(text in line for line in lines)


async def test_nothing_is_printed_by_default(monkeypatch):
    """A program that doesn't configure logging prints nothing, not even a warning."""
    assert await stderr_of(monkeypatch) == []
    assert await stderr_of(monkeypatch, level="") == []


async def test_the_variable_prints_records(monkeypatch):
    """PLAID_RELAY_LOG sends the records to standard error, from its level, once even with several clients."""
    lines = await stderr_of(monkeypatch, level="debug")
    assert count_of(lines, "DEBUG plaid_relay_async.calls: attempt: ") == 3
    assert count_of(lines, "INFO plaid_relay_async.batches: batch_start: ") == 2
    assert count_of(lines, "WARNING plaid_relay_async.calls: call_end: ") == 1
    lines = await stderr_of(monkeypatch, level="INFO")
    assert count_of(lines, "attempt: ") == 0
    assert count_of(lines, "batch_start: ") == 2


async def test_the_variable_is_read_when_a_client_is_created(monkeypatch):
    """A variable that is set after the import applies to the next client."""
    lines = await stderr_of(monkeypatch, later="{'PLAID_RELAY_LOG': 'debug'}")
    assert count_of(lines, "attempt: ") == 2
    assert count_of(lines, "partner=ann") == 0


async def test_the_variable_does_not_raise_the_level(monkeypatch):
    """A lower level that the program has set remains; standard error has the records from the variable's level."""
    before = """[
        logging.getLogger('plaid_relay_async').setLevel('DEBUG'),
        logging.getLogger().addHandler(logging.StreamHandler(sys.stdout)),
    ]"""
    lines = await stderr_of(monkeypatch, level="info", before=before)
    assert (count_of(lines, "batch_start: "), count_of(lines, "attempt: ")) == (2, 0)
    lines = await stderr_of(monkeypatch, level="info", before=before.replace("stdout", "stderr"))
    assert (count_of(lines, "batch_start: "), count_of(lines, "attempt: ")) == (2, 3)


async def test_the_variable_uses_a_handler_of_the_program(monkeypatch):
    """If a handler of the program writes to standard error, each record is written once, in its format."""
    before = "logging.basicConfig(format='MINE %(message)s')"
    lines = await stderr_of(monkeypatch, level="debug", before=before)
    assert count_of(lines, "attempt: ") == 3
    assert all(line.startswith("MINE ") for line in lines)


async def test_the_variable_adds_a_handler_beside_others(monkeypatch):
    """A handler of the program that writes elsewhere, or only errors, is none for standard error."""
    for handler in ("logging.FileHandler(os.devnull)", "logging.StreamHandler()"):
        before = f"[h := {handler}, h.setLevel('ERROR'), logging.getLogger().addHandler(h)]"
        assert count_of(await stderr_of(monkeypatch, level="debug", before=before), "attempt: ") == 3


async def test_the_variable_in_a_fork(monkeypatch):
    """A process that was forked after a client was created writes its own records, once."""
    before = "[RelayClient(Credentials('a', 'secret')), os.fork()]"
    assert count_of(await stderr_of(monkeypatch, level="debug", before=before), "attempt: ") == 6


async def test_the_variable_with_another_stream(monkeypatch):
    """If standard error is replaced, as by pytest, records go to the replacement."""
    before = """[
        RelayClient(Credentials('a', 'secret')),
        sys.stderr.close(),
        setattr(sys, 'stderr', open(2, 'w', closefd=False)),
    ]"""
    assert count_of(await stderr_of(monkeypatch, level="debug", before=before), "attempt: ") == 3


@pytest.mark.parametrize("value", ["warning", "1", "secret"])
def test_an_invalid_variable(monkeypatch, value):
    """Another value is an error that names the variable, and doesn't quote the value."""
    monkeypatch.setenv("PLAID_RELAY_LOG", value)
    with pytest.raises(ConfigurationError, match="PLAID_RELAY_LOG must be debug or info") as caught:
        RelayClient(OWNER, timeouts=Timeouts())
    assert value not in str(caught.value)
