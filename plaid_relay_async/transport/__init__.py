"""From a call to its attempts: queueing, the wire, and whether to try again."""

from plaid_relay_async.transport.calls import MAX_RESPONSE_BYTES, Retry, Transport
from plaid_relay_async.transport.protocols import Permit, RateLimiter, Sink
from plaid_relay_async.transport.signing import Signer
from plaid_relay_async.transport.statistics import Statistics

__all__ = [
    "MAX_RESPONSE_BYTES",
    "Permit",
    "RateLimiter",
    "Retry",
    "Signer",
    "Sink",
    "Statistics",
    "Transport",
]
