"""Traces: the spans of calls, attempts and batches, and what they say."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import NoReturn

import aiohttp
import pytest
from canaries import CREDENTIALS, REPORT_TOKEN, SECRET, assert_no_canary
from cancellation_support import cancel_once_sent
from journal_support import KEY
from opentelemetry import baggage, trace
from opentelemetry.context import attach, detach
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.propagate import extract
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import NoOpTracerProvider, SpanKind, StatusCode
from otel_support import ATTEMPT, BATCH, CALL, Recording, attributes_of, instrumented_aiohttp
from support import CREATE, GET, OWNER, QUICK

from plaid_relay_async import (
    BatchStoppedError,
    ConfigurationError,
    OutcomeUnknownError,
    PlaidRelayError,
    RelayClient,
    RelayCreateRequest,
    Telemetry,
)
from plaid_relay_async.journal import Journal
from plaid_relay_async.simulator import Fault, Simulator

ERROR, UNSET = StatusCode.ERROR, StatusCode.UNSET


# ------------------------------------------------------------------------------------------- single calls


async def test_a_call(plaid, recording):
    """A call is a child of the program's current span, and its attempt a child of the call."""
    async with recording.client(plaid) as client:
        with recording.tracer.start_as_current_span("program"):
            await client.relay.create([plaid.add_report()], "p")
    attempt, call, program = recording.spans
    assert (call.name, attempt.name) == (CALL, ATTEMPT)
    assert (call.kind, attempt.kind) == (SpanKind.INTERNAL, SpanKind.CLIENT)
    assert (call.parent, attempt.parent) == (program.context, call.context)
    assert (call.status.status_code, attempt.status.status_code) == (UNSET, UNSET)
    request_id = plaid.ledger[0]["request_id"]
    assert dict(call.attributes) == {
        "plaid.operation": CREATE,
        "plaid.call_id": call.attributes["plaid.call_id"],
        "plaid.partner": "p",
        "plaid.outcome": "succeeded",
        "plaid.attempts": 1,
        "plaid.request_id": request_id,
    }
    host, _, port = plaid.url.removeprefix("http://").partition(":")
    assert dict(attempt.attributes) == {
        "http.request.method": "POST",
        "server.address": host,
        "server.port": int(port),
        "http.response.status_code": 200,
        "plaid.certainty": "definitive",
    }
    assert call.instrumentation_scope.name == "plaid_relay_async"
    assert call.instrumentation_scope.schema_url == "https://opentelemetry.io/schemas/1.44.0"


async def test_a_retry(plaid, recording):
    """A failed attempt that is retried marks only its own span as an error."""
    plaid.fail(Fault(path=CREATE, status=429, times=1, headers={"Retry-After": "0"}))
    async with recording.client(plaid) as client:
        await client.relay.create([plaid.add_report()], "p")
    first, second = recording.named(ATTEMPT)
    (call,) = recording.named(CALL)
    names = ("http.response.status_code", "error.type", "http.request.resend_count", "certainty")
    assert attributes_of(first, *names) == [429, "429", None, "declined"]
    assert attributes_of(second, *names) == [200, None, 1, "definitive"]
    assert [span.status.status_code for span in (first, second, call)] == [ERROR, UNSET, UNSET]
    assert attributes_of(call, "attempts", "outcome", "error.type") == [2, "succeeded", None]


ENDS = {
    "rejected": (
        {"status": 400, "body": {"error_type": "INVALID_INPUT", "error_code": "INVALID_FIELD"}},
        ["failed", "InvalidRequestError", "INVALID_FIELD"],
        [400, "400", "definitive"],
    ),
    "lost": (
        {"close": True, "when": "after"},
        ["unknown", "OutcomeUnknownError", "OutcomeUnknownError"],
        [None, "OutcomeUnknownError", "in_doubt"],
    ),
}


