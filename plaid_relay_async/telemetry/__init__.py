"""What the package reports about its calls while they run, without secrets: to the log and to callbacks."""

from plaid_relay_async.telemetry.events import AttemptEnd, CallEnd
from plaid_relay_async.telemetry.logs import (
    BATCHES,
    CALLS,
    JOURNAL,
    PACKAGE,
    VARIABLE,
    Fields,
    call_fields,
    error_fields,
    fields_of,
    log,
    log_to_stderr_if_requested,
)
from plaid_relay_async.telemetry.observer import ObservedBatch, ObservedCall, Observer

__all__ = [
    "BATCHES",
    "CALLS",
    "JOURNAL",
    "PACKAGE",
    "VARIABLE",
    "AttemptEnd",
    "CallEnd",
    "Fields",
    "ObservedBatch",
    "ObservedCall",
    "Observer",
    "call_fields",
    "error_fields",
    "fields_of",
    "log",
    "log_to_stderr_if_requested",
]
