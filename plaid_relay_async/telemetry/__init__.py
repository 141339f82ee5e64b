"""Reports about calls while they run: to the log, to callbacks and to OpenTelemetry."""

from plaid_relay_async.telemetry.containment import contain
from plaid_relay_async.telemetry.events import AttemptEnd, CallEnd
from plaid_relay_async.telemetry.logs import (
    BATCHES,
    CALLS,
    JOURNAL,
    PACKAGE,
    VARIABLE,
    Fields,
    error_fields,
    fields_of,
    log,
    log_to_stderr_if_requested,
)
from plaid_relay_async.telemetry.observer import (
    CallGroup,
    ObservedCall,
    Observer,
    connect_client,
    connect_journal,
)
from plaid_relay_async.telemetry.settings import Telemetry

__all__ = [
    "BATCHES",
    "CALLS",
    "JOURNAL",
    "PACKAGE",
    "VARIABLE",
    "AttemptEnd",
    "CallEnd",
    "CallGroup",
    "Fields",
    "ObservedCall",
    "Observer",
    "Telemetry",
    "connect_client",
    "connect_journal",
    "contain",
    "error_fields",
    "fields_of",
    "log",
    "log_to_stderr_if_requested",
]
