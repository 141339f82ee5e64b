"""The spans of the gateway, as OpenTelemetry's in-memory exporter receives them."""

from __future__ import annotations

import gzip
import json
import logging
import subprocess
import sys

import aiohttp
import pytest
from connect_proxy import server_behind_proxy
from gateway_setup import UPSTREAM_CREDENTIALS, running_gateway
from opentelemetry import trace
from opentelemetry.instrumentation.aiohttp_client import AioHttpClientInstrumentor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from processes import wait_until_async
from raw_http import (
    CREATE,
    CREATE_BODY,
    GET,
    build_head,
    build_request,
    build_response,
    exchange,
    raw_connection,
)

from plaid_relay_async import RelayClient, Telemetry, Timeouts
from plaid_relay_async.gateway import Gateway, new_key
from plaid_relay_async.simulator import Simulator

TRACE_ID, SPAN_ID = 0xABCDEF0123456789ABCDEF0123456789, 0x123456789ABCDEF0
TRACEPARENT = f"traceparent: 00-{TRACE_ID:032x}-{SPAN_ID:016x}-01"
PDF = "/credit/relay/pdf/get"


class Spans:
    """A provider of tracers, and the spans that have ended."""

    def __init__(self, *processors: SpanProcessor) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        for processor in (*processors, SimpleSpanProcessor(self._exporter)):
            self.provider.add_span_processor(processor)

    def telemetry(self, **settings):
        return Telemetry(tracer_provider=self.provider, **settings)

    def read(self):
        """Return the spans that have ended."""
        return list(self._exporter.get_finished_spans())

    def by_kind(self):
        """Return the SERVER span and the CLIENT span; `None` for the latter if there is none."""
        server = [span for span in self.read() if span.kind is SpanKind.SERVER]
        client = [span for span in self.read() if span.kind is SpanKind.CLIENT]
        assert (len(server), len(client)) in {(1, 0), (1, 1)}
        assert len(self.read()) == len(server) + len(client)
        return server[0], client[0] if client else None


@pytest.fixture
def spans():
    return Spans()


@pytest.fixture
async def traced(spans):
    """A gateway whose spans are exported."""
    async with running_gateway(telemetry=spans.telemetry()) as setup:
        yield setup
        spans.provider.shutdown()  # the call at the end of the fixture isn't part of the test


def other_gateway(setup, spans, **options):
    """Return another gateway with the keys of a setup, whose spans are exported."""
    settings = {"upstream": setup.upstream.url, "credentials": UPSTREAM_CREDENTIALS, **options}
    return Gateway(setup.gateway.keys, **settings, telemetry=spans.telemetry())


def summary(span):
    """Return what a span says about its end: status, code, `error.type`, and the gateway's code or the certainty."""
    attributes = span.attributes
    return (
        span.status.status_code.name,
        attributes.get("http.response.status_code"),
        attributes.get("error.type"),
        attributes.get("plaid.error_code") if span.kind is SpanKind.SERVER else attributes["plaid.certainty"],
    )


async def test_the_spans_of_a_call(traced, spans):
    """The CLIENT span of the attempt is the child of the SERVER span, and both have documented attributes only."""
    assert (await traced.call()).status == 200
    server, client = spans.by_kind()
    assert (server.name, client.name) == (f"POST {CREATE}", "POST")
    assert dict(server.attributes) == {
        "http.request.method": "POST",
        "http.route": CREATE,
        "url.scheme": "http",
        "server.address": "127.0.0.1",
        "http.response.status_code": 200,
        "plaid.caller": "lender",
        "plaid.request_id": "request1",
        "plaid.delivered": True,
    }
    assert dict(client.attributes) == {
        "http.request.method": "POST",
        "server.address": "127.0.0.1",
        "server.port": traced.upstream.port,
        "http.response.status_code": 200,
        "plaid.certainty": "definitive",
    }
    assert (server.parent, client.parent) == (None, server.context)
    for span in (server, client):
        assert span.status.status_code is StatusCode.UNSET
        assert not span.events
        assert not span.links
        assert span.instrumentation_scope.name == "plaid_relay_async"
    assert server.start_time <= client.start_time <= client.end_time <= server.end_time


