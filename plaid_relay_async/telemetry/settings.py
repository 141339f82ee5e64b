"""`Telemetry`: where a client's traces and metrics go."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

if TYPE_CHECKING:  # OpenTelemetry may not be installed, and attrs doesn't evaluate these annotations
    from opentelemetry.metrics import MeterProvider  # noqa: TC004
    from opentelemetry.trace import TracerProvider  # noqa: TC004


@frozen(kw_only=True)
class Telemetry:
    """Settings of `RelayClient(telemetry=...)` for OpenTelemetry, which require the extra `otel`.

    Attributes:
        tracer_provider: receives the spans; `None` means the global provider.
        meter_provider: receives the metrics; `None` means the global provider.
        propagate: whether the headers `traceparent` and `tracestate` are sent with each request, so that a
            gateway, or Plaid, can continue the trace.
    """

    tracer_provider: TracerProvider | None = None
    meter_provider: MeterProvider | None = None
    propagate: bool = False
