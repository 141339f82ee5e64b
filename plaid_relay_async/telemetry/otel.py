"""Traces and metrics by OpenTelemetry, whose API the extra `otel` installs.

The names are those of the semantic conventions 1.44 for HTTP, and `plaid.*` for what they don't have. No
attribute has a token, a secret, a body, a header or the text of an error. The attributes of metrics have no
identifiers either, so the number of series is bounded.
"""

from __future__ import annotations

import functools
import threading
from collections import Counter
from contextvars import Token
from time import monotonic
from typing import TYPE_CHECKING, Final, ParamSpec, Protocol, TypeVar
from weakref import WeakKeyDictionary, WeakSet

from attrs import define, field
from opentelemetry import context as otel_context
from opentelemetry import metrics, trace
from opentelemetry.context import Context
from opentelemetry.metrics import Meter, MeterProvider, Observation
from opentelemetry.trace import Link, NoOpTracer, Span, SpanKind, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from yarl import URL

from plaid_relay_async.config import __version__
from plaid_relay_async.telemetry.containment import contain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager

    from opentelemetry.util.types import AttributeValue

    from plaid_relay_async.telemetry.events import AttemptEnd, CallEnd
    from plaid_relay_async.telemetry.settings import Telemetry

    Attributes = dict[str, AttributeValue]

_SCOPE: Final = "plaid_relay_async"
_SCHEMA: Final = "https://opentelemetry.io/schemas/1.44.0"
# The key has no public name. The instrumentation of aiohttp reads it. azure-core and the instrumentation of
# botocore set it for the same reason: a request has one span.
_SUPPRESS_HTTP: Final[str] = getattr(
    otel_context, "_SUPPRESS_HTTP_INSTRUMENTATION_KEY", "suppress_http_instrumentation"
)
# The boundaries of the semantic conventions, and more up to 120 seconds, for slow reads and pauses.
_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 30, 60, 120)
# The look-up of both global providers takes 2 % of the time of a call, so not every call repeats it.
_LOOKUP_INTERVAL: Final = 1.0  # seconds
P = ParamSpec("P")
R = TypeVar("R")
_PROPAGATOR: Final = TraceContextTextMapPropagator()


def _does_nothing(provider: object) -> bool:
    """Return whether a provider is one of the API, which records nothing: no SDK is set, or it is off."""
    return type(provider).__module__.startswith(("opentelemetry.trace", "opentelemetry.metrics"))


def _span_name(path: str) -> str:
    return "plaid." + path.strip("/").replace("/", "_")


def _attributes(**values: AttributeValue | None) -> Attributes:
    """Return attributes with the prefix `plaid.`, without those that have no value."""
    return {f"plaid.{name}": value for name, value in values.items() if value is not None}


def _error_type(end: AttemptEnd) -> str | None:
    """Return the value of `error.type` for an attempt: the status of an error, or the class of its error.

    `error_code` is only used if the status is a success or there is no status. Then it isn't a server's code.
    """
    return str(end.status) if end.status is not None and end.status >= 300 else end.error_code


def _harmless(method: Callable[P, R]) -> Callable[P, R | None]:
    """Return a method that returns `None` if code of the program, such as a processor, raises anything."""

    @functools.wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> R | None:
        try:
            return method(*args, **kwargs)
        except BaseException as error:  # noqa: BLE001  # any error of the program's code
            contain(error)
            return None

    return call


class RateSource(Protocol):
    """An object that knows adaptive rates: the admission of the transport."""

    def rates(self) -> Mapping[str, float]:
        """Return the adaptive rate of each operation that has one, in attempts per second."""
        ...


class Instruments:
    """The instruments of one meter provider, which all clients share."""

    def __init__(self, meter: Meter) -> None:
        def histogram(name: str, description: str) -> metrics.Histogram:
            return meter.create_histogram(
                name, "s", description, explicit_bucket_boundaries_advisory=_SECONDS
            )

        self.requests: Final = histogram("http.client.request.duration", "Duration of HTTP client requests.")
        self.calls: Final = histogram("plaid.client.call.duration", "Duration of calls.")
        self.waits: Final = histogram(
            "plaid.client.admission.wait", "Time that attempts wait for pauses, limits and connections."
        )
        self.commits: Final = histogram(
            "plaid.journal.commit.duration", "Duration of the transactions that write to a journal."
        )
        self.retries: Final = meter.create_counter(
            "plaid.client.retries", "{retry}", "Number of retries, by reason."
        )
        self.in_flight: Final = meter.create_up_down_counter(
            "plaid.client.attempts.in_flight", "{attempt}", "Number of attempts in flight."
        )
        # An observable instrument keeps its callbacks forever, so it doesn't refer to clients strongly.
        self.clients: Final[WeakSet[OpenTelemetry]] = WeakSet()
        meter.create_observable_gauge(
            "plaid.client.rate", [self._observe_rates], "{attempt}/s", "Adaptive rates after a 429."
        )

    def _observe_rates(self, _options: metrics.CallbackOptions) -> Iterator[Observation]:
        rates: Counter[str] = Counter()
        with _clients_lock:
            sources = [source for client in self.clients for source in client.rate_sources]
        for source in sources:
            rates.update(source.rates())
        for operation, rate in rates.items():
            yield Observation(rate, _attributes(operation=operation))


