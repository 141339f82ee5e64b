"""What a transport works with and doesn't make: a limiter, a batch's permit, a place for a body."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from plaid_relay_async.codec import RawResponse
    from plaid_relay_async.errors import Hidden, PlaidRelayError


class RateLimiter(Protocol):
    """Anything that lets attempts through at a rate.

    A limiter may also have a plain method `limited(endpoint, retry_after)`, which is called on each 429.
    """

    def acquire(self, endpoint: str, /) -> Awaitable[object]:
        """Wait until one more attempt at the endpoint, such as `/credit/relay/create`, may be made.

        A client calls it for one attempt of an operation at a time, and not while the server's pause lasts.
        """
        ...


class AttemptGate(Protocol):
    """What a batch gives to a call that it makes: leave to send, and an ear for what became of an attempt.

    Attributes:
        patient: whether pauses are queueing, and count against neither time nor attempts.
    """

    bulk: bool

    @property
    def in_doubt(self) -> bool:
        """Whether the call was begun before, in another life, and nobody knows what became of that."""
        ...

    async def start_attempt(self) -> None:
        """An attempt is about to leave. May raise to forbid it."""
        ...

    def prepare_retry(self, error: PlaidRelayError, *, never_executed: bool) -> None:
        """The attempt ended so, and another is planned. May raise to forbid that.

        `spared` says that no attempt so far can have been carried out.
        """
        ...

    def attempt_interrupted(self, result: Any) -> None:
        """The call is being cancelled in the middle of an attempt: here is its response, or an error."""
        ...


class BodyWriter(Protocol):
    """Takes a body piece by piece."""

    async def start_response(self, response: RawResponse) -> bool:
        """An answer begins, of which there are status and headers: tell whether its body is wanted here.

        What an attempt before gave is worth nothing.
        """
        ...

    async def write(self, chunk: Hidden[bytes]) -> None:
        """Take the next piece."""
        ...
