"""Protocols of objects that callers pass to the transport: a rate limiter, a gate, a body writer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from plaid_relay_async.codec import RawResponse
    from plaid_relay_async.errors import PlaidRelayError
    from plaid_relay_async.redaction import Hidden
    from plaid_relay_async.telemetry import ObservedCall


class RateLimiter(Protocol):
    """An object that limits the rate of attempts.

    A limiter may also have a plain method `on_rate_limited(endpoint, retry_after)`, which the client
    calls after each 429 that declines an attempt, with the server's delay in seconds or `None`.
    """

    def acquire(self, endpoint: str, /) -> Awaitable[object]:
        """Wait until one more attempt at the endpoint, such as `/credit/relay/create`, may start.

        A client calls this for one attempt of an operation at a time, and not while a server's pause lasts.
        """
        ...


class AttemptGate(Protocol):
    """An object that permits or forbids each attempt of a call, in a batch or with a journal.

    The transport asks the gate before each attempt, and reports the attempt's end if a retry is planned or
    the call is cancelled. So it is known at any moment whether the call may be cancelled, or has an attempt
    in flight that must be waited for.

    Attributes:
        bulk: whether this is a bulk call. It lets interactive calls go first. Its waits for pauses and the
            adaptive rate don't count against its deadline, and its declined attempts don't count against the
            retry policy's `attempts`.
        observed: the call as the observer sees it. The gate reports the end of the call to it.
    """

    bulk: bool
    observed: ObservedCall

    @property
    def in_doubt(self) -> bool:
        """Whether an earlier attempt may have been executed: of this call, or one that a journal recorded."""
        ...

    async def start_attempt(self) -> None:
        """Prepare for an attempt that is sent next; raise to prevent it."""
        ...

    def prepare_retry(self, error: PlaidRelayError, *, in_doubt_error: PlaidRelayError | None) -> None:
        """Note that the attempt ended with an error and a retry is planned; raise to prevent the retry.

        `in_doubt_error` is the error of an attempt of the call that may have changed something, if there is
        one.
        """
        ...

    def attempt_interrupted(self, result: Any) -> None:
        """Note the result of an attempt during which the call is cancelled.

        `result` is a response, or the error of the call; a `NotSentError` means that the attempt wasn't sent.
        """
        ...


class BodyWriter(Protocol):
    """An object that receives the body of a response in chunks."""

    async def start_response(self, response: RawResponse) -> bool:
        """Return whether this object receives the body of a response whose status and headers have arrived.

        Discard what an earlier attempt has written.
        """
        ...

    async def write(self, chunk: Hidden[bytes]) -> None:
        """Write the next chunk."""
        ...