_instruments: Final[WeakKeyDictionary[MeterProvider, Instruments]] = WeakKeyDictionary()
# Each thread with an event loop may have clients. A reader of metrics runs the callback of the gauge while it
# holds a lock that the creation of instruments waits for, so the callback must not wait for that creation.
_instruments_lock: Final = threading.Lock()
_clients_lock: Final = threading.Lock()


def instruments_of(provider: MeterProvider | None) -> Instruments | None:
    """Return the instruments of a provider, or of the global one; `None` if it does nothing."""
    provider = provider or metrics.get_meter_provider()
    if _does_nothing(provider):
        return None
    with _instruments_lock:
        if provider not in _instruments:
            _instruments[provider] = Instruments(provider.get_meter(_SCOPE, __version__, _SCHEMA))
        return _instruments[provider]


@_harmless
def record_commit(provider: MeterProvider | None, seconds: float) -> None:
    """Record the seconds of a commit of a journal with a provider, or with the global one."""
    if (instruments := instruments_of(provider)) is not None:
        instruments.commits.record(seconds)


class OpenTelemetry:
    """The connection of a client to OpenTelemetry.

    Args:
        settings: see `Telemetry`.
        base_url: the address to which the client sends its requests.

    Attributes:
        tracer: creates the spans; it does nothing without a provider.
        traces: whether a provider receives the spans.
        instruments: receive the metrics, if there is a provider.
        rate_sources: return the adaptive rates, one for each set of credentials of the client.
    """

    def __init__(self, settings: Telemetry, base_url: str) -> None:
        url = URL(base_url)
        self.request_attributes: Final[Attributes] = {
            "http.request.method": "POST",
            "server.address": url.host or "",
            "server.port": url.port or 443,
        }
        self.propagate: Final = settings.propagate
        self._settings = settings
        self._next_lookup = 0.0
        self.tracer: Tracer = NoOpTracer()
        self.traces = False
        self.instruments: Instruments | None = None
        self.rate_sources: Final[WeakSet[RateSource]] = WeakSet()

    def is_active(self) -> bool:
        """Return whether there is a provider; the program may set the global ones at any time."""
        if not self.traces or self.instruments is None:
            time = monotonic()
            if time >= self._next_lookup:
                self._next_lookup = time + _LOOKUP_INTERVAL
                self._look_up_providers()
        return self.traces or self.instruments is not None

    @_harmless
    def _look_up_providers(self) -> None:
        provider = self._settings.tracer_provider or trace.get_tracer_provider()
        if not (self.traces or _does_nothing(provider)):
            self.tracer = provider.get_tracer(_SCOPE, __version__, schema_url=_SCHEMA)
            self.traces = True
        self.instruments = instruments_of(self._settings.meter_provider)
        if self.instruments is not None:
            with _clients_lock:
                self.instruments.clients.add(self)

    def add_rate_source(self, source: RateSource) -> None:
        """Add what knows the adaptive rates of one set of credentials."""
        with _clients_lock:
            self.rate_sources.add(source)

    @_harmless
    def start_batch(self, operation: str, **attributes: AttributeValue | None) -> Span:
        """Return the span of a batch, which is a child of the current span."""
        values = _attributes(operation=operation, **attributes)
        return self.tracer.start_span(f"{_span_name(operation)}.batch", attributes=values)

    @staticmethod
    def as_current(span: Span) -> AbstractContextManager[Span]:
        """Return a context in which a span is the current one."""
        return trace.use_span(span, record_exception=False, set_status_on_exception=False)

    @staticmethod
    @_harmless
    def end_batch(span: Span, error: BaseException | None, counts: Mapping[str, int]) -> None:
        """End the span of a batch, as an error if one stopped it."""
        span.set_attributes({f"plaid.batch.{name}": count for name, count in counts.items()})
        if error is not None:
            span.set_attribute("error.type", type(error).__name__)
            span.set_status(StatusCode.ERROR)
        span.end()

    @_harmless
    def start_call(
        self, operation: str, batch: Span | None, **attributes: AttributeValue | None
    ) -> CallTrace:
        """Return the trace of a call.

        Its span is a child of the current span or, in a batch, a root with a link to the span of the batch:
        no tool can show a trace of 100,000 calls.
        """
        span = self.tracer.start_span(
            _span_name(operation),
            context=None if batch is None else Context(),
            attributes=_attributes(operation=operation, **attributes),
            links=None if batch is None else [Link(batch.get_span_context())],
        )
        return CallTrace(self, operation, span)