async def test_the_trace_of_the_caller(traced, spans):
    """A call is part of the trace that its caller names in `traceparent`."""
    call = build_request(CREATE, CREATE_BODY, TRACEPARENT, key=traced.keys["lender"])
    assert (await traced.exchange_one(call)).status == 200
    server, client = spans.by_kind()
    assert (server.context.trace_id, client.context.trace_id) == (TRACE_ID, TRACE_ID)
    assert server.parent.span_id == SPAN_ID
    assert server.parent.is_remote


async def test_a_trace_that_the_caller_does_not_sample(traced, spans):
    """The default sampler follows the caller, and then nothing is recorded."""
    call = build_request(CREATE, CREATE_BODY, TRACEPARENT[:-2] + "00", key=traced.keys["lender"])
    assert (await traced.exchange_one(call)).status == 200
    assert spans.read() == []


@pytest.mark.parametrize(
    "lines",
    [
        ["traceparent: "],
        ["traceparent: canary"],
        ["traceparent: " + "canary-" * 1000],
        ["traceparent: 00-" + "0" * 32 + "-" + "0" * 16 + "-01"],
        [TRACEPARENT.replace("00-", "ff-", 1)],
        [TRACEPARENT + "-canary"],
        [TRACEPARENT.upper().replace("TRACEPARENT", "traceparent")],
        ["traceparent: \xe9\xff canary"],
        ["traceparent: canary", TRACEPARENT],
    ],
)
async def test_an_invalid_traceparent(traced, spans, lines):
    """The call succeeds in a trace of its own."""
    call = build_request(CREATE, CREATE_BODY, *lines, key=traced.keys["lender"]).replace(b"\xc3", b"")
    assert (await traced.exchange_one(call)).status == 200
    server, _ = spans.by_kind()
    assert server.parent is None
    assert server.context.trace_id != TRACE_ID
    assert "canary" not in "".join(span.to_json() for span in spans.read())


async def test_nothing_else_of_a_request_is_recorded(traced, spans):
    """No header, body, path, query, key or method that a caller chooses is in a span."""
    more = ["tracestate: canary=canary", "baggage: canary=canary", "Cookie: canary", "User-Agent: canary"]
    body = {**CREATE_BODY, "secondary_client_id": "canary-partner", "report_tokens": ["canary-token"]}
    key = traced.keys["lender"]
    for request in (
        build_request(CREATE, body, TRACEPARENT, *more, key=key),
        build_request("/canary?canary", body, TRACEPARENT, *more, key=key),
        build_request(CREATE + "?canary", body, TRACEPARENT, *more, key=key),
        build_request(CREATE, body, TRACEPARENT, *more, key=key, host="canary"),
        build_request(CREATE, b"canary", TRACEPARENT, *more, key=key),
        build_request(CREATE, body, TRACEPARENT, *more, key="canary-key"),
    ):
        await traced.exchange_one(request)
    exported = "".join(span.to_json() for span in spans.read())
    assert len(spans.read()) == 7
    assert "canary" not in exported.lower()
    assert key not in exported
    assert all(not span.context.trace_state for span in spans.read())
    assert not any(each.secret in exported for each in UPSTREAM_CREDENTIALS.values())


@pytest.mark.parametrize(
    ("options", "name", "status", "code"),
    [
        ({"key": None}, f"POST {CREATE}", 401, "UNAUTHORIZED_KEY"),
        ({"path": "/item/remove"}, "POST /item/remove", 403, "UNAUTHORIZED_OPERATION"),
        ({"host": "elsewhere.test"}, "POST", 421, "HOST_NOT_ALLOWED"),
        ({"path": "/nowhere"}, "POST", 404, "NOT_FOUND"),
        ({"method": "DELETE"}, "DELETE", 405, "METHOD_NOT_ALLOWED"),
        ({"method": "PURGE"}, "HTTP", 405, "METHOD_NOT_ALLOWED"),
        ({"body": b"[]"}, f"POST {CREATE}", 400, "INVALID_BODY"),
        ({"body": b" " * (1024 * 1024 + 1)}, f"POST {CREATE}", 413, "BODY_TOO_LARGE"),
    ],
)
async def test_a_rejected_request(traced, spans, options, name, status, code):
    """A request that the gateway rejects has no attempt, and isn't an error of the server."""
    call = build_request(**{"key": traced.keys["lender"], **options})
    assert (await traced.exchange_one(call)).status == status
    server, client = spans.by_kind()
    assert (server.name, client) == (name, None)
    assert summary(server) == ("UNSET", status, None, code)
    method = options.get("method", "POST")
    assert server.attributes["http.request.method"] == ("_OTHER" if method == "PURGE" else method)
    assert ("http.route" in server.attributes) == name.startswith("POST /")


