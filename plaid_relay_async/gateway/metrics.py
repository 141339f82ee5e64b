"""Metrics for Prometheus, by prometheus_client, which the extra `gateway` installs.

Their names have the words of the client's metrics: operation, attempt, duration, in flight.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from plaid_relay_async.errors import ConfigurationError

try:
    import prometheus_client
except ModuleNotFoundError:  # the extra `gateway` isn't installed
    prometheus_client = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from collections.abc import Callable

    from plaid_relay_async.gateway.audit import AuditRecord


class Metrics:
    """The metrics of one gateway.

    Each gateway has a separate registry, because a program may run several.

    Args:
        in_flight: returns how many attempts at Plaid are in flight.
        connections: returns how many connections of callers are open.

    Raises:
        ConfigurationError: the extra `gateway` isn't installed.
    """

    def __init__(self, in_flight: Callable[[], float], connections: Callable[[], float]) -> None:
        if prometheus_client is None:
            raise ConfigurationError("metrics need the extra: pip install 'plaid_relay_async[gateway]'")
        self._generate = prometheus_client.generate_latest
        self._registry = registry = prometheus_client.CollectorRegistry()
        self._operations = prometheus_client.Counter(
            "plaid_gateway_operations",
            "Operations that have ended.",
            ("caller", "operation", "status", "error_code"),
            registry=registry,
        )
        self._duration = prometheus_client.Histogram(
            "plaid_gateway_operation_duration_seconds",
            "Duration of operations in seconds.",
            ("operation",),
            buckets=(0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120),
            registry=registry,
        )
        for name, text, count in (
            ("plaid_gateway_attempts_in_flight", "Attempts at Plaid in flight.", in_flight),
            ("plaid_gateway_connections", "Open connections of callers.", connections),
        ):
            prometheus_client.Gauge(name, text, registry=registry).set_function(count)

    def count_call(self, record: AuditRecord) -> None:
        """Count a call that has ended."""
        # An unauthenticated caller can't choose the value of a label: each value stays in memory permanently.
        operation = record.operation or ""
        self._operations.labels(
            record.caller or "", operation, record.status or "", record.error_code or ""
        ).inc()
        self._duration.labels(operation).observe(record.seconds)

    def render_text(self) -> bytes:
        """Return all metrics in Prometheus's text format."""
        return self._generate(self._registry)