@pytest.mark.parametrize("name", ENDS)
async def test_a_call_that_does_not_succeed(plaid, recording, name):
    """The spans of a failed and of an unknown call are errors, without the text of the error and events."""
    fault, of_call, of_attempt = ENDS[name]
    plaid.fail(Fault(path=CREATE, **fault))
    async with recording.client(plaid) as client:
        with pytest.raises(PlaidRelayError):
            await client.relay.create([plaid.add_report()], "p")
    attempt, call = recording.spans
    assert attributes_of(call, "outcome", "error.type", "error_code") == of_call
    assert attributes_of(attempt, "http.response.status_code", "error.type", "certainty") == of_attempt
    for span in (attempt, call):
        assert (span.status.status_code, span.status.description, span.events) == (ERROR, None, ())


async def test_a_cancelled_call(plaid, recording):
    """A cancelled call has a span that isn't an error; one that drains has the outcome that it gets."""
    plaid.fail(Fault(path=GET, stall=60), Fault(path=CREATE, when="after", latency=0.1))
    async with recording.client(plaid, on_late_outcome=lambda _: None) as client:
        await cancel_once_sent(plaid, GET, client.relay.get("token"))
        await cancel_once_sent(plaid, CREATE, client.relay.create([plaid.add_report()], "p"))
    (read,) = recording.named("plaid.credit_relay_get")
    (creation,) = recording.named(CALL)
    assert (attributes_of(read, "outcome"), read.status.status_code) == (["cancelled"], UNSET)
    assert attributes_of(recording.attempts_of(read)[0], "certainty", "error.type") == ["cancelled", None]
    assert attributes_of(creation, "outcome") == ["succeeded"]
    assert len(recording.spans) == 4


@pytest.mark.may_block
async def test_a_call_with_a_journal(plaid, recording, tmp_path):
    """It is a child of the current span, too, and has the run; a recorded outcome needs no attempt."""
    report = plaid.add_report()
    async with Journal(tmp_path / "relay.db", run="nightly") as journal, recording.client(plaid) as client:
        with recording.tracer.start_as_current_span("program") as program:
            for _ in range(2):
                await client.relay.create([report], "p", journal=journal)
    calls = recording.named(CALL)
    assert [attributes_of(call, "run", "attempts", "outcome") for call in calls] == [
        ["nightly", 1, "succeeded"],
        ["nightly", 0, "succeeded"],
    ]
    assert all(call.parent == program.get_span_context() for call in calls)
    assert [len(recording.attempts_of(call)) for call in calls] == [1, 0]


async def test_log_records_belong_to_their_span(plaid, recording, every_log):
    """The records of a call or a batch are written while its span is the current one."""
    seen = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append((record.plaid_event, trace.get_current_span().get_span_context()))

    logger, handler = logging.getLogger("plaid_relay_async"), Handler()
    logger.addHandler(handler)
    plaid.fail(Fault(path=CREATE, close=True, when="after"))
    try:
        async with recording.client(plaid) as client:
            with pytest.raises(OutcomeUnknownError):
                await client.relay.create([plaid.add_report()], "p")
            await client.relay.create_many([])
    finally:
        logger.removeHandler(handler)
    (call,), (batch,) = recording.named(CALL), recording.named(BATCH)
    assert seen == [
        ("attempt_end", call.context),
        ("call_end", call.context),
        ("batch_start", batch.context),
        ("batch_end", batch.context),
    ]
    assert not trace.get_current_span().get_span_context().is_valid


# ------------------------------------------------------------------------------------------------ batches