def truncated(status):
    return build_head(f"HTTP/1.1 {status} X", "Content-Type: application/json", "Content-Length: 100") + b"{"


def error(status, **fields):
    return build_response(status, json.dumps({"error_type": "X", "request_id": "r", **fields}).encode())


@pytest.mark.parametrize(
    ("response", "server", "client"),
    [
        (
            error(400, error_code="INVALID_FIELD"),
            ("UNSET", 400, None, None),
            ("ERROR", 400, "400", "definitive"),
        ),
        (error(429), ("UNSET", 429, None, None), ("ERROR", 429, "429", "declined")),
        (error(500), ("ERROR", 500, "500", None), ("ERROR", 500, "500", "in_doubt")),
        (
            build_response(307, b""),
            ("UNSET", 307, None, None),
            ("ERROR", 307, "307", "definitive"),
        ),
        (
            truncated(200),
            ("ERROR", 200, "UPSTREAM_LOST", "UPSTREAM_LOST"),
            ("ERROR", 200, "ConnectionLostError", "in_doubt"),
        ),
        (
            truncated(400),
            ("ERROR", 400, "UPSTREAM_LOST", "UPSTREAM_LOST"),
            ("ERROR", 400, "400", "definitive"),
        ),
        (
            None,
            ("ERROR", 502, "UPSTREAM_LOST", "UPSTREAM_LOST"),
            ("ERROR", None, "ConnectionLostError", "in_doubt"),
        ),
        (
            build_response(200, gzip.compress(b"{}"), "Content-Encoding: canary"),
            ("ERROR", 502, "UPSTREAM_ENCODING", "UPSTREAM_ENCODING"),
            ("ERROR", 200, "ConnectionLostError", "in_doubt"),
        ),
    ],
    ids=["400", "429", "500", "307", "truncated 200", "truncated 400", "none", "encoding"],
)
async def test_responses_of_plaid(traced, spans, response, server, client):
    """Plaid's errors, and responses that are lost, end both spans with the facts that the caller gets."""
    traced.upstream.respond = lambda _: [] if response is None else [response]
    traced.upstream.ending = "close"
    await exchange(traced.gateway.url, build_request(key=traced.keys["lender"]))
    assert tuple(map(summary, spans.by_kind())) == (server, client)


async def test_a_response_that_does_not_arrive_in_time(spans):
    """A timeout is an error of both spans."""
    timeouts = Timeouts(connect=1, read=0.2, slow_read=0.2)
    async with running_gateway(telemetry=spans.telemetry(), timeouts=timeouts) as setup:
        setup.upstream.respond = lambda _: []
        assert (await setup.call()).status == 504
        assert tuple(map(summary, spans.by_kind())) == (
            ("ERROR", 504, "UPSTREAM_TIMEOUT", "UPSTREAM_TIMEOUT"),
            ("ERROR", None, "ReadTimeoutError", "in_doubt"),
        )


async def test_an_upstream_that_is_not_reached(setup, spans):
    """An attempt that wasn't sent has no status."""
    async with other_gateway(setup, spans, upstream="http://127.0.0.1:1") as gateway:
        (response,) = await exchange(gateway.url, build_request(key=setup.keys["lender"]))
    assert response.status == 503
    assert tuple(map(summary, spans.by_kind())) == (
        ("ERROR", 503, "UPSTREAM_UNREACHABLE", "UPSTREAM_UNREACHABLE"),
        ("ERROR", None, "NotSentError", "not_sent"),
    )