@define(eq=False, repr=False)
class CallTrace:
    """The span of a call and that of its current attempt, and the metrics of both."""

    otel: OpenTelemetry
    operation: str
    span: Span
    context: Context = field(init=False)
    _attempt: Span = field(default=trace.INVALID_SPAN, init=False)
    _token: Token[Context] | None = field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        self.context = trace.set_span_in_context(self.span)

    @_harmless
    def admitted(self, wait: float) -> None:
        """Record the seconds that an attempt has waited for its admission."""
        if self.otel.instruments is not None:
            self.otel.instruments.waits.record(wait, _attributes(operation=self.operation))

    @_harmless
    def retry_planned(self, error: BaseException) -> None:
        """Count a retry, by the class of the error that is its reason."""
        if self.otel.instruments is not None:
            values = _attributes(operation=self.operation) | {"error.type": type(error).__name__}
            self.otel.instruments.retries.add(1, values)

    @_harmless
    def start_attempt(self, resend_count: int) -> dict[str, str]:
        """Start the span of an attempt, suppress others for its request, and return headers to send."""
        otel = self.otel
        if otel.instruments is not None:
            otel.instruments.in_flight.add(1, _attributes(operation=self.operation))
        self._attempt = trace.INVALID_SPAN  # in case that the span can't start
        attributes = dict(otel.request_attributes)
        if resend_count:
            attributes["http.request.resend_count"] = resend_count
        self._attempt = otel.tracer.start_span("POST", self.context, SpanKind.CLIENT, attributes)
        context = trace.set_span_in_context(self._attempt, self.context)
        headers: dict[str, str] = {}
        if otel.propagate:
            _PROPAGATOR.inject(headers, context)
        if otel.traces:
            context = otel_context.set_value(_SUPPRESS_HTTP, value=True, context=context)
        self._token = otel_context.attach(context)
        return headers

    @_harmless
    def leave_attempt(self) -> None:
        """Restore the context that `start_attempt` has replaced: the attempt is no longer in flight."""
        if self._token is not None:  # `start_attempt` didn't raise
            otel_context.detach(self._token)
            self._token = None
        if self.otel.instruments is not None:
            self.otel.instruments.in_flight.add(-1, _attributes(operation=self.operation))

    @_harmless
    def end_attempt(self, end: AttemptEnd) -> None:
        """End the span of an attempt. If it failed, only its own span is marked as an error."""
        outcome: Attributes = {}
        if end.status is not None:
            outcome["http.response.status_code"] = end.status
        if (error_type := _error_type(end)) is not None:
            outcome["error.type"] = error_type
            self._attempt.set_status(StatusCode.ERROR)
        self._attempt.set_attributes(outcome | _attributes(certainty=end.certainty))
        self._attempt.end()
        if self.otel.instruments is not None:
            self.otel.instruments.requests.record(end.duration, self.otel.request_attributes | outcome)

    @_harmless
    def end(self, end: CallEnd, error: BaseException | None) -> None:
        """End the span of the call, as an error if the call failed or its outcome is unknown."""
        error_type: Attributes = {} if error is None else {"error.type": type(error).__name__}
        outcome = _attributes(outcome=end.outcome) | error_type
        details = _attributes(attempts=end.attempts, request_id=end.request_id, error_code=end.error_code)
        self.span.set_attributes(outcome | details)
        if end.outcome in {"failed", "unknown"}:
            self.span.set_status(StatusCode.ERROR)
        self.span.end()
        if self.otel.instruments is not None:
            values = _attributes(operation=self.operation) | outcome
            self.otel.instruments.calls.record(end.duration, values)