async def test_a_batch_of_a_thousand(plaid, recording, every_log):
    """Each call is a root with a link to the batch, which is a child of the current span and has counts."""
    every_log.set_level(logging.INFO, logger="plaid_relay_async")
    partners = [f"p{number}" for number in range(1000)]
    plaid.fail(
        Fault(path=CREATE, status=429, times=3, headers={"Retry-After": "0.05"}),
        *(
            Fault(path=CREATE, secondary_client_id=partner, close=True, when="after")
            for partner in partners[:5]
        ),
        *(
            Fault(path=CREATE, secondary_client_id=partner, status=503, body="down", times=1)
            for partner in partners[5:8]
        ),
        Fault(path=CREATE, secondary_client_id="p8", status=400),
    )
    requests = RelayCreateRequest.fan_out([plaid.add_report()], partners)
    async with recording.client(plaid, telemetry=recording.telemetry(propagate=True)) as client:
        with recording.tracer.start_as_current_span("nightly job"):
            result = await client.relay.create_many(requests)
        statistics = client.statistics()
    (batch,), (program,) = recording.named(BATCH), recording.named("nightly job")
    calls, attempts = recording.named(CALL), recording.named(ATTEMPT)
    counts = dict(result.counts) | {"succeeded": result.counts["created"], "not_attempted": 0}
    assert counts["unknown"] >= 5
    assert batch.parent == program.context
    for name in ("succeeded", "failed", "unknown", "not_attempted"):
        assert batch.attributes[f"plaid.batch.{name}"] == counts[name]
    assert len(calls) == 1000
    assert {call.parent for call in calls} == {None}
    assert all([link.context for link in call.links] == [batch.context] for call in calls)
    assert len({call.context.trace_id for call in calls}) == 1000
    outcomes = Counter(call.attributes["plaid.outcome"] for call in calls)
    assert outcomes == {name: counts[name] for name in ("succeeded", "failed", "unknown")}
    assert outcomes == statistics.outcomes
    numbers = [call.attributes["plaid.call_id"].rpartition("-") for call in calls]
    assert {batch_id for batch_id, _, _ in numbers} == {batch.attributes["plaid.batch_id"]}
    assert {call.attributes["plaid.batch_id"] for call in calls} == {batch.attributes["plaid.batch_id"]}
    assert {int(number) for _, _, number in numbers} == set(range(1, 1001))
    # Each attempt belongs to a call, and the calls' numbers of attempts add up to those of the server.
    assert Counter(attempt.parent.span_id for attempt in attempts) == {
        call.context.span_id: call.attributes["plaid.attempts"] for call in calls
    }
    assert len(attempts) == plaid.counts[CREATE] == sum(statistics.attempts.values())
    assert Counter(attempt.attributes["plaid.certainty"] for attempt in attempts) == statistics.attempts
    failed = [call for call in calls if call.status.status_code is ERROR]
    assert len(failed) == counts["failed"] + counts["unknown"]
    assert not any(span.status.description or span.events for span in recording.spans)
    # The metrics count the same.
    assert sum(recording.counts("plaid.client.call.duration").values()) == 1000
    assert sum(recording.counts("http.client.request.duration").values()) == len(attempts)
    retries = recording.points("plaid.client.retries")
    assert sum(point.value for point in retries.values()) == sum(statistics.retries.values()) > 0
    assert_no_canary(every_log.text)


async def test_a_batch_whose_callback_ends_the_process(plaid, recording):
    """The span of each call ends, also that of the call whose outcome the callback received."""

    class StopError(BaseException):
        pass

    def stop(_: object) -> None:
        raise StopError

    async with recording.client(plaid) as client:
        requests = RelayCreateRequest.fan_out([plaid.add_report()], ["p"])
        with pytest.raises(BatchStoppedError) as stopped:
            await client.relay.create_many(requests, on_outcome=stop)
        assert client.statistics().outcomes == {"succeeded": 1}
    assert stopped.value.result.counts == {"created": 1}
    assert [attributes_of(span, "outcome") for span in recording.named(CALL)] == [["succeeded"]]


async def test_a_batch_that_is_stopped(plaid, recording):
    """Its span is an error, with the class of what stopped it."""

    def requests():
        yield RelayCreateRequest([plaid.add_report()], "p")
        raise ZeroDivisionError(REPORT_TOKEN)

    async with recording.client(plaid) as client:
        with pytest.raises(BatchStoppedError):
            await client.relay.create_many(requests(), concurrency=1)
    (batch,) = recording.named(BATCH)
    assert (batch.status.status_code, batch.attributes["error.type"]) == (ERROR, "ZeroDivisionError")
    assert batch.status.description is None


# --------------------------------------------------------------------------- other instrumentation, headers


