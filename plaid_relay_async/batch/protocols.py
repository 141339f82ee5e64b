"""Protocols of the objects that a batch uses: a journal and its recorders."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Protocol

from attrs import frozen

if TYPE_CHECKING:
    from plaid_relay_async.errors import OutcomeUnknownError


@frozen(eq=False, repr=False)
class CallContext:
    """The context in which a journal records calls: for which account at Plaid, and with which settings.

    Attributes:
        host: the host of Plaid's API, or of the gateway or simulator that is called instead.
        get_client_id: returns the client ID, or `None` if a gateway adds it; raises `NotSentError` or
            `ConfigurationError` if the source of the credentials fails.
        max_request_seconds: the longest time for which a request may be in flight; `None` for no limit.
        legacy_host: the host as it is spelled in the base URL, which earlier versions recorded.
        retry_unknown: replaces the journal's setting, unless it is `None`.
        retry_failed: replaces the journal's setting, unless it is `None`.
    """

    host: str
    get_client_id: Callable[[], Awaitable[str | None]]
    max_request_seconds: float | None
    legacy_host: str | None = None
    retry_unknown: bool | None = None
    retry_failed: bool | None = None


class LostRaceError(Exception):
    """Only a new look-up of the pair can decide what happens to the call: acquire a new recorder.

    Another call has changed the pair since its look-up. Or the journal skipped the look-up, because it
    assumed that the pair is new, and either it isn't, or the request isn't attempted.
    """


class CallRecorder(Protocol):
    """A journal's recorder of one call.

    It holds the call's pair until it is released: meanwhile the journal object returns no other recorder for
    that pair. Another process may still change what is recorded of the pair; see `LostRaceError`.
    """

    @property
    def recorded_outcome(self) -> Any:
        """The outcome, if the journal has one already; then nothing is sent."""
        ...

    @property
    def earlier_in_doubt_error(self) -> OutcomeUnknownError | None:
        """The error of an earlier recorded attempt that ended in doubt, or `None`."""
        ...

    @property
    def journalled(self) -> bool:
        """Whether the journal records the outcome."""
        ...

    def request_to_send(self, request: Any) -> Any:
        """Return the request as it is sent; it may differ from the caller's, which outcomes have."""
        ...

    async def record_intent(self) -> None:
        """Record that an attempt is about to start; return once the record is durable.

        Raises:
            LostRaceError: the attempt must not start, and the call acquires a new recorder. Any other error
                stops the batch.
        """
        ...

    def record_outcome(self, outcome: Any) -> Awaitable[object]:
        """Record the outcome, durable once awaited; `None` records the request as not attempted.

        Only the recorder of a creation receives `None`: when the requests for its report have stopped, and
        none of its attempts was executed. The caller receives a `Failed`, and a later run makes the call. The
        awaitable may then raise `LostRaceError`. Any other error stops the batch.
        """
        ...

    def release(self) -> None:
        """Release the pair: the call has ended, with or without an outcome, or needs a new recorder.

        If the call was cancelled, the awaitable of `record_outcome` may not be done yet.
        """
        ...


class JournalProtocol(Protocol):
    """A durable record of creations and removals; `plaid_relay_async.journal.Journal` is one."""

    async def acquire_recorder(self, request: Any, context: CallContext) -> CallRecorder:
        """Return a recorder for a request; wait while another call is in progress for the same pair.

        Raises:
            NotSentError: the client ID isn't available; the call fails. Any other error stops the batch.
        """
        ...
