"""`Telemetry`: where a client's traces and metrics go."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrs import Attribute, field, frozen

from plaid_relay_async.errors import ConfigurationError

if TYPE_CHECKING:  # OpenTelemetry may not be installed, and attrs doesn't evaluate these annotations
    from opentelemetry.metrics import MeterProvider  # noqa: TC004
    from opentelemetry.trace import TracerProvider  # noqa: TC004


def _is_provider(_: object, attribute: Attribute[Any], value: Any) -> None:
    method = "get_" + attribute.name.removesuffix("_provider")
    if value is not None and not callable(getattr(value, method, None)):
        raise ConfigurationError(f"{attribute.name} must have a method `{method}`, as OpenTelemetry's have")


@frozen(kw_only=True)
class Telemetry:
    """Settings of `RelayClient(telemetry=...)` for OpenTelemetry, which require the extra `otel`.

    Attributes:
        tracer_provider: receives the spans; `None` means the global provider.
        meter_provider: receives the metrics; `None` means the global provider.
        propagate: whether the headers `traceparent` and `tracestate` are sent with each request, so that a
            gateway, or Plaid, can continue the trace.

    Raises:
        ConfigurationError: a provider isn't one.
    """

    tracer_provider: TracerProvider | None = field(default=None, validator=_is_provider)
    meter_provider: MeterProvider | None = field(default=None, validator=_is_provider)
    propagate: bool = False