@pytest.mark.parametrize("path", ["default", "direct=False", "borrowed session"])
async def test_no_duplicate_span_and_no_header(recording, path):
    """Aiohttp's instrumentation adds no span to an attempt, and no header, which has the secret, is shown."""
    async with Simulator(clients={"owner": SECRET}, reports=[REPORT_TOKEN]) as plaid:
        with instrumented_aiohttp(recording):
            async with contextlib.AsyncExitStack() as stack:
                settings = {"direct": path == "default"}
                if path == "borrowed session":
                    settings["session"] = await stack.enter_async_context(aiohttp.ClientSession())
                client = await stack.enter_async_context(recording.client(plaid, CREDENTIALS, **settings))
                await client.relay.create([REPORT_TOKEN], "p")
                await client.relay.create_many(RelayCreateRequest.fan_out([REPORT_TOKEN], ["q"]))
                # The suppression ends with the attempt: another request of the same task has its span.
                other = aiohttp.ClientSession()
                await (await other.get(f"{plaid.url}/other")).read()
                await other.close()
    names = Counter(span.name for span in recording.spans)
    assert names == {CALL: 2, ATTEMPT: 2, BATCH: 1, "GET": 1}


async def test_the_instrumentation_alone(recording):
    """If this package's own traces are switched off, aiohttp's instrumentation is not suppressed."""
    telemetry = Telemetry(tracer_provider=NoOpTracerProvider(), meter_provider=NoOpMeterProvider())
    async with Simulator(reports=["report"]) as plaid:
        with instrumented_aiohttp(recording):
            async with recording.client(plaid, telemetry=telemetry, direct=False) as client:
                await client.relay.create(["report"], "p")
    assert [span.instrumentation_scope.name for span in recording.spans] == [
        "opentelemetry.instrumentation.aiohttp_client"
    ]


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("propagate", [True, False])
async def test_traceparent_is_sent_only_if_switched_on(plaid, recording, direct, propagate):
    """With `propagate=True`, each request has the header `traceparent` of its attempt, and no other."""
    plaid.fail(Fault(path=CREATE, status=429, times=1, headers={"Retry-After": "0"}))
    telemetry = recording.telemetry(propagate=propagate)
    async with recording.client(plaid, telemetry=telemetry, direct=direct) as client:
        await client.relay.create([plaid.add_report()], "p")
    sent = [request.headers.get("traceparent") for request in plaid.requests]
    attempts = [span.context for span in recording.named(ATTEMPT)]
    expected = [f"00-{each.trace_id:032x}-{each.span_id:016x}-{each.trace_flags:02x}" for each in attempts]
    assert sent == (expected if propagate else [None, None])
    assert not any(
        name in request.headers for request in plaid.requests for name in ("baggage", "tracestate")
    )


async def test_the_state_of_a_trace_is_propagated_and_baggage_is_not(plaid, recording):
    """`tracestate` is part of the trace; baggage may have anything that the program has put there."""
    headers = {"traceparent": f"00-{1:032x}-{2:016x}-01", "tracestate": "vendor=value"}
    context = baggage.set_baggage("user", "canary-name", extract(headers))
    token = attach(context)
    try:
        async with recording.client(plaid, telemetry=recording.telemetry(propagate=True)) as client:
            await client.relay.create([plaid.add_report()], "p")
    finally:
        detach(token)
    sent = plaid.requests[0].headers
    assert sent["tracestate"] == "vendor=value"
    assert sent["traceparent"].startswith(f"00-{1:032x}-")
    assert "baggage" not in sent


async def test_a_trace_that_is_not_sampled(plaid):
    """Its spans aren't recorded, and everything else is the same."""
    recording = Recording(sampler=ALWAYS_OFF)
    async with recording.client(plaid, telemetry=recording.telemetry(propagate=True)) as client:
        await client.relay.create([plaid.add_report()], "p")
    assert recording.spans == []
    assert int(plaid.requests[0].headers["traceparent"].rpartition("-")[2], 16) & 1 == 0
    recording.close()


# ---------------------------------------------------------------------------------------------- failures


