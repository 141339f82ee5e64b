"""Records what a client reports to OpenTelemetry, in memory."""

from __future__ import annotations

import contextlib
from collections import Counter
from typing import TYPE_CHECKING, Any

from canaries import assert_no_canary
from opentelemetry import trace
from opentelemetry.instrumentation.aiohttp_client import AioHttpClientInstrumentor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from support import OWNER, QUICK

from plaid_relay_async import RelayClient, Telemetry

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.context import Context
    from opentelemetry.sdk.metrics.export import Metric
    from opentelemetry.sdk.trace import ReadableSpan, Span

    from plaid_relay_async.simulator import Simulator

CALL, BATCH, ATTEMPT = "plaid.credit_relay_create", "plaid.credit_relay_create.batch", "POST"


class Recording:
    """A tracer provider and a meter provider, and what they have received."""

    def __init__(self, **provider_settings: Any) -> None:
        self._exporter, self._reader = InMemorySpanExporter(), InMemoryMetricReader()
        self.tracer_provider = TracerProvider(**provider_settings)
        self.tracer_provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.meter_provider = MeterProvider([self._reader])
        self.tracer = self.tracer_provider.get_tracer("program")

    def telemetry(self, **settings: Any) -> Telemetry:
        providers = {"tracer_provider": self.tracer_provider, "meter_provider": self.meter_provider}
        return Telemetry(**providers | settings)

    def client(self, plaid: Simulator, credentials=OWNER, **settings: Any) -> RelayClient:
        return RelayClient(
            credentials,
            base_url=plaid.url,
            **{"telemetry": self.telemetry(), "retry": QUICK} | settings,
        )

    def close(self) -> None:
        self.tracer_provider.shutdown()
        self.meter_provider.shutdown()

    # ------------------------------------------------------------------------------------------- traces

    @property
    def spans(self) -> list[ReadableSpan]:
        """The spans that have ended, in the order in which they did."""
        return list(self._exporter.get_finished_spans())

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.spans if span.name == name]

    def attempts_of(self, call: ReadableSpan) -> list[ReadableSpan]:
        return [span for span in self.named(ATTEMPT) if span.parent == call.context]

    # ------------------------------------------------------------------------------------------ metrics

    @property
    def metrics(self) -> dict[str, Metric]:
        data = self._reader.get_metrics_data()
        return {
            metric.name: metric
            for resource in (data.resource_metrics if data is not None else [])
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }

    def points(self, name: str) -> dict[tuple[Any, ...], Any]:
        """Return the points of a metric by the values of their attributes, in the order of the names."""
        return {
            tuple(value for _, value in sorted(point.attributes.items())): point
            for point in self.metrics[name].data.data_points
        }

    def counts(self, name: str) -> dict[tuple[Any, ...], int]:
        """Return the number of measurements of a histogram by the values of their attributes."""
        return {values: point.count for values, point in self.points(name).items()}

    def assert_traced(self, operation: str, *, outcome: str, attempts: int, partner: str | None) -> None:
        """Check that one call of an operation, of a partner if it is a creation, ended as it says."""
        (call,) = (
            span
            for span in self.spans
            if attributes_of(span, "operation", "partner") == [operation, partner]
            and span.name.startswith("plaid.")
        )
        assert attributes_of(call, "outcome", "attempts") == [outcome, attempts]
        sent = self.attempts_of(call)
        assert [attributes_of(span, "http.request.resend_count") for span in sent] == [
            [number or None] for number in range(attempts)
        ]

    def assert_clean(self) -> None:
        """Check that neither spans nor metrics contain a canary."""
        assert_no_canary("".join(span.to_json() for span in self.spans))
        data = self._reader.get_metrics_data()
        assert_no_canary("" if data is None else data.to_json())


class OpenSpans(SpanProcessor):
    """The names of the spans that were started and haven't ended."""

    def __init__(self) -> None:
        self.names: Counter[str] = Counter()
        self.tracer_provider = TracerProvider(shutdown_on_exit=False)
        self.tracer_provider.add_span_processor(self)

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        self.names[span.name] += 1

    def on_end(self, span: ReadableSpan) -> None:
        self.names[span.name] -= 1

    def assert_none(self) -> None:
        assert not +self.names
        assert not trace.get_current_span().get_span_context().is_valid


def attributes_of(span: ReadableSpan, *names: str) -> list[Any]:
    """Return attributes of a span; the name of one of the package's own is without `plaid.`."""
    values = dict(span.attributes)
    return [values.get(name, values.get(f"plaid.{name}")) for name in names]


@contextlib.contextmanager
def instrumented_aiohttp(recording: Recording) -> Iterator[None]:
    """Trace all sessions of aiohttp, with all headers as attributes."""
    instrumentor = AioHttpClientInstrumentor()
    instrumentor.instrument(
        tracer_provider=recording.tracer_provider,
        meter_provider=recording.meter_provider,
        captured_request_headers=[".*"],
        captured_response_headers=[".*"],
    )
    try:
        yield
    finally:
        instrumentor.uninstrument()
