"""The transport turns a call into attempts: admission, the HTTP exchange, and retries."""

from plaid_relay_async.transport.authentication import Authenticator
from plaid_relay_async.transport.calls import MAX_RESPONSE_BYTES, Transport
from plaid_relay_async.transport.protocols import AttemptGate, BodyWriter, RateLimiter
from plaid_relay_async.transport.retries import Retry
from plaid_relay_async.transport.statistics import Statistics

__all__ = [
    "MAX_RESPONSE_BYTES",
    "AttemptGate",
    "Authenticator",
    "BodyWriter",
    "RateLimiter",
    "Retry",
    "Statistics",
    "Transport",
]