@pytest.mark.parametrize("error", [ZeroDivisionError, asyncio.CancelledError])
@pytest.mark.parametrize("method", ["on_start", "on_end"])
async def test_a_processor_that_raises_takes_no_outcome_away(plaid, recording, method, error):
    """A token reaches the caller even if a processor of the program raises an exception."""

    def broken(*_args: object, **_options: object) -> None:
        raise error

    processor = SpanProcessor()
    setattr(processor, method, broken)
    recording.tracer_provider.add_span_processor(processor)
    async with recording.client(plaid, telemetry=recording.telemetry(propagate=True)) as client:
        report = plaid.add_report()
        assert (await client.relay.create([report], "p")).relay_token
        result = await client.relay.create_many(RelayCreateRequest.fan_out([report], ["q"]))
    assert result.counts == {"created": 1}
    assert not trace.get_current_span().get_span_context().is_valid


class BrokenAttempts(SpanProcessor):
    def on_start(self, span, parent_context=None) -> None:
        if "http.request.resend_count" in span.attributes:
            raise ZeroDivisionError


async def test_an_attempt_whose_span_can_not_start(plaid, recording, caplog):
    """It is sent, the span of its call ends as usual, and that of the attempt before isn't ended again."""
    plaid.fail(Fault(path=CREATE, status=429, times=1))
    recording.tracer_provider.add_span_processor(BrokenAttempts())
    async with recording.client(plaid) as client:
        await client.relay.create([plaid.add_report()], "p")
    assert [attributes_of(span, "outcome") for span in recording.named(CALL)] == [["succeeded"]]
    assert len(recording.named(ATTEMPT)) == 1
    assert "ended span" not in caplog.text


class BrokenProvider(MeterProvider):
    def get_meter(self, *_args: object, **_options: object) -> NoReturn:
        raise ZeroDivisionError


async def test_a_provider_that_raises(plaid, recording):
    """It receives nothing, and the other provider does."""
    async with recording.client(
        plaid, telemetry=recording.telemetry(meter_provider=BrokenProvider())
    ) as client:
        await client.relay.create([plaid.add_report()], "p")
    assert len(recording.named(CALL)) == 1


# ---------------------------------------------------------------------------------------------- providers

PROGRAM = """
import asyncio, sys
import plaid_relay_async
assert not any(name.startswith("opentelemetry") for name in sys.modules)
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from plaid_relay_async import Credentials, RelayClient
from plaid_relay_async.simulator import Simulator

async def main():
    exporter, reader = InMemorySpanExporter(), InMemoryMetricReader()
    async with (
        Simulator(reports=["report"]) as plaid,
        RelayClient(Credentials("a", "secret"), base_url=plaid.url) as client,
    ):
        await client.relay.create(["report"], "before")
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        trace.set_tracer_provider(provider)
        await asyncio.sleep(1.1)
        await client.relay.create(["report"], "traced")
        metrics.set_meter_provider(MeterProvider([reader]))
        await asyncio.sleep(1.1)
        await client.relay.create(["report"], "measured")
    print([span.attributes.get("plaid.partner") for span in exporter.get_finished_spans()])
    scopes = reader.get_metrics_data().resource_metrics[0].scope_metrics
    measured = [metric for scope in scopes for metric in scope.metrics if "call" in metric.name]
    print({metric.name: metric.data.data_points[0].count for metric in measured})

asyncio.run(main())
"""


