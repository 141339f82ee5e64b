"""The spans of the gateway, by opentelemetry-api, which the extra `otel` installs.

Each call has a SERVER span in the trace of its caller, and a child span of kind CLIENT for its request to
Plaid. The request is also recorded in the metrics of a client's attempts. The spans follow OpenTelemetry's
conventions for HTTP. A caller can only choose the trace, and a method and a path from lists of known ones.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from plaid_relay_async.certainty import Certainty, certainty_of
from plaid_relay_async.codec import error_of_response
from plaid_relay_async.errors import PlaidRelayError
from plaid_relay_async.gateway.error_responses import UPSTREAM_LOST
from plaid_relay_async.telemetry import AttemptEnd, contain
from plaid_relay_async.telemetry.events import redact_id
from plaid_relay_async.telemetry.otel import CallTrace

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aiohttp import web

    from plaid_relay_async.gateway.audit import AuditRecord
    from plaid_relay_async.gateway.forward import TracedAttempt
    from plaid_relay_async.telemetry.otel import OpenTelemetry

_METHODS: Final = {"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"}
_PROPAGATOR: Final = TraceContextTextMapPropagator()


class Tracing:
    """Creates the spans of one gateway.

    Args:
        otel: the connection to OpenTelemetry.
        scheme: `http` or `https`, by which callers reach the gateway.
        host: the address that the gateway listens on.
    """

    def __init__(self, otel: OpenTelemetry, *, scheme: str, host: str) -> None:
        self._otel = otel
        self._call_attributes = {"url.scheme": scheme, "server.address": host}

    @contextlib.contextmanager
    def call_span(self, request: web.BaseRequest, record: AuditRecord) -> Iterator[None]:
        """Run the block in the SERVER span of a call, whose result is that of the audit record."""
        if not self._otel.is_active():
            yield
            return
        span, failure = self._start_call(request), None
        try:
            with trace.use_span(span, record_exception=False, set_status_on_exception=False):
                yield
        except BaseException as error:
            failure = type(error).__name__
            raise
        finally:
            try:
                _end_call(span, record, failure)
            except BaseException as error:  # noqa: BLE001  # of a processor of the program
                contain(error)

    def _start_call(self, request: web.BaseRequest) -> trace.Span:
        method = request.method if request.method in _METHODS else "_OTHER"
        # Only the IDs and the flags of the caller's trace are used. A `tracestate` or baggage may contain
        # anything, and would be exported or passed on.
        caller = _PROPAGATOR.extract({"traceparent": request.headers.get("traceparent", "")})
        attributes = {"http.request.method": method, **self._call_attributes}
        name = "HTTP" if method == "_OTHER" else method
        try:
            return self._otel.tracer.start_span(name, caller, trace.SpanKind.SERVER, attributes)
        except BaseException as error:  # noqa: BLE001  # of a sampler or a processor of the program
            contain(error)
            return trace.INVALID_SPAN

    @contextlib.contextmanager
    def attempt_span(self, attempt: TracedAttempt) -> Iterator[None]:
        """Run the block in the CLIENT span of an attempt at Plaid, and hide it from HTTP instrumentation."""
        if not self._otel.is_active():
            yield
            return
        call = CallTrace(self._otel, attempt.endpoint.path, trace.get_current_span())
        attempt.headers.update(call.start_attempt(0) or {})
        started_at = time.monotonic()
        certainty, error_class = "cancelled", None
        try:
            yield
            certainty, error_class = _result_of(_error_of_attempt(attempt))
        except PlaidRelayError as error:
            certainty, error_class = _result_of(error)
            raise
        finally:
            call.leave_attempt()
            duration = time.monotonic() - started_at
            call.end_attempt(_attempt_end(attempt, certainty, error_class, duration))


def _end_call(span: trace.Span, record: AuditRecord, failure: str | None) -> None:
    """End the span of a call.

    Args:
        span: the span.
        record: the audit record of the call.
        failure: the class of the exception that ended it, if there was one.
    """
    if record.operation is not None:
        span.update_name(f"POST {record.operation}")
    error_type = None
    # A rejected request isn't an error of the server. A response that broke off is one, whatever its status.
    if failure is not None or record.error_code == UPSTREAM_LOST.code or (record.status or 0) >= 500:
        error_type = record.error_code or failure or str(record.status)
        span.set_status(trace.StatusCode.ERROR)
    attributes: dict[str, Any] = {
        "http.route": record.operation,
        "http.response.status_code": record.status,
        "error.type": error_type,
        "plaid.caller": record.caller,
        "plaid.error_code": record.error_code,
        "plaid.request_id": redact_id(record.request_id),
        "plaid.delivered": record.delivered,
    }
    span.set_attributes({name: value for name, value in attributes.items() if value is not None})
    span.end()


def _error_of_attempt(attempt: TracedAttempt) -> PlaidRelayError | None:
    """Return the error that a client would raise for the response, or `None` if it is a success."""
    response = attempt.response
    assert response is not None  # noqa: S101  # otherwise the attempt has raised an error
    if 200 <= response.status < 300:
        return response.body_error
    return error_of_response(attempt.endpoint, response, ())


def _result_of(error: PlaidRelayError | None) -> tuple[str, str | None]:
    """Return the certainty of an attempt and the class of its error; `None` means that it succeeded."""
    if error is None:
        return Certainty.DEFINITIVE.value, None
    return certainty_of(error).value, type(error).__name__


def _attempt_end(
    attempt: TracedAttempt, certainty: str, error_class: str | None, duration: float
) -> AttemptEnd:
    return AttemptEnd(
        operation=attempt.endpoint.path,
        call_id="",
        batch_id=None,
        run=None,
        partner=None,
        attempt=1,
        status=None if attempt.response is None else attempt.response.status,
        error_code=error_class,
        request_id=None,
        certainty=certainty,
        duration=duration,
    )