async def test_a_streamed_response(traced, spans):
    """The spans end when the whole response has been passed on."""
    head = build_head("HTTP/1.1 200 OK", "Content-Type: application/pdf", "Content-Length: 4")
    traced.upstream.respond, traced.upstream.pause = lambda _: [head, b"%P", b"DF"], 0.1
    call = build_request(PDF, {"relay_token": "x"}, key=traced.keys["lender"], close=False)
    async with raw_connection(traced.gateway.url) as connection:
        await connection.send(call)
        await connection.reader.readuntil(b"%P")
        assert spans.read() == []
        await connection.reader.readuntil(b"DF")
        await wait_until_async(lambda: len(spans.read()) == 2)
    server, client = spans.by_kind()
    assert (summary(server)[:3], summary(client)) == (
        ("UNSET", 200, None),
        ("UNSET", 200, None, "definitive"),
    )


async def test_a_caller_that_disconnects(traced, spans):
    """The attempt is read to its end, and the SERVER span says that its response wasn't delivered."""
    head = build_head("HTTP/1.1 200 OK", "Content-Type: application/json", "Content-Length: 2")
    traced.upstream.respond, traced.upstream.pause = lambda _: [head, b"{", b"}"], 0.2
    async with raw_connection(traced.gateway.url) as connection:
        await connection.send(build_request(GET, {"relay_token": "x"}, key=traced.keys["lender"]))
        await connection.reader.readuntil(b"{")
        connection.writer.transport.abort()
    await wait_until_async(lambda: len(spans.read()) == 2)
    server, client = spans.by_kind()
    assert server.attributes["plaid.delivered"] is False
    assert (summary(server)[:3], summary(client)) == (
        ("UNSET", 200, None),
        ("UNSET", 200, None, "definitive"),
    )


async def test_a_call_that_outlasts_the_drain(setup, spans):
    """Both spans end with the cancellation."""
    setup.upstream.respond = lambda _: []
    async with other_gateway(setup, spans, drain=0.05) as gateway, raw_connection(gateway.url) as connection:
        await connection.send(build_request(key=setup.keys["lender"]))
        await wait_until_async(lambda: setup.upstream.requests)
        assert await gateway.close() is False
    assert tuple(map(summary, spans.by_kind())) == (
        ("ERROR", None, "CancelledError", None),
        ("UNSET", None, None, "cancelled"),
    )


@pytest.mark.parametrize("propagate", [False, True])
async def test_a_client_of_the_gateway(spans, propagate):
    """With `propagate=True`, a call is one trace from the client to Plaid; without it, there are two."""
    record, key = new_key("lender")
    settings = {"telemetry": spans.telemetry(propagate=propagate)}
    async with (
        Simulator(reports=["report"]) as plaid,
        Gateway([record], upstream=plaid.url, credentials=UPSTREAM_CREDENTIALS, **settings) as gateway,
        RelayClient(base_url=gateway.url, gateway_key=key, **settings) as client,
    ):
        await client.relay.create(["report"], "partner")
        await wait_until_async(lambda: len(spans.read()) == 4)
        received = plaid.requests[-1].headers
    call, attempt, server, to_plaid = sorted(spans.read(), key=lambda span: span.start_time)
    names = ["plaid.credit_relay_create", "POST", f"POST {CREATE}", "POST"]
    assert [span.name for span in (call, attempt, server, to_plaid)] == names
    assert (attempt.parent, to_plaid.parent) == (call.context, server.context)
    assert (server.parent and server.parent.span_id) == (attempt.context.span_id if propagate else None)
    assert len({span.context.trace_id for span in spans.read()}) == (1 if propagate else 2)
    assert ("traceparent" in received) is propagate