def run(program, *args):
    done = subprocess.run([sys.executable, "-c", program, *args], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_the_global_providers():
    """They are used within a second after the program has set them, also if the client made calls before."""
    assert run(PROGRAM) == [
        "[None, 'traced', None, 'measured']",
        "{'plaid.client.call.duration': 1}",
    ]


PRINTING = """
import asyncio
from plaid_relay_async import Credentials, RelayClient
from plaid_relay_async.simulator import Simulator

async def main():
    async with (
        Simulator(reports=["report"]) as plaid,
        RelayClient(Credentials("a", "secret"), base_url=plaid.url) as client,
    ):
        await client.relay.create(["report"], "printed")

asyncio.run(main())
"""


def test_the_example_of_telemetry_md_prints_spans_and_metrics():
    """The example that sets the global providers prints the spans and the metrics of a call."""
    page = (Path(__file__).parents[2] / "docs" / "telemetry.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```py\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    output = "\n".join(run(example + PRINTING))
    for text in (
        '"name": "plaid.credit_relay_create"',
        '"plaid.partner": "printed"',
        "plaid.client.call.duration",
    ):
        assert text in output


MISSING = """
import asyncio, sys
sys.modules["opentelemetry"] = None
from plaid_relay_async import ConfigurationError, Credentials, RelayClient, RelayCreateRequest, Telemetry
from plaid_relay_async.journal import Journal
from plaid_relay_async.simulator import Simulator

async def main():
    async with (
        Simulator(reports=["report"]) as plaid,
        RelayClient(Credentials("a", "secret"), base_url=plaid.url) as client,
    ):
        await client.relay.create(["report"], "p")
        result = await client.relay.create_many(RelayCreateRequest.fan_out(["report"], ["q"]))
        print(result.counts["created"], client.statistics().outcomes["succeeded"])
    async with (
        Simulator(reports=["report"]) as plaid,
        RelayClient(Credentials("a", "secret"), base_url=plaid.url) as client,
        Journal(sys.argv[1]) as journal,
    ):
        await client.relay.create(["report"], "p", journal=journal)
    for cls, args in ((RelayClient, []), (Journal, [sys.argv[1]])):
        try:
            cls(*args, telemetry=Telemetry())
        except ConfigurationError as error:
            print(error)

asyncio.run(main())
"""


def test_without_opentelemetry(tmp_path, monkeypatch):
    """A client and a journal work without the extra; only settings need it, and the error names it."""
    monkeypatch.setenv("PLAID_RELAY_KEY", KEY)
    counts, *errors = run(MISSING, tmp_path / "relay.db")
    assert counts == "1 2"
    assert len(errors) == 2
    for error in errors:
        assert "Telemetry needs the extra: pip install 'plaid_relay_async[otel]'" in error


def test_settings_are_checked():
    """Anything but a `Telemetry` is rejected, and so is what isn't a provider."""
    with pytest.raises(ConfigurationError, match="telemetry must be a Telemetry"):
        RelayClient(OWNER, telemetry=True)  # type: ignore[arg-type]  # a deliberate mistake
    for name in ("tracer", "meter"):
        with pytest.raises(ConfigurationError, match=f"{name}_provider must have a method `get_{name}`"):
            Telemetry(**{f"{name}_provider": "console"})


# ------------------------------------------------------------------------------------------------ secrets


async def test_secrets_in_identifiers_are_hidden(recording, every_log):
    """A request ID that quotes the secret, and a token in place of a partner or a run, are hidden."""
    async with Simulator(clients={"owner": SECRET}, reports=[REPORT_TOKEN]) as plaid:
        plaid.fail(
            Fault(path=CREATE, status=200, body={"relay_token": "t", "request_id": f"x {SECRET}"}, times=1),
            Fault(path=CREATE, status=400, body={"error_code": SECRET, "request_id": SECRET}, times=1),
            Fault(path=CREATE, status=500, body={"error_message": f"{SECRET} {REPORT_TOKEN}"}, times=1),
            Fault(path=CREATE, close=True, when="after", times=1),
        )
        async with recording.client(plaid, CREDENTIALS, retry=QUICK) as client:
            for _ in range(4):
                with contextlib.suppress(PlaidRelayError):
                    await client.relay.create([REPORT_TOKEN], "partner")
            await client.relay.create([REPORT_TOKEN], "credit-relay-sandbox-misplaced")
            created = await client.relay.create([REPORT_TOKEN], "reader")
            await asyncio.gather(client.relay.remove(created.relay_token))
    assert len(recording.named(CALL)) == 6
    assert recording.named(CALL)[0].attributes["plaid.request_id"] == "[hidden]"
    assert recording.named(CALL)[4].attributes["plaid.partner"] == "[hidden]"
    assert_no_canary(every_log.text)