async def test_the_metrics_of_an_attempt(spans):
    """The gateway's attempts have the metrics of a client's attempts."""
    reader = InMemoryMetricReader()
    telemetry = spans.telemetry(meter_provider=MeterProvider([reader]))
    async with running_gateway(telemetry=telemetry) as setup:
        assert (await setup.call()).status == 200
        (scope,) = reader.get_metrics_data().resource_metrics[0].scope_metrics
        points = {metric.name: metric.data.data_points for metric in scope.metrics}
    (duration,), (in_flight,) = (
        points["http.client.request.duration"],
        points["plaid.client.attempts.in_flight"],
    )
    assert (duration.count, duration.attributes["http.response.status_code"]) == (1, 200)
    assert (in_flight.value, dict(in_flight.attributes)) == (0, {"plaid.operation": CREATE})


@pytest.mark.parametrize("propagate", [False, True])
async def test_what_plaid_receives(spans, propagate):
    """Only with `propagate=True`, the trace is continued to Plaid, and nothing but its IDs."""
    async with running_gateway(telemetry=spans.telemetry(propagate=propagate)) as setup:
        more = (TRACEPARENT, "tracestate: canary=1", "baggage: canary=1")
        call = build_request(CREATE, CREATE_BODY, *more, key=setup.keys["lender"])
        assert (await setup.exchange_one(call)).status == 200
        _, client = spans.by_kind()
        fields = dict(setup.upstream.fields())
        expected = f"00-{TRACE_ID:032x}-{client.context.span_id:016x}-01"
        assert fields.get("traceparent") == (expected if propagate else None)
        assert not {"tracestate", "baggage"} & fields.keys()


async def test_the_current_span(spans):
    """A source of credentials that creates a span does so within that of the call."""

    async def source():
        with spans.provider.get_tracer("of the program").start_as_current_span("vault"):
            return UPSTREAM_CREDENTIALS["default"]

    credentials = UPSTREAM_CREDENTIALS | {"default": source}
    async with running_gateway(telemetry=spans.telemetry(), credentials=credentials) as setup:
        assert (await setup.call()).status == 200
        vault, client, server = spans.read()
        assert (vault.parent, client.parent) == (server.context, server.context)
        assert trace.get_current_span() is trace.INVALID_SPAN


class Correlating(logging.Handler):
    """Collects the span in which each record is logged, as OpenTelemetry's handler does."""

    def __init__(self):
        super().__init__()
        self.spans = []

    def emit(self, record):
        self.spans.append((record.name, trace.get_current_span().get_span_context()))


async def test_the_span_of_an_audit_line(traced, spans, caplog):
    """A line of the audit log belongs to the span of its call."""
    caplog.set_level(logging.INFO, logger="plaid_relay_async.gateway.audit")
    handler, logger = Correlating(), logging.getLogger("plaid_relay_async.gateway")
    logger.addHandler(handler)
    assert (await traced.call()).status == 200
    logger.removeHandler(handler)
    server, _ = spans.by_kind()
    assert handler.spans == [("plaid_relay_async.gateway.audit", server.context)]


class Failing(SpanProcessor):
    """A processor of the program that fails."""

    def __init__(self, method):
        setattr(self, method, self._fail)

    def _fail(self, *_, **__):
        raise RuntimeError("canary-processor")


@pytest.mark.parametrize("method", ["on_start", "on_end"])
async def test_a_processor_that_fails(method, caplog):
    """The call succeeds, and its connection stays open."""
    spans = Spans(Failing(method))
    async with running_gateway(telemetry=spans.telemetry()) as setup:
        assert (await setup.call()).status == 200
    assert "a request failed" not in caplog.text
    assert "canary-processor" not in caplog.text


class FailingHandler(logging.Handler):
    """A log handler of the program that fails."""

    def emit(self, record):
        raise RuntimeError("canary-handler")


async def test_an_unexpected_error(traced, spans):
    """Its class is the `error.type`, and its text is not recorded."""
    handler, logger = FailingHandler(), logging.getLogger("plaid_relay_async.gateway.audit")
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    assert (await traced.call()).status == 200
    logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)
    server, _ = spans.by_kind()
    assert summary(server) == ("ERROR", 200, "RuntimeError", None)
    assert "canary" not in server.to_json()


async def test_a_request_id_that_may_be_a_token(traced, spans):
    """As in the audit log, it is hidden, and so is a text, which may quote the request."""
    for request_id in ("credit-relay-sandbox-1", "\x1b[2J"):
        traced.upstream.respond = lambda _, text=request_id: [
            build_response(200, json.dumps({"request_id": text}).encode())
        ]
        assert (await traced.call()).status == 200
    ids = [span.attributes.get("plaid.request_id") for span in spans.read() if span.kind is SpanKind.SERVER]
    assert ids == ["[hidden]"] * 2


@pytest.fixture
def instrumented(spans, monkeypatch):
    """Trace all sessions of aiohttp's client, with all headers."""
    for direction in ("REQUEST", "RESPONSE"):
        monkeypatch.setenv(f"OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_CLIENT_{direction}", ".*")
    AioHttpClientInstrumentor().instrument(tracer_provider=spans.provider)
    yield
    AioHttpClientInstrumentor().uninstrument()


@pytest.mark.usefixtures("instrumented")
@pytest.mark.parametrize("proxied", [False, True], ids=["pool", "session"])
async def test_instrumentation_sees_no_attempt(setup, spans, proxied):
    """Neither with a pool nor with the session that a proxy needs, aiohttp's instrumentation adds a span."""
    async with server_behind_proxy() as (proxy, url, ssl, received):
        options = {"upstream": "https://plaid.example", "upstream_proxy": url, "upstream_ssl": ssl}
        async with other_gateway(setup, spans, **options if proxied else {}) as gateway:
            (response,) = await exchange(gateway.url, build_request(key=setup.keys["lender"]))
            assert response.status == 200
    assert len(received) == len(proxy.heads) == (1 if proxied else 0)
    assert [span.kind for span in spans.read()] == [SpanKind.CLIENT, SpanKind.SERVER]
    assert "canary" not in "".join(span.to_json() for span in spans.read())
    async with aiohttp.ClientSession() as session, session.get(setup.gateway.url) as page:
        assert page.status == 200
    assert len(spans.read()) == 3  # the instrumentation is active


# ------------------------------------------------------------------------- with and without opentelemetry

GATEWAY = """
import asyncio, json, sys
{before}
from plaid_relay_async import Credentials, RelayClient
from plaid_relay_async.gateway import Gateway, new_key
from plaid_relay_async.simulator import Simulator

async def main():
    record, key = new_key("lender")
    sets = {{"default": Credentials("lender", "secret-of-the-lender")}}
    async with Simulator(reports=["report"]) as plaid:
        async with Gateway([record], upstream=plaid.url, credentials=sets) as gateway:
            async with RelayClient(base_url=gateway.url, gateway_key=key) as client:
                await client.relay.create(["report"], "partner")

asyncio.run(main())
{after}
"""


def run_gateway(before, after=""):
    """Run a gateway in a new process, and return what it prints."""
    program = GATEWAY.format(before=before, after=after)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_global_provider():
    """By default, the spans go to the global provider."""
    before = (
        "from opentelemetry import trace\n"
        "from opentelemetry.sdk.trace import TracerProvider\n"
        "from opentelemetry.sdk.trace.export import SimpleSpanProcessor\n"
        "from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter\n"
        "exporter = InMemorySpanExporter()\n"
        "trace.set_tracer_provider(TracerProvider())\n"
        "trace.get_tracer_provider().add_span_processor(SimpleSpanProcessor(exporter))\n"
    )
    after = "print(*(span.kind.name for span in exporter.get_finished_spans() if span.kind.name == 'SERVER'))"
    assert run_gateway(before, after).split() == ["SERVER"]


def test_without_opentelemetry():
    """Without the package a gateway works as before, and `telemetry=` says what to install."""
    assert run_gateway("sys.modules['opentelemetry'] = None") == ""
    code = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "from plaid_relay_async import ConfigurationError, Credentials, Telemetry\n"
        "from plaid_relay_async.gateway import Gateway\n"
        "try:\n"
        "    Gateway([], credentials={'default': Credentials('a', 'b')}, telemetry=Telemetry())\n"
        "except ConfigurationError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'plaid_relay_async[otel]'" in done.stdout
